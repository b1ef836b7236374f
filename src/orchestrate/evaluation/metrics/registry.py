"""Metrics by name, as they are written on a command line: `exact_match`, `regex:PATTERN`, `grader:FILE`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from orchestrate.errors import UsageError
from orchestrate.evaluation.items import Answer, Item
from orchestrate.evaluation.metrics import calls, conduct, graders, own, structured, text
from orchestrate.evaluation.metrics.base import Metric, PairMetric, PerAnswer
from orchestrate.evaluation.metrics.context import Context
from orchestrate.evaluation.metrics.embeddings import Similarity
from orchestrate.evaluation.metrics.labels import F1, Average, Labels, accuracy
from orchestrate.evaluation.metrics.overlap import overlap
from orchestrate.evaluation.metrics.words import word_count
from orchestrate.text import meant
from orchestrate.types import MetricUsed

Kind = Literal["right-or-wrong", "graded", "amount"]

COMPARISONS: dict[str, tuple[Kind, text.Compare]] = {
    "exact_match": ("right-or-wrong", text.exact_match),
    "normalized_match": ("right-or-wrong", text.normalized_match),
    "contains": ("right-or-wrong", text.contains),
    "json_match": ("right-or-wrong", structured.json_match),
    "json_fields": ("graded", structured.json_fields),
    "token_f1": ("graded", text.token_f1),
    "rouge_1": ("graded", text.rouge(1)),
    "rouge_2": ("graded", text.rouge(2)),
    "rouge_l": ("graded", text.rouge_l),
}
"""Metrics of (expected, answer)."""
_CALLS: dict[str, tuple[Kind, Callable[[Item, Answer], float]]] = {
    "tool_calls": ("right-or-wrong", calls.tool_calls),
    "tool_names": ("right-or-wrong", calls.tool_names),
    "tool_arguments": ("graded", calls.tool_arguments),
}
_F1: dict[str, Average] = {"f1_macro": "macro", "f1_micro": "micro", "f1_weighted": "weighted"}

Maker = Callable[[str, Context], Metric | PairMetric]
"""Of (what stands after the colon, context)."""

NEEDS: Mapping[str, str] = {"first_token": "stream", "perplexity": "likelihood"}
"""What an answer must bring for a metric, beyond its text."""


def _judge(kind: Literal["score", "pair"], written: str, context: Context) -> Metric | PairMetric:
    from orchestrate.evaluation.judges.judge import LONGEST_ANSWER, Judge, PairJudge, ScoreJudge

    respondent = context.respondent(written, LONGEST_ANSWER, 0.0)
    judge = Judge.by(respondent, context.asking, context.rubric)
    return (ScoreJudge if kind == "score" else PairJudge)(judge, held=context.held)


def _compared(name: str, compare: text.Compare, kind: Kind) -> PerAnswer:
    used = MetricUsed(name=name, kind=kind)
    return PerAnswer(used, lambda item, answer: compare(item.expected, answer.text))


ARGUMENTS: dict[str, tuple[str, Maker]] = {
    "regex": (
        "PATTERN",
        lambda given, _: _compared(f"regex:{given}", text.matcher(given), "right-or-wrong"),
    ),
    "json_schema": (
        "FILE.json",
        lambda given, _: _compared(
            f"json_schema:{Path(given).name}", structured.schema_match(given), "right-or-wrong"
        ),
    ),
    "grader": ("FILE", graders.from_file),
    "embedding": (
        "MODEL",
        lambda given, context: Similarity(
            MetricUsed(name=f"embedding:{given}", kind="graded"), context.embed(given)
        ),
    ),
    "judge": ("MODEL", lambda given, context: _judge("score", given, context)),
    "judge_pair": ("MODEL", lambda given, context: _judge("pair", given, context)),
}
"""Metrics with an argument: name -> (the argument's word, maker)."""


def names() -> list[str]:
    """All that can be written, for help and errors."""
    plain = [*COMPARISONS, "json_valid", "accuracy", *_F1, *_CALLS, "bleu", "chrf", "refusal"]
    plain += [*conduct.AMOUNTS, "perplexity", *own.installed()]
    return [*plain, *(f"{name}:{word}" for name, (word, _) in ARGUMENTS.items()), "FILE.py:FUNCTION"]


def split(written: Sequence[str]) -> list[str]:
    """`a,b` are two; what follows a colon is one argument, commas and all."""
    found: list[str] = []
    for one in written:
        head, colon, rest = one.partition(":")
        *plain, last = head.split(",")
        found += [*(name.strip() for name in plain), f"{last.strip()}{colon}{rest}"]
    return list(dict.fromkeys(name for name in found if name))


def needs(written: Sequence[str], what: str) -> bool:
    """Whether a metric needs something of the answers: see `NEEDS`."""
    return any(NEEDS.get(name) == what for name in split(written))


def check(written: Sequence[str]) -> None:
    """Raises `UsageError` for a name that is none, before anything is opened or asked."""
    for one in split(written):
        name, colon, _ = one.partition(":")
        if colon and (name in ARGUMENTS or name.endswith(".py")):
            continue
        if one not in names() and one != "auto":
            raise UsageError(
                f"no metric is called {one!r}{meant(one, names())}; known: auto, {', '.join(names())}"
            )


def better(written: str) -> Literal["higher", "lower", "neither"]:
    """Which end of a metric is the good one."""
    own_end = written in ("perplexity", "refusal", *conduct.AMOUNTS)
    return _without_expected(written).used.better if own_end else "higher"


def make(written: Sequence[str], context: Context) -> list[Metric | PairMetric]:
    """Raises `UsageError` for a name that is none or does not fit the rows, `MissingExtra`."""
    check(written)
    wanted = [name for one in split(written) for name in ([one] if one != "auto" else [auto(context)])]
    made = [_make(name, context) for name in dict.fromkeys(wanted)]
    for name, times in Counter(metric.used.name for metric in made).items():
        if times > 1:
            raise UsageError(f"two of the metrics are called {name}", fix="rename one of the files")
    return made


def _make(written: str, context: Context) -> Metric | PairMetric:
    name, colon, argument = written.partition(":")
    if colon:
        if name.endswith(".py"):
            return own.from_file(name, argument)
        return ARGUMENTS[name][1](argument, context)
    if not context.expects and name not in _UNASKED:
        raise UsageError(
            f"{name} compares with an expected answer, which these rows do not have",
            fix="--metrics grader:FILE",
        )
    if name in COMPARISONS:
        kind, compare = COMPARISONS[name]
        return _compared(name, compare, kind)
    if name in _CALLS:
        kind, score = _CALLS[name]
        return PerAnswer(MetricUsed(name=name, kind=kind), score)
    if name == "accuracy" or name in _F1:
        labels = Labels.of(context.items)
        if name == "accuracy":
            return PerAnswer(MetricUsed(name=name, kind="right-or-wrong"), accuracy(labels))
        return F1(MetricUsed(name=name, kind="graded"), labels, _F1[name])
    if name in ("bleu", "chrf"):
        return overlap(name)
    return _without_expected(name)


_UNASKED = {"json_valid", "refusal", *conduct.AMOUNTS, *own.installed()}


def _without_expected(name: str) -> Metric:
    if name == "json_valid":
        return _compared(name, structured.json_valid, "right-or-wrong")
    if name == "refusal":
        return conduct.refusal_rate()
    if name == "perplexity":
        return conduct.perplexity()
    if name in conduct.AMOUNTS:
        return conduct.amount(name)
    return own.from_package(name)


def auto(context: Context) -> str:
    """The metric that fits the expected answers: tool calls, JSON, short labels, or prose. Raises
    `UsageError` where nothing is expected."""
    if not context.expects:
        raise UsageError(
            "these rows have no expected answer to compare with", fix="--metrics grader:FILE, as for training"
        )
    expected = [item.expected for item in context.items]
    if all(item.expected_calls for item in context.items):
        return "tool_calls"
    return choose(expected)


def choose(expected: Sequence[str]) -> str:
    """JSON objects, short labels, or prose."""
    if expected and all(structured.is_container(one) for one in expected):
        return "json_match"
    if expected and all(word_count(one) <= 5 for one in expected):
        return "exact_match"
    return "token_f1"
