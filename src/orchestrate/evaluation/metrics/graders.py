"""Use the graders of reinforcement fine-tuning as metrics, with the same JSON format. This includes
`score_model`, which queries a model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import structs

from orchestrate.core.expansion import read_document
from orchestrate.errors import UsageError
from orchestrate.evaluation import Answer, Item, Mark
from orchestrate.evaluation.metrics.base import Context, CountsUnrated, Embed, MeanOfMarks
from orchestrate.local.objectives import graders
from orchestrate.local.objectives.graders import Grader, GraderFailedError, GradingError, Score
from orchestrate.paid.paid_requests import Question
from orchestrate.types import Message, MetricUsed


@dataclass(frozen=True)
class Similarity(MeanOfMarks):
    """Cosine similarity between the embeddings of the answer and the expected answer. Negative values count
    as 0."""

    used: MetricUsed
    embed: Embed

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        texts = list(dict.fromkeys(t for i, a in pairs for t in (i.expected, a.text) if t.strip()))
        vectors = dict(zip(texts, self.embed(texts), strict=True)) if texts else {}
        return [Mark(_cosine(vectors.get(i.expected), vectors.get(a.text))) for i, a in pairs]


def _cosine(a: Sequence[float] | None, b: Sequence[float] | None) -> float:
    if a is None or b is None:
        return 0.0  # an empty text has no meaning
    if len(a) != len(b):
        raise UsageError("the embedding model returned vectors of different lengths")
    size = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return min(1.0, max(0.0, sum(x * y for x, y in zip(a, b, strict=True)) / size)) if size else 0.0


_ASK_FOR = (
    'Give your grade as a JSON object and nothing else: {{"steps": [REASONS], "result": NUMBER}}, '
    "with a result from {low:g} to {high:g}."
)
_RESULT = re.compile(r'"result"\s*:\s*(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)')
_MODEL_TOKENS = 1024


@dataclass
class Grading(CountsUnrated, MeanOfMarks):
    """Grades answers. An answer that cannot be graded gets 0, with a note that gives the reason. If the
    grading model returns no grade, the answer stays unrated, as with a judge."""

    described: MetricUsed
    grader: Mapping[str, Any]
    context: Context

    @property
    def used(self) -> MetricUsed:
        return structs.replace(self.described, unfit=self.unfit_rater("the grading model"))

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        with Grader(self.grader, asks={"score_model": self._score_model(pairs)}) as grader:
            texts = [answer.text for _, answer in pairs]
            grades = grader.grade(texts, [row(item) for item, _ in pairs])
        return self.counted(
            [Mark(None if g.unrated else min(1.0, max(0.0, g.score)), g.error or "") for g in grades]
        )

    def _score_model(self, pairs: Sequence[tuple[Item, Answer]]) -> Any:
        """Return the compiler for `score_model`. It sends all questions at once and looks up the answers
        later."""

        def compiled(grader: Mapping[str, Any]) -> Score:
            scored = ScoreModel(grader, self.context)
            scored.ask([(graders.sample_of(answer.text), row(item)) for item, answer in pairs])
            return scored.score

        return compiled


class ScoreModel:
    """A grader that asks a model for a number in `range`, and scales the number to 0..1."""

    def __init__(self, grader: Mapping[str, Any], context: Context) -> None:
        low, high = grader.get("range") or (0, 1)
        self._low, self._high = float(low), float(high)
        self._templates = cast("list[dict[str, Any]]", grader["input"])
        sampling = cast("dict[str, Any]", grader.get("sampling_params") or {})
        tokens = int(sampling.get("max_completions_tokens") or sampling.get("max_tokens") or _MODEL_TOKENS)
        self._context = context
        self._model = context.respondent(
            str(grader["model"]), tokens, float(sampling.get("temperature") or 0)
        )
        self._answers: dict[str, Answer] = {}

    def ask(self, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        questions: list[Question] = []
        for sample, item in pairs:
            try:
                questions.append(self._question(sample, item))
            except GradingError:
                continue  # told by `score`
        answers = self._context.asking.ask(self._model, questions)
        self._answers = {q.digest: a for q, a in zip(questions, answers, strict=True)}

    def score(self, sample: dict[str, Any], item: dict[str, Any]) -> float:
        """Parse the score from the model's answer. Raises `GraderFailedError` if the answer has no number in
        the range."""
        answer = self._answers[self._question(sample, item).digest]
        if answer.error:
            raise GraderFailedError(f"the request to the grading model failed: {answer.error}")
        found = _RESULT.findall(answer.text)
        if not found:
            raise GraderFailedError(f"could not parse the grading model's answer: {answer.text[:80]!r}")
        value = float(found[-1])
        if not self._low <= value <= self._high:
            raise GraderFailedError(
                f"the grading model returned {value:g}, not a number from {self._low:g} to {self._high:g}"
            )
        return (value - self._low) / (self._high - self._low)

    def _question(self, sample: dict[str, Any], item: dict[str, Any]) -> Question:
        prompt = [
            Message(
                role=str(m.get("role", "user")), content=graders.fill(_text(m.get("content")), sample, item)
            )
            for m in self._templates
        ]
        wanted = Message(role="user", content=_ASK_FOR.format(low=self._low, high=self._high))
        return Question(messages=(*prompt, wanted))


def _text(content: Any) -> str:
    """Return the text of a message's content, which is a string or a list of OpenAI's parts."""
    if isinstance(content, str):
        return content
    parts = cast("list[Any]", content if isinstance(content, list) else [content])
    return "".join(str(cast("dict[str, Any]", p).get("text", "")) for p in parts if isinstance(p, dict))


def row(item: Item) -> dict[str, Any]:
    """Build the `item` object that graders read: the row's columns, its `messages`, and the `expected`
    answer."""
    messages = [m.to_dict() for m in item.prompt]
    return {"messages": messages, "expected": item.expected, **item.fields}


def from_file(path: str, context: Context) -> Grading:
    """Read a grader from a JSON or YAML file. Raises `UsageError` if the grader is invalid."""
    given = read_document(Path(path), "the grader")
    return of(f"grader:{Path(path).stem}", given, context)


def of(name: str, grader: Any, context: Context) -> Grading:
    if not isinstance(grader, dict):
        raise UsageError(f"{name}: a grader must be an object with a type")
    given = cast("dict[str, Any]", grader)
    if reason := graders.refusal(given, allow_code=context.allow_code, asks=("score_model",)):
        raise UsageError(f"{name}: {reason}")
    missing = [f for f in graders.fields_read(given) if any(graders.lacks(row(i), f) for i in context.items)]
    if missing:
        raise UsageError(f"{name}: the grader uses item.{missing[0]}, which some rows lack")
    strict = given["type"] == "string_check"
    kept = json.loads(msgspec.json.encode(given))
    used = MetricUsed(name=name, kind="right-or-wrong" if strict else "graded", detail={"grader": kept})
    return Grading(used, given, context)
