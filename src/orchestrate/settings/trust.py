"""Decide which settings of a project's `orchestrate.toml` require the user's trust.

A project's file is one that Orchestrate finds in the working folder or above it. Anyone may have written it:
it may come with a clone, a pull request or a shared folder. Without trust, it may only set what `OPEN` lists.
`FIGURES` affect spending. They are displayed, and require trust before anything that bills. All other
settings, and all settings in another user's file, require trust before any command starts, reads or sends
anything.

`orchestrate keys trust --project` trusts the file's current content. If the file changes, it must be trusted
again. A file that the user names (--config, ORCHESTRATE_CONFIG) requires no trust.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate.core.files import locked, write_whole
from orchestrate.errors import ConfigError, ProjectNotTrusted
from orchestrate.profile import built_in_folders
from orchestrate.settings import pin_file
from orchestrate.types import decoding

OPEN = {
    ("log_level",),
    ("queue", "*"),
    ("local", "threads"),
    ("local", "device"),
    ("local", "gpu_memory_gib"),
    ("hosts", "*"),
    ("hosts", "*", "timeout_s"),
    ("hosts", "*", "options", "threads"),
    ("hosts", "*", "options", "device"),
    ("hosts", "*", "options", "gpu_memory_gib"),
    ("hosts", "*", "options", "retry_budget_s"),
    ("hosts", "*", "options", "multipart_bytes"),
    ("hosts", "*", "options", "part_bytes"),
}
"""Settings that a project may set without trust, because they don't start or redirect anything and don't
affect spending. Settings of a host are only included if the host is built in. A host's address is not
included, because Orchestrate would contact it."""
FIGURES = {("budget_usd",), ("local", "prices"), ("hosts", "*", "options", "prices")}
RATES = "rates.yaml"
"""File name of a project's own prices, in the same folder as its `orchestrate.toml`."""


class _TrustFile(msgspec.Struct):
    files: dict[str, str] = {}
    """SHA-256 hashes, keyed by absolute path."""


class Trusted:
    """The list of trusted files, stored in a file that is created on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lacks(self, files: tuple[Path, ...]) -> list[Path]:
        """Return the files that are not trusted, or that have changed since they were trusted."""
        known = self._read().files
        return [path for path in files if known.get(_name(path)) != _digest(path)]

    def add(self, files: tuple[Path, ...]) -> None:
        """Add files to the list. Raises `OSError` if the list cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.path.with_suffix(".lock"), wait_s=None):
            known = self._read()
            known.files |= {_name(path): _digest(path) for path in files}
            write_whole(self.path, msgspec.json.format(msgspec.json.encode(known)), private=True)

    def _read(self) -> _TrustFile:
        try:
            return decoding.decode(self.path.read_bytes(), type=_TrustFile)
        except FileNotFoundError:
            return _TrustFile()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path} cannot be read: {error}", fix=f"rm {self.path}") from error


class Project:
    """A project's file and its settings, keyed by dotted name."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        settings, foreign = dict(_settings(values)), _of_another_user(path)
        figures = {place for place in settings if not foreign and _among(place, FIGURES)}
        self.figures = {_dotted(place): settings[place] for place in figures}
        """Settings that require trust before anything that bills."""
        closed = {place for place in settings if foreign or not _among(place, OPEN | FIGURES)}
        self.closed = {_dotted(place): settings[place] for place in closed}
        """Settings that always require trust."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files that need to be trusted."""
        rates = self.path.with_name(RATES)
        own = (self.path,) if self.figures or self.closed else ()
        return (*own, rates) if rates.is_file() else own

    def require(self, trusted: Trusted) -> None:
        """Raise `ProjectNotTrusted` if the file is not trusted and has settings that always require trust."""
        if self.closed and trusted.lacks((self.path,)):
            raise ProjectNotTrusted([str(self.path)], sorted(self.closed))

    def require_to_spend(self, trusted: Trusted) -> None:
        """Raise `ProjectNotTrusted` if a file that affects spending is not trusted."""
        if lacking := trusted.lacks(self.files):
            names = sorted(self.figures) if self.path in lacking else []
            raise ProjectNotTrusted([str(path) for path in lacking], names)


def trusted_in(pins: Path | None = None) -> Trusted:
    """Return the list of trusted files that is stored next to the user's keys."""
    return Trusted((pins or pin_file()).with_name("trusted.json"))


# -- the decision ------------------------------------------------------------------------------------------


Place = tuple[str, ...]
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def _settings(values: Mapping[str, Any], *above: str) -> Iterator[tuple[Place, Any]]:
    """Yield each setting's place and value. A named host counts as a setting even if its table is empty."""
    for name, value in values.items():
        place = (*above, name)
        if not isinstance(value, dict):
            yield place, value
        elif value:
            yield from _settings(cast("Mapping[str, Any]", value), *place)
        elif place[0] == "hosts":
            yield place, "{}"


def _among(place: Place, allowed: Set[Place]) -> bool:
    match place:
        case ("hosts", host, *below):
            return host in built_in_folders() and ("hosts", "*", *below) in allowed
        case ("queue", _):
            return ("queue", "*") in allowed
        case _:
            return place in allowed


def _dotted(place: Place) -> str:
    return ".".join(part if _BARE.fullmatch(part) else json.dumps(part) for part in place)


def _of_another_user(path: Path) -> bool:
    return hasattr(os, "geteuid") and path.stat().st_uid != os.geteuid()


def _name(path: Path) -> str:
    """Return the file's own path. A link to a trusted file counts as another file, because its relative paths
    start elsewhere."""
    return str(path.parent.resolve() / path.name)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
