"""The hosts' own lists of models, as catalog records. A field that a list does not tell stays empty or
unconfirmed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from typing import Any, cast

from orchestrate.catalog import HostModel, search


def together_models(rows: Iterable[Mapping[str, Any]]) -> list[HostModel]:
    """`GET /v2/supported-models?product=PRODUCT_FINE_TUNING`. The id or, where only that is one of the
    catalog's, the name is the name for tuning."""
    known = {m.hosts["together"].id for m in search(provider="together")}
    found: list[HostModel] = []
    for row in rows:
        names = [str(row[field]) for field in ("id", "name") if row.get(field)]
        if names:
            id = next((name for name in names if name in known), names[-1])
            gone = row.get("status") == "SUPPORTED_MODEL_STATUS_HIDDEN"
            found.append(HostModel(id=id, tunable="no" if gone else "yes"))
    return found


def fireworks_models(rows: Iterable[Mapping[str, Any]]) -> list[HostModel]:
    """`GET /v1/accounts/fireworks/models`: `tunable`, `rlTunable`, `trainingContextLength`,
    `deprecationDate`."""
    found: list[HostModel] = []
    for row in rows:
        if not row.get("name"):
            continue
        details: Mapping[str, Any] = row.get("baseModelDetails") or {}
        context = int(row.get("trainingContextLength") or 0)
        tunable = bool(row.get("tunable") or details.get("tunable"))
        found.append(
            HostModel(
                id=str(row["name"]),
                tunable="yes" if tunable else "no",
                methods=("sft", "dpo", "rft") if row.get("rlTunable") else ("sft", "dpo"),
                context=(context, context) if context else None,
                shutdown=_day(row.get("deprecationDate")),
            )
        )
    return found


def _day(value: Any) -> date | None:
    """A date as text (with or without a time) or as `{year, month, day}`; `None` for anything else."""
    with suppress(ValueError, TypeError, KeyError):
        if isinstance(value, Mapping):
            day = cast("Mapping[str, int]", value)
            return date(int(day["year"]), int(day["month"]), int(day["day"]))
        return date.fromisoformat(str(value)[:10]) if value else None
    return None
