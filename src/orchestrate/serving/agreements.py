"""Licenses of base models that have requirements, and who accepted them here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from orchestrate.catalog.models import Licence
from orchestrate.core.files import write_whole
from orchestrate.errors import UsageError


class LicenceAsks(UsageError):
    """Raised if the base model's license has requirements that nobody here has accepted. Nothing was written
    or served."""

    def __init__(self, licence: Licence, base: str) -> None:
        asks = "".join(f"\n  - {ask}" for ask in licence.asks)
        super().__init__(
            f"{base} is under the {licence.title}. If you merge, distribute or serve it, the "
            f"license requires:{asks}" + (f"\n  {licence.url}" if licence.url else ""),
            fix=f"read the license and, if you agree, pass --accept-license {licence.id}",
        )
        self.licence = licence


def require(licence: Licence | None, base: str, home: Path, accepted: Sequence[str], by: str) -> None:
    """Return if the license requires nothing, is among `accepted`, or was accepted before, because each home
    folder asks only once. Raises `LicenceAsks` otherwise."""
    if licence is None or agreed(licence, home):
        return
    if licence.id not in accepted:
        raise LicenceAsks(licence, base)
    file = home / "licences.json"
    known = _read(file)
    known[licence.id] = {"by": by, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    write_whole(file, msgspec.json.format(msgspec.json.encode(known), indent=2), private=True)


def agreed(licence: Licence, home: Path) -> bool:
    """Return whether the license requires no agreement, or someone has already agreed to it here."""
    return not licence.asks or licence.id in _read(home / "licences.json")


def _read(file: Path) -> dict[str, dict[str, str]]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, str]])
    except (OSError, msgspec.MsgspecError):
        return {}
