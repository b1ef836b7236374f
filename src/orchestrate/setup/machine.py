"""This machine as a backend: how fast it trains, and what fits into its memory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec.structs import replace

from orchestrate import catalog
from orchestrate.errors import UsageError
from orchestrate.local.model import engines
from orchestrate.local.plan import fitting, memory
from orchestrate.local.plan.memory import Setup as Setup
from orchestrate.local.plan.sizes import Shape
from orchestrate.local.plan.throughput import bench_file as bench_file
from orchestrate.local.speed.measuring import measure as measure
from orchestrate.profile import this_machine

if TYPE_CHECKING:
    from orchestrate.types import MemoryPlan


def memory_plan(
    model: str, setup: Setup, *, device: str | None = None, available_bytes: int | None = None
) -> MemoryPlan:
    """The memory that training a model needs. `model`: a catalog name, a model folder, or a size such as
    `8B`; the precision of `setup` may be `auto`. `available_bytes`: of the device; `None` looks at this
    machine. Offline. Raises `UsageError` for a model of unknown size."""
    device = engines.expected_device(device)
    products = engines.precision(setup.precision, device, full=setup.adapter == "full")
    shape, remark = _shape(model)
    setup = replace(setup, precision=products.name)
    plan = memory.plan(shape, setup, device=device, available_bytes=available_bytes)
    return replace(plan, notes=(*plan.notes, remark)) if remark else plan


def _shape(model: str) -> tuple[Shape, str | None]:
    """The model's shape, and a remark when it is a usual one of its size."""
    if size := re.fullmatch(r"(\d+(?:\.\d+)?)[bB]", model):
        return Shape.like(float(size.group(1)) * 1e9), "a usual shape of this size"
    resolved = catalog.resolve(model, this_machine().kind)
    found = fitting.shape_of(resolved.id, resolved.params_b)
    if found is None:
        raise UsageError(f"the size of {model} is not known", fix="give a model folder, or a size such as 8B")
    return found
