"""Test for catastrophic forgetting with offline probes, your own sets, and lm-eval tasks, judged by
non-inferiority."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from msgspec.structs import replace

from orchestrate.errors import SetupError, UsageError
from orchestrate.evaluation import Answer, Item, digest_of, item_id, scoring
from orchestrate.evaluation.contenders import Candidate, in_precision
from orchestrate.evaluation.evaluate import with_likelihood
from orchestrate.evaluation.metrics import Metric
from orchestrate.evaluation.metrics.base import PerAnswer
from orchestrate.evaluation.metrics.conduct import refuses
from orchestrate.evaluation.metrics.text import contains, numbers
from orchestrate.evaluation.scoring import Side, paired
from orchestrate.evaluation.statistics import mean, wilson
from orchestrate.evaluation.verdict import points, round_up, rows_to_decide, shown
from orchestrate.paid.paid_requests import Asking, Question
from orchestrate.types import Contender, Difference, Likelihood, Message, MetricUsed, Record, Score

# The built-in probes: small, offline, and written for this project. The content of each is described in its
# `title` and in docs/evaluation.md.


NATS_MARGIN = 0.05
"""Non-inferiority margin for general text: the largest acceptable increase in loss, in nats per token.
Equivalent to a 5% increase in perplexity."""
POINTS_MARGIN = 0.1
"""Margin for the share of correct answers. A smaller margin requires more items than these probes have (see
`statistics.rows_for`)."""


@dataclass(frozen=True)
class RegressionProbe:
    name: str
    title: str
    items: Sequence[Item]
    metric: Metric
    margin: float
    """Non-inferiority margin. Smaller drops don't count as forgetting."""
    needs: Literal["answers", "likelihood"] = "answers"
    chance: float = 0.0
    """Best score that a model without the ability can reach, for example by never refusing."""


def built_in() -> list[RegressionProbe]:
    return [general(), format_following(), arithmetic(), refusals(), languages()]


def general() -> RegressionProbe:
    items = [
        Item(id=item_id((), (), text, ()), prompt=(), expected=" ".join(text.split()))
        for text in _data("general.txt").split("\n\n")
    ]
    used = MetricUsed(name="nats_per_token", kind="amount", better="lower", unit="nats")
    metric = PerAnswer(
        used,
        lambda _, a: a.expected_nats / a.expected_tokens if a.expected_tokens and a.expected_nats else None,
    )
    title = f"{len(items)} short passages of general English, scored by the change in loss, in nats per token"
    return RegressionProbe("general-text", title, items, metric, NATS_MARGIN, "likelihood")


def arithmetic() -> RegressionProbe:
    draw = random.Random(20261101)  # noqa: S311  the same questions for ever
    items: list[Item] = []
    for i in range(120):
        a, b = draw.randint(2, 99), draw.randint(2, 99)
        match i % 3:
            case 0:
                question, value = f"What is {a} + {b}?", a + b
            case 1:
                question, value = f"What is {max(a, b)} - {min(a, b)}?", abs(a - b)
            case _:
                question, value = f"What is {a % 12 + 2} * {b % 12 + 2}?", (a % 12 + 2) * (b % 12 + 2)
        items.append(_item(f"{question} Answer with the number only.", str(value)))
    return RegressionProbe(
        "arithmetic",
        "120 sums, differences and products of small numbers",
        items,
        _right(_number),
        POINTS_MARGIN,
    )


def languages() -> RegressionProbe:
    items: list[Item] = []
    for one in yaml.safe_load(_data("languages.yaml")):
        for country, capital in one["pairs"].items():
            items.append(
                _item(one["question"].format(country), capital, slices=(f"language:{one['language']}",))
            )
    title = f"{len(items)} questions about capitals, asked and answered in ten languages"
    return RegressionProbe("languages", title, items, _right(_mentions), POINTS_MARGIN)


def refusals() -> RegressionProbe:
    given = yaml.safe_load(_data("refusals.yaml"))
    items = [
        _item(question, kind, slices=(f"should:{kind}",))
        for kind in ("decline", "answer")
        for question in given[kind]
    ]
    title = "20 harmful requests and 20 that only sound harmful (English)"
    return RegressionProbe("refusals", title, items, _right(_declines_rightly), POINTS_MARGIN, chance=0.5)


def format_following() -> RegressionProbe:
    items = [
        _item(f"{instruction} {subject}.", name, slices=(f"format:{name}",))
        for name, instruction, _ in _FORMATS
        for subject in _SUBJECTS
    ]
    title = f"{len(items)} questions that each specify the format of the answer"
    # Any one-word answer satisfies two of the ten formats.
    return RegressionProbe("format", title, items, _right(_in_form), POINTS_MARGIN, chance=2 / len(_FORMATS))


_SUBJECTS = ("a garden", "the sea", "a railway station", "winter", "a bicycle", "bread")
_Check = Callable[[str], bool]
_FORMATS: tuple[tuple[str, str, _Check], ...] = (
    (
        "json",
        'Answer with a JSON object with the keys "name" and "words" and nothing else, about',
        lambda t: _keys(t, {"name", "words"}),
    ),
    (
        "json-list",
        "Answer with a JSON list of three strings and nothing else, about",
        lambda t: _strings(t, 3),
    ),
    (
        "bullets",
        "Write exactly three bullet points, each beginning with a hyphen, about",
        lambda t: _lines(t, r"- .+", 3),
    ),
    ("numbered", "Write a numbered list with the lines 1., 2. and 3. about", lambda t: _numbered(t)),
    ("one-word", "Answer with a single word that you associate with", lambda t: len(t.split()) == 1),
    (
        "upper-case",
        "Write one sentence in capital letters only about",
        lambda t: t == t.upper() != t.lower(),
    ),
    (
        "no-comma",
        "Write two sentences without any comma about",
        lambda t: bool(t.strip()) and "," not in t,
    ),
    (
        "last-word",
        'Write a sentence that ends with the word "END" about',
        lambda t: t.rstrip(" .!\n").endswith("END"),
    ),
    (
        "quoted",
        "Put your whole answer into double quotation marks. Write one sentence about",
        lambda t: re.fullmatch(r'"[^"]+"', t.strip()) is not None,
    ),
    (
        "yes-no",
        "Answer only with yes or no: could a child draw a picture of",
        lambda t: t.strip(" .!\n").lower() in ("yes", "no"),
    ),
)


def _keys(text: str, wanted: set[str]) -> bool:
    value = _json(text)
    return isinstance(value, dict) and set(value) == wanted  # pyright: ignore[reportUnknownArgumentType]  # any JSON


def _strings(text: str, count: int) -> bool:
    value = _json(text)
    return isinstance(value, list) and [type(v) for v in value] == [str] * count  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # any JSON


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _lines(text: str, pattern: str, count: int) -> bool:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return len(lines) == count and all(re.fullmatch(pattern, line) for line in lines)


def _numbered(text: str) -> bool:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return len(lines) == 3 and all(line.startswith(f"{i}. ") for i, line in enumerate(lines, start=1))


_CHECKS = {name: check for name, _, check in _FORMATS}


def _in_form(item: Item, answer: Answer) -> bool:
    return _CHECKS[item.expected](answer.text)


def _number(item: Item, answer: Answer) -> bool:
    """Return the last number in the answer, because a model may think aloud first."""
    found = list(numbers(answer.text))
    return bool(found) and found[-1] == int(item.expected)


def _mentions(item: Item, answer: Answer) -> bool:
    return contains(item.expected, answer.text) > 0


def _declines_rightly(item: Item, answer: Answer) -> bool:
    return bool(answer.text.strip()) and refuses(answer.text) == (item.expected == "decline")


def _right(check: Callable[[Item, Answer], bool]) -> PerAnswer:
    return PerAnswer(MetricUsed(name="right", kind="right-or-wrong"), lambda i, a: float(check(i, a)))


def _item(question: str, expected: str, slices: tuple[str, ...] = ()) -> Item:
    prompt = (Message(role="user", content=question),)
    return Item(id=item_id(prompt, (), expected, ()), prompt=prompt, expected=expected, slices=slices)


def _data(name: str) -> str:
    return files("orchestrate.evaluation.regression").joinpath(name).read_text(encoding="utf-8")


def names() -> Iterator[str]:
    yield from (probe.name for probe in built_in())


# Tasks of lm-evaluation-harness, which require the package `lm-eval`.


# lm_eval is only partially typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


Sample = tuple[str, dict[str, float]]
"""Id of an lm-eval document, and its scores by metric."""


def run(
    candidate: Candidate, tasks: Sequence[str], folder: Path | None, limit: int | None, asking: Asking
) -> dict[str, list[Sample]]:
    """Run each task and return its scored samples. `folder` contains the user's own task files. Raises
    `SetupError` if lm-eval is not installed. Raises `UsageError` if a task does not exist, its data can't be
    read, or the contender doesn't support it."""
    try:
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise SetupError(
            "--tasks needs the package lm-eval, which is not installed", fix="pip install lm-eval"
        ) from error
    # Indexing lm-eval's own tasks means reading about ten thousand files. Skip it if the user's folder has
    # all tasks. The user's task groups don't count, because they may include lm-eval's tasks.
    manager = TaskManager(include_path=str(folder), include_defaults=False) if folder else None
    if manager is None or not {*tasks} <= {*manager.all_subtasks}:
        manager = TaskManager(include_path=str(folder) if folder else None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UsageError(
            f"lm-eval has no task named {unknown[0]!r}",
            fix="put the task's YAML file into a folder DIR and add --tasks-folder DIR",
        )
    try:
        found: Any = simple_evaluate(
            model=_language_model(candidate, asking),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    except OSError as error:  # of the package `datasets`: no network, no such data set or file
        raise UsageError(
            f"lm-eval could not read the data of {', '.join(tasks)}: {str(error)[:400]}",
            fix="connect to the Hugging Face Hub, or use --tasks-folder DIR with a task YAML "
            "that names local files",
        ) from error
    return {task: [_sample(one) for one in found["samples"][task]] for task in tasks}


def _sample(one: dict[str, Any]) -> Sample:
    names = cast("list[str]", one.get("metrics") or [])
    scores = {name: float(one[name]) for name in names if isinstance(one.get(name), int | float | bool)}
    return f"{one['doc_id']} {one.get('filter', '')}", scores


def _language_model(candidate: Candidate, asking: Asking) -> Any:
    from lm_eval.api.model import LM

    class HarnessModel(LM):
        """Answers lm_eval's requests through `Asking`, so that answers are stored and the budget is
        enforced."""

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            del disable_tqdm
            questions = [Question(messages=(Message(role="user", content=r.args[0]),)) for r in requests]
            answers = asking.ask(candidate.respondent, questions)
            return [_until(a.text, r.args[1].get("until")) for a, r in zip(answers, requests, strict=True)]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            del disable_tqdm
            likelihoods = self._likelihoods([{"context": r.args[0], "text": r.args[1]} for r in requests])
            return [(-one.nats, one.likeliest) for one in likelihoods]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            del disable_tqdm
            return [-one.nats for one in self._likelihoods([{"text": r.args[0]} for r in requests])]

        def _likelihoods(self, rows: list[dict[str, Any]]) -> list[Likelihood]:
            if candidate.likelihood is None:
                raise UsageError(
                    f"{candidate.contender.name} does not return log-probabilities, which this task needs",
                    fix="use a generate_until task, or run the model on this machine with --on here",
                )
            return candidate.likelihood(rows)

    return HarnessModel()


def _until(text: str, stops: Any) -> str:
    for stop in [stops] if isinstance(stops, str) else stops or []:
        text = text.split(stop, 1)[0]
    return text


# Run probes on a tuned model and its base, and decide for each ability whether the tuned model kept it.


ABLE = 0.1
"""Minimum accuracy that at least one of the two models must reach for an ability to be measurable."""

CATASTROPHIC_NATS = 0.7
"""Increase in loss, in nats per token, that makes each token half as likely."""

Decision = Literal["kept", "forgot", "inconclusive", "not measurable"]


class ProbeResult(Record, frozen=True, kw_only=True):
    """The result for one ability."""

    probe: str
    title: str
    metric: MetricUsed
    base: Score
    tuned: Score
    difference: Difference
    margin: float
    """The non-inferiority margin in the metric's unit."""
    decision: Decision
    reason: str
    rows_needed: int | None = None
    """Estimated number of items needed to decide an inconclusive result."""
    items_digest: str = ""

    @property
    def catastrophic(self) -> bool:
        """True if the tuned model forgot at least half of the base model's ability."""
        if self.decision != "forgot":
            return False
        if self.metric.kind == "amount":
            return abs(self.difference.score.value) >= CATASTROPHIC_NATS
        return self.tuned.value <= self.base.value / 2


def judged(
    probe: str,
    title: str,
    metric: MetricUsed,
    base: Score,
    tuned: Score,
    difference: Difference,
    margin: float,
    chance: float = 0.0,
) -> ProbeResult:
    """Decide with a non-inferiority test whether an ability was retained or forgotten. The result is
    inconclusive unless the difference's entire confidence interval is on one side of the margin. If neither
    model is clearly better than `chance`, the ability is not measurable."""
    score = difference.score
    sign = -1 if metric.better == "lower" else 1
    low, high = sorted((sign * score.low, sign * score.high))
    change = f"{points(metric, score.value)} ({points(metric, score.low)} to {points(metric, score.high)})"
    allowed = f"{shown(metric, margin) if metric.kind == 'amount' else f'{100 * margin:g} points'}"
    rows: int | None = None
    decision: Decision
    if metric.unfit is not None:
        decision, reason = "inconclusive", f"{metric.name} cannot decide anything: {metric.unfit}"
    elif not score.n:
        decision, reason = "inconclusive", "neither model answered any of the questions"
    elif metric.kind != "amount" and not (_able(base, chance) or _able(tuned, chance)) and high >= -margin:
        decision, reason = "not measurable", f"the base model only reaches {shown(metric, base.value)}"
        if chance:
            reason += f", which is not clearly better than random guessing ({shown(metric, chance)})"
    elif low > -margin:
        decision, reason = "kept", f"{change}, within the margin of {allowed}"
    elif high < -margin:
        decision, reason = "forgot", f"{change}, worse by more than the margin of {allowed}"
    else:
        rows = rows_to_decide(score, -sign * margin)
        worse = (
            "the tuned model is worse, but it is unclear by how much"
            if high < 0
            else "it is unclear whether the tuned model is worse by more than the margin"
        )
        more = f". A decision needs about {round_up(rows):,} items" if rows else ""
        decision, reason = "inconclusive", f"{change}, with a margin of {allowed}: {worse}{more}"
    return ProbeResult(
        probe=probe,
        title=title,
        metric=metric,
        base=base,
        tuned=tuned,
        difference=difference,
        margin=margin,
        decision=decision,
        reason=reason,
        rows_needed=rows,
    )


def _able(score: Score, chance: float) -> bool:
    return score.value >= ABLE and score.low > chance


def advice(spec: Mapping[str, Any]) -> list[str]:
    """Suggest remedies for forgotten abilities, based on the run's settings."""
    epochs, rate = spec.get("epochs"), spec.get("learning_rate")
    fewer = f" (this run: {epochs:g})" if isinstance(epochs, int | float) else ""
    smaller = f" (this run: {rate:g})" if isinstance(rate, int | float) else ""
    adapter: Any = spec.get("adapter")
    full = adapter == "full" or adapter == {"type": "full"}
    return [
        "add general training rows for the forgotten abilities, 10% to 20% of the data",
        f"train for fewer epochs{fewer}, or use an earlier checkpoint: orchestrate checkpoints RUN",
        f"use a smaller learning rate{smaller}",
        *(["train an adapter, which changes the model less than training all weights"] if full else []),
    ]


class Regression(Record, frozen=True, kw_only=True):
    """The abilities that a tuned model retained and forgot. `tuned` and `base` are the names of the
    models."""

    run_id: str
    created_at: datetime
    tuned: Contender
    base: Contender
    results: tuple[ProbeResult, ...]
    advice: tuple[str, ...] = ()
    """Remedies for forgotten abilities."""
    notes: tuple[str, ...] = ()
    usd: Decimal | None = None

    @property
    def forgotten(self) -> list[ProbeResult]:
        return [r for r in self.results if r.decision == "forgot"]

    @property
    def settled(self) -> bool:
        """True if at least one ability was retained, no ability was forgotten, and no result is
        inconclusive."""
        found = {r.decision for r in self.results}
        return "kept" in found and found <= {"kept", "not measurable"}


def answer_probes(candidate: Candidate, probes: Sequence[RegressionProbe], asking: Asking) -> list[Side]:
    """Query a model with all probe questions. Errors from `Asking.ask` propagate."""
    return [Side(candidate.contender.name, _answers(probe, candidate, asking)) for probe in probes]


def probed(probe: RegressionProbe, tuned: Side, base: Side) -> ProbeResult:
    """Compare both models' answers to a probe."""
    mine, theirs = tuned.name, base.name
    found = scoring.score(probe.items, [tuned, base], [probe.metric], {mine: theirs})
    by_name = {m.contender: m.score for m in found.measures if not m.slice}
    [apart] = [d for d in found.differences if not d.slice]
    result = judged(
        probe.name,
        probe.title,
        probe.metric.used,
        by_name[theirs],
        by_name[mine],
        apart,
        probe.margin,
        probe.chance,
    )
    return replace(result, items_digest=digest_of(probe.items))


def _answers(probe: RegressionProbe, candidate: Candidate, asking: Asking) -> list[tuple[Answer, ...]]:
    if probe.needs == "likelihood":
        return with_likelihood(probe.items, [(Answer(text=""),)] * len(probe.items), candidate)
    return [(answer,) for answer in asking.ask(candidate.respondent, candidate.questions(probe.items, 1))]


def compared(
    task: str, tuned: Sequence[Sample], base: Sequence[Sample], names: tuple[str, str], margin: float
) -> ProbeResult:
    """Compare two models on the first metric of an lm-eval task, with samples paired by document."""
    before = dict(base)
    pairs = [(id, scores, before[id]) for id, scores in tuned if id in before and scores]
    first = next(iter(pairs[0][1])) if pairs else "score"
    values = [(mine[first], theirs[first]) for _, mine, theirs in pairs if first in theirs]
    right = all(v in (0.0, 1.0) for pair in values for v in pair)
    metric = MetricUsed(name=first, kind="right-or-wrong" if right else "graded")
    apart = paired(metric, values, [id for id, _, _ in pairs], *names, alone=right)
    return judged(
        f"lm-eval:{task}",
        f"{len(values)} documents of the lm-eval task {task}",
        metric,
        _score([b for _, b in values], right),
        _score([a for a, _ in values], right),
        apart,
        margin,
    )


def _score(values: Sequence[float], right: bool) -> Score:
    return wilson(round(sum(values)), len(values)) if right else mean(values, None, (0.0, 1.0))


def regression(
    run_id: str,
    now: datetime,
    candidates: tuple[Candidate, Candidate],
    sides: Sequence[Sequence[Side]],
    results: Sequence[ProbeResult],
    asking: Asking,
    spec: Mapping[str, Any],
    notes: Sequence[str],
) -> Regression:
    tuned, base = (
        in_precision(c.contender, [answer for side in own for one in side.answers for answer in one])
        for c, own in zip(candidates, sides, strict=True)
    )
    forgotten = any(r.decision == "forgot" for r in results)
    priced = all(c.respondent.price is not None for c in candidates)
    return Regression(
        run_id=run_id,
        created_at=now,
        tuned=tuned,
        base=base,
        results=tuple(results),
        advice=tuple(advice(spec)) if forgotten else (),
        notes=(*notes, *([str(missing)] if (missing := asking.budget.lost()) else ())),
        usd=asking.budget.spent_usd if priced else None,
    )
