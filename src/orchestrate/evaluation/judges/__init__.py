"""Judges: models that rate answers in place of human raters. `calibration` measures their agreement with
human raters."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import msgspec

from orchestrate.evaluation import NO_ANSWER, Answer, Item, Mark, message_text
from orchestrate.evaluation.metrics.base import CountsUnrated, MeanOfMarks
from orchestrate.paid.paid_requests import Asking, Price, Question, Respondent
from orchestrate.settings import masked_url
from orchestrate.types import Criterion, Message, MetricUsed, Rubric

if TYPE_CHECKING:
    from orchestrate.evaluation.judges.calibration import Calibration

# A judge is a model that predicts how people would rate one answer, or which of two they would prefer.


# Names of the judge prompts in this folder (`NAME.txt`). A changed prompt gets a new name, because a
# calibration with the old prompt doesn't apply to the new one.

SCORE, PAIR = "score-1", "pair-1"


def text(name: str) -> str:
    """Return the template of a judge prompt. The template is stored with the results."""
    return files("orchestrate.evaluation.judges").joinpath(f"{name}.txt").read_text(encoding="utf-8").strip()


def to_score(rubric: Rubric, prompt: Sequence[Message], expected: str, answer: Answer) -> tuple[Message, ...]:
    """Build the conversation that asks the judge to score one answer."""
    scores = ", ".join(f'"{c.name}": 1 to {c.points}' for c in rubric.criteria)
    body = [rubric.guide.strip(), *map(_criterion, rubric.criteria)]
    shown = [("conversation", _conversation(prompt)), ("answer to rate", answer_text(answer))]
    return _question(SCORE, body, shown, expected, scores=scores)


def to_compare(
    rubric: Rubric, prompt: Sequence[Message], expected: str, first: Answer, second: Answer
) -> tuple[Message, ...]:
    """Build the conversation that asks the judge to compare two answers. `first` is shown as answer A."""
    shown = [
        ("conversation", _conversation(prompt)),
        ("answer A", answer_text(first)),
        ("answer B", answer_text(second)),
    ]
    return _question(PAIR, [rubric.question, rubric.guide.strip()], shown, expected)


def answer_text(answer: Answer) -> str:
    """Return an answer as text, including its tool calls."""
    return message_text(answer.text, answer.tool_calls) or NO_ANSWER


def _question(
    name: str, body: Sequence[str], shown: Sequence[tuple[str, str]], expected: str, **fields: str
) -> tuple[Message, ...]:
    if expected:
        shown = [shown[0], ("reference answer", expected), *shown[1:]]
    # The separator contains a hash of the entire text, so an answer can't include it to imitate a section.
    mark = "=" * 5 + hashlib.sha256(msgspec.json.encode([*body, *shown])).hexdigest()[:12]
    parts = [f"{mark} {title}\n{shown_text}" for title, shown_text in shown]
    content = "\n\n".join([*filter(None, body), *parts, mark])
    return (
        Message(role="system", content=text(name).format(mark=mark, **fields)),
        Message(role="user", content=content),
    )


def _criterion(criterion: Criterion) -> str:
    points = ", ".join(f"{n} {label}" for n, label in enumerate(criterion.labels, 1))
    if isinstance(criterion.scale, int):
        points = f"1 (worst) to {criterion.points} (best)"
    return f"{criterion.name}: {criterion.question} {points}".replace(":  ", ": ")


def _conversation(prompt: Sequence[Message]) -> str:
    turns = [f"[{message.role}]\n{message_text(message.content, message.tool_calls)}" for message in prompt]
    return "\n\n".join(turns) or "(none)"


Ask = Callable[[Sequence[Sequence[Message]]], list[Answer]]
"""A function that sends conversations to the judge and returns one answer per conversation, in order. If the
host rejects a conversation, the answer's `error` is set."""
Kind = Literal["score", "pair"]
LONGEST_ANSWER, USUAL_ANSWER = 1024, 80
"""Maximum and typical number of tokens in a judge's answer."""
UNCALIBRATED = "the judge has not been compared with human ratings"
_WINNERS = {"a": 1.0, "b": 0.0, "tie": 0.5}
_LONGEST_REASON = 2000


@dataclass(frozen=True)
class Judge:
    """A model that rates answers by a rubric."""

    model: str
    place: str
    """URL of the judge, without credentials."""
    rubric: Rubric
    ask: Ask = field(repr=False)
    price: Price | None = field(default=None, repr=False)
    unpriced: bool = field(default=False, repr=False)

    @classmethod
    def by(cls, respondent: Respondent, asking: Asking, rubric: Rubric) -> Judge:
        """Build a judge from a model. `asking` sends the requests to the judge, and stores its answers and
        their prices."""
        identity = respondent.identity
        return cls(
            model=str(identity.get("model", respondent.name)),
            place=masked_url(str(identity.get("host", "this machine"))),
            rubric=rubric,
            ask=lambda asked: asking.ask(respondent, [Question(messages=tuple(one)) for one in asked]),
            price=respondent.price,
            unpriced=respondent.unpriced,
        )

    def digest(self, kind: Kind) -> str:
        """Return a digest of everything that determines the judge's scores."""
        return hashlib.sha256(msgspec.json.encode(self.detail(kind), order="deterministic")).hexdigest()

    def detail(self, kind: Kind) -> dict[str, Any]:
        """Return what determines the judge's scores: its model, URL, prompt and rubric."""
        prompt = SCORE if kind == "score" else PAIR
        return {
            "model": self.model,
            "place": self.place,
            "prompt": prompt,
            "prompt_text": text(prompt),
            "rubric": self.rubric.to_dict(),
        }


@dataclass
class _HeldJudge(CountsUnrated):
    """A judge and its known agreement with human raters, which is looked up at its first rating."""

    judge: Judge
    held: Callable[[Judge, Kind], Calibration | None] | None = None
    calibration: Calibration | None = field(default=None, init=False)
    kind: Kind = field(default="score", init=False)
    notes: set[str] = field(default_factory=set[str], init=False)
    """Notes on how the judge was queried."""

    def _ask(self, questions: Sequence[Sequence[Message]]) -> list[Answer]:
        answers = self.judge.ask(questions)
        self.notes |= {note for answer in answers for note in answer.notes}
        return answers

    @property
    def _unfit(self) -> str | None:
        if reason := self.unfit_rater("the judge"):
            return reason
        return UNCALIBRATED if self.calibration is None else self.calibration.unfit

    def _hold(self) -> None:
        if self.held is not None and self.calibration is None:
            self.calibration = self.held(self.judge, self.kind)

    def estimate(self, items: Sequence[Item], *, most: bool = False) -> Decimal | None:
        """Estimate the US dollars for one question about each item before there are answers. Answers are
        assumed to be as long as the expected ones, or with `most` as long as they may be. Returns `None`
        when the price is unknown."""
        if self.judge.price is None:
            return None
        answers = 1 if self.kind == "score" else 2
        rubric, mostly = self.judge.rubric, Answer(text="word " * (512 if most else 64))
        total = Decimal(0)
        for item in items:
            answer = Answer(text=item.expected) if item.expected and not most else mostly
            shown = to_score(rubric, item.prompt, item.expected, answer)
            prompt = sum(len(m.content) for m in shown) + (answers - 1) * len(answer.text)
            added = Question(messages=shown).added_tokens if most else 8
            total += self.judge.price(prompt // 4 + added, LONGEST_ANSWER if most else USUAL_ANSWER)
        return total

    @property
    def used(self) -> MetricUsed:
        name = "judge" if self.kind == "score" else "judge_pair"
        detail, found = self.judge.detail(self.kind), self.calibration
        if found is not None:
            detail |= {"agreement": found.summary, "calibration": found.to_dict()}
        if self.notes:
            detail["notes"] = sorted(self.notes)
        return MetricUsed(name=f"{name}:{self.judge.model}", kind="graded", unfit=self._unfit, detail=detail)


@dataclass
class ScoreJudge(_HeldJudge, MeanOfMarks):
    """A `Metric` for which a judge rates one answer at a time. The score combines all criteria and ranges
    from 0 to 1."""

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        return self.counted([mark for mark, _ in self.scored(pairs)])

    def scored(self, pairs: Sequence[tuple[Item, Answer]]) -> list[tuple[Mark, dict[str, int]]]:
        """Return each answer's score and its points per criterion. The points are empty if the judge's reply
        could not be parsed."""
        self._hold()
        return [_scored(answer, self.judge.rubric) for answer in self._ask(self.questions(pairs))]

    def questions(self, pairs: Sequence[tuple[Item, Answer]]) -> list[tuple[Message, ...]]:
        """Build the conversations that ask the judge to score the answers, one per (item, answer) pair."""
        rubric = self.judge.rubric
        return [to_score(rubric, item.prompt, item.expected, answer) for item, answer in pairs]


@dataclass
class PairJudge(_HeldJudge):
    """A `PairMetric` whose ratings come from a judge. `moved` counts the pairs for which the judge's choice
    changed when the two answers were swapped."""

    kind: Kind = field(default="pair", init=False)
    moved: int = field(default=0, init=False)

    def marks(self, pairs: Sequence[tuple[Item, Answer, Answer]]) -> list[Mark]:
        self._hold()
        different = [pair for pair in pairs if answer_text(pair[1]) != answer_text(pair[2])]
        conversations: list[Sequence[Message]] = []
        for item, first, second in different:
            for sides in ((first, second), (second, first)):
                conversations.append(to_compare(self.judge.rubric, item.prompt, item.expected, *sides))
        replies = iter(self._ask(conversations))
        marks: list[Mark] = []
        for pair in pairs:
            if answer_text(pair[1]) == answer_text(pair[2]):
                marks.append(Mark(0.5, "the same answer"))
            else:
                marks.append(self._of_both(_compared(next(replies)), _compared(next(replies))))
        return self.counted(marks)

    def _of_both(self, one: Mark, turned: Mark) -> Mark:
        if one.value is None or turned.value is None:
            return one if one.value is None else turned
        value, other = one.value, 1 - turned.value
        if value == other:
            return Mark(value, one.note)
        self.moved += 1
        return Mark(
            0.5, f"the judge's choice changed when the two answers were swapped: {one.note} / {turned.note}"
        )


def _scored(answer: Answer, rubric: Rubric) -> tuple[Mark, dict[str, int]]:
    def read(parsed: dict[str, Any]) -> dict[str, int] | None:
        given = parsed.get("scores")
        if not isinstance(given, dict):
            return None
        given = cast("dict[str, Any]", given)
        points = {c.name: _points(given.get(c.name), c.labels) for c in rubric.criteria}
        return {name: value for name, value in points.items() if value} if all(points.values()) else None

    replied = _replied(answer.text, read)
    if replied is None:
        return _unreadable(answer), {}
    parsed, scores = replied
    return Mark(rubric.score(scores), _reason(parsed)), scores


def _compared(answer: Answer) -> Mark:
    def read(parsed: dict[str, Any]) -> float | None:
        return _WINNERS.get(str(parsed.get("winner", "")).strip().casefold())

    replied = _replied(answer.text, read)
    if replied is None:
        return _unreadable(answer)
    parsed, value = replied
    return Mark(value, _reason(parsed))


def _points(value: Any, labels: Sequence[str]) -> int | None:
    """Parse points, from 1 to the number of labels. A judge may also answer with a label."""
    if isinstance(value, str):
        value = value.strip()
        if value in labels:
            return labels.index(value) + 1
        value = int(value) if value.isdecimal() else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= len(labels):
        return value
    return None


def _unreadable(answer: Answer) -> Mark:
    if answer.error is not None:
        return Mark(None, f"the judge request failed: {answer.error}"[:_LONGEST_REASON])
    return Mark(None, f"could not parse the judge's answer: {answer.text}"[:_LONGEST_REASON])


def _reason(parsed: dict[str, Any]) -> str:
    return str(parsed.get("reason", ""))[:_LONGEST_REASON]


T = TypeVar("T")


def _replied(text: str, read: Callable[[dict[str, Any]], T | None]) -> tuple[dict[str, Any], T] | None:
    """Return the first object that answers the question, and the answer.

    A judge may quote what it judges before or after its reply. If the text begins with the reply, later
    objects are ignored. If other text comes first and the objects disagree, the reply is ambiguous, and the
    result is `None`.
    """
    found = [(at, parsed, value) for at, parsed in _objects(text) if (value := read(parsed)) is not None]
    if not found:
        return None
    at, parsed, first = found[0]
    begins = not _FENCE.sub("", text[:at]).strip()
    return (parsed, first) if begins or all(value == first for _, _, value in found) else None


_FENCE = re.compile(r"```\w*")


def _objects(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Find the JSON objects in a text, each with its start position."""
    decode = json.JSONDecoder().raw_decode
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            if isinstance(value, dict):
                yield at, cast("dict[str, Any]", value)
        at = text.find("{", end)
