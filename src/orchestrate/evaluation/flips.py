"""The items that changed between two contenders: what was broken, and what was fixed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import msgspec

from orchestrate.evaluation.evaluate import read_items
from orchestrate.evaluation.items import Answer, Answered, Mark
from orchestrate.types import Evaluation, Record

KEPT = 30
LONGEST = 4000
"""Characters of a text that are shown."""


class Flip(Record, frozen=True, kw_only=True):
    """One item, with the answers of both."""

    item: str
    question: str
    expected: str
    before: str
    """What the rival answered."""
    after: str
    change: float
    """Of the mark."""
    note: str = ""
    """Why the contender's answer got its mark, where the metric says."""


class Flips(Record, frozen=True, kw_only=True):
    """The first metric's, of one contender against its rival: the worst first, `KEPT` of each."""

    contender: str
    against: str
    metric: str
    broken: tuple[Flip, ...]
    fixed: tuple[Flip, ...]
    broken_count: int
    fixed_count: int


def flips(evaluation: Evaluation) -> list[Flips]:
    """One for each contender that has a rival; none when the items file is not on this machine any more."""
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


def _of(answered: Sequence[Answered], contender: str, against: str, metric: str, sign: int) -> Flips:
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
                before=_cut(_said(one.answers.get(against, ()))),
                after=_cut(_said(one.answers.get(contender, ()))),
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


def _question(one: Answered) -> str:
    said = [m.content for m in one.item.prompt if m.role not in ("system", "developer")]
    return said[-1] if said else ""


def _said(answers: Sequence[Answer]) -> str:
    return "\n---\n".join(a.error or a.text or _calls(a.tool_calls) for a in answers)


def _calls(calls: Sequence[dict[str, object]]) -> str:
    return msgspec.json.encode(calls).decode() if calls else ""


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def _mean(marks: Sequence[Mark]) -> float | None:
    there = [m.value for m in marks if m.value is not None]
    return fmean(there) if there else None
