"""Compare two evaluations item by item. They can evaluate two runs, or the same run at different times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import msgspec

from orchestrate.evaluation import Answer, Mark, ScoredItem
from orchestrate.evaluation.evaluate import read_items
from orchestrate.evaluation.scoring import paired
from orchestrate.types import Difference, Evaluation, MetricUsed, Record

KEPT = 30
LONGEST = 4000
"""Maximum number of characters shown of each text. Longer texts are truncated."""


class Flip(Record, frozen=True, kw_only=True):
    """An item on which the scores of a contender and its rival differ, with both answers."""

    item: str
    question: str
    expected: str
    before: str
    """The rival's answer."""
    after: str
    change: float
    """The contender's score minus the rival's."""
    note: str = ""
    """The metric's explanation of the contender's score, if any."""


class Flips(Record, frozen=True, kw_only=True):
    """Items on which the scores of a contender and its rival differ in the first metric. Includes at most
    `KEPT` losses and `KEPT` gains, largest first."""

    contender: str
    against: str
    metric: str
    broken: tuple[Flip, ...]
    fixed: tuple[Flip, ...]
    broken_count: int
    fixed_count: int


def flips(evaluation: Evaluation) -> list[Flips]:
    """Return the flips of each contender that has a rival. Returns an empty list if the items file is no
    longer on this machine."""
    try:
        answered = read_items(Path(evaluation.items_file or ""))
    except (OSError, msgspec.MsgspecError):
        return []
    metric = evaluation.metrics[0]
    sign = -1 if metric.better == "lower" else 1
    pairs = [
        (d.contender, d.against) for d in evaluation.differences if d.metric == metric.name and not d.slice
    ]
    return [_of(answered, contender, against, metric.name, sign) for contender, against in pairs]


def _of(answered: Sequence[ScoredItem], contender: str, against: str, metric: str, sign: int) -> Flips:
    found: list[Flip] = []
    for one in answered:
        mine, theirs = (one.marks.get(name, {}).get(metric, ()) for name in (contender, against))
        a, b = _mean(mine), _mean(theirs)
        if a is None or b is None or a == b:
            continue
        found.append(
            Flip(
                item=one.item.id,
                question=_cut(_question(one)),
                expected=_cut(one.item.expected or _calls(one.item.expected_calls)),
                before=_cut(_shown(one.answers.get(against, ()))),
                after=_cut(_shown(one.answers.get(contender, ()))),
                change=sign * (a - b),
                note=next((m.note for m in mine if m.note), ""),
            )
        )
    broken = sorted((f for f in found if f.change < 0), key=lambda f: f.change)
    fixed = sorted((f for f in found if f.change > 0), key=lambda f: -f.change)
    return Flips(
        contender=contender,
        against=against,
        metric=metric,
        broken=tuple(broken[:KEPT]),
        fixed=tuple(fixed[:KEPT]),
        broken_count=len(broken),
        fixed_count=len(fixed),
    )


def _question(one: ScoredItem) -> str:
    texts = [m.content for m in one.item.prompt if m.role not in ("system", "developer")]
    return texts[-1] if texts else ""


def _shown(answers: Sequence[Answer]) -> str:
    return "\n---\n".join(a.error or a.text or _calls(a.tool_calls) for a in answers)


def _calls(calls: Sequence[dict[str, object]]) -> str:
    return msgspec.json.encode(calls).decode() if calls else ""


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def _mean(marks: Sequence[Mark]) -> float | None:
    there = [m.value for m in marks if m.value is not None]
    return fmean(there) if there else None


class Pairing(Record, frozen=True, kw_only=True):
    """A comparison of contenders from two evaluations on the items that both contenders answered."""

    first: str
    """Id of the first evaluation."""
    second: str
    items: int
    """Number of items that both answered."""
    first_items: int
    second_items: int
    same_answers: int
    """Number of items with identical answers."""
    differences: tuple[Difference, ...]
    """Second contender's score minus the first's, for each metric that is a mean of per-answer scores and
    was measured in the same way in both evaluations."""


def between(first: tuple[Evaluation, str], second: tuple[Evaluation, str]) -> Pairing | None:
    """Compare two evaluated models item by item. Returns `None` if either model's answers are no longer on
    this machine, or if the two evaluations have no items in common."""
    sides = [(_read(evaluation), name) for evaluation, name in (first, second)]
    if any(not found for found, _ in sides):
        return None
    before, after = ({a.item.id: a for a in found} for found, _ in sides)
    common = [id for id in before if id in after]
    if not common:
        return None
    old, new = first[1], second[1]
    same = sum(_texts(before[id], old) == _texts(after[id], new) for id in common)
    methods = {second[0].method(new, m) for m in second[0].metrics}
    shared = [m for m in first[0].metrics if first[0].method(old, m) in methods]
    differences: list[Difference] = []
    for metric in shared:
        if metric.name.startswith(_ADD_UP):
            continue
        found = _difference(metric, [(after[id], before[id]) for id in common], new, old)
        if found is not None:
            differences.append(found)
    return Pairing(
        first=first[0].id,
        second=second[0].id,
        items=len(common),
        first_items=len(before),
        second_items=len(after),
        same_answers=same,
        differences=tuple(differences),
    )


_ADD_UP = ("f1_", "bleu", "chrf", "perplexity")
"""Name prefixes of metrics that are not means of per-answer scores. These metrics are compared only within
one evaluation."""


def _difference(
    metric: MetricUsed, pairs: Sequence[tuple[ScoredItem, ScoredItem]], new: str, old: str
) -> Difference | None:
    values: list[tuple[float, float]] = []
    clusters: list[str] = []
    once = True
    for after, before in pairs:
        mine, theirs = _marks(after.marks, new, metric.name), _marks(before.marks, old, metric.name)
        once = once and len(mine) == len(theirs) == 1
        a, b = _mean(mine), _mean(theirs)
        if a is not None and b is not None:
            values.append((a, b))
            clusters.append(after.item.cluster or f"\0{after.item.id}")
    if not values:
        return None
    alone = metric.kind == "right-or-wrong" and once and all(c.startswith("\0") for c in clusters)
    return paired(metric, values, clusters, new, old, alone=alone)


def _read(evaluation: Evaluation) -> list[ScoredItem]:
    try:
        return read_items(Path(evaluation.items_file or ""))
    except (OSError, msgspec.MsgspecError):
        return []  # gone, or of the time before several contenders


def _texts(answered: ScoredItem, name: str) -> list[str]:
    return [a.text for a in answered.answers.get(name, ())]


def _marks(marks: Mapping[str, Mapping[str, Sequence[Mark]]], name: str, metric: str) -> Sequence[Mark]:
    return marks.get(name, {}).get(metric, ())
