"""Recommend an approach: prompting, few-shot examples, retrieval, fine-tuning on a host, or fine-tuning on
your own hardware.

Each rule compares one property of the data or the requirements with a threshold, and gives points to some
approaches. Approaches that violate a requirement are excluded. All points are shown with their reasons, so
readers can weigh them differently. The thresholds come from guides for practitioners, and each rule names its
source."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any, cast

from orchestrate import text
from orchestrate.costing import Ownership, cheapest
from orchestrate.costing.latency import Latency, faster_by
from orchestrate.data import Dataset, goals
from orchestrate.data.goals import FEW_SHOT_ROWS, Goal, Volume
from orchestrate.data.rows import (
    ChatExample,
    CompletionExample,
    Example,
    PreferenceExample,
    RLExample,
    UnpairedExample,
)
from orchestrate.data.shapes.row_reader import canonical
from orchestrate.types import Record, Score

_SAMPLE = 20_000
"""Number of rows to measure, enough for stable shares."""
_WORD = re.compile(r"\w+")


class DataTraits(Record, frozen=True, kw_only=True):
    """Properties of a dataset. Shares are between 0 and 1 and are computed over the rows that have an
    answer."""

    rows: int
    kind: str
    prompt_tokens: float
    """Average number of tokens per row that the model is not trained on."""
    answer_tokens: float
    """Average number of tokens per row that the model is trained on."""
    shared_tokens: float
    """Length of the system prompt in tokens if at least 90% of the rows share it, otherwise 0."""
    json_share: float
    """Share of answers that are JSON objects."""
    same_keys_share: float
    """Share of the JSON answers that have the most common set of keys."""
    distinct_answers: int
    distinct_share: float
    copied_share: float
    """Average share of an answer's words that also occur in its prompt."""
    duplicate_share: float
    """Share of rows that duplicate an earlier row."""
    calls_tools: bool = False

    @property
    def labels(self) -> int:
        """Number of distinct answers if the task is a classification, otherwise 0."""
        return self.distinct_answers if self.distinct_answers <= LABELS and self.distinct_share < 0.5 else 0

    @property
    def keyed(self) -> bool:
        """True if nearly all answers are JSON objects with the same keys."""
        return self.json_share >= CONSISTENT and self.same_keys_share >= CONSISTENT

    @property
    def knowing(self) -> bool:
        """True if the answers seem to contain knowledge that the prompts don't. Such answers are not short,
        share few words with their prompts, and are rarely identical."""
        return (
            self.copied_share < KNOWLEDGE_COPIED
            and self.distinct_share > 0.8
            and self.answer_tokens > KNOWLEDGE_TOKENS
        )

    def volume(self, goal: Goal | None = None) -> Volume:
        """Compare the number of rows with the recommended number for a goal. By default, the goal is inferred
        from the rows."""
        if goal is not None:
            return goals.volume(goal, self.rows, labels=self.labels)
        return goals.inferred(
            self.rows,
            labels=self.labels,
            tools=self.calls_tools,
            keyed=self.keyed,
            knowing=self.knowing,
            bare=self.kind == "text",
        )


def measure(dataset: Dataset, tokenizer: str = "o200k") -> DataTraits:
    """Measure a dataset's rows, and count their tokens."""
    count = dataset.tokens(tokenizer)
    seen = _Seen()
    for example in dataset.examples():
        if seen.rows >= _SAMPLE:
            break
        seen.add(example)
    rows = max(1, count.rows)
    answers = max(1, seen.answered)
    system, times = seen.systems.most_common(1)[0] if seen.systems else ("", 0)
    everywhere = times >= 0.9 * seen.rows
    keys = seen.keys.most_common(1)[0][1] if seen.keys else 0
    return DataTraits(
        rows=dataset.rows,
        kind=dataset.kind,
        prompt_tokens=(count.tokens - count.trained_tokens) / rows,
        answer_tokens=count.trained_tokens / rows,
        shared_tokens=len(system) / 4 if everywhere else 0.0,  # about four characters to a token
        json_share=seen.objects / answers,
        same_keys_share=keys / seen.objects if seen.objects else 0.0,
        distinct_answers=len(seen.answers),
        distinct_share=len(seen.answers) / answers,
        copied_share=seen.copied / answers,
        duplicate_share=1 - len(seen.digests) / max(1, seen.rows),
        calls_tools=dataset.content.tools,
    )


class _Seen:
    def __init__(self) -> None:
        self.rows = self.answered = self.objects = 0
        self.copied = 0.0
        self.systems: Counter[str] = Counter()
        self.keys: Counter[tuple[str, ...]] = Counter()
        self.answers: set[bytes] = set()
        self.digests: set[bytes] = set()

    def add(self, example: Example) -> None:
        system, prompt, answer = _parts(example)
        self.rows += 1
        self.digests.add(hashlib.blake2b(canonical(example), digest_size=16).digest())
        if system:
            self.systems[system] += 1
        if not answer:
            return
        self.answered += 1
        self.answers.add(_digest(answer.strip()))
        prompt_words = set(_WORD.findall(f"{system} {prompt}".lower()))
        words = _WORD.findall(answer.lower())
        self.copied += sum(word in prompt_words for word in words) / len(words) if words else 0.0
        with suppress(ValueError):
            value = json.loads(answer)
            if isinstance(value, dict):
                self.objects += 1
                self.keys[tuple(sorted(cast("dict[str, Any]", value)))] += 1


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _parts(example: Example) -> tuple[str, str, str]:
    """Return (system prompt, rest of the prompt, last answer)."""
    if isinstance(example, ChatExample):
        turns = [(m.role, m.text) for m in example.messages]
        answer = turns[-1][1] if turns and turns[-1][0] == "assistant" else ""
        return (
            _joined(turns, "system", "developer"),
            _joined(turns[:-1] if answer else turns, "user", "tool"),
            answer,
        )
    if isinstance(example, PreferenceExample):
        turns = [(m.role, m.text) for m in example.prompt]
        return (
            _joined(turns, "system"),
            _joined(turns, "user"),
            example.preferred[-1].text if example.preferred else "",
        )
    if isinstance(example, UnpairedExample):
        turns = [(m.role, m.text) for m in example.prompt]
        answer = example.completion[-1].text if example.label else ""
        return _joined(turns, "system", "developer"), _joined(turns, "user", "tool"), answer
    if isinstance(example, CompletionExample):
        return "", example.prompt, example.completion
    if isinstance(example, RLExample):
        turns = [(m.role, m.text) for m in example.messages]
        return _joined(turns, "system", "developer"), _joined(turns, "user", "tool"), ""
    return "", "", ""


def _joined(turns: Iterable[tuple[str, str]], *roles: str) -> str:
    return "\n".join(text for role, text in turns if role in roles)


MIN_ROWS = 10
"""Minimum number of rows that OpenAI accepts (fine-tuning guide). Fireworks requires at least 3."""
NEAR_TARGET = 0.8
"""If prompting reaches this fraction of the target score, improve the prompts before tuning. Sources:
Tianpan's decision framework, as cited by skywriter.app/n/ai-ops-weekly, and theneuralbase.com on problems
that prompting can solve."""
GOOD_SCORE = 0.95
"""Score of the base model on held-out rows above which there is little left to gain."""
CONSISTENT = 0.95
LABELS = 50
"""Maximum number of distinct answers in a classification task."""
KNOWLEDGE_COPIED = 0.3
"""Answers seem to contain knowledge only if their `copied_share` is below this threshold. They must also be
long enough and rarely repeat."""
KNOWLEDGE_TOKENS = 20
LONG_INSTRUCTIONS = 300
FAST_MS = 500
DUPLICATES = 0.1


class Way(StrEnum):
    PROMPT = "prompt"
    FEW_SHOT = "few-shot"
    RETRIEVAL = "retrieval"
    TUNE_HOSTED = "tune on a host"
    TUNE_OWN = "tune on your own hardware"


_PROMPTING = (Way.PROMPT, Way.FEW_SHOT, Way.RETRIEVAL)
_TUNING = (Way.TUNE_HOSTED, Way.TUNE_OWN)


class Needs(Record, frozen=True, kw_only=True):
    """Your requirements, which can't be derived from the data."""

    private: bool = False
    """True if the data must not leave the user's machines."""
    latency_ms: int | None = None
    changing: bool = False
    """True if the facts in the answers change often."""
    own_gpu: bool = False
    base_score: Score | None = None
    """Score of the base model with your prompt, on held-out rows. `n` is 0 if only the value is known."""
    few_shot_score: Score | None = None
    """Score of the same model with examples in the prompt."""
    target: float | None = None
    """Score that is good enough. `None` assumes `GOOD_SCORE`."""
    goal: Goal | None = None
    """Skill that fine-tuning should teach. `None` infers it from the rows."""
    model: str | None = None
    """Open model that would be tuned. Used with `latency_ms`."""
    larger: str | None = None
    """Model that the tuned model would replace. `None` assumes a model with 70 billion parameters."""
    tokens: tuple[int, int] | None = None
    """Input and output tokens per request. `None` uses the averages of the rows."""


class AdviceVote(Record, frozen=True, kw_only=True):
    ways: tuple[Way, ...]
    points: int
    reason: str
    turns: str
    """Condition that would make this vote invalid, such as `fewer than 50 good rows`."""


class AdvisedWay(Record, frozen=True, kw_only=True):
    way: Way
    points: int
    reasons: tuple[str, ...]
    excluded: str | None = None
    limited: str | None = None
    """Condition that the approach must meet, such as the use of an open model on your own machines."""


class EightyPercent(Record, frozen=True, kw_only=True):
    """The 80% rule: if prompting reaches 80% of the target, improve prompts and examples before tuning."""

    base: Score
    few_shot: Score | None = None
    target: float
    assumed: bool
    """True if you gave no target, so a default is assumed."""

    @property
    def best(self) -> Score:
        """Score with or without examples, whichever has the higher lower bound."""
        return max((s for s in (self.base, self.few_shot) if s is not None), key=lambda s: s.low)

    @property
    def mark(self) -> float:
        return round(NEAR_TARGET * self.target, 9)

    @property
    def applies(self) -> bool | None:
        """True if prompting reaches 80% of the target, False if it does not. `None` if this is undecided,
        because 80% of the target lies within the score's confidence interval."""
        return True if self.best.low >= self.mark else False if self.best.high < self.mark else None

    def __str__(self) -> str:
        how = "with examples in the prompt" if self.best is self.few_shot else "with your prompt"
        assumed = " (assumed; set yours with --target)" if self.assumed else ""
        result = {
            True: "reached, so improve the prompt and examples before you tune",
            False: "not reached, so tuning is worth the cost",
            None: "undecided, because the confidence interval contains that value. Measure more rows",
        }[self.applies]
        return (
            f"80% rule: the base model scores {self.best.value:.3f} {how}. 80% of the target "
            f"of {self.target:g}{assumed} is {self.mark:.3g}. Result: {result}"
        )


class Advice(Record, frozen=True, kw_only=True):
    choices: tuple[AdvisedWay, ...]
    """Approaches, best first. Excluded ones are last."""
    warnings: tuple[str, ...]
    would_change: tuple[str, ...]
    facts: DataTraits
    volume: Volume
    """Recommended number of rows for the goal, compared with the number in the file."""
    latency: tuple[Latency, ...] = ()
    """Predicted latencies: those of the model to tune, followed by those of the larger model."""
    totals: tuple[Ownership, ...] = ()
    """Total costs of the models that can be tuned, if the traffic is known."""
    rule: EightyPercent | None = None
    """Result of the 80% rule, or `None` if the base model's score is unknown."""

    @property
    def best(self) -> AdvisedWay:
        return self.choices[0]

    @property
    def close(self) -> bool:
        """True if the runner-up is at most one point behind, so the recommendation is not clear."""
        rest = [c for c in self.choices[1:] if c.excluded is None]
        return bool(rest) and self.best.points - rest[0].points <= 1


def advise(
    facts: DataTraits,
    needs: Needs,
    totals: Sequence[Ownership] = (),
    latency: tuple[Sequence[Latency], Sequence[Latency]] = ((), ()),
) -> Advice:
    """Score the approaches and rank them. `totals` compares the total costs of tuning with those of prompting
    a base model. It is empty if the traffic is unknown. `latency` is a pair: the predictions for the model to
    tune, and those for the larger model."""
    volume = facts.volume(needs.goal)
    votes = [
        *_by_rows(volume),
        *_by_score(needs),
        *_by_few_shot(needs),
        *_by_answers(facts),
        *_by_prompt(facts),
        *_by_needs(needs),
        *_by_latency(needs, *latency),
        *(_by_own_money(totals) if needs.private else _by_money(totals)),
        *_by_end(totals),
    ]
    out, limits = _excluded(facts, needs), _limited(needs)
    choices = [
        AdvisedWay(
            way=way,
            points=sum(v.points for v in votes if way in v.ways),
            reasons=tuple(f"{v.points:+d} {v.reason}" for v in votes if way in v.ways),
            excluded=out.get(way),
            limited=limits.get(way),
        )
        for way in Way
    ]
    ranked = sorted(choices, key=lambda c: (c.excluded is not None, -c.points))
    if all(c.excluded for c in ranked):
        ranked = sorted(choices, key=lambda c: (c.way is not Way.TUNE_OWN, -c.points))
    return Advice(
        choices=tuple(ranked),
        warnings=(*_warnings(facts), *_too_slow(needs, latency[0])),
        would_change=tuple(dict.fromkeys(v.turns for v in votes if ranked[0].way in v.ways and v.points > 0)),
        facts=facts,
        volume=volume,
        latency=(*latency[0], *latency[1]),
        totals=tuple(totals),
        rule=_rule(needs),
    )


def _limited(needs: Needs) -> dict[Way, str]:
    if not needs.private:
        return {}
    return dict.fromkeys(_PROMPTING, "only with an open model on your own machines")


def _excluded(facts: DataTraits, needs: Needs) -> dict[Way, str]:
    out: dict[Way, str] = {}
    if facts.rows < MIN_ROWS:
        out |= dict.fromkeys(
            _TUNING,
            f"{facts.rows} rows, but hosts require at least {MIN_ROWS}, because a model cannot learn from "
            "fewer rows",
        )
    if needs.private:
        out[Way.TUNE_HOSTED] = "the data must not leave your machines"
    return out


def _by_rows(volume: Volume) -> Iterable[AdviceVote]:
    rows, goal = volume.rows, volume.goal.value
    if volume.enough:
        yield AdviceVote(
            ways=_TUNING,
            points=2,
            reason=f"{rows:,} rows, enough for the goal {goal} ({volume.least:,} or more)",
            turns=f"fewer than {volume.least:,} good rows",
        )
        return
    few = rows < FEW_SHOT_ROWS
    mark = FEW_SHOT_ROWS if few else volume.least
    advice = "use the best ones as examples in the prompt" if few else f"barely enough for the goal {goal}"
    reason = f"{rows:,} rows, fewer than {mark:,}: {advice}"
    yield AdviceVote(
        ways=(Way.FEW_SHOT,), points=2 if few else 1, reason=reason, turns=f"{mark:,} rows or more"
    )
    yield AdviceVote(ways=_TUNING, points=-2 if few else -1, reason=reason, turns="")


def _rule(needs: Needs) -> EightyPercent | None:
    if needs.base_score is None:
        return None
    target = GOOD_SCORE if needs.target is None else needs.target
    assumed = needs.target is None
    few_shot = needs.few_shot_score
    return EightyPercent(base=needs.base_score, few_shot=few_shot, target=target, assumed=assumed)


def _by_few_shot(needs: Needs) -> Iterable[AdviceVote]:
    rule = _rule(needs)
    if rule is None or rule.few_shot is None:
        return
    at = f"with examples in the prompt, the base model scores {text.score(rule.few_shot)}"
    if rule.few_shot.low >= rule.mark:
        reason = (
            f"{at}. This reaches {rule.mark:.3g}, which is {NEAR_TARGET:.0%} of the target of {rule.target:g}"
        )
        yield AdviceVote(
            ways=(Way.FEW_SHOT,), points=3, reason=reason, turns="examples that don't help on harder rows"
        )
        if rule.base.low < rule.mark:  # otherwise, the score without examples already led to this vote
            yield AdviceVote(ways=_TUNING, points=-2, reason=at, turns="")
    elif rule.few_shot.high < rule.mark:
        yield AdviceVote(ways=(Way.FEW_SHOT,), points=-2, reason=f"{at}, below {rule.mark:.3g}", turns="")


def _by_score(needs: Needs) -> Iterable[AdviceVote]:
    score, rule = needs.base_score, _rule(needs)
    if score is None or rule is None:
        return
    target, near, assumed = rule.target, rule.mark, " (assumed)" * rule.assumed
    within = f" ({score.low:.3f} to {score.high:.3f})" if score.n else ""
    at = f"the base model scores {score.value:.3f}{within}"
    if score.low >= target:
        yield AdviceVote(
            ways=(Way.PROMPT,),
            points=4,
            reason=f"{at} (target: {target:g}), so there is little left to gain",
            turns=f"a harder test set, on which the base model scores below {target:g}",
        )
        yield AdviceVote(ways=_TUNING, points=-2, reason=at, turns="")
    elif score.low >= near:
        of = f"{score.value / target:.0%} of the target of {target:g}{assumed}"
        share = f"{at}, which is {of}. The {NEAR_TARGET:.0%} rule applies"
        left = f"{max(0.0, target - score.value):.3f} left to gain"
        yield AdviceVote(
            ways=(Way.PROMPT, Way.FEW_SHOT),
            points=3,
            reason=f"{share}: improve prompts and examples first ({left})",
            turns=f"prompts and examples that don't reach {target:g}",
        )
        yield AdviceVote(ways=_TUNING, points=-2, reason=f"{share}: {left}", turns="")
    elif score.high < near:
        below = f"{at}, below {near:.3g}, which is {NEAR_TARGET:.0%} of the target{assumed}"
        yield AdviceVote(
            ways=_TUNING, points=2, reason=below, turns=f"a prompt or model that reaches {near:.3g}"
        )
        yield AdviceVote(ways=(Way.PROMPT,), points=-2, reason=below, turns="")
    else:
        yield AdviceVote(
            ways=(Way.FEW_SHOT, *_TUNING),
            points=1,
            reason=f"{at}: examples may close the gap",
            turns="a few-shot score",
        )


def _by_answers(facts: DataTraits) -> Iterable[AdviceVote]:
    if facts.keyed:
        yield AdviceVote(
            ways=_TUNING,
            points=1,
            reason=f"{facts.json_share:.0%} of the answers are JSON with the same keys",
            turns="answers without a common format",
        )
        yield AdviceVote(
            ways=(Way.PROMPT,),
            points=1,
            reason="structured outputs can enforce that format without tuning",
            turns="a format that JSON Schema cannot express",
        )
    if facts.labels:
        yield AdviceVote(
            ways=_TUNING,
            points=2,
            reason=f"{facts.distinct_answers} distinct answers (at most {LABELS}), as in classification",
            turns="free-form answers",
        )
    if facts.knowing:
        reason = (
            f"{facts.copied_share:.0%} of the words in the answers occur in their prompts, and the answers "
            "rarely repeat. Such answers require knowledge, which fine-tuning does not teach well"
        )
        yield AdviceVote(
            ways=(Way.RETRIEVAL,),
            points=3,
            reason=reason,
            turns="prompts that contain the facts",
        )
        yield AdviceVote(ways=_TUNING, points=-1, reason="answers carry knowledge", turns="")


def _by_prompt(facts: DataTraits) -> Iterable[AdviceVote]:
    if facts.shared_tokens >= LONG_INSTRUCTIONS:
        yield AdviceVote(
            ways=_TUNING,
            points=1,
            reason=f"nearly every prompt repeats about {facts.shared_tokens:,.0f} tokens of instructions, "
            f"which counts as long ({LONG_INSTRUCTIONS} or more)",
            turns=f"instructions shorter than {LONG_INSTRUCTIONS} tokens, or cheap prompt caching",
        )
        yield AdviceVote(ways=(Way.FEW_SHOT,), points=-1, reason="prompts are already long", turns="")


def _by_needs(needs: Needs) -> Iterable[AdviceVote]:
    if needs.private:
        yield AdviceVote(
            ways=_PROMPTING,
            points=-1,
            reason="your data must stay on your machines, so you can only prompt open models, which are "
            "weaker than hosted ones",
            turns="",
        )
        yield AdviceVote(
            ways=(Way.TUNE_OWN,),
            points=1,
            reason="the data must not leave your machines",
            turns="a contract that allows a host to store it",
        )
    if needs.changing:
        yield AdviceVote(
            ways=(Way.RETRIEVAL,),
            points=3,
            reason="the facts change often, so retrieve them (RAG) instead of training on them",
            turns="stable facts",
        )
        yield AdviceVote(ways=_TUNING, points=-1, reason="the facts change often", turns="")
    if needs.latency_ms is not None and needs.latency_ms <= FAST_MS:
        yield AdviceVote(
            ways=_TUNING,
            points=1,
            reason=f"the latency limit of {needs.latency_ms} ms is tight ({FAST_MS} ms or less), which "
            "favors small models with short prompts",
            turns=f"a limit above {FAST_MS} ms",
        )
        yield AdviceVote(
            ways=(Way.FEW_SHOT, Way.RETRIEVAL), points=-1, reason="longer prompts add latency", turns=""
        )
    own = 1 if needs.own_gpu else 0 if needs.private else -1
    if own:
        reason = "you have a GPU" if needs.own_gpu else "you did not list a GPU of your own"
        yield AdviceVote(ways=(Way.TUNE_OWN,), points=own, reason=reason, turns="no free GPU")


def _by_latency(needs: Needs, small: Sequence[Latency], large: Sequence[Latency]) -> Iterable[AdviceVote]:
    times = faster_by(small, large)
    if needs.latency_ms is None or times is None:
        return
    in_time = [one for one in small if one.within(needs.latency_ms)]
    only = bool(in_time) and not any(one.within(needs.latency_ms) for one in large)
    fewer = f"on {small[-1].gpus} {small[-1].device} instead of {large[-1].gpus}"
    name, than = small[0].model, large[0].model
    reason = f"{name} answers {times[0]:.1f} to {times[1]:.1f} times as fast as {than}, {fewer}"
    if only:
        reason += f". Only {name} stays within {needs.latency_ms} ms"
    yield AdviceVote(
        ways=_TUNING, points=int(only), reason=reason, turns="a larger model that is fast enough"
    )


def _too_slow(needs: Needs, small: Sequence[Latency]) -> Iterable[str]:
    limit = needs.latency_ms
    if limit is None or not small or any(one.within(limit) is not False for one in small):
        return
    best = min(small, key=lambda one: one.answer_ms)
    fits = int((limit - best.first_token_ms) / best.token_ms) + 1
    shorter = f"at most {fits} answer tokens fit" if fits > 0 else "the prompt alone takes longer"
    yield (
        f"on {best.gpus} {best.device}, {best.model} is predicted to take {best.answer_ms:,.0f} ms per "
        f"answer, including {best.first_token_ms:,.0f} ms to the first token. The limit "
        f"is {limit} ms: {shorter}. Stream the answer, shorten it, or use a smaller model"
    )


def _by_money(totals: Sequence[Ownership]) -> Iterable[AdviceVote]:
    best = cheapest(totals)
    paid = best.paid if best is not None else None
    if best is None or paid is None or best.base is None or best.base_usd is None:
        return
    own = not best.server and bool(best.monthly) and best.monthly[0].unit == "usd_per_hour"
    way = Way.TUNE_OWN if own else Way.TUNE_HOSTED
    gap = text.money(abs(best.base_usd - paid.counted_usd))
    comparison = (
        f"tuning costs {text.span(paid.least_usd, paid.counted_usd)} over "
        f"{text.count(best.months, 'month')} on {best.place}, and prompting costs "
        f"{text.money(best.base_usd)} with {best.base_words or best.base.model}"
    )
    since = best.break_even_requests_per_day
    if paid.high_usd < best.base_usd:
        always = since is not None and 0 < since <= best.requests_per_day
        turns = (
            f"fewer than {since:,} requests per day"
            if always
            else "different traffic, or a cheaper base model"
        )
        yield AdviceVote(ways=(way,), points=2, reason=f"{comparison}: {gap} less", turns=turns)
    elif paid.low_usd > best.base_usd:
        turns = f"more than {since:,} requests per day" if since else "a more expensive base model"
        yield AdviceVote(
            ways=(Way.PROMPT, Way.FEW_SHOT), points=2, reason=f"{comparison}: {gap} more", turns=turns
        )


def _by_own_money(totals: Sequence[Ownership]) -> Iterable[AdviceVote]:
    """Compare costs if the data must stay on your machines, which serve the untuned model at the same
    price."""
    best = cheapest(totals)
    price = best.training.price if best is not None else None
    if best is None or price is None:
        return
    month = text.money(best.monthly_usd)
    once = text.span(price.low_usd if price.expected_usd is None else price.expected_usd, price.counted_usd)
    reason = (
        f"serving costs {month} per month on {best.place}, with or without tuning. Tuning adds {once} once"
    )
    yield AdviceVote(ways=(Way.TUNE_OWN,), points=0, reason=reason, turns="")


def _by_end(totals: Sequence[Ownership]) -> Iterable[AdviceVote]:
    """State the cost of tuned models that are shut down within the period, which rules them out."""
    for total in totals:
        paid, end = total.paid, total.serves_until
        if end and paid is not None:
            cost = text.span(paid.least_usd, paid.counted_usd)
            reason = f"{total.model} tuned on {total.provider} would cost {cost} until its shutdown on {end}"
            yield AdviceVote(ways=(Way.TUNE_HOSTED,), points=0, reason=reason, turns="")


def _warnings(facts: DataTraits) -> Iterable[str]:
    if facts.duplicate_share > DUPLICATES:
        yield (
            f"{facts.duplicate_share:.0%} of the rows duplicate an earlier one. First run  orchestrate data "
            "dedupe FILE"
        )
    if 0.3 < facts.json_share < CONSISTENT:
        yield (
            f"only {facts.json_share:.0%} of the answers are JSON, and the model would learn this "
            "inconsistency"
        )
    if facts.json_share >= CONSISTENT > facts.same_keys_share:
        yield f"only {facts.same_keys_share:.0%} of the JSON answers have the same keys"
