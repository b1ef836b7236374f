"""Compare training on the best rows, ranked by a signal of `data score`, with training on random rows or all
rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from orchestrate.data.operations import score
from orchestrate.errors import UsageError
from orchestrate.evaluation.learning_curve import Gain, measured_gain
from orchestrate.runs.sweep.curve import interval, measured_points, one_seed, seeded, step
from orchestrate.runs.sweep.space import SHARE, Space
from orchestrate.spec import JobSpec, renaming_of
from orchestrate.types import Record, Trial, TrialState

if TYPE_CHECKING:
    from orchestrate.runs.sweep.trials import Searching

KINDS = ("best", "random", "all")


class ChosenRows(Record, frozen=True, kw_only=True):
    """Scores of all runs that were trained on the same selection of rows."""

    which: str
    """Name of the selection: best, random or all."""
    rows: int
    score: float
    """Mean score of the selection's runs."""
    low: float | None = None
    """Lower end of the 95% confidence interval, averaged over the runs. `None` for `validation_loss`."""
    high: float | None = None
    runs: tuple[str, ...]


class BestRows(Record, frozen=True, kw_only=True):
    """Results of training on the best fraction of the rows, compared with training on random rows or on all
    rows."""

    sweep: str
    target: str
    by: str
    keep: float
    selected: str
    """File of the best rows."""
    compared: tuple[ChosenRows, ...]
    over: dict[str, Gain]
    """Gain of the best rows over each other selection, as {selection: gain}. Positive if the best rows are
    better."""
    remarks: tuple[str, ...] = ()


def selection(spec: JobSpec, folder: Path, keep: float, by: str) -> Path:
    """Select the best rows of the spec's training file, write them to a file in `folder`, and return its
    path. The file's name is a hash of the selection, so the same selection is written only once. Raises
    `UsageError` if the training file was not scored, and `DataError` if it has changed since it was
    scored."""
    path = spec.train
    if not isinstance(path, str):
        raise UsageError("the best rows are selected from a single file, but the spec trains on several")
    columns = renaming_of(spec.columns)
    data = score.opened(path, columns, None).facts
    order = score.ranked(score.require_scores(path, data), by)
    selection_key = json.dumps([data.digest, by, keep, [one.row for one in order]])
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{hashlib.sha256(selection_key.encode()).hexdigest()[:16]}.jsonl"
    if not output.exists():
        # Left by an attempt that was killed before it wrote `output`.
        output.with_name(f"{output.stem}.left-out.jsonl").unlink(missing_ok=True)
        score.select(path, output, keep=keep, by=by, columns=columns)
    return output


def space_of(kinds: Sequence[str], selected: str, keep: float, seeds: int) -> Space:
    """Build the search space that compares the best rows with random rows, all rows or both. Raises
    `UsageError` for any other comparison."""
    if "best" not in kinds or len(set(kinds)) < 2 or set(kinds) - set(KINDS):
        raise UsageError(
            "--compare must include best and at least one of random and all", fix="--compare best,random"
        )
    value = {"best": selected, "random": keep, "all": 1.0}
    choices = {SHARE: tuple(value[kind] for kind in KINDS if kind in kinds)}
    return seeded(choices, seeds)


def best_rows(searching: Searching, rows: int, by: str, keep: float, selected: str) -> BestRows:
    """Compare the scored trials of a best-rows sweep. `rows` is the number of training rows."""
    search, groups = searching.search, dict[str, list[Trial]]()
    for trial in searching.trials:
        if trial.state is TrialState.SCORED:
            groups.setdefault(_kind(trial), []).append(trial)
    made = {kind: rows if kind == "all" else round(keep * rows) for kind in KINDS if kind in groups}
    each = measured_points([(made[kind], groups[kind]) for kind in made], higher=searching.maximise)
    measured = dict(zip(made, each, strict=True))
    remarks = [
        f"{_kind(trial)} rows: {trial.state.value}: {trial.note or 'no run yet'}"
        for trial in searching.trials
        if trial.state is not TrialState.SCORED
    ]
    remarks += one_seed(search)
    return BestRows(
        sweep=search.id,
        target=search.target,
        by=by,
        keep=keep,
        selected=selected,
        compared=tuple(_chosen(kind, made[kind], groups[kind]) for kind in made),
        over={
            kind: measured_gain(one, measured["best"])
            for kind, one in measured.items()
            if kind != "best" and "best" in measured
        },
        remarks=tuple(remarks),
    )


def _kind(trial: Trial) -> str:
    value = trial.settings[SHARE]
    return "best" if isinstance(value, str) else "all" if value == 1 else "random"


def _chosen(kind: str, rows: int, same: Sequence[Trial]) -> ChosenRows:
    low, high = interval(same)
    return ChosenRows(
        which=kind,
        rows=rows,
        score=mean(trial.score or 0.0 for trial in same),
        low=low,
        high=high,
        runs=tuple(trial.run_id or "" for trial in same),
    )


HEAD = ("rows", "which", "score", "95% interval", "runs")


def summary(found: BestRows) -> list[str]:
    """Summarize the gain of the best rows over each other selection, with one sentence per selection."""
    other = {"random": "the same number of random rows", "all": "all rows"}
    best = f"the best {found.keep:.0%} of the rows by {found.by}"
    return [f"{best} against {other[kind]}: {step(found.target, gain)}" for kind, gain in found.over.items()]
