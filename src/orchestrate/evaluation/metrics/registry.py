"""Create metrics by name, as written on the command line: `exact_match`, `regex:PATTERN`, `grader:FILE`."""

from __future__ import annotations

import importlib.util
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, cast

from orchestrate.core.files import sha256
from orchestrate.errors import UsageError
from orchestrate.evaluation import Answer, Item
from orchestrate.evaluation.metrics import conduct, graders, structured, text
from orchestrate.evaluation.metrics.base import Context, Metric, PairMetric, PerAnswer
from orchestrate.evaluation.metrics.graders import Similarity
from orchestrate.evaluation.metrics.labels import F1, Average, LabelSet, accuracy
from orchestrate.evaluation.metrics.text import word_count
from orchestrate.text import meant
from orchestrate.types import MetricUsed

# User-defined metrics: a function in a Python file, or an entry point of an installed package.
#
#     # checks.py                                     orchestrate eval RUN --metrics checks.py:cites
#     def cites(expected: str, answer: str) -> bool:
#         return "[1]" in answer
#
# A function annotated `-> bool` scores answers as right or wrong. Any other function returns a number from 0
# to 1. If the first parameter is named `item`, the function gets the `Item` and the `Answer` instead of their
# texts. An object with `used` and `marks` is used as a `Metric`. Packages register functions and metrics in
# the entry point group `orchestrate.metrics`.

GROUP = "orchestrate.metrics"


def from_file(path: str, name: str) -> Metric:
    """Load a metric by running the user's Python file. Raises `UsageError` if it fails."""
    spec = importlib.util.spec_from_file_location(f"orchestrate_metric_{Path(path).stem}", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UsageError(f"the Python file {path} does not exist")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if found is None:
        raise UsageError(f"{path} has no {name}", fix=f"--metrics {path}:FUNCTION")
    return of(f"{Path(path).name}:{name}", found, {"sha256": sha256(Path(path))})


def installed() -> dict[str, Any]:
    """Return the metrics that installed packages register as entry points, without loading them."""
    return {point.name: point for point in entry_points(group=GROUP)}


def from_package(name: str) -> Metric:
    """Load a metric from an installed package. Raises `UsageError` if it cannot be loaded."""
    try:
        point = installed()[name]
        found, detail = point.load(), {"version": point.dist.version} if point.dist else {}
    except Exception as error:
        raise UsageError(f"could not load the metric {name}: {type(error).__name__}: {error}") from error
    return of(name, found, detail)


def of(name: str, found: Any, detail: dict[str, Any]) -> Metric:
    """Build a metric from a function, or return an object that is one. `detail` identifies its code."""
    if hasattr(found, "used") and hasattr(found, "marks"):
        return cast("Metric", found)
    if not callable(found):
        raise UsageError(f"{name} is not a function or a metric")
    function = cast("Callable[..., Any]", found)
    signature = inspect.signature(function)
    takes_item = next(iter(signature.parameters), "") == "item"
    boolean = signature.return_annotation in (bool, "bool")
    used = MetricUsed(name=name, kind="right-or-wrong" if boolean else "graded", detail=detail)

    def score(item: Item, answer: Answer) -> float | None:
        try:
            given = function(item, answer) if takes_item else function(item.expected, answer.text)
            value = None if given is None else float(given)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise UsageError(f"the metric {name} failed on item {item.id}: {what}") from error
        if value is not None and not 0 <= value <= 1:
            raise UsageError(
                f"the metric {name} returned {value:g} for item {item.id}. Scores must be between 0 and 1"
            )
        return value

    return PerAnswer(used, score)


Maker = Callable[[str, Context], Metric | PairMetric]
"""Function that creates a metric from the text after the colon and the context."""


@dataclass(frozen=True)
class BuiltInMetric:
    """A built-in metric without an argument. To add a metric, add a row to `METRICS`."""

    kind: Literal["right-or-wrong", "graded", "amount"]
    make: Callable[[MetricUsed, Context], Metric]
    better: Literal["higher", "lower", "neither"] = "higher"
    unit: str = ""
    needs: Literal["", "stream", "likelihood"] = ""
    """What the metric needs in addition to the answer's text: a streamed answer, or the likelihood of the
    expected answer."""
    expects: bool = True
    """True if the metric compares answers with an expected answer."""

    def used(self, name: str) -> MetricUsed:
        return MetricUsed(name=name, kind=self.kind, better=self.better, unit=self.unit)


def _scores(score: Callable[[Item, Answer], float | None]) -> Callable[[MetricUsed, Context], Metric]:
    return lambda used, _: PerAnswer(used, score)


def _compares(compare: text.Compare) -> Callable[[MetricUsed, Context], Metric]:
    return _scores(lambda item, answer: compare(item.expected, answer.text))


def _f1(average: Average) -> Callable[[MetricUsed, Context], Metric]:
    return lambda used, context: F1(used, LabelSet.of(context.items), average)


METRICS: dict[str, BuiltInMetric] = {
    "exact_match": BuiltInMetric("right-or-wrong", _compares(text.exact_match)),
    "normalized_match": BuiltInMetric("right-or-wrong", _compares(text.normalized_match)),
    "contains": BuiltInMetric("right-or-wrong", _compares(text.contains)),
    "json_match": BuiltInMetric("right-or-wrong", _compares(structured.json_match)),
    "json_fields": BuiltInMetric("graded", _compares(structured.json_fields)),
    "token_f1": BuiltInMetric("graded", _compares(text.token_f1)),
    "rouge_1": BuiltInMetric("graded", _compares(text.rouge(1))),
    "rouge_2": BuiltInMetric("graded", _compares(text.rouge(2))),
    "rouge_l": BuiltInMetric("graded", _compares(text.rouge_l)),
    "json_valid": BuiltInMetric("right-or-wrong", _compares(structured.json_valid), expects=False),
    "accuracy": BuiltInMetric(
        "right-or-wrong", lambda used, context: PerAnswer(used, accuracy(LabelSet.of(context.items)))
    ),
    "f1_macro": BuiltInMetric("graded", _f1("macro")),
    "f1_micro": BuiltInMetric("graded", _f1("micro")),
    "f1_weighted": BuiltInMetric("graded", _f1("weighted")),
    "tool_calls": BuiltInMetric("right-or-wrong", _scores(structured.tool_calls)),
    "tool_names": BuiltInMetric("right-or-wrong", _scores(structured.tool_names)),
    "tool_arguments": BuiltInMetric("graded", _scores(structured.tool_arguments)),
    "bleu": BuiltInMetric("graded", lambda used, _: text.overlap(used)),
    "chrf": BuiltInMetric("graded", lambda used, _: text.overlap(used)),
    "refusal": BuiltInMetric(
        "right-or-wrong",
        _scores(lambda _, a: float(conduct.refuses(a.text))),
        better="neither",
        expects=False,
    ),
    "length": BuiltInMetric(
        "amount",
        _scores(lambda _, a: float(len(a.text))),
        better="neither",
        unit="characters",
        expects=False,
    ),
    "length_ratio": BuiltInMetric("amount", _scores(conduct.length_ratio), better="neither", expects=False),
    "latency": BuiltInMetric(
        "amount", _scores(lambda _, a: a.seconds), better="lower", unit="s", expects=False
    ),
    "first_token": BuiltInMetric(
        "amount",
        _scores(lambda _, a: a.first_token_seconds),
        better="lower",
        unit="s",
        needs="stream",
        expects=False,
    ),
    "answer_tokens": BuiltInMetric(
        "amount", _scores(lambda _, a: a.completion_tokens), better="neither", unit="tokens", expects=False
    ),
    "prompt_tokens": BuiltInMetric(
        "amount", _scores(lambda _, a: a.prompt_tokens), better="neither", unit="tokens", expects=False
    ),
    "usd": BuiltInMetric(
        "amount",
        _scores(lambda _, a: None if a.usd is None else float(a.usd)),
        better="lower",
        unit="US dollars",
        expects=False,
    ),
    "perplexity": BuiltInMetric(
        "amount", lambda used, _: conduct.Perplexity(used), better="lower", needs="likelihood"
    ),
}
"""Metrics without an argument, in the order in which they are listed."""


def _judge(kind: Literal["score", "pair"], written: str, context: Context) -> Metric | PairMetric:
    from orchestrate.evaluation.judges import LONGEST_ANSWER, Judge, PairJudge, ScoreJudge

    respondent = context.respondent(written, LONGEST_ANSWER, 0.0)
    judge = Judge.by(respondent, context.asking, context.rubric)
    return (ScoreJudge if kind == "score" else PairJudge)(judge, held=context.held)


def _checked(name: str, compare: text.Compare, context: Context, detail: dict[str, Any]) -> Metric:
    return _compares(compare)(MetricUsed(name=name, kind="right-or-wrong", detail=detail), context)


def _schema(path: str, context: Context) -> Metric:
    fits = structured.schema_match(path)
    return _checked(f"json_schema:{Path(path).name}", fits, context, {"sha256": sha256(Path(path))})


ARGUMENTS: dict[str, tuple[str, Maker]] = {
    "regex": ("PATTERN", lambda given, context: _checked(f"regex:{given}", text.matcher(given), context, {})),
    "json_schema": ("FILE.json", _schema),
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
"""Metrics with an argument. Maps each name to the argument's name and a factory function."""


def names() -> list[str]:
    """Return all metric names, for help texts and error messages."""
    plain = [*METRICS, *installed()]
    return [*plain, *(f"{name}:{word}" for name, (word, _) in ARGUMENTS.items()), "FILE.py:FUNCTION"]


def split(written: Sequence[str]) -> list[str]:
    """Split metrics at commas: `a,b` means two metrics. Everything after a colon is one argument, which may
    contain commas."""
    found: list[str] = []
    for one in written:
        head, colon, rest = one.partition(":")
        *plain, last = head.split(",")
        found += [*(name.strip() for name in plain), f"{last.strip()}{colon}{rest}"]
    return list(dict.fromkeys(name for name in found if name))


def needs(written: Sequence[str], what: str) -> bool:
    """Return whether any of the metrics needs this property of the answers (see `BuiltInMetric.needs`)."""
    return any(METRICS[name].needs == what for name in split(written) if name in METRICS)


def check(written: Sequence[str]) -> None:
    """Check metric names before any file is opened or any question sent. Raises `UsageError` for an unknown
    name."""
    for one in split(written):
        name, colon, _ = one.partition(":")
        if colon and (name in ARGUMENTS or name.endswith(".py")):
            continue
        if one not in names() and one != "auto":
            raise UsageError(
                f"unknown metric {one!r}{meant(one, names())}; known: auto, {', '.join(names())}"
            )


def better(written: str) -> Literal["higher", "lower", "neither"]:
    """Return which values of a metric are better: `higher`, `lower` or `neither`."""
    return METRICS[written].better if written in METRICS else "higher"


def is_share(written: str) -> bool:
    """Return whether the values of a metric are between 0 and 1."""
    return written not in METRICS or METRICS[written].kind != "amount"


def make(written: Sequence[str], context: Context) -> list[Metric | PairMetric]:
    """Create metrics by name. Raises `UsageError` for a name that is unknown or doesn't fit the rows, and
    `MissingExtra` if a package is missing."""
    check(written)
    wanted = [name for one in split(written) for name in ([one] if one != "auto" else [auto(context)])]
    made = [_make(name, context) for name in dict.fromkeys(wanted)]
    for name, times in Counter(metric.used.name for metric in made).items():
        if times > 1:
            raise UsageError(f"two metrics are named {name}", fix="rename one of the files")
    return made


def _make(written: str, context: Context) -> Metric | PairMetric:
    name, colon, argument = written.partition(":")
    if colon:
        if name.endswith(".py"):
            return from_file(name, argument)
        return ARGUMENTS[name][1](argument, context)
    known = METRICS.get(name)
    if known is None:
        return from_package(name)
    if known.expects and not context.expects:
        raise UsageError(
            f"{name} needs expected answers, which these rows do not have",
            fix="--metrics grader:FILE",
        )
    return known.make(known.used(name), context)


def auto(context: Context) -> str:
    """Choose the metric that fits the expected answers: tool calls, JSON, short labels, or prose. Raises
    `UsageError` if the rows have no expected answer."""
    if not context.expects:
        raise UsageError(
            "these rows have no expected answer",
            fix="use --metrics grader:FILE (the same file format as for training)",
        )
    expected = [item.expected for item in context.items]
    if any(item.expected_calls for item in context.items):
        return "tool_calls"
    return choose(expected)


def choose(expected: Sequence[str]) -> str:
    """Choose the metric for expected answers that are JSON objects, short labels, or prose."""
    if expected and all(structured.is_container(one) for one in expected):
        return "json_match"
    if expected and all(word_count(one) <= 5 for one in expected):
        return "exact_match"
    return "token_f1"
