"""Read the parts of a provenance record that inference needs. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec


def read_provenance(adapter: Path | None) -> dict[str, Any]:
    """Read the provenance record that training wrote next to its result. Returns an empty record if there is
    none."""
    if adapter is None:
        return {}
    try:
        return msgspec.json.decode((adapter / "passport.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return {}


def table_in(provenance: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the named table from a provenance record, or an empty table if there is none."""
    value = provenance.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def trained_in_four_bit(provenance: Mapping[str, Any]) -> bool | None:
    """Return whether an adapter was trained on a 4-bit base, or `None` if its provenance record does not
    say."""
    adapter = table_in(provenance, "adapter")
    return adapter.get("type") == "qlora" if adapter else None


def four_bit_of(asked: bool | None, tuned: Sequence[Path | None]) -> bool | None:
    """Return whether to load the base of these tuned models in 4-bit. If `asked` is set, returns it.
    Otherwise, the provenance records decide: True if every model was trained on a 4-bit base, `None` if no
    record says, and False in all other cases."""
    if asked is not None:
        return asked
    known = [trained_in_four_bit(read_provenance(one)) for one in tuned]
    return None if all(one is None for one in known) else all(known)
