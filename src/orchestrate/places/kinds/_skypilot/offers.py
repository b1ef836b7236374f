"""What SkyPilot's catalogs offer, as machines to choose of."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from orchestrate import costing
from orchestrate.places.base import Hourly, Machine
from orchestrate.types import Record


class Listed(Record, frozen=True, kw_only=True):
    """What the clouds offer, as it was read last."""

    at: datetime
    machines: tuple[Machine, ...]


def cheapest(offers: list[dict[str, Any]], now: datetime) -> tuple[Machine, ...]:
    """One machine for each GPU and number of it, at the least that any cloud asks."""
    kinds: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for one in offers:
        if one["count"] >= 1 and one["count"] == int(one["count"]):
            kinds.setdefault((str(one["gpu"]), int(one["count"])), []).append(one)
    found: list[Machine] = []
    for (gpu, count), same in sorted(kinds.items()):
        memory = next((one["memory_gib"] for one in same if one["memory_gib"]), None)
        known = costing.gpu_memory_gb(gpu)
        size = memory * 2**30 if memory else known * 1e9 if known else None
        found.append(
            Machine(
                name=f"{gpu}:{count}",
                gpu=gpu,
                count=count,
                memory_bytes=None if size is None else int(size),
                hourly=_least(same, "price", now),
                spot=_least(same, "spot_price", now),
            )
        )
    return tuple(found)


def _least(offers: list[dict[str, Any]], field: str, now: datetime) -> Hourly | None:
    priced = [one for one in offers if one[field]]
    if not priced:
        return None
    best = min(priced, key=lambda one: one[field])
    where = f"{best['cloud']} {best['region']}"
    source = f"SkyPilot's catalog of {best['cloud']}"
    return Hourly(usd_per_hour=Decimal(str(best[field])), machine=where, source=source, as_of=now)


def known() -> tuple[Machine, ...]:
    """Where nothing was ever read: what is rented most, without a price."""
    sizes = {"L4": 24, "L40S": 48, "A100-80GB": 80, "H100": 80, "H200": 141, "B200": 180}
    return tuple(
        Machine(name=f"{gpu}:1", gpu=gpu, count=1, memory_bytes=int(gigabytes * 1e9))
        for gpu, gigabytes in sizes.items()
    )
