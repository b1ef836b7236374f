"""Which of the runs to take, in one sentence: which, why, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrate import text
from orchestrate.evaluation.statistics.several import holm
from orchestrate.reports.judgement import gap_words, mixed, rank, shared
from orchestrate.reports.records import (
    Answer,
    Compared,
    RunDifference,
    RunScore,
    ended,
    price,
    priced_as,
)
from orchestrate.types import Difference

Differences = Mapping[tuple[str, str, str], Difference]
"""By two runs and a metric: the first minus the second."""


def answer(runs: Sequence[Compared], between: Sequence[RunDifference] = ()) -> Answer:
    """Of runs that succeeded. A run that may not ship, or is not shown to be better than its rival, is no
    choice; of those that no difference separates the cheapest is taken."""
    done = [c for c in runs if ended(c)]
    if not done:
        return Answer(sentence="No run has succeeded: there is nothing to choose from yet.")
    if mixed(done):
        tried = text.joined([c.name for c in done if c.run.sandbox])
        return Answer(sentence=f"No choice: {tried} ran in a sandbox, which tells nothing of the others.")
    if len(done) == 1:
        return _alone(done[0])
    for metric in dict.fromkeys(name for c in done for name in _deciding(c)):
        if scored := shared(done).get(metric):
            return _among(metric, scored, _paired(between))
    return _unmeasured(done)


def _deciding(c: Compared) -> list[str]:
    """The metrics of its newest evaluation that have a good side, the one that decides first."""
    newest = max(c.scores, key=lambda s: s.evaluation.created_at, default=None)
    return [] if newest is None else [m.name for m in newest.evaluation.metrics if m.better != "neither"]


def _paired(between: Sequence[RunDifference]) -> Differences:
    found: dict[tuple[str, str, str], Difference] = {}
    for pair in between:
        for d in pair.pairing.differences:
            found[(pair.second, pair.first, d.metric)] = d
            found[(pair.first, pair.second, d.metric)] = d.turned()
    return found


def _alone(c: Compared) -> Answer:
    cost = f", for {priced_as(c)}" if price(c) is not None else ""
    score = next((s for name in _deciding(c) for s in c.scores if s.metric.name == name), None)
    if score is None:
        told = f"{c.label} has succeeded{cost}; how good it is was not measured: orchestrate eval {c.run.id}"
        return Answer(sentence=told)
    opening = {True: "Ship", False: "Do not ship", None: "Not enough evidence to ship"}[_passes(score)]
    why = f"{text.score(score.score)} on {score.metric.name}"
    if score.difference is not None:
        why += f", {gap_words(score.difference)} to {score.difference.against}"
    sure = text.count(score.score.n, "row")
    chosen = c.run.id if _passes(score) else None
    return Answer(run=chosen, sentence=f"{opening} {c.label}: {why}, {sure}{cost}{_forgotten(c)}.")


def _passes(score: RunScore) -> bool | None:
    """By the verdict, else by the difference to its rival; without either nothing speaks against it."""
    given = [v.decision for v in score.evaluation.verdicts if v.contender == score.contender.name]
    if given:
        return {"ship": True, "do not ship": False}.get(given[0])
    d = score.difference
    if d is None:
        return True
    if not d.shown:
        return None
    return (d.score.value < 0) == (score.metric.better == "lower")


def _among(metric: str, scored: Sequence[tuple[Compared, RunScore]], pairs: Differences) -> Answer:
    ranked = sorted(scored, key=lambda pair: rank(pair[1]))
    fit = [pair for pair in ranked if _passes(pair[1])]
    if not fit:
        best, score = ranked[0]
        why = (
            f"none is shown to be good enough; {best.label} has the best {metric}, {text.score(score.score)}"
        )
        return Answer(sentence=f"Take none of them yet: {why}, {text.count(score.score.n, 'row')}.")
    best = fit[0]
    level = [best, *_level(metric, best, fit[1:], pairs)]
    priced = all(price(c) is not None for c, _ in level)
    choice = min(level, key=lambda pair: price(pair[0]) or 0) if priced else best
    alone = priced and [price(c) for c, _ in level].count(price(choice[0])) == 1
    if len(level) == 1:
        why = _alone_at_the_top(metric, best, [pair for pair in ranked if pair is not best], pairs)
    else:
        others = [pair for pair in level if pair is not choice]
        cheap = f"the cheapest of the good ones, {priced_as(choice[0])}; " if alone else ""
        why = f"{cheap}on {metric} no difference is shown to {_versus(metric, choice, others, pairs)}"
    return Answer(run=choice[0].run.id, sentence=f"Take {choice[0].label}: {why}{_forgotten(choice[0])}.")


def _level(
    metric: str,
    best: tuple[Compared, RunScore],
    others: Sequence[tuple[Compared, RunScore]],
    pairs: Differences,
) -> list[tuple[Compared, RunScore]]:
    """Those that no difference separates from the best, corrected for how many it is held against. Without
    the answers of both, intervals that overlap are none."""
    known = [pairs.get((best[0].run.id, c.run.id, metric)) for c, _ in others]
    tested = [d.p_value for d in known if d is not None and d.p_value is not None]
    corrected = iter(holm(tested))
    level: list[tuple[Compared, RunScore]] = []
    for other, d in zip(others, known, strict=True):
        if d is None:
            mine, theirs = best[1].score, other[1].score
            apart = mine.low > theirs.high or mine.high < theirs.low
        else:
            apart = next(corrected) <= 0.05 if d.p_value is not None else d.shown
        if not apart:
            level.append(other)
    return level


def _alone_at_the_top(
    metric: str,
    best: tuple[Compared, RunScore],
    others: Sequence[tuple[Compared, RunScore]],
    pairs: Differences,
) -> str:
    second = others[0]
    cost = ""
    if price(best[0]) is not None and price(second[0]) is not None:
        cost = f", for {priced_as(best[0])} against {priced_as(second[0])}"
    rival = _versus(metric, best, [second], pairs)
    return f"best on {metric}, {text.score(best[1].score)}, against {rival}{cost}"


def _versus(
    metric: str,
    mine: tuple[Compared, RunScore],
    others: Sequence[tuple[Compared, RunScore]],
    pairs: Differences,
) -> str:
    """`together (+0.010 (-0.020 to +0.040), p = 0.4, 200 rows)`, and the names of further ones."""
    other, score = others[0]
    d = pairs.get((mine[0].run.id, other.run.id, metric))
    sure = f"{gap_words(d)}, {text.count(d.score.n, 'row')}" if d is not None else text.score(score.score)
    more = [c.label for c, _ in others[1:]]
    return f"{other.label} ({sure})" + (f", nor to {text.joined(more)}" if more else "")


def _unmeasured(done: Sequence[Compared]) -> Answer:
    asked = "orchestrate eval " + " ".join(c.run.id for c in done)
    why = f"they were not scored on the same rows: {asked}"
    prices = [(cost, c) for c in done if (cost := price(c)) is not None]
    if len(prices) < len(done):
        return Answer(sentence=f"By quality nothing can be chosen, as {why}")
    cheapest = min(prices, key=lambda pair: pair[0])[1]
    told = f"{cheapest.label} is the cheapest to train, {priced_as(cheapest)}"
    return Answer(sentence=f"{told}; by quality nothing can be chosen, as {why}")


def _forgotten(c: Compared) -> str:
    lost = [r.probe for r in c.regression.forgotten] if c.regression else []
    return f"; but it has forgotten some of {text.joined(lost)}" if lost else ""
