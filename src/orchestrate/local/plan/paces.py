"""What finished runs on this machine took. Each worker adds a line when its run has succeeded; quotes are
fitted to them, and their bands to how far earlier estimates were off. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from orchestrate.core.files import opener
from orchestrate.types import Record

READ_SHARE = 1 / 3
"""Time of a token that is only read over that of a trained one, as quotes count it (`costing`)."""
LATEST = 200
"""Runs that are looked at."""
ERRORS = 20
"""Estimates by which the band is set: the latest of the same kind."""
NINETY_PERCENT = 1.645
"""Standard deviations on either side."""


class Kind(Record, frozen=True, kw_only=True):
    """What decides about the speed of a run beside its data."""

    device: str
    """The GPU's name, or `cpu`."""
    threads: int
    parameters: float
    """That a token goes through."""
    adapter: str = "qlora"
    method: str = "sft"
    """Or `dpo`, `orpo`, `simpo`, `kto`, `rft`."""
    precision: str | None = None

    @property
    def operations(self) -> float:
        """For a trained token: 2 per weight forward and 2 for the gradient of what goes through; 2 for its
        own where all weights are trained."""
        return (6 if self.adapter == "full" else 4) * self.parameters


class Pace(Record, frozen=True, kw_only=True):
    kind: Kind
    at: datetime
    tokens: float
    """Trained ones, and `READ_SHARE` of those that were only read."""
    seconds: float
    """For them."""
    besides_seconds: float
    """Of the run from the start of its worker to its end, for libraries, model, encoding and saving."""
    told: float | None = None
    """Tokens per second, as they would have been estimated without this run."""
    told_by: str = ""
    """By what: `model`, `bench` or `runs`."""


class Estimate(Record, frozen=True, kw_only=True):
    """Of one quantity: nine times in ten it lies between value / factor and value * factor."""

    value: float
    factor: float

    @property
    def low(self) -> float:
        return self.value / self.factor

    @property
    def high(self) -> float:
        return self.value * self.factor


class Point(Record, frozen=True, kw_only=True):
    """One thing known: a logarithm, and how far, in logarithms, it is expected to be off."""

    log: float
    off: float


def file_of(home: Path) -> Path:
    return home / "paces.jsonl"


def add(path: Path, pace: Pace) -> None:
    """Raises `OSError`."""
    with open(path, "ab", opener=opener) as out:
        out.write(pace.to_json() + b"\n")


def read(path: Path) -> list[Pace]:
    """The latest, oldest first; lines that are none, or say what cannot be, are passed over: they may have
    come from another machine."""
    try:
        lines = path.read_bytes().splitlines()[-LATEST:]
    except OSError:
        return []
    found: list[Pace] = []
    for line in lines:
        try:
            found.append(Pace.from_json(line))
        except msgspec.MsgspecError:
            continue
    return [pace for pace in found if _can_be(pace)]


def _can_be(pace: Pace) -> bool:
    counts = (pace.kind.parameters, pace.kind.threads, pace.tokens, pace.seconds)
    speeds = [pace.tokens / pace.seconds] if pace.seconds > 0 else []
    if pace.told is not None:
        speeds.append(pace.told)
    speeds_can_be = all(1e-9 < speed < 1e12 for speed in speeds)
    return min(counts) > 0 and speeds_can_be and pace.at.tzinfo is not None


def alike(kind: Kind, other: Kind) -> float | None:
    """How far, in logarithms, the operations per second of the one are from the other's; `None` for another
    device or precision."""
    precisions = {kind.precision, other.precision} - {None}
    if kind.device != other.device or len(precisions) > 1:
        return None
    apart = 0.2 * (kind.method != other.method) + 0.2 * (kind.adapter != other.adapter)
    return apart + 0.3 * (kind.threads != other.threads) + 0.25 * decades(kind.parameters, other.parameters)


def decades(a: float, b: float) -> float:
    """Between two sizes."""
    return abs(math.log10(max(a, 1.0) / max(b, 1.0)))


def speeds(kind: Kind, paces: Sequence[Pace]) -> list[Point]:
    """What runs tell of operations per second."""
    points: list[Point] = []
    for pace in paces:
        if (apart := alike(kind, pace.kind)) is not None:
            rate = pace.kind.operations * pace.tokens / pace.seconds
            threads = 1.0 if kind.device != "cpu" else kind.threads / max(1, pace.kind.threads)
            points.append(Point(log=math.log(rate * threads), off=0.15 + apart))
    return points


def startups(kind: Kind, paces: Sequence[Pace]) -> list[Point]:
    """What runs tell of the seconds beside training."""
    return [
        Point(
            log=math.log(max(pace.besides_seconds, 0.1)),
            off=0.3 + 0.7 * decades(kind.parameters, pace.kind.parameters),
        )
        for pace in paces
        if pace.kind.device == kind.device
    ]


def combined(points: Sequence[Point], *, least: float, errors: Sequence[float] = ()) -> Estimate:
    """The mean of the points, each by its weight; the band from their agreement, and from `errors`, the
    logarithms by which such estimates were off. `least`: what is expected before there are any."""
    weights = [1 / point.off**2 for point in points]
    mean = sum(w * p.log for w, p in zip(weights, points, strict=True)) / sum(weights)
    expected = max(least, sum(weights) ** -0.5)
    # As if two estimates had been off by what was expected of them.
    off = math.sqrt((2 * expected**2 + sum(e**2 for e in errors)) / (2 + len(errors)))
    return Estimate(value=math.exp(mean), factor=math.exp(NINETY_PERCENT * off))


def errors(kind: Kind, paces: Sequence[Pace], told_by: str) -> list[float]:
    """Of earlier estimates for runs of this kind that were made from the same."""
    found = [
        math.log(pace.tokens / pace.seconds / pace.told)
        for pace in paces
        if pace.told and pace.told_by == told_by and (alike(kind, pace.kind) or 0.0) < 0.5
    ]
    return found[-ERRORS:]
