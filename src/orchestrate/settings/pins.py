"""Which hosts each API key may go to: a key is tied to the host that it was first used with.

A base URL can be changed by whatever a project brings along: an `orchestrate.toml`, an `.envrc`. The key that
follows it there is lost. So the first use of a key remembers the host, and another host is refused before
anything is sent, until the user allows it (`orchestrate keys trust`). The file holds no key: a key is known
by its HMAC under a random salt of the file.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Generator, Set
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from orchestrate.core.files import locked, write_whole
from orchestrate.errors import ConfigError, KeyElsewhere
from orchestrate.types import decoding


class _File(msgspec.Struct):
    salt: str
    pins: dict[str, list[str]] = {}
    """Hosts by the key's fingerprint."""


class Pins:
    """The pins in one file. Safe for many processes at once; a file that is gone starts anew."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def hosts(self, key: str) -> tuple[str, ...]:
        """Those to which the key may go; empty for one that was never used."""
        kept = self._read()
        return tuple(kept.pins.get(_fingerprint(kept, key), ())) if kept else ()

    def require(
        self, key: str, provider: str, url: str, *, ask: bool = False, family: Set[str] = frozenset()
    ) -> bool:
        """Lets the key go to the URL's host, or raises `KeyElsewhere`. True at its first use, which is
        remembered. With `ask` a first use is refused as well: the URL came from a project's file. `family`
        has the hosts of one owner, between which a key may move."""
        host, known = origin(url), self.hosts(key)
        if not known and not ask:
            known = self._tie(key, host)
            if not known:
                return True
        if host not in known and not (host in family and family & {*known}):
            raise KeyElsewhere(provider, host, known)
        return False

    def allow(self, key: str, url: str) -> None:
        """Adds the URL's host to those of the key. Raises `OSError` when the file cannot be written."""
        with self._locked():
            kept = self._read() or _File(salt=secrets.token_hex(32))
            mark = _fingerprint(kept, key)
            kept.pins[mark] = sorted({*kept.pins.get(mark, ()), origin(url)})
            self._write(kept)

    def _tie(self, key: str, host: str) -> tuple[str, ...]:
        """Ties a key to its first host, unless another process was faster: then its hosts. Where nothing can
        be written, as in a container that is thrown away, every use is the first."""
        try:
            with self._locked():
                kept = self._read() or _File(salt=secrets.token_hex(32))
                mark = _fingerprint(kept, key)
                if known := kept.pins.get(mark):
                    return tuple(known)
                kept.pins[mark] = [host]
                self._write(kept)
        except OSError:
            pass
        return ()

    def _read(self) -> _File | None:
        try:
            kept = decoding.decode(self.path.read_bytes(), type=_File)
            bytes.fromhex(kept.salt)
            return kept
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            raise ConfigError(
                f"{self.path}, which ties keys to hosts, cannot be read: {error}",
                fix=f"rm {self.path}   (each key is then tied again at its next use)",
            ) from error

    def _write(self, kept: _File) -> None:
        write_whole(self.path, msgspec.json.format(msgspec.json.encode(kept)), private=True)

    @contextmanager
    def _locked(self) -> Generator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.path.with_suffix(".lock"), wait_s=None):
            yield


def origin(url: str) -> str:
    """Scheme, host and port: `https://api.openai.com`."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port not in (None, 443 if parts.scheme == "https" else 80) else ""
    name = parts.hostname or ""
    return f"{parts.scheme}://{f'[{name}]' if ':' in name else name}{port}"


def _fingerprint(kept: _File, key: str) -> str:
    return hmac.new(bytes.fromhex(kept.salt), key.encode(), hashlib.sha256).hexdigest()[:32]
