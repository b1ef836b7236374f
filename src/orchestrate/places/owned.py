"""A machine that no list of a host tells of: what a worker gets of a cluster, as the configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from orchestrate import costing
from orchestrate.errors import ConfigError
from orchestrate.places.base import Hourly, Machine
from orchestrate.places.order import gpu_asked

NAME = "a worker"
OPTIONS = ("gpu", "gpu_memory_gib", "usd_per_hour")


def machine(name: str, options: Mapping[str, Any]) -> Machine:
    """By `OPTIONS` of the options of the backend `name`; without a `gpu` a
    worker gets a CPU."""
    gpu, count = gpu_asked(str(options["gpu"])) if options.get("gpu") else (None, 0)
    return Machine(
        name=NAME,
        gpu=gpu,
        count=count,
        memory_bytes=_memory(gpu, name, options) if gpu else None,
        hourly=hourly(name, options),
    )


def hourly(name: str, options: Mapping[str, Any]) -> Hourly | None:
    """`None` where nothing is said. Raises `ConfigError`."""
    if options.get("usd_per_hour") is None:
        return None
    price = _number(name, options, "usd_per_hour")
    source = f"hosts.{name}.options.usd_per_hour"
    return Hourly(usd_per_hour=price, machine=NAME, source=source, as_of=datetime.now(UTC))


def _memory(gpu: str, name: str, options: Mapping[str, Any]) -> int | None:
    """As it is given, or as the maker's data sheet has it."""
    if options.get("gpu_memory_gib") is not None:
        return int(_number(name, options, "gpu_memory_gib") * 2**30)
    known = costing.gpu_memory_gb(gpu)
    return None if known is None else int(known * 1e9)


def _number(name: str, options: Mapping[str, Any], field: str) -> Decimal:
    try:
        found = Decimal(str(options[field]))
    except InvalidOperation:
        found = Decimal("NaN")
    if isinstance(options[field], bool) or not found.is_finite() or found < 0:
        raise ConfigError(f"hosts.{name}.options.{field} must be a number, got {options[field]!r}")
    return found
