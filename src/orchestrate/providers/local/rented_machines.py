"""Selection of the machine for a remote run: the requested machine, or the cheapest one that the run fits
on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from orchestrate.core.amounts import amount
from orchestrate.errors import UsageError
from orchestrate.local.plan import memory_fit, throughput
from orchestrate.places.base import SILENCE_S, Hourly, Machine, Resources, WorkerLimits
from orchestrate.places.manifest import parse_gpu
from orchestrate.profile import RENTED as OPTIONS
from orchestrate.providers.local import translation
from orchestrate.spec import JobSpec
from orchestrate.text import count, money, size
from orchestrate.types import MemoryPlan, Outcome, Setting

MOST_HOURS = 24.0
"""Default time limit in hours. It ensures that every run has a maximum cost."""


DEVICE = "device"
"""Engine option whose value follows from the selected machine."""
MACHINE_OPTIONS = (*OPTIONS, DEVICE)
CAPABILITY = {"T4": 7.5, "V100": 7.0, "P100": 6.0}
"""Compute capabilities of the GPU types that lack bf16 arithmetic. On these, the engine trains in fp16."""


class Fit(NamedTuple):
    """A machine and the job's memory plan for it. The plan is `None` if the model's size is unknown."""

    machine: Machine
    plan: MemoryPlan | None
    operations: float
    """Operations per second that this machine performs during a training step of the job."""
    shared: MemoryPlan | None = None
    """Per-GPU memory plan with sharded weights. Set only if the job does not fit on one GPU and the machine
    has several."""

    @property
    def fits_in_shares(self) -> bool:
        return self.shared is not None and self.shared.fits is True

    @property
    def fits(self) -> bool:
        return self.plan is not None and self.plan.fits is True

    @property
    def usd_per_work(self) -> Decimal:
        """Hourly price in US dollars divided by operations per second. Used to compare machines."""
        hourly = self.machine.hourly
        return Decimal("Infinity") if hourly is None else hourly.usd_per_hour / Decimal(self.operations)


def fits(
    machines: tuple[Machine, ...],
    model: str,
    body: Mapping[str, Any],
    billions: float | None,
    operations: Callable[[str], float],
) -> list[Fit]:
    """Plan the job's memory on each machine, and return the results, cheapest first. Machines are compared by
    the cost of the same amount of work. `operations` takes a GPU type and returns its operations per
    second."""
    found: list[Fit] = []
    for machine in machines:
        here = dict(body) if machine.gpu else {**body, "device": "cpu", "precision": None}
        memory = machine.memory_bytes if machine.gpu else None
        plan, shared = memory_fit.of_job(model, here, billions=billions, gpu_bytes=memory), None
        if machine.count > 1 and plan is not None and plan.fits is False:
            spread = translation.spread(here, machine.count)
            if translation.unable(spread) is None:
                shared = memory_fit.of_job(model, spread, billions=billions, gpu_bytes=memory)
        work = operations(machine.gpu) if machine.gpu else throughput.CPU_THREAD_OPERATIONS
        found.append(Fit(machine, plan, work, shared))
    return sorted(found, key=lambda fit: fit.usd_per_work)


def chosen(asked: Mapping[str, Any], fitting_ones: list[Fit]) -> tuple[Machine | None, str]:
    """Return `(machine, reason)`: the selected machine and why it was selected. The machine is `None` if the
    backend has no list of machines. Raises `UsageError` if no machine meets the request."""
    wanted, most = asked.get("gpu", "auto"), _amount(asked, "max_usd_per_hour")
    if not fitting_ones:
        return None, "the backend chooses the machine"
    if wanted != "auto":
        gpu, number = (None, 0) if str(wanted).lower() == "none" else parse_gpu(str(wanted))
        named = [fit for fit in fitting_ones if fit.machine.name == wanted]
        alike = [fit for fit in fitting_ones if _is(fit.machine, gpu) and fit.machine.count == number]
        for fit in [*named, *alike]:
            _require_room(fit)
            return fit.machine, "set in the spec"
        known = ", ".join(dict.fromkeys(_name(fit.machine) for fit in fitting_ones))
        what = "machine without a GPU" if gpu is None else str(wanted)
        raise UsageError(f"this backend has no {what}", fix=f"set gpu to one of {known}, or auto")
    spot = asked.get("spot") is True
    there = [fit for fit in fitting_ones if fit.machine.spot is not None] if spot else fitting_ones
    if not there:
        raise UsageError("this backend has no spot instances", fix="spot: false")
    affordable = [fit for fit in there if most is None or _price(fit, spot=spot) <= most]
    cheap = [fit for fit in affordable if fit.machine.count <= 1]
    several = [fit for fit in affordable if fit.fits_in_shares]
    if not cheap and not several:
        raise UsageError(
            f"every machine costs more than {money(most)} per hour", fix="raise max_usd_per_hour"
        )
    for fit in cheap:
        if fit.machine.gpu and fit.fits:
            return fit.machine, "the lowest total cost among the machines that the run fits on"
    if several:
        least = min(several, key=lambda fit: _price(fit, spot=spot))
        why = "the cheapest machine with enough total GPU memory, because the run does not fit on one GPU"
        return least.machine, why
    largest = max(cheap, key=lambda fit: fit.machine.memory_bytes or 0)
    if largest.machine.gpu is None:
        return largest.machine, "the machine has no GPU"
    if largest.plan is not None and largest.plan.fits is None:
        return largest.machine, "the memory of its GPU is unknown"
    if largest.plan is not None:
        needed = size(largest.plan.total_bytes)
        raise UsageError(
            f"the run needs about {needed} of GPU memory, but no GPU here has that much"
            + (f" for {money(most)} per hour" if most is not None else ""),
            fix="; or ".join(largest.plan.advice) or "choose a smaller model",
        )
    return largest.machine, "the largest affordable machine, because the model's size is unknown"


def _require_room(fit: Fit) -> None:
    """Raise `UsageError` if the job fits on several GPUs neither as full copies nor in shards."""
    machine, plan = fit.machine, fit.plan
    if machine.count > 1 and plan is not None and plan.fits is False and not fit.fits_in_shares:
        needs = f"each of {machine.count} {machine.gpu} GPUs needs about {size(plan.total_bytes)}"
        each = f"{needs} for a full copy"
        if fit.shared is not None:
            each += f", or {size(fit.shared.total_bytes)} for a shard"
        least = fit.shared or plan
        raise UsageError(
            f"{each}, but {size(plan.available_bytes or 0)} is available",
            fix="; or ".join(["use more GPUs, or GPUs with more memory", *least.advice]),
        )


def _name(machine: Machine) -> str:
    if machine.gpu is None:
        return "none"
    return f"{machine.gpu}:{machine.count}" if machine.count > 1 else machine.gpu


def _is(machine: Machine, gpu: str | None) -> bool:
    if gpu is None or machine.gpu is None:
        return gpu is machine.gpu
    return set(gpu.upper().replace("-", " ").split()) <= set(machine.gpu.upper().replace("-", " ").split())


def _price(fit: Fit, *, spot: bool) -> Decimal:
    hourly = _hourly(fit.machine, spot=spot)
    return hourly.usd_per_hour if hourly else Decimal("Infinity")


def _hourly(machine: Machine, *, spot: bool) -> Hourly | None:
    return machine.spot if spot else machine.hourly


def resources(asked: Mapping[str, Any], machine: Machine | None, spec: JobSpec) -> Resources:
    """Parse the requested resources. Raises `UsageError` for an invalid value."""
    hours = _amount(asked, "max_hours")
    minutes = _amount(asked, "silence_minutes")
    spot = asked.get("spot", False)
    if not isinstance(spot, bool):
        raise UsageError(f"spot must be true or false, got {spot!r}")
    gpu, number = (machine.gpu, machine.count) if machine else (None, 0)
    if machine is None and asked.get("gpu", "auto") not in ("auto", "none"):
        gpu, number = parse_gpu(str(asked["gpu"]))
    if spot and machine is not None and machine.spot is None:
        reason = f"{machine.name} has no spot price, so it is not available as a spot instance"
        raise UsageError(reason, fix="set spot: false, or use another gpu")
    hourly = _hourly(machine, spot=spot) if machine else None
    return Resources(
        gpu=gpu,
        count=max(1, number),
        machine=machine.name if machine else None,
        spot=spot,
        min_processes=_least(asked),
        limits=WorkerLimits(
            max_hours=float(hours) if hours is not None else MOST_HOURS,
            max_usd=spec.max_cost_usd,
            usd_per_hour=hourly.usd_per_hour if hourly else None,
            most_usd_per_hour=_amount(asked, "max_usd_per_hour"),
            silence_s=float(minutes) * 60 if minutes is not None else SILENCE_S,
        ),
    )


def rows(asked: Mapping[str, Any], found: Resources, machine: Machine | None, why: str) -> list[Setting]:
    """Return the translation rows for the machine options: the selected machine, its price and its limits."""
    at = f" ({machine.name})" if machine and machine.name != machine.gpu else ""
    price = f", {money(found.limits.usd_per_hour)} per hour" if found.limits.usd_per_hour is not None else ""
    hours = found.limits.max_hours
    defaults = {
        "gpu": (found.gpu or "none", f"{why}{at}{price}"),
        "max_hours": (hours, "the worker and the platform stop the run after this time"),
    }
    settings: list[Setting] = []
    for name in OPTIONS:
        given = asked.get(name)
        if given is None and name not in defaults:
            continue
        sent, rule = defaults.get(name, (given, None))
        outcome = Outcome.DEFAULTED if given is None else Outcome.KEPT
        if name == "gpu" and given is not None and given != sent:
            outcome = Outcome.MAPPED
        settings.append(
            Setting(name=f"provider_options.{name}", asked=given, outcome=outcome, sent=sent, rule=rule)
        )
    if (device := asked.get(DEVICE)) is not None:
        settings.append(_of_device(device, found))
    return settings


def _of_device(asked: Any, found: Resources) -> Setting:
    """Check a requested device against the machine."""
    row = Setting(name=f"provider_options.{DEVICE}", asked=asked, outcome=Outcome.REFUSED)
    there = "cuda" if found.gpu else "cpu"
    if asked == there:
        rule = "gpu: none" if there == "cpu" else f"gpu: {found.gpu}"
        return msgspec.structs.replace(
            row, outcome=Outcome.MAPPED, sent=there, rule=f"by the machine ({rule})"
        )
    if asked not in ("cpu", "cuda"):
        return msgspec.structs.replace(row, rule=f"must be cpu or cuda, got {asked!r}")
    reason = f"the machine has {f'a GPU ({found.gpu})' if found.gpu else 'no GPU'}. Remove device or gpu"
    return msgspec.structs.replace(row, rule=reason)


def apart(found: Resources, hyper: Mapping[str, Any], *, groups: bool) -> Setting | None:
    """Check whether the run's processes can train as a group of workers. Returns `None` if they can,
    otherwise the rejected setting with the reason. `groups` is True if the backend can spread a run's
    processes over several machines."""
    processes, least = hyper.get("processes", 1), found.min_processes
    sharded, batch = hyper.get("sharded") is True, hyper.get("batch_size", processes)
    name, asked, reason = "min_processes", least, None
    if least is not None:
        if not groups:
            reason = (
                "on this backend, all processes of a run share one machine, so they are shut down together"
            )
        elif processes == 1 or least > processes:
            reason = (
                f"the run has {count(processes, 'process', 'processes')}. Set processes to a higher number"
            )
        elif sharded:
            reason = "each process holds a shard of every weight, so the run needs all processes"
    if reason is None and groups and processes > 1:
        name, asked = "processes", processes
        if found.gpu and found.count != processes:
            reason = f"{processes} processes need {processes} GPUs, but the machine has {found.count}"
        elif not sharded and processes > batch:
            reason = (
                f"a step has {count(batch, 'example')}, so some of the {processes} processes would get none"
            )
    if reason is None:
        return None
    return Setting(name=f"provider_options.{name}", asked=asked, outcome=Outcome.REFUSED, rule=reason)


def _least(asked: Mapping[str, Any]) -> int | None:
    value = asked.get("min_processes")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"min_processes must be an integer above 0, got {value!r}")
    return value


def _amount(asked: Mapping[str, Any], name: str) -> Decimal | None:
    unit = "US dollars" if "usd" in name else "minutes" if name.endswith("minutes") else "hours"
    return amount(asked.get(name), name, unit, above_zero=True)
