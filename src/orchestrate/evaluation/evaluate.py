"""Run an evaluation: estimate its cost and statistical power, collect the answers, and score them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product
from pathlib import Path
from statistics import median

import msgspec
from msgspec.structs import replace

from orchestrate.core.files import whole
from orchestrate.data.tokens.counters import batch_counter
from orchestrate.evaluation import Answer, Item, ScoredItem, digest_of, scoring, statistics
from orchestrate.evaluation.contenders import Candidate, expected_likelihoods, in_precision
from orchestrate.evaluation.metrics import Metric, PairMetric
from orchestrate.evaluation.metrics.registry import needs
from orchestrate.evaluation.scoring import Side
from orchestrate.evaluation.verdict import Demand, points, require_decidable, verdicts
from orchestrate.paid.journal import Unaccounted
from orchestrate.paid.paid_requests import Asking
from orchestrate.text import count, money
from orchestrate.types import Contender, Difference, Evaluation, MetricUsed, Record, Sampling, decoding

_NOTED = (0.01, 0.02, 0.03, 0.05, 0.1)
"""Differences in accuracy for which the plan shows the number of items needed."""


class ContenderPlan(Record, frozen=True, kw_only=True):
    """The planned questions for one contender, and their cost."""

    contender: str
    questions: int
    kept: int
    """Number of questions whose answers are already stored."""
    expected_usd: Decimal | None
    """Cost in US dollars if answers are as long as the expected ones. `None` if no price is known."""
    high_usd: Decimal | None
    """Cost in US dollars if every answer has the maximum length and the host adds text to every prompt."""
    unpriced: bool = False
    """True if questions may be billed at an unknown price."""
    sandbox: bool = False
    """True if a sandbox answers. It bills nothing."""


class EvaluationPlan(Record, frozen=True, kw_only=True):
    """A planned evaluation: its maximum cost, and the smallest difference that it can detect. Nothing has
    been sent yet."""

    items: int
    asked: tuple[ContenderPlan, ...]
    detectable: float
    """Smallest difference in accuracy that this many items can detect with a power of 80%."""
    rows_for: tuple[tuple[float, int], ...]
    """How many items are needed to detect differences smaller than `detectable`, as `(difference, items)`
    pairs."""
    assumed: float
    """Assumed share of items on which two models differ."""

    @property
    def unpriced(self) -> list[str]:
        """The contenders whose price is unknown."""
        return [a.contender for a in self.asked if a.unpriced]

    @property
    def expected_usd(self) -> Decimal | None:
        known = [a.expected_usd for a in self.asked]
        return None if None in known else sum((u for u in known if u is not None), Decimal(0))

    @property
    def high_usd(self) -> Decimal | None:
        """Maximum cost that the user is asked to approve, in US dollars. `None` if any price is unknown."""
        known = [a.high_usd for a in self.asked]
        return None if None in known else sum((u for u in known if u is not None), Decimal(0))


def plan(
    items: Sequence[Item], candidates: Sequence[Candidate], samples: int, asking: Asking
) -> EvaluationPlan:
    smallest = statistics.detectable(len(items))
    return EvaluationPlan(
        items=len(items),
        asked=tuple(_planned(items, candidate, samples, asking) for candidate in candidates),
        detectable=smallest,
        rows_for=tuple((d, statistics.rows_for(d)) for d in _NOTED if d < smallest),
        assumed=statistics.DISCORDANT,
    )


def _planned(items: Sequence[Item], candidate: Candidate, samples: int, asking: Asking) -> ContenderPlan:
    questions = candidate.questions(items, samples)
    kept = asking.kept(candidate.respondent, questions)
    price, expected, high = candidate.respondent.price, Decimal(0), Decimal(0)
    if price is not None:
        missing = [(q, items[i // samples]) for i, q in enumerate(questions) if q.digest not in kept]
        tokens_of = batch_counter("o200k_base")
        prompts = tokens_of(["\n".join(q.texts) for q, _ in missing])
        answers = tokens_of([item.expected for _, item in missing])
        for (question, _), prompt, answer in zip(missing, prompts, answers, strict=True):
            expected += price(prompt, min(answer, candidate.respondent.max_tokens))
            high += price(prompt + question.added_tokens, candidate.respondent.max_tokens)
    known = price is not None
    return ContenderPlan(
        contender=candidate.contender.name,
        questions=len(questions),
        kept=len(kept),
        expected_usd=expected if known else None,
        high_usd=high if known else None,
        unpriced=candidate.respondent.unpriced and len(kept) < len(questions),
        sandbox=candidate.respondent.sandbox,
    )


@dataclass(frozen=True)
class Subject:
    """The evaluated items and their source."""

    items: Sequence[Item]
    dataset: str
    digest: str
    cluster: str | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class EvaluationTerms:
    """The settings of an evaluation. `rivals` maps each contender to the contender that it is compared
    with."""

    metrics: Sequence[Metric | PairMetric]
    sampling: Sampling
    rivals: Mapping[str, str]
    demand: Demand
    parity: bool = False
    """True if the rival is the model to be replaced."""


def require_terms(terms: EvaluationTerms) -> None:
    """Check the settings before any question is sent. Raises `UsageError` if the settings make a verdict
    impossible."""
    require_decidable(terms.metrics[0].used, terms.demand)


def evaluate(
    id: str,
    subject: Subject,
    candidates: Sequence[Candidate],
    terms: EvaluationTerms,
    asking: Asking,
    items_file: Path,
) -> Evaluation:
    """Query every contender, score, compare and judge the answers, and write each answer to `items_file`.
    Errors from `Asking.ask` and from the metrics propagate. Answers received before an error stay stored."""
    items, samples = subject.items, terms.sampling.samples
    likelihood = needs([metric.used.name for metric in terms.metrics], "likelihood")
    sides: list[Side] = []
    contenders: list[Contender] = []
    asked = [(one.respondent, one.questions(items, samples)) for one in candidates]
    for candidate, (_, questions), flat in zip(candidates, asked, asking.ask_each(asked), strict=True):
        answers = [tuple(flat[i : i + samples]) for i in range(0, len(flat), samples)]
        if candidate.likelihood is not None and likelihood:
            answers = with_likelihood(items, answers, candidate)
        sides.append(Side(candidate.contender.name, answers))
        contenders.append(_counted(candidate, flat, asking.lost(candidate.respondent, questions)))
    names, references = judged(contenders, terms.rivals)
    scored = scoring.score(items, sides, terms.metrics, terms.rivals, list(product(names, references)))
    used = [metric.used for metric in terms.metrics]
    first = used[0]
    rivals = set(terms.rivals.values())
    write_items(items_file, scored.answered)
    unanswered = asking.budget.lost()
    return Evaluation(
        id=id,
        created_at=datetime.now(UTC),
        dataset=subject.dataset,
        dataset_digest=subject.digest,
        items=len(items),
        items_digest=digest_of(items),
        contenders=tuple(contenders),
        metrics=tuple(used),
        measures=scored.measures,
        differences=scored.differences,
        against=rivals.pop() if len(rivals) == 1 else None,
        sampling=terms.sampling,
        cluster=subject.cluster,
        clusters=len({item.cluster or item.id for item in items}) if subject.cluster else None,
        confusions=scored.confusions,
        verdicts=tuple(
            verdicts(first, scored.measures, scored.differences, terms.demand, names, scored.both_answered)
        ),
        parity=terms.parity,
        items_file=str(items_file),
        notes=(
            *subject.notes,
            *_quantization_cost(first, scored.differences, contenders),
            *_references(first, scored.beside),
            *_words(first, items),
            *_notes(contenders, sides),
            *_unscored(used, scored.answered),
            *_judges(used),
            *([str(unanswered)] if unanswered else ()),
        ),
    )


def judged(contenders: Sequence[Contender], rivals: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return (names of models that get a verdict, names of models that are only references). Base models and
    rivals are in neither list. If at least one of the remaining models is tuned, only tuned models get a
    verdict. Otherwise, all remaining models do."""
    models = [c for c in contenders if c.kind != "base" and c.name not in rivals.values()]
    tuned = [c.name for c in models if c.kind == "tuned"]
    others = [c.name for c in models if c.kind != "tuned"]
    return (tuned, others) if tuned else (others, [])


def with_likelihood(
    items: Sequence[Item], answers: Sequence[tuple[Answer, ...]], candidate: Candidate
) -> list[tuple[Answer, ...]]:
    """Add to each answer the model's likelihood of the expected answer."""
    likelihoods = expected_likelihoods(candidate, items)
    return [
        tuple(replace(a, expected_nats=nats, expected_tokens=tokens) for a in own)
        for own, (nats, tokens) in zip(answers, likelihoods, strict=True)
    ]


def _counted(candidate: Candidate, answers: Sequence[Answer], unanswered: Unaccounted) -> Contender:
    """Return the contender with the tokens, cost and time of its answers."""
    came = [a for a in answers if a.error is None]
    seconds = sorted(a.seconds for a in came if a.seconds is not None)
    first = [a.first_token_seconds for a in came if a.first_token_seconds is not None]
    priced = candidate.respondent.price is not None
    return replace(
        in_precision(candidate.contender, came),
        answers=len(answers),
        failed=len(answers) - len(came),
        prompt_tokens=_sum([a.prompt_tokens for a in came]),
        completion_tokens=_sum([a.completion_tokens for a in came]),
        usd=sum((a.usd or Decimal(0) for a in came), Decimal(0)) if priced else None,
        lost_requests=unanswered.requests,
        lost_usd=unanswered.usd,
        seconds=median(seconds) if seconds else None,
        seconds_p95=seconds[math.ceil(0.95 * len(seconds)) - 1] if seconds else None,
        first_token_seconds=median(first) if first else None,
        hours=_hours(candidate, seconds),
        asked_at=min((a.at for a in came if a.at is not None), default=None),
    )


def _hours(candidate: Candidate, seconds: Sequence[float]) -> Decimal | None:
    """Return the hours that the answers of an hourly billed deployment took, at its concurrency."""
    if candidate.contender.usd_per_hour is None or not seconds:
        return None
    at_once = min(candidate.respondent.parallel, len(seconds))
    return Decimal(str(round(sum(seconds) / at_once / 3600, 9)))


def _sum(counts: Sequence[int | None]) -> int | None:
    return sum(n or 0 for n in counts) if counts and None not in counts else None


def _notes(contenders: Sequence[Contender], sides: Sequence[Side]) -> Iterator[str]:
    for one, side in zip(contenders, sides, strict=True):
        if one.failed:
            yield (f"{one.name}: {one.failed} of {one.answers} questions got no answer and count as wrong")
        yield from answer_notes(one, [answer for own in side.answers for answer in own])
        if one.usd_per_hour is not None:
            yield f"{one.name}: {_by_the_hour(one, one.usd_per_hour)}"


def answer_notes(one: Contender, answers: Sequence[Answer]) -> Iterator[str]:
    """Yield the notes on a contender's answers, such as that they were cut off, and the number of answers."""
    found = Counter(note for answer in answers for note in answer.notes)
    found[_CUT] += sum(a.finish_reason == "length" and not _says_cut(a.notes) for a in answers)
    for note, number in (+found).items():
        yield f"{one.name}: {number} of {one.answers} answers: {note}"


def _by_the_hour(one: Contender, price: Decimal) -> str:
    """Explain the cost per answer of a contender that is billed hourly."""
    billed = f"{money(price)} per hour is billed regardless of use"
    if one.usd_per_answer is None:
        return f"{billed}, so the cost per answer is unknown (set --traffic)"
    if one.answers_per_hour is not None:
        at = f"{one.answers_per_hour:,.0f} answers per hour, from --traffic"
    else:
        pace = (one.answers - one.failed) / (one.hours or Decimal(1))
        at = f"{pace:,.0f} answers per hour, the pace of this evaluation (set your own with --traffic)"
    return f"{billed}: {money(one.usd_per_answer)} per answer at {at}"


def _quantization_cost(
    metric: MetricUsed, differences: Sequence[Difference], contenders: Sequence[Contender]
) -> Iterator[str]:
    """Report the effect of 4-bit quantization on base models that answered in both precisions."""
    bases = {one.name: one for one in contenders if one.kind == "base"}
    for apart in differences:
        one, other = bases.get(apart.contender), bases.get(apart.against)
        if apart.metric != metric.name or apart.slice or one is None or other is None:
            continue
        if one.precision != other.precision and (one.model, one.shots) == (other.model, other.shots):
            score = apart.score
            yield (
                f"effect of quantization before any training: {one.name} ({one.precision}) against "
                f"{other.name} ({other.precision}): {metric.name} {points(metric, score.value)} "
                f"({points(metric, score.low)} to {points(metric, score.high)})"
            )


def _references(metric: MetricUsed, beside: Sequence[Difference]) -> Iterator[str]:
    """Compare each tuned model with the reference models."""
    for apart in beside:
        score = apart.score
        yield (
            f"{apart.contender} against {apart.against}, for reference: {metric.name} "
            f"{points(metric, score.value)} ({points(metric, score.low)} to {points(metric, score.high)}, "
            f"{count(score.n, 'row')})"
        )


def _words(metric: MetricUsed, items: Sequence[Item]) -> Iterator[str]:
    """Warn about expected answers without tool calls, whose text a tool-call metric ignores."""
    words = sum(not item.expected_calls for item in items)
    if metric.name.startswith("tool_") and words:
        yield (
            f"{metric.name}: {words} of {len(items)} expected answers have no tool call. In these "
            "rows, only the absence of a call is scored. To score the text: --metrics token_f1 or judge:MODEL"
        )


_CUT = "cut off at the token limit (--max-tokens)"


def _says_cut(notes: Sequence[str]) -> bool:
    return any(note.startswith("cut ") for note in notes)


def _unscored(metrics: Sequence[MetricUsed], answered: Sequence[ScoredItem]) -> Iterator[str]:
    """Report how many answers have no score, because the metric leaves them out."""
    for one in metrics:
        found: dict[str, list[bool]] = {}
        for item in answered:
            for name, marks in item.marks.items():
                found.setdefault(name, []).extend(m.value is None for m in marks.get(one.name, ()))
        for name, missing in found.items():
            if one.kind != "amount" and any(missing):
                lost = f"{sum(missing)} of {len(missing)} answers"
                yield f"{name}: {lost} have no score and are left out of {one.name}"


def _judges(metrics: Sequence[MetricUsed]) -> Iterator[str]:
    """Report the calibration of the judges."""
    for one in metrics:
        if one.unfit is not None:
            yield f"{one.name} cannot decide the verdict: {one.unfit}"
        elif agreement := one.detail.get("agreement"):
            yield f"{one.name} was compared with human ratings: {agreement}"
        for note in one.detail.get("notes", ()):
            yield f"{one.name}: {note}"


def write_items(path: Path, answered: Sequence[ScoredItem]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as draft, draft.open("wb") as out:
        for one in answered:
            out.write(msgspec.json.encode(one) + b"\n")


def read_items(path: Path) -> list[ScoredItem]:
    """Read the items file of an evaluation. Raises `OSError` if it does not exist."""
    decoder = decoding.decoder(ScoredItem)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]
