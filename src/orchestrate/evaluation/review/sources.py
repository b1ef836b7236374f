"""Where the answers come from that people rate: one evaluation, or the items that several have asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace

from orchestrate.errors import UsageError
from orchestrate.evaluation.items import Answer, Answered, digest_of
from orchestrate.evaluation.review.tasks import read_answered
from orchestrate.types import Evaluation


@dataclass(frozen=True)
class Source:
    """Evaluations, the newest answers of a contender first. `run_ids`: what was named to be rated."""

    evaluations: tuple[Evaluation, ...]
    run_ids: tuple[str, ...]

    @property
    def id(self) -> str:
        """The evaluations' ids, joined by commas."""
        return ",".join(sorted(evaluation.id for evaluation in self.evaluations))

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(c.name for evaluation in self.evaluations for c in evaluation.contenders))

    @property
    def dataset(self) -> str:
        return ", ".join(dict.fromkeys(evaluation.dataset for evaluation in self.evaluations))

    @property
    def items_digest(self) -> str:
        """Of the items that all evaluations have asked."""
        [first, *others] = self.evaluations
        return digest_of([one.item for one in self.answered]) if others else first.items_digest

    @cached_property
    def answered(self) -> list[Answered]:
        """The items that all evaluations have asked, each with the answers of all contenders. Raises
        `DataError` where answers are gone, `UsageError` where no item is in all."""
        [first, *others] = [read_answered(Path(e.items_file or "")) for e in self.evaluations]
        for other in others:
            theirs = {one.item.id: one for one in other}
            first = [_joined(one, theirs[one.item.id]) for one in first if one.item.id in theirs]
        if not first:
            raise UsageError(
                "these runs have answered no item in common: "
                + "; ".join(f"{e.id} is of {e.dataset}" for e in self.evaluations),
                fix=f"orchestrate eval {' '.join(self.run_ids)} --base   (one evaluation of all)",
            )
        return first


def _joined(one: Answered, other: Answered) -> Answered:
    answers: dict[str, tuple[Answer, ...]] = {**other.answers, **one.answers}
    return replace(one, answers=answers, marks={})


def source_of(evaluations: Sequence[Evaluation], run_ids: Sequence[str], wanted: str | None) -> Source:
    """Out of all evaluations of these runs, oldest first: the newest that holds every run, or the one whose
    id begins with `wanted`; else the newest of each run. Raises `UsageError` for a run without one."""
    fitting = [e for e in evaluations if wanted is None or e.id.startswith(wanted)]
    whole = [e for e in fitting if set(run_ids) <= set(e.run_ids)]
    if whole:
        return Source((whole[-1],), tuple(run_ids))
    asked = " ".join(run_ids)
    fix = f"orchestrate eval {asked} --base   (one evaluation of all that is to be compared)"
    if wanted is not None:
        raise UsageError(f"there is no evaluation {wanted} of these runs", fix=fix)
    newest: dict[str, Evaluation] = {}
    for run_id in run_ids:
        own = [e for e in fitting if run_id in e.run_ids]
        if not own:
            raise UsageError(f"{run_id} has no answers to rate yet", fix=fix)
        newest[own[-1].id] = own[-1]
    return Source(tuple(sorted(newest.values(), key=lambda e: e.created_at, reverse=True)), tuple(run_ids))
