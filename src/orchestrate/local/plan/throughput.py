"""Estimate how fast this machine trains, based on finished runs, on `orchestrate local bench`, or on its
hardware. Torch-free. Each token takes about 4 operations per frozen weight (2 in the forward pass, 2 for the
gradient of the activations) and 6 per trained weight. The operations of attention and the adapter are few
enough to be covered by the error band. Therefore, the operations per second of a training step can be
measured with one model and used for others of similar size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path

import msgspec

from orchestrate import text
from orchestrate.core.files import opener, private_folder, write_whole
from orchestrate.local import machine
from orchestrate.types import Record, decoding

# Speeds of finished runs on this machine. Each worker appends a line when its run succeeds. Quotes are fitted
# to these lines, and the quotes' error bands to the errors of earlier estimates. Torch-free.


READ_SHARE = 1 / 3
"""Time for a token without loss as a fraction of the time for a trained token. Quotes use the same value
(`costing`)."""
LATEST = 200
"""Number of most recent runs to base estimates on."""
ERRORS = 20
"""Number of most recent estimates from which the error band is computed."""
NINETY_PERCENT = 1.645
"""Number of standard deviations on either side of the mean in a 90% interval."""


class ThroughputKey(Record, frozen=True, kw_only=True):
    """Properties of a run, other than its data, on which its speed depends."""

    device: str
    """The GPU's name, or `cpu`."""
    threads: int
    parameters: float
    """Number of parameters that are used for a token."""
    adapter: str = "qlora"
    method: str = "sft"
    """Method: `sft`, `dpo`, `orpo`, `simpo`, `kto` or `rft`."""
    precision: str | None = None

    @property
    def operations(self) -> float:
        """Operations per trained token: 2 per weight in the forward pass, 2 for the gradient of the
        activations, and 2 for the weight's own gradient if all weights are trained."""
        return (6 if self.adapter == "full" else 4) * self.parameters


class MeasuredPace(Record, frozen=True, kw_only=True):
    kind: ThroughputKey
    at: datetime
    tokens: float
    """Number of trained tokens, plus `READ_SHARE` times the number of tokens without loss."""
    seconds: float
    """Training time for these tokens in seconds."""
    besides_seconds: float
    """Seconds that the worker spent on work other than training: loading libraries and the model, encoding,
    and saving."""
    told: float | None = None
    """Speed estimated for this run from earlier data, in tokens per second."""
    told_by: str = ""
    """Source of that estimate: `model`, `bench` or `runs`."""


class Estimate(Record, frozen=True, kw_only=True):
    """An estimate of one quantity. With 90% probability, the true value is between value / factor and value *
    factor."""

    value: float
    factor: float

    @property
    def low(self) -> float:
        return self.value / self.factor

    @property
    def high(self) -> float:
        return self.value * self.factor


class KnownLog(Record, frozen=True, kw_only=True):
    """The logarithm of a measured value, and the expected error of the logarithm."""

    log: float
    off: float


def file_of(home: Path) -> Path:
    return home / "paces.jsonl"


def add(path: Path, pace: MeasuredPace) -> None:
    """Append a run's measured speed to the file. Raises `OSError` if the file cannot be written."""
    with open(path, "ab", opener=opener) as out:
        out.write(pace.to_json() + b"\n")


def read_pace(path: Path) -> list[MeasuredPace]:
    """Read the measured speeds of the most recent runs, oldest first. Invalid lines and impossible values are
    skipped, because the file may come from another machine."""
    try:
        lines = path.read_bytes().splitlines()[-LATEST:]
    except OSError:
        return []
    found: list[MeasuredPace] = []
    for line in lines:
        try:
            found.append(MeasuredPace.from_json(line))
        except msgspec.MsgspecError:
            continue
    return [pace for pace in found if _can_be(pace)]


def _can_be(pace: MeasuredPace) -> bool:
    counts = (pace.kind.parameters, pace.kind.threads, pace.tokens, pace.seconds)
    speeds = [pace.tokens / pace.seconds] if pace.seconds > 0 else []
    if pace.told is not None:
        speeds.append(pace.told)
    speeds_can_be = all(1e-9 < speed < 1e12 for speed in speeds)
    return min(counts) > 0 and speeds_can_be and pace.at.tzinfo is not None


def alike(kind: ThroughputKey, other: ThroughputKey) -> float | None:
    """Estimate how much the speed of two kinds of run may differ, as |log(a / b)| of their operations per
    second. Returns `None` if their devices or precisions differ, because their speeds are then not
    comparable."""
    precisions = {kind.precision, other.precision} - {None}
    if kind.device != other.device or len(precisions) > 1:
        return None
    apart = 0.2 * (kind.method != other.method) + 0.2 * (kind.adapter != other.adapter)
    return apart + 0.3 * (kind.threads != other.threads) + 0.25 * decades(kind.parameters, other.parameters)


def decades(a: float, b: float) -> float:
    """Return the number of orders of magnitude between two sizes."""
    return abs(math.log10(max(a, 1.0) / max(b, 1.0)))


def speeds(kind: ThroughputKey, paces: Sequence[MeasuredPace]) -> list[KnownLog]:
    """Compute operations per second from past runs."""
    points: list[KnownLog] = []
    for pace in paces:
        if (apart := alike(kind, pace.kind)) is not None:
            rate = pace.kind.operations * pace.tokens / pace.seconds
            threads = 1.0 if kind.device != "cpu" else kind.threads / max(1, pace.kind.threads)
            points.append(KnownLog(log=math.log(rate * threads), off=0.15 + apart))
    return points


def startups(kind: ThroughputKey, paces: Sequence[MeasuredPace]) -> list[KnownLog]:
    """Compute the time spent outside training, in seconds, from past runs."""
    return [
        KnownLog(
            log=math.log(max(pace.besides_seconds, 0.1)),
            off=0.3 + 0.7 * decades(kind.parameters, pace.kind.parameters),
        )
        for pace in paces
        if pace.kind.device == kind.device
    ]


def combined(points: Sequence[KnownLog], *, least: float, errors: Sequence[float] = ()) -> Estimate:
    """Combine several measurements into one estimate: their weighted mean with an error band. The band
    depends on the expected error of each measurement and on `errors`, the observed logarithmic errors of
    earlier estimates. `least` is the minimum expected error."""
    weights = [1 / point.off**2 for point in points]
    mean = sum(w * p.log for w, p in zip(weights, points, strict=True)) / sum(weights)
    expected = max(least, sum(weights) ** -0.5)
    # The expected error counts as much as two observed errors.
    off = math.sqrt((2 * expected**2 + sum(e**2 for e in errors)) / (2 + len(errors)))
    return Estimate(value=math.exp(mean), factor=math.exp(NINETY_PERCENT * off))


def errors(kind: ThroughputKey, paces: Sequence[MeasuredPace], told_by: str) -> list[float]:
    """Return the errors of earlier estimates for similar runs, as log(actual speed / estimated speed).
    Includes only estimates whose source is `told_by`."""
    found = [
        math.log(pace.tokens / pace.seconds / pace.told)
        for pace in paces
        if pace.told and pace.told_by == told_by and (alike(kind, pace.kind) or 0.0) < 0.5
    ]
    return found[-ERRORS:]


CPU_THREAD_OPERATIONS = 6e10
"""Operations per second and thread in a training step of a tiny model. A 2023 server core with AVX-512
reached 6e10 to 13e10."""
GPU_OPERATIONS = {
    "B300": 9e14,
    "B200": 9e14,
    "H200": 4e14,
    "H100": 3.5e14,
    "A100": 1.4e14,
    "L40S": 1.2e14,
    "PRO 6000": 1.8e14,
    "5090": 8e13,
    "4090": 7e13,
    "3090": 3e13,
    "A10": 4e13,
    "L4": 4e13,
    "T4": 1.5e13,
}
"""Operations per second in a training step: about 35 to 45% of the manufacturer's dense bf16 peak for each
card."""
OTHER_GPU_OPERATIONS = 3e13
UNKNOWN_PARAMETERS = 8e9
CPU_32_BITS = 0.5
"""Speed of a CPU in fp32 as a fraction of its speed in 16 bits."""
UNMEASURED = 0.8
"""Expected error of log(speed) on a machine that has not been measured. Estimates are typically off by a
factor of 2.2, and in 10% of cases by more than 3.7."""
UNPROVED = 0.4
"""Minimum expected error of log(estimate) if no later run has confirmed the estimate. Later runs differ
because they have other rows and share the machine with other processes."""
STARTUP = KnownLog(log=math.log(10.0), off=0.6)
"""Default startup time (loading libraries and the model, encoding), as the logarithm of 10 seconds. Used
until a run has measured it."""


class Bench(Record, frozen=True, kw_only=True):
    """One measurement."""

    device: str
    threads: int
    model: str
    parameters: int
    tokens_per_second: float
    operations_per_second: float
    peak_bytes: int | None = None
    """Peak bytes of tensors in the largest step, as reported by the allocator."""
    planned_bytes: int | None = None
    """Peak bytes of tensors in the largest step, as estimated by the memory plan. `None` if the plan doesn't
    support the model."""
    resident_bytes: int | None = None
    """Peak resident memory of the process in bytes, including libraries and loading."""
    measured_on: date


class Throughput(Record, frozen=True, kw_only=True):
    """The speed of training on this machine."""

    tokens_per_second: float
    factor: float
    """Error factor. With 90% probability, the true speed is between speed / factor and speed * factor."""
    source: str
    told_by: str
    """Source of the estimate: `model`, `bench` or `runs`."""
    besides: Estimate
    """Seconds that a run spends outside training."""


MORE_PROCESSES = 0.85
"""Speed that each additional process adds, as a fraction of one process's speed. Below 1 because processes
spend time on communication. Assumed, not measured."""


def of_several(one: Throughput, processes: int) -> Throughput:
    """Scale the throughput of one process to several data-parallel processes."""
    if processes <= 1:
        return one
    speed = one.tokens_per_second * (1 + MORE_PROCESSES * (processes - 1))
    more = f"assuming that each additional process adds {MORE_PROCESSES:.0%} of one process's speed"
    source = f"{one.source}; {processes} processes, {more}"
    return msgspec.structs.replace(one, tokens_per_second=speed, factor=one.factor * 1.2, source=source)


def bench_file(home: Path) -> Path:
    return home / "bench.json"


def read(home: Path) -> list[Bench]:
    try:
        return decoding.decode(bench_file(home).read_bytes(), type=list[Bench])
    except (OSError, msgspec.MsgspecError):
        return []


def remember(home: Path, bench: Bench) -> None:
    """Save a measurement, replacing any earlier one with the same model, device and number of threads."""
    key = (bench.device, bench.threads, bench.model)
    kept = [b for b in read(home) if (b.device, b.threads, b.model) != key]
    private_folder(home)
    write_whole(bench_file(home), msgspec.json.format(msgspec.json.encode([*kept, bench])))


def kind_of(
    *,
    parameters: float | None,
    adapter: str = "qlora",
    method: str = "sft",
    precision: str | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> ThroughputKey:
    """Return the key of a run started on this machine now."""
    gpu = next(iter(machine.gpus()), None) if device != "cpu" else None
    return ThroughputKey(
        device=gpu.name if gpu else "cpu",
        threads=1 if gpu else threads or machine.cores(),
        parameters=parameters or UNKNOWN_PARAMETERS,
        adapter=adapter,
        method=method,
        precision=precision,
    )


def estimate(home: Path, kind: ThroughputKey, *, load: float = 0.0, place: str | None = None) -> Throughput:
    """Estimate throughput from finished runs, benchmarks, and the typical speed of this kind of machine.
    `load` is the current load from other processes. It lowers the low end of the range. `place` is the name
    of a remote machine in messages, or `None` for this machine."""
    ran = read_pace(file_of(home))
    runs, benches = speeds(kind, ran), _benches(kind, read(home))
    told_by = "runs" if runs else "bench" if benches else "model"
    speed = combined([*runs, *benches, _expected(kind)], least=UNPROVED, errors=errors(kind, ran, told_by))
    slower = slowdown(kind, load, machine.cores())
    source = _source(kind, ran, home, told_by, place)
    if slower > 1.1:
        cores = text.count(machine.cores(), "core")
        source += f", and up to {slower:.1f} times slower with the current load of {load:.1f} on {cores}"
    return Throughput(
        tokens_per_second=speed.value / kind.operations / math.sqrt(slower),
        factor=speed.factor * math.sqrt(slower),
        source=source,
        told_by=told_by,
        besides=combined([*startups(kind, ran), STARTUP], least=UNPROVED),
    )


def slowdown(kind: ThroughputKey, load: float, cores: int) -> float:
    """Estimate how many times longer a step may take because of other processes. With one training thread,
    the factor is the number of busy threads per core. With several threads, each matmul waits for the slowest
    one, so this number is squared, as measured with two threads on two busy cores."""
    if kind.device != "cpu":
        return 1.0
    share = max(1.0, (load + kind.threads) / cores)
    return share if kind.threads == 1 else share**2


def _benches(kind: ThroughputKey, measured: list[Bench]) -> list[KnownLog]:
    points: list[KnownLog] = []
    for bench in measured:
        threads = bench.threads if bench.device == "cpu" else 1
        other = ThroughputKey(device=bench.device, threads=threads, parameters=bench.parameters)
        apart = alike(kind, other)
        if apart is not None and kind.threads == threads:
            points.append(KnownLog(log=math.log(bench.operations_per_second), off=0.3 + apart))
    return points


def _expected(kind: ThroughputKey) -> KnownLog:
    """Estimate the speed of an unmeasured machine."""
    if kind.device == "cpu":
        operations = CPU_THREAD_OPERATIONS * kind.threads
        if kind.precision == "fp32":
            operations *= CPU_32_BITS
    else:
        known = (v for key, v in GPU_OPERATIONS.items() if key in kind.device.upper())
        operations = next(known, OTHER_GPU_OPERATIONS)
    return KnownLog(log=math.log(operations), off=UNMEASURED)


def _source(kind: ThroughputKey, ran: list[MeasuredPace], home: Path, told_by: str, place: str | None) -> str:
    what = text.count(kind.threads, "CPU thread") if kind.device == "cpu" else kind.device
    if told_by == "runs":
        at = [pace.at for pace in ran if alike(kind, pace.kind) is not None]
        where = "this machine" if place is None else f"{place} ({what})"
        return f"fitted to {text.count(len(at), 'finished run')} on {where} (most recent: {max(at).date()})"
    if told_by == "bench":
        nearest = min(
            (b for b in read(home) if b.device == kind.device),
            key=lambda b: decades(kind.parameters, b.parameters),
        )
        return f"measured on this machine with {nearest.model} on {nearest.measured_on}"
    measured = "orchestrate local bench" if place is None else f"train once on {place}"
    return f"estimated for {what} (to measure the speed: {measured})"
