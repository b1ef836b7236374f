"""What training wrote beside its result, as far as answering needs it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec


def read_passport(adapter: Path | None) -> dict[str, Any]:
    """What training wrote beside its result; empty where there is none."""
    if adapter is None:
        return {}
    try:
        return msgspec.json.decode((adapter / "passport.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return {}


def table_in(passport: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of a passport; empty where it has none."""
    value = passport.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def trained_in_four_bit(passport: Mapping[str, Any]) -> bool | None:
    """Whether an adapter was trained on its base in 4 bits; `None` where its passport does not say."""
    adapter = table_in(passport, "adapter")
    return adapter.get("type") == "qlora" if adapter else None


def four_bit_of(asked: bool | None, tuned: Sequence[Path | None]) -> bool | None:
    """Whether the base under these tuned models answers in 4 bits: as asked, else as all of them were
    trained; `None` where neither says, and its size decides."""
    if asked is not None:
        return asked
    known = [trained_in_four_bit(read_passport(one)) for one in tuned]
    return None if all(one is None for one in known) else all(known)
