"""How far a judge agrees with people, on answers that people have rated. A judge without it, or with too
little, gives scores and carries no verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from orchestrate import text
from orchestrate.errors import DataError
from orchestrate.evaluation import agreement, statistics
from orchestrate.evaluation.items import Answer, Item, Mark, item_id
from orchestrate.evaluation.judges.judge import Judge, Kind, PairJudge, ScoreJudge
from orchestrate.evaluation.rated import RatedAnswer
from orchestrate.types import Record, Rubric, Score

FEWEST = 30
"""Rated answers below which nothing is shown."""
LEAST = 0.4
"""What kappa, and with scores the rank correlation too, must be at least, at the low end of the interval:
moderate agreement (Landis and Koch 1977), shown and not only seen."""
MOST_UNREADABLE = 0.1


class Calibration(Record, frozen=True, kw_only=True):
    """A judge beside people on the same answers."""

    judge: str
    """Digest of model, place, prompt and rubric."""
    kind: Kind
    model: str
    place: str
    prompt: str
    rubric: Rubric
    rated_digest: str
    at: datetime
    n: int
    """Rated answers (or pairs) that the judge has marked."""
    prompts: int | None = None
    """Different prompts among them, over which the intervals are; `None` where it was not counted."""
    unreadable: int
    same: Score
    """How often it says just what people say: the winner, or every criterion's point."""
    kappa: Score | None
    """Cohen's; of scores over all criteria, weighed by the square of the distance."""
    spearman: Score | None = None
    """Of scores: whether it puts answers in the same order."""
    moved: int = 0
    """Pairs of which it said something else in the other order."""

    @property
    def told(self) -> str:
        """In a line."""
        ranks = "" if self.spearman is None else f", rank correlation {text.score(self.spearman)}"
        moved = f", {self.moved} moved with the order" if self.moved else ""
        same = f"the same on {self.same.value:.0%} of {self.n} answers"
        return f"kappa {text.score(self.kappa)}{ranks}, {same}{moved}"

    @property
    def unfit(self) -> str | None:
        """Why no verdict may go by it."""
        if self.n < FEWEST:
            return f"the judge was compared with people on {self.n} answers; {FEWEST} are needed"
        if self.prompts is None or self.prompts < FEWEST:
            known = "an unknown number of" if self.prompts is None else self.prompts
            return (
                f"the judge was compared with people on answers to {known} different prompts; "
                f"{FEWEST} are needed"
            )
        if self.unreadable > MOST_UNREADABLE * (self.n + self.unreadable):
            return f"{self.unreadable} of the judge's {self.n + self.unreadable} answers could not be read"
        for name, found in (("kappa", self.kappa), ("rank correlation", self.spearman)):
            if name == "rank correlation" and self.kind == "pair":
                continue
            if found is None:
                return "the judge, or people, said the same of all rated answers, which shows nothing"
            if found.low < LEAST:
                seen = f"{name} {text.score(found)} on {self.n} answers"
                return f"the judge agrees too little with people: {seen}; at least {LEAST} must be shown"
        return None


def calibrate(judge: Judge, rated: Sequence[RatedAnswer]) -> Calibration:
    """Asks the judge about answers that people have rated. Raises what asking raises."""
    kind: Kind = "pair" if len(rated[0].answers) == 2 else "score"
    if kind == "pair":
        metric = PairJudge(judge)
        sides = [(_item(one), _answer(one.answers[0]), _answer(one.answers[1])) for one in rated]
        marks = metric.marks(sides)
        same, both = _pairs(rated, marks)
        kappa = agreement.kappa([(a, b) for a, b, _ in both], groups=[group for _, _, group in both])
        spearman, moved = None, metric.moved
    else:
        scored = ScoreJudge(judge).scored([asked(one) for one in rated])
        marks, moved = [mark for mark, _ in scored], 0
        same, both = _scores(rated, scored, judge.rubric)
        values = [(a, b) for a, b, _ in both]
        kappa = agreement.kappa(values, squared=True, groups=[group for _, _, group in both])
        spearman = agreement.spearman(values)
    if not both:
        note = next((mark.note for mark in marks if mark.note), "it said nothing")
        raise DataError(f"none of the judge's {len(rated)} answers could be read: {note[:200]}")
    return Calibration(
        judge=judge.digest(kind),
        kind=kind,
        model=judge.model,
        place=judge.place,
        prompt=judge.detail(kind)["prompt"],
        rubric=judge.rubric,
        rated_digest=hashlib.sha256(msgspec.json.encode(rated)).hexdigest(),
        at=datetime.now(UTC),
        n=len(both),
        prompts=len({group for _, _, group in both}),
        unreadable=len(rated) - len(both),
        same=statistics.wilson(sum(same), len(same)),
        kappa=kappa,
        spearman=spearman,
        moved=moved,
    )


def _pairs(
    rated: Sequence[RatedAnswer], marks: Sequence[Mark]
) -> tuple[list[bool], list[tuple[float, float, str]]]:
    """(whether both said the same) and (people, judge, item) of what could be read."""
    points = {"first": 1.0, "second": 0.0}
    both = [
        (points.get(one.preferred or "", 0.5), mark.value, one.item)
        for one, mark in zip(rated, marks, strict=True)
        if mark.value is not None
    ]
    return [people == judge for people, judge, _ in both], both


def _scores(
    rated: Sequence[RatedAnswer], scored: Sequence[tuple[Mark, dict[str, int]]], rubric: Rubric
) -> tuple[list[bool], list[tuple[float, float, str]]]:
    same: list[bool] = []
    both: list[tuple[float, float, str]] = []
    for one, (mark, points) in zip(rated, scored, strict=True):
        if mark.value is None:
            continue
        same.append(all(abs(one.scores[name] - point) <= 0.5 for name, point in points.items()))
        both.append((rubric.score(one.scores), mark.value, one.item))
    return same, both


def asked(one: RatedAnswer) -> tuple[Item, Answer]:
    """A single rated answer, as a judge is asked about it."""
    return _item(one), _answer(one.answers[0])


def _answer(text: str) -> Answer:
    return Answer(text=text)


def _item(one: RatedAnswer) -> Item:
    return Item(id=item_id(one.prompt, [], one.expected, []), prompt=one.prompt, expected=one.expected)
