"""Base model licenses that must be accepted, and the home folder's record of who accepted them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from orchestrate.catalog.models import Licence
from orchestrate.core.files import write_whole
from orchestrate.errors import UsageError


class LicenceAsks(UsageError):
    """Raised if the base model's license must be accepted and this home folder doesn't record that it was.
    Nothing was written or served."""

    def __init__(self, licence: Licence, base: str) -> None:
        asks = "".join(f"\n  - {ask}" for ask in licence.asks)
        super().__init__(
            f"{base} is licensed under the {licence.title}. If you merge, distribute or serve the model, "
            f"this license requires:{asks}" + (f"\n  {licence.url}" if licence.url else ""),
            fix=f"read the license and, if you agree, pass --accept-license {licence.id}",
        )
        self.licence = licence


def require(licence: Licence | None, base: str, home: Path, accepted: Sequence[str], by: str) -> None:
    """Require that the user has accepted the base model's license. If the license is in `accepted`, records
    this in the home folder. Raises `LicenceAsks` if acceptance is required and is neither given nor
    recorded."""
    if licence is None or agreed(licence, home):
        return
    if licence.id not in accepted:
        raise LicenceAsks(licence, base)
    file = home / "licences.json"
    known = _read(file)
    known[licence.id] = {"by": by, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    write_whole(file, msgspec.json.format(msgspec.json.encode(known), indent=2), private=True)


def agreed(licence: Licence, home: Path) -> bool:
    """Return True if the license doesn't have to be accepted, or if this home folder records that it was."""
    return not licence.asks or licence.id in _read(home / "licences.json")


def _read(file: Path) -> dict[str, dict[str, str]]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, str]])
    except (OSError, msgspec.MsgspecError):
        return {}
