"""Align the curves of several runs on one axis for charts. The result is a list of positions, and for each
curve a value or a gap at each position."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from orchestrate.types import MetricPoint

AXES = ("steps", "tokens", "minutes")
CHARTS: Mapping[str, tuple[str, ...]] = {
    "loss": ("train_loss", "valid_loss"),
    "reward": ("train_reward", "valid_reward"),
    "accuracy": ("train_accuracy", "valid_accuracy"),
    "learning rate": ("learning_rate",),
    "gradient norm": ("grad_norm",),
    "tokens a second": ("tokens_per_second",),
    "GPU use, %": ("gpu_use_percent",),
    "GPU memory, GiB": ("gpu_memory_bytes",),
    "GPU temperature, °C": ("gpu_temperature_c",),
}
"""Metrics drawn in one chart, keyed by the chart's name. Other metrics from a host get their own chart."""
_UNITS = {"gpu_memory_bytes": 2.0**30}
"""Divisors that convert metrics to the chart's unit."""
_BESIDE = ("tokens", "result_step", "result_valid_loss")
PLACES = 1500
"""Maximum number of points on an axis. Most screens can't show more."""
READ = 20_000
"""Maximum number of points read per run. Longer curves are sampled evenly."""


@dataclass(frozen=True)
class PlottedCurve:
    label: str
    run: str
    """The label of the run, which is the same in all charts."""
    places: Sequence[float]
    values: Sequence[float]


def charts(
    runs: Mapping[str, Sequence[MetricPoint]],
    axis: str,
    most: int = PLACES,
    only: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """Build the chart data for the page's script from the runs' metrics, which are keyed by run label. `only`
    selects charts by name. Charts without points on the axis are omitted."""
    found: list[dict[str, Any]] = []
    for name, metrics in _named(runs).items():
        if only is not None and name not in only:
            continue
        curves = [
            curve
            for label, points in runs.items()
            for metric in metrics
            if (
                curve := _curve(
                    points, metric, axis, _label(label, metric, metrics, alone=len(runs) == 1), label
                )
            )
        ]
        if curves:
            places, lines = aligned(curves, most)
            series = [
                {"label": c.label, "run": c.run, "values": line}
                for c, line in zip(curves, lines, strict=True)
            ]
            found.append({"name": name, "axis": axis, "places": places, "series": series})
    return found


def aligned(curves: Sequence[PlottedCurve], most: int) -> tuple[list[float], list[list[float | None]]]:
    """Align curves on common positions. Returns the positions, and for each curve a value or `None` at each
    position.

    If there are more than `most` positions, the axis is divided into `most` equal parts, and each curve's
    values are averaged in each part.
    """
    own = sorted({place for curve in curves for place in curve.places})
    if len(own) <= most:
        at = [dict(zip(curve.places, curve.values, strict=True)) for curve in curves]
        return own, [[_rounded(values.get(place)) for place in own] for values in at]
    low, width = own[0], (own[-1] - own[0]) / most
    ends = [low + (i + 1) * width for i in range(most)]
    lines: list[list[float | None]] = []
    for curve in curves:
        sums, counts = [0.0] * most, [0] * most
        for place, value in zip(curve.places, curve.values, strict=True):
            part = min(bisect_left(ends, place), most - 1)
            sums[part] += value
            counts[part] += 1
        lines.append([_rounded(s / n) if n else None for s, n in zip(sums, counts, strict=True)])
    return [_rounded(end - width / 2) or 0.0 for end in ends], lines


def _named(runs: Mapping[str, Sequence[MetricPoint]]) -> dict[str, tuple[str, ...]]:
    known = {name for metrics in CHARTS.values() for name in metrics} | {*_BESIDE}
    others = {name for points in runs.values() for p in points for name in p.values if name not in known}
    return {**CHARTS, **{name: (name,) for name in sorted(others)}}


def _label(label: str, metric: str, metrics: Sequence[str], *, alone: bool) -> str:
    kind = metric.partition("_")[0] if len(metrics) > 1 else metric.replace("_", " ")
    return kind if alone else f"{label}, {kind}" if len(metrics) > 1 else label


def _curve(
    points: Sequence[MetricPoint], metric: str, axis: str, label: str, run: str
) -> PlottedCurve | None:
    begun = next((p.at for p in points if p.at), None)
    unit = _UNITS.get(metric, 1.0)
    places: list[float] = []
    values: list[float] = []
    for point in points:
        value = point.values.get(metric)
        place: float | None = point.step
        if axis == "tokens":
            place = point.values.get("tokens")
        elif axis == "minutes":
            place = (point.at - begun).total_seconds() / 60 if point.at and begun else None
        if value is not None and place is not None and isfinite(value) and isfinite(place):
            places.append(place)
            values.append(value / unit)
    return PlottedCurve(label, run, places, values) if places else None


def _rounded(value: float | None) -> float | None:
    """Round to six digits. More are invisible, and pages with a thousand curves shrink to a third."""
    return None if value is None else float(f"{value:.6g}")
