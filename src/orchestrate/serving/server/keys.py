"""Keys of a server's clients: made here, shown once, kept as hashes."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from hmac import compare_digest
from pathlib import Path

import msgspec

from orchestrate.core.files import write_whole
from orchestrate.errors import ConfigError, UsageError

PREFIX = "orc-"


def path_of(home: Path) -> Path:
    return home / "serve-keys.json"


def read(home: Path) -> dict[str, str]:
    """Name -> hash; empty where no key was made. Raises `ConfigError`."""
    path = path_of(home)
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", fix="remove it and make new keys") from error


def make(home: Path, name: str) -> str:
    """A new key, in the place of an older one of the same name. It cannot be shown again. Raises
    `UsageError`."""
    if not name.strip():
        raise UsageError("a key needs a name: whose it is")
    key = PREFIX + secrets.token_urlsafe(32)
    _write(home, {**read(home), name: hashed(key)})
    return key


def revoke(home: Path, name: str) -> None:
    """Raises `UsageError` for a name without a key."""
    known = read(home)
    if known.pop(name, None) is None:
        raise UsageError(f"no key is called {name!r}; there are: {', '.join(known) or 'none'}")
    _write(home, known)


def _write(home: Path, keys: Mapping[str, str]) -> None:
    write_whole(path_of(home), msgspec.json.encode(keys), private=True)


def hashed(key: str) -> str:
    """Keys are random, so one round without salt is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def holder(keys: Mapping[str, str], key: str) -> str | None:
    """Whose key it is."""
    given = hashed(key)
    found = [name for name, known in keys.items() if compare_digest(given, known)]
    return found[0] if found else None
