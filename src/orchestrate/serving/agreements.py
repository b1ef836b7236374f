"""Base model licenses that must be accepted, and the home folder's record of who accepted them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from orchestrate.catalog.models import License
from orchestrate.core.files import write_whole
from orchestrate.errors import UsageError

_AGREED = "licences.json"  # in home folders since before the spelling changed


class LicenseNotAccepted(UsageError):
    """Raised if the base model's license must be accepted and this home folder doesn't record that it was.
    Nothing was written or served."""

    def __init__(self, license: License, base: str) -> None:
        asks = "".join(f"\n  - {ask}" for ask in license.asks)
        super().__init__(
            f"{base} is licensed under the {license.title}. If you merge, distribute or serve the model, "
            f"this license requires:{asks}" + (f"\n  {license.url}" if license.url else ""),
            fix=f"read the license and, if you agree, pass --accept-license {license.id}",
        )
        self.license = license


def require(license: License | None, base: str, home: Path, accepted: Sequence[str], by: str) -> None:
    """Require that the user has accepted the base model's license. If the license is in `accepted`, records
    this in the home folder. Raises `LicenseNotAccepted` if acceptance is required and is neither given nor
    recorded."""
    if license is None or agreed(license, home):
        return
    if license.id not in accepted:
        raise LicenseNotAccepted(license, base)
    file = home / _AGREED
    known = _read(file)
    known[license.id] = {"by": by, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    write_whole(file, msgspec.json.format(msgspec.json.encode(known), indent=2), private=True)


def agreed(license: License, home: Path) -> bool:
    """Return True if the license doesn't have to be accepted, or if this home folder records that it was."""
    return not license.asks or license.id in _read(home / _AGREED)


def _read(file: Path) -> dict[str, dict[str, str]]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, str]])
    except (OSError, msgspec.MsgspecError):
        return {}
