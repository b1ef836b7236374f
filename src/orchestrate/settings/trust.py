"""Which files of projects may say what is spent: their prices, their store and their budget.

A project's folder comes from others. With a price of nothing, a store of its own or a budget without end it
would take away what its user's own settings hold. So each such file is trusted as it lies, by its content,
before a job that is paid for is made (`orchestrate keys trust --project`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.errors import ConfigError, ProjectNotTrusted
from orchestrate.files import locked, write_whole
from orchestrate.settings.keys import read_toml
from orchestrate.types import decoding

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider
    from orchestrate.settings.config import Settings


_LEADING = {"prices", "usd_per_hour", "depot", "address", "image", "pass_env"}
"""Options of a host that say what is spent, or where data and keys go."""


class _File(msgspec.Struct):
    files: dict[str, str] = {}
    """sha256 by full path."""


class Trusted:
    """The list in one file, which is made when something is trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lacks(self, files: tuple[Path, ...]) -> list[Path]:
        """Those that were never trusted, or have changed since."""
        known = self._read().files
        return [path for path in files if known.get(str(path.resolve())) != _digest(path)]

    def add(self, files: tuple[Path, ...]) -> None:
        """Raises `OSError` when the list cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.path.with_suffix(".lock"), wait_s=None):
            known = self._read()
            known.files |= {str(path.resolve()): _digest(path) for path in files}
            write_whole(self.path, msgspec.json.format(msgspec.json.encode(known)), private=True)

    def _read(self) -> _File:
        try:
            return decoding.decode(self.path.read_bytes(), type=_File)
        except FileNotFoundError:
            return _File()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path} cannot be read: {error}", fix=f"rm {self.path}") from error


def deciding(settings: Settings) -> tuple[Path, ...]:
    """The files found beside the work, not named by the user, that say what is spent."""
    path = settings.config_file
    if path is None or settings.config_named:
        return ()
    values = read_toml(path)
    hosts: dict[str, dict[str, Any]] = values.get("hosts", {})
    leading = any(_LEADING & host.get("options", {}).keys() for host in hosts.values())
    own = [path] if leading or {"home", "store", "budget_usd"} & values.keys() else []
    rates = path.with_name("rates.yaml")
    return (*own, rates) if rates.is_file() else tuple(own)


def trusted(settings: Settings) -> Trusted:
    return Trusted(settings.pins.with_name("trusted.json"))


def require(settings: Settings) -> None:
    """Raises `ProjectNotTrusted` when a file of the project says what is spent and was not trusted."""
    files = deciding(settings)
    if files and (lacking := trusted(settings).lacks(files)):
        raise ProjectNotTrusted([str(path) for path in lacking])


def require_to_spend(settings: Settings, *backends: Provider) -> None:
    """As `require`, before something is sent that one of these backends may bill: not for a sandbox, nor for
    this machine."""
    if any(not (backend.sandbox or backend.profile.near) for backend in backends):
        require(settings)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
