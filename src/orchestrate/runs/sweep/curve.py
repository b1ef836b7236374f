"""Learning curves: train on fractions of the rows, and project the gain from adding rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from html import escape
from itertools import groupby
from statistics import mean, variance
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from orchestrate.errors import UsageError
from orchestrate.evaluation.learning_curve import Gain, Law, Measured, measured_gain, speeds_up
from orchestrate.runs.sweep.space import SHARE, Space
from orchestrate.runs.sweep.sweeps import LOSS
from orchestrate.text import money
from orchestrate.types import Record, Search, Trial, TrialState

if TYPE_CHECKING:
    from orchestrate.runs.sweep.trials import Searching

SHARES = (0.125, 0.25, 0.5, 1.0)
_Z = 1.96
"""Half-width of a 95% interval, in standard errors."""


class Size(Record, frozen=True, kw_only=True):
    """Scores and costs of the runs that were trained on the same number of rows."""

    rows: int
    share: float
    score: float
    """Mean score of the runs."""
    low: float | None = None
    """Lower end of the 95% confidence interval, averaged over the runs. `None` for `validation_loss`."""
    high: float | None = None
    usd: Decimal | None = None
    """Average cost of the runs in US dollars. `None` until the bills of all runs are known."""
    runs: tuple[str, ...]


class LearningCurve(Record, frozen=True, kw_only=True):
    """Scores by number of rows, with a projection for other numbers of rows."""

    sweep: str
    target: str
    higher_is_better: bool
    sizes: tuple[Size, ...]
    more: Gain | None = None
    """Projected gain from adding the requested number of rows to all current rows."""
    half: Gain | None = None
    """Gain from training on all rows instead of half of them."""
    half_saves_usd: Decimal | None = None
    """Cost saved by training on half of the rows."""
    why_none: str | None = None
    """Reason why no projection is possible."""
    remarks: tuple[str, ...] = ()


def space_of(shares: Sequence[float], seeds: int) -> Space:
    """Build the search space of a learning curve over these fractions of the rows. Raises `UsageError` unless
    there are at least three, including 1."""
    kept = tuple(sorted(set(shares)))
    if len(kept) < 3 or kept[-1] != 1 or kept[0] <= 0:
        raise UsageError(
            "a curve needs at least three fractions, each above 0 and at most 1",
            fix="--shares 0.125,0.25,0.5,1",
        )
    return seeded({SHARE: kept}, seeds)


def seeded(choices: Mapping[str, tuple[Any, ...]], seeds: int) -> Space:
    """Build a search space that repeats every choice for each seed."""
    return Space({**choices, **({"seed": tuple(range(seeds))} if seeds > 1 else {})})


def one_seed(search: Search) -> list[str]:
    """Return a warning in a list if the comparison has only one seed, otherwise an empty list."""
    if "seed" in search.choices:
        return []
    return [
        "the intervals do not include run-to-run variation, because only one seed was used. To include it, "
        "use --seeds 3"
    ]


def curve(searching: Searching, rows: int, more: int) -> LearningCurve:
    """Fit a learning curve to the scored trials. `rows` is the size of the training data, and `more` is the
    number of additional rows to project."""
    search, higher = searching.search, searching.maximise
    trials = [trial for trial in searching.trials if trial.state is TrialState.SCORED]
    sizes = tuple(_sizes(searching, trials, rows))
    found = LearningCurve(sweep=search.id, target=search.target, higher_is_better=higher, sizes=sizes)
    remarks = _unscored([trial for trial in searching.trials if trial.state is not TrialState.SCORED])
    remarks += one_seed(search)
    try:
        points = _measured(trials, rows, higher=higher)
        law = Law(points)
    except ValueError as error:
        return replace(found, why_none=str(error), remarks=tuple(remarks))
    if speeds_up(points):
        remarks.append(
            "gains are still growing with each doubling of the rows, so the projection may be too low"
        )
    by_rows = {point.rows: point for point in points}
    middle, top = by_rows.get(round(0.5 * rows)), by_rows.get(rows)
    half = measured_gain(middle, top) if middle and top else law.gain(max(1, rows // 2), rows)
    if half.value < 0 and (half.high is None or half.high < 0):  # no power law falls
        worse = "training on all rows scored worse than on half of them"
        return replace(found, half=half, why_none=worse, remarks=tuple(remarks))
    bills = {size.share: size.usd for size in sizes}
    whole_usd, half_usd = bills.get(1.0), bills.get(0.5)
    saves = whole_usd - half_usd if whole_usd is not None and half_usd is not None else None
    return replace(
        found,
        more=law.gain(rows, rows + more),
        half=half,
        half_saves_usd=saves,
        remarks=tuple(remarks),
    )


def _unscored(trials: Sequence[Trial]) -> list[str]:
    """Return one sentence per reason, because a host that rejects a setting gives the same reason for every
    trial."""
    alike: dict[str, list[Trial]] = {}
    for trial in trials:
        alike.setdefault(f"{trial.state.value}: {trial.note or 'no run yet'}", []).append(trial)
    return [
        f"{', '.join(f'{share:.1%}' for share, _ in _by_share(same))} of the rows"
        f"{f' ({len(same)} runs)' if len(same) > 1 else ''}: {reason}"
        for reason, same in alike.items()
    ]


def _by_share(trials: Sequence[Trial]) -> list[tuple[float, list[Trial]]]:
    ordered = sorted(trials, key=lambda trial: float(trial.settings[SHARE]))
    return [(share, list(same)) for share, same in groupby(ordered, key=lambda t: float(t.settings[SHARE]))]


def _sizes(searching: Searching, trials: Sequence[Trial], rows: int) -> Iterator[Size]:
    for share, same in _by_share(trials):
        records = searching.ft.store.runs.of_ids(trial.run_id for trial in same if trial.run_id)
        bills = [run.bill.usd for run in records if run.bill is not None]
        low, high = interval(same)
        yield Size(
            rows=round(share * rows),
            share=share,
            score=mean(trial.score or 0.0 for trial in same),
            low=low,
            high=high,
            usd=sum(bills, Decimal(0)) / len(bills) if len(bills) == len(same) else None,
            runs=tuple(trial.run_id or "" for trial in same),
        )


def interval(same: Sequence[Trial]) -> tuple[float | None, float | None]:
    """Average the lower and upper ends of the runs' score intervals."""
    lows = [trial.score_low for trial in same if trial.score_low is not None]
    highs = [trial.score_high for trial in same if trial.score_high is not None]
    return mean(lows) if lows else None, mean(highs) if highs else None


def _measured(trials: Sequence[Trial], rows: int, *, higher: bool) -> list[Measured]:
    """Measure one point for each share. Raises `ValueError`."""
    if higher and any((trial.score or 0.0) > 1 for trial in trials):
        raise ValueError("this metric's best possible value is unknown")
    return measured_points([(round(share * rows), same) for share, same in _by_share(trials)], higher=higher)


def measured_points(groups: Sequence[tuple[int, Sequence[Trial]]], *, higher: bool) -> list[Measured]:
    """Compute one point of the learning curve for each group of runs with the same number of rows. A point's
    standard error has two parts: the sampling of the evaluated rows, and the variation between seeds. The
    variation between seeds is estimated from all groups together."""
    scores = [[trial.score or 0.0 for trial in same] for _, same in groups]
    spreads = [(len(found) - 1, variance(found)) for found in scores if len(found) > 1]
    freedom = sum(n for n, _ in spreads)
    between = sum(n * var for n, var in spreads) / freedom if freedom else 0.0
    found: list[Measured] = []
    for (rows, same), values in zip(groups, scores, strict=True):
        widths = [
            (trial.score_high - trial.score_low) / (2 * _Z)
            for trial in same
            if trial.score_low is not None and trial.score_high is not None
        ]
        asked = mean(width**2 for width in widths) if widths else 0.0
        error = math.sqrt(asked + between / len(values)) or None
        lost = 1 - mean(values) if higher else mean(values)
        found.append(Measured(rows, lost, error))
    return found


def summary(found: LearningCurve) -> list[str]:
    """Summarize the learning curve in two sentences: the projected gain from adding rows, and the score lost
    and cost saved by training on half of the rows. If there is no projection, returns one sentence with the
    reason."""
    more, half = found.more, found.half
    if more is None or half is None:
        return [f"no projection for other row counts: {found.why_none}"]
    added = more.rows_after - more.rows_before
    less = found.half_saves_usd
    saved = f" and saves {money(less)}" if less is not None and less > 0 else ""
    return [
        f"{added:,} more rows gain {step(found.target, more)}",
        f"training on half of the rows loses {step(found.target, half)}{saved}",
    ]


def step(target: str, gain: Gain) -> str:
    """Format a gain in score with its confidence interval."""
    scale, unit, digits = (1, f" in {LOSS}", 3) if target == LOSS else (100, " points", 1)
    low, high = (f"{scale * (end or 0.0):.{digits}f}" for end in (gain.low, gain.high))
    if gain.low is None or gain.high is None:
        return f"{scale * gain.value:.{digits}f}{unit}"
    return f"{scale * gain.value:.{digits}f}{unit} ({low} to {high})"


def page(found: LearningCurve) -> str:
    """Render an HTML page with the plot, a summary and the numbers."""
    from orchestrate.reports import charts, html

    name = found.target
    points = tuple((float(size.rows), size.score) for size in found.sizes)
    picture = charts.lines(
        [charts.Series(label=name, points=points, style=0)],
        title=f"{name} by rows",
        x_name="rows trained on",
        y_name=name,
    )
    body = [f"<h1>{escape(name)} by rows</h1>", *(f"<p>{escape(line)}.</p>" for line in summary(found))]
    body += [f"<p>{escape(remark)}</p>" for remark in found.remarks]
    body.append(html.figure("Learning curve", picture, f"{found.sweep}, always on the same held-out rows"))
    body.append(html.table(HEAD, list(cells(found))))
    return html.document(f"{name} by rows", "\n".join(body))


HEAD = ("rows", "share", "score", "95% interval", "cost", "runs")


def cells(found: LearningCurve) -> Iterator[list[str]]:
    """Yield the cells of each row of a table whose header is `HEAD`."""
    for size in found.sizes:
        interval = "" if size.low is None or size.high is None else f"{size.low:.3f} to {size.high:.3f}"
        usd = "" if size.usd is None else money(size.usd)
        yield [
            f"{size.rows:,}",
            f"{size.share:.1%}",
            f"{size.score:.4g}",
            interval,
            usd,
            ", ".join(size.runs),
        ]
