"""Stored evaluations, those from before there were several contenders in one included."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from orchestrate.types import Contender, Difference, Evaluation, Measure, MetricUsed, Record, Score, decoding

_RIGHT_OR_WRONG = frozenset({"exact_match", "json_match", "contains"})


class _BaseAndTuned(Record, frozen=True, kw_only=True):
    """What was kept of an evaluation in the beginning: one metric, one run, and its base."""

    run_id: str
    provider: str
    metric: str
    dataset: str
    dataset_digest: str
    base: Score | None = None
    tuned: Score
    difference: Score | None = None
    gained: int = 0
    lost: int = 0
    p_value: float | None = None
    created_at: datetime
    items_file: str | None = None
    served_by: str = ""


def of(data: dict[str, Any]) -> Evaluation:
    """A record of the store. Raises `msgspec.ValidationError`."""
    if "contenders" in data:
        return decoding.convert(data, Evaluation, strict=False)
    return _brought_up(decoding.convert(data, _BaseAndTuned, strict=False))


def _brought_up(old: _BaseAndTuned) -> Evaluation:
    scores = {old.run_id: old.tuned} | ({"base": old.base} if old.base else {})
    contenders = [
        Contender(
            name=name,
            kind="base" if name == "base" else "tuned",
            model="",
            provider=old.provider,
            served_by=old.served_by,
            run_id=None if name == "base" else old.run_id,
            answers=score.n,
        )
        for name, score in scores.items()
    ]
    differences: list[Difference] = []
    if old.difference is not None:
        differences.append(
            Difference(
                contender=old.run_id,
                against="base",
                metric=old.metric,
                score=old.difference,
                gained=old.gained,
                lost=old.lost,
                p_value=old.p_value,
            )
        )
    right_or_wrong = old.metric in _RIGHT_OR_WRONG
    return Evaluation(
        id=f"{old.run_id}-{old.created_at:%Y%m%dT%H%M%S}",
        created_at=old.created_at,
        dataset=old.dataset,
        dataset_digest=old.dataset_digest,
        items=old.tuned.n,
        items_digest="",
        contenders=tuple(contenders),
        metrics=(MetricUsed(name=old.metric, kind="right-or-wrong" if right_or_wrong else "graded"),),
        measures=tuple(Measure(contender=n, metric=old.metric, score=s) for n, s in scores.items()),
        differences=tuple(differences),
        against="base" if old.base else None,
    )
