"""Check which aspects of runs are comparable, and state what the numbers show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orchestrate import text
from orchestrate.evaluation.pairs import Pairing
from orchestrate.evaluation.statistics import holm
from orchestrate.reports.records import (
    Compared,
    ComparisonSummary,
    Reason,
    RunDifference,
    RunScore,
    ended,
    price,
    priced_as,
)
from orchestrate.types import Difference


def reasons(runs: Sequence[Compared]) -> list[Reason]:
    """List the reasons why aspects of the runs can't be compared. Returns an empty list for a single run."""
    if len(runs) < 2:
        return []
    return [*_data(runs), *_worlds(runs), *_losses(runs), *_scores(runs), *_unfinished(runs)]


def _data(runs: Sequence[Compared]) -> Iterable[Reason]:
    groups = _grouped((c.run.dataset_digest, c.label) for c in runs)
    if len(groups) > 1:
        who = "; ".join(f"{text.joined(labels)} on {digest[:12]}" for digest, labels in groups.items())
        yield Reason(aspect="data", text=f"the runs were trained on different data: {who}")


def _worlds(runs: Sequence[Compared]) -> Iterable[Reason]:
    made_up = [c.name for c in runs if c.run.sandbox]
    if made_up and len(made_up) < len(runs):
        yield Reason(
            aspect="all",
            text=f"{text.joined(made_up)} ran in a sandbox, which trains a tiny model instead of the named "
            "one. The other runs did not use a sandbox",
        )


def _losses(runs: Sequence[Compared]) -> Iterable[Reason]:
    methods = _grouped((_method(c), c.label) for c in runs)
    if len(methods) > 1:
        yield Reason(
            aspect="loss",
            text=f"the runs' methods differ ({', '.join(methods)}), so their losses are not comparable",
        )
    models = _grouped((_bare(c.run.model), c.label) for c in runs)
    if len(models) > 1:
        yield Reason(
            aspect="loss",
            text=f"the runs' base models differ ({', '.join(models)}), and losses per token are not "
            "comparable between tokenizers",
        )
    # If the setting is missing or "auto", hosts train only on the assistant's tokens of conversations.
    inputs = {c.settings.get("method.train_on_inputs", "").lower() == "true" for c in runs}
    if len(inputs) > 1:
        yield Reason(
            aspect="loss",
            text="some runs also train on the prompts, so the runs' losses cover different tokens",
        )


def _scores(runs: Sequence[Compared]) -> Iterable[Reason]:
    scored = [(c, e) for c in runs for e in c.scores]
    without = [c.label for c in runs if not c.scores]
    if not scored:
        return
    if without:
        have = "has" if len(without) == 1 else "have"
        yield Reason(aspect="scores", text=f"{text.joined(without)} {have} not been evaluated")
    metrics = {e.metric.name for _, e in scored}
    for metric in sorted(metrics):
        groups = _grouped((_rows(e), c.label) for c, e in scored if e.metric.name == metric)
        if len(groups) > 1:
            who = "; ".join(
                f"{text.joined(sorted(set(labels)))} on {what}" for what, labels in groups.items()
            )
            yield Reason(aspect="scores", text=f"{metric} was measured on different held-out rows: {who}")
        if len({e.method for _, e in scored if e.metric.name == metric}) > 1:
            why = "the file, prompt, rubric, version or rival behind it differs between evaluations"
            yield Reason(aspect="scores", text=f"{metric} was not measured in the same way: {why}")
    if len(metrics) > 1 and not shared(runs):
        yield Reason(
            aspect="scores",
            text=f"no metric was measured for all runs (measured: {', '.join(sorted(metrics))})",
        )


def _rows(e: RunScore) -> str:
    digest, count = e.rows
    return f"{text.count(count, 'row')} ({digest[:12]})"


def _unfinished(runs: Sequence[Compared]) -> Iterable[Reason]:
    for c in runs:
        if not ended(c):
            state = "is still " if not c.run.status.terminal else ""
            yield Reason(
                aspect="all",
                text=f"{c.label} {state}{c.run.status.value}, so its cost, time and loss are not final",
            )


def findings(runs: Sequence[Compared], between: Sequence[RunDifference] = ()) -> list[str]:
    """List findings about cost and scores. Leaves out aspects that are not comparable."""
    done = [c for c in runs if ended(c)]
    return [*_cheapest(done), *_best(done, between), *_each(done), *_forgot(done), *_again(done)]


def _cheapest(runs: Sequence[Compared]) -> Iterable[str]:
    priced = [(cost, c) for c in runs if (cost := price(c)) is not None]
    if len(priced) < 2 or mixed(runs) or len({c.run.dataset_digest for _, c in priced}) > 1:
        return
    priced.sort(key=lambda pair: pair[0])
    (low, first), (high, last) = priced[0], priced[-1]
    if low == high:
        yield f"{text.count(len(priced), 'run')} cost the same: {text.money(low)}."
        return
    times = f", {high / low:.1f} times as much" if low else ""
    unknown = text.joined([c.label for c in runs if price(c) is None])
    among = f"Apart from {unknown}, whose cost is unknown, " if unknown else ""
    yield (
        f"{among}{first.label} is the cheapest to train: {priced_as(first)}. {last.label} costs "
        f"{text.money(high)}{times}."
    )


def mixed(runs: Sequence[Compared]) -> bool:
    """Return True if some runs used a sandbox and others did not."""
    return len({c.run.sandbox for c in runs}) > 1


def _best(runs: Sequence[Compared], between: Sequence[RunDifference]) -> Iterable[str]:
    if mixed(runs):
        return
    labels = {c.run.id: c.label for c in runs}
    paired = {
        (d.first, d.second, apart.metric): (d, apart) for d in between for apart in d.pairing.differences
    }
    covered: set[str] = set()
    for metric, pairs in shared(runs).items():
        ranked = sorted(pairs, key=lambda pair: rank(pair[1]))
        (first, top), (second, next_) = ranked[0], ranked[1]
        gap = f"{top.score.value:.3f} against {next_.score.value:.3f} of {second.label}"
        found = paired.get((second.run.id, first.run.id, metric)) or paired.get(
            (first.run.id, second.run.id, metric)
        )
        covered.add(metric)
        if found is not None:
            yield _difference_sentence(metric, labels, *found)
        elif top.score.value == next_.score.value:
            yield f"{first.label} and {second.label} have the same score on {metric}: {top.score.value:.3f}."
        elif top.score.low > next_.score.high or top.score.high < next_.score.low:
            yield f"{first.label} scores best on {metric}: {gap}. The 95% intervals do not overlap."
        else:
            overlap = "and the 95% intervals overlap"
            yield f"There is no clear difference on {metric}: {first.label} has {gap}, {overlap}."
    for key, found in paired.items():
        # Even if the runs were scored on different rows, the rows that both answered can be compared.
        if key[2] not in covered:
            yield _difference_sentence(key[2], labels, *found)


def rank(e: RunScore) -> float:
    """Sort scores, best first."""
    return e.score.value if e.metric.better == "lower" else -e.score.value


def _difference_sentence(metric: str, labels: dict[str, str], d: RunDifference, apart: Difference) -> str:
    first, second = labels[d.first], labels[d.second]
    rows = f"{text.count(d.pairing.items, 'row')} that both answered"
    if d.pairing.first_items == d.pairing.second_items == d.pairing.items:
        rows = text.count(d.pairing.items, "row")
    gap = f"{second} minus {first} {format_gap(apart)}, {rows}"
    if apart.score.value == 0:
        return f"{first} and {second} have the same score on {metric}: {gap}."
    if not apart.shown:
        return f"There is no clear difference on {metric} between {first} and {second}: {gap}."
    more, less = (second, first) if apart.score.value > 0 else (first, second)
    return f"{more} scores higher than {less} on {metric}: {gap}."


def format_gap(d: Difference) -> str:
    """Format a difference with its interval and p-value: `+0.040 (+0.010 to +0.070), p = 0.0030`."""
    gap = f"{d.score.value:+.3f} ({d.score.low:+.3f} to {d.score.high:+.3f})"
    p = d.p_corrected if d.p_corrected is not None else d.p_value
    return gap if p is None else f"{gap}, p {'< 0.0001' if p < 0.0001 else f'= {p:.4f}'}"


def shared(runs: Sequence[Compared]) -> dict[str, list[tuple[Compared, RunScore]]]:
    """Return the metrics by which all runs were measured in the same way on the same rows, if there are at
    least two runs."""
    found: dict[tuple[str, tuple[str, int]], list[tuple[Compared, RunScore]]] = {}
    for c in runs:
        for e in c.scores:
            found.setdefault((e.method, e.rows), []).append((c, e))
    return {pairs[0][1].metric.name: pairs for pairs in found.values() if len(pairs) == len(runs) >= 2}


def _each(runs: Sequence[Compared]) -> Iterable[str]:
    for c in runs:
        newest = max((e.evaluation.created_at for e in c.scores), default=None)
        for e in c.scores:
            d = e.difference
            if d is None:
                continue
            # The recommendation is based on the newest evaluation, so mark the others.
            earlier = "" if e.evaluation.created_at == newest else f"Earlier ({e.evaluation.id}): "
            plain = d.against.startswith("base") and not e.evaluation.contender(d.against).shots
            rival = "its base model" if plain else d.against
            flips = f"; {d.gained} rows improved and {d.lost} got worse" if d.gained or d.lost else ""
            gap = f"{format_gap(d)}, {text.count(d.score.n, 'row')}{flips}"
            worse = d.score.value > 0 if e.metric.better == "lower" else d.score.value < 0
            if not d.shown:
                none = f"{c.label} shows no clear difference from {rival}"
                yield f"{earlier}{none} on {e.metric.name}: {gap}."
            elif e.metric.better == "neither":
                yield f"{earlier}{c.label} differs from {rival} in {e.metric.name}: {gap}."
            else:
                word = "worse" if worse else "better"
                yield f"{earlier}{c.label} is {word} than {rival} on {e.metric.name}: {gap}."


def _forgot(runs: Sequence[Compared]) -> Iterable[str]:
    for c in runs:
        for r in c.regression.forgotten if c.regression else ():
            kind = "shows catastrophic forgetting of" if r.catastrophic else "has forgotten part of"
            yield f"{c.label} {kind} {r.probe}: {r.reason} ({text.count(r.difference.score.n, 'item')})."


def _again(runs: Sequence[Compared]) -> Iterable[str]:
    """Describe repeated evaluations of the same model."""
    for c in runs:
        for pairing in c.asked_again:
            if pairing.same_answers < pairing.items:
                yield repeat_note(c.label, pairing)


def repeat_note(label: str, pairing: Pairing) -> str:
    """Describe whether a model gave the same answers in two evaluations."""
    moved = [d.metric for d in pairing.differences if d.shown]
    other = pairing.items - pairing.same_answers
    if moved:
        return (
            f"{label} answered differently than in {pairing.first}: {text.joined(moved)} changed, "
            f"and {other} of {pairing.items} answers differ. The host may have changed the model."
        )
    if other:
        return (
            f"{label}: {other} of {pairing.items} answers differ from those in {pairing.first}, but no "
            "score changed by more than chance would explain."
        )
    return f"{label} gave the same answers to all {pairing.items} items as in {pairing.first}."


def notes(runs: Sequence[Compared]) -> list[str]:
    """Return the notes that readers need to interpret the numbers."""
    found: list[str] = []
    if any(c.run.sandbox for c in runs):
        found.append(
            "Sandbox prices follow the host's rates. Losses, scores and times say nothing about the host's "
            "real model."
        )
    guessed = [c.label for c in runs if c.train_curve and not c.tokens_known]
    if guessed:
        found.append(
            f"The host does not report tokens per step for {text.joined(guessed)}, so the run's "
            "total tokens are spread evenly over its steps."
        )
    local = [
        c.label
        for c in runs
        if c.reconciliation and "electricity" in {d.component for d in c.reconciliation.components}
    ]
    if local:
        found.append(f"{text.joined(local)}: the cost includes electricity but not the hardware.")
    return found


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, label in pairs:
        groups.setdefault(key, []).append(label)
    return groups


def _method(compared: Compared) -> str:
    method = compared.run.spec.get("method") or "sft"
    return str(method.get("type", "sft") if isinstance(method, dict) else method)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # a spec as JSON


def _bare(model: str) -> str:
    """Return the base model's canonical name, which is the same for all hosts."""
    from orchestrate.catalog.models import lookup

    known = lookup(model)
    return known.name if known else model


Differences = Mapping[tuple[str, str, str], Difference]
"""Score differences (the first run's score minus the second's), keyed by the ids of both runs and the
metric."""


def answer(runs: Sequence[Compared], between: Sequence[RunDifference] = ()) -> ComparisonSummary:
    """Recommend one of the runs that succeeded.

    A run with a verdict is excluded unless the verdict is `ship`. A run without a verdict is excluded if it
    has forgotten abilities, or if it is not proven better than its reference model. Recommends the best
    remaining run or, if others are not proven different from it, the cheapest of them all."""
    done = [c for c in runs if ended(c)]
    if not done:
        return ComparisonSummary(sentence="No run has succeeded yet, so there is no recommendation.")
    if mixed(done):
        tried = text.joined([c.name for c in done if c.run.sandbox])
        return ComparisonSummary(
            sentence=f"No recommendation: {tried} ran in a sandbox, so a comparison with the other runs "
            "would be meaningless."
        )
    if len(done) == 1:
        return _alone(done[0])
    for metric in dict.fromkeys(name for c in done for name in _deciding(c)):
        if scored := shared(done).get(metric):
            return _among(metric, scored, _paired(between))
    return _unmeasured(done)


def _deciding(c: Compared) -> list[str]:
    """Return the metrics of the newest evaluation for which higher or lower is better, the deciding one
    first."""
    newest = max(c.scores, key=lambda s: s.evaluation.created_at, default=None)
    return [] if newest is None else [m.name for m in newest.evaluation.metrics if m.better != "neither"]


def _paired(between: Sequence[RunDifference]) -> Differences:
    found: dict[tuple[str, str, str], Difference] = {}
    for pair in between:
        for d in pair.pairing.differences:
            found[(pair.second, pair.first, d.metric)] = d
            found[(pair.first, pair.second, d.metric)] = d.turned()
    return found


def _alone(c: Compared) -> ComparisonSummary:
    cost = f", for {priced_as(c)}" if price(c) is not None else ""
    score = next((s for name in _deciding(c) for s in c.scores if s.metric.name == name), None)
    if score is None:
        how = f"orchestrate eval {c.run.id}" if c.silent is None else c.silent
        sentence = f"{c.label} has succeeded{cost}, but its quality was not measured: {how}"
        return ComparisonSummary(sentence=sentence)
    opening = {True: "Ship", False: "Do not ship", None: "The evidence is not sufficient to ship"}[
        _passes(c, score)
    ]
    why = f"{text.score(score.score)} on {score.metric.name}"
    if score.difference is not None:
        why += f", {format_gap(score.difference)} to {score.difference.against}"
    basis = text.count(score.score.n, "row")
    chosen = c.run.id if _passes(c, score) else None
    given = [v for v in score.evaluation.verdicts if v.contender == score.contender.name]
    # Skip the first reason: it comes from the evaluation, which the sentence already describes.
    more = given[0].reasons[1:] if given and given[0].decision != "ship" else ()
    caveats = "".join(f"; {reason}" for reason in more) or _forgotten(c)
    return ComparisonSummary(run=chosen, sentence=f"{opening} {c.label}: {why}, {basis}{cost}{caveats}.")


def _passes(c: Compared, score: RunScore) -> bool | None:
    """Return whether the run may ship: by its verdict, or else by its forgetting and the difference from its
    rival. Without any of these, nothing speaks against the run."""
    given = [v.decision for v in score.evaluation.verdicts if v.contender == score.contender.name]
    if given:
        return {"ship": True, "do not ship": False}.get(given[0])
    if c.regression is not None and c.regression.forgotten:
        return False
    d = score.difference
    if d is None:
        return True
    if not d.shown:
        return None
    return (d.score.value < 0) == (score.metric.better == "lower")


def _among(metric: str, scored: Sequence[tuple[Compared, RunScore]], pairs: Differences) -> ComparisonSummary:
    ranked = sorted(scored, key=lambda pair: rank(pair[1]))
    fit = [pair for pair in ranked if _passes(*pair)]
    if not fit:
        best, score = ranked[0]
        why = (
            f"no run is proven to be good enough. {best.label} has the best {metric}, "
            f"{text.score(score.score)}"
        )
        return ComparisonSummary(
            sentence=f"No recommendation yet: {why}, {text.count(score.score.n, 'row')}."
        )
    best = fit[0]
    level = [best, *_level(metric, best, fit[1:], pairs)]
    priced = all(price(c) is not None for c, _ in level)
    choice = min(level, key=lambda pair: price(pair[0]) or 0) if priced else best
    alone = priced and [price(c) for c, _ in level].count(price(choice[0])) == 1
    if len(level) == 1:
        why = _alone_at_the_top(metric, best, [pair for pair in ranked if pair is not best], pairs)
    else:
        others = [pair for pair in level if pair is not choice]
        cheap = f"the cheapest of the good runs at {priced_as(choice[0])}; " if alone else ""
        why = (
            f"{cheap}on {metric}, there is no clear difference from {_versus(metric, choice, others, pairs)}"
        )
    return ComparisonSummary(
        run=choice[0].run.id, sentence=f"Take {choice[0].label}: {why}{_forgotten(choice[0])}."
    )


def _level(
    metric: str,
    best: tuple[Compared, RunScore],
    others: Sequence[tuple[Compared, RunScore]],
    pairs: Differences,
) -> list[tuple[Compared, RunScore]]:
    """Return the runs that are not proven different from the best one, corrected for the number of
    comparisons. Runs without paired answers count as not different if their intervals overlap."""
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
    """Describe the first rival with its difference, such as `together (+0.010 (-0.020 to +0.040), p = 0.4,
    200 rows)`, and name the other ones."""
    other, score = others[0]
    d = pairs.get((mine[0].run.id, other.run.id, metric))
    basis = f"{format_gap(d)}, {text.count(d.score.n, 'row')}" if d is not None else text.score(score.score)
    more = [c.label for c, _ in others[1:]]
    return f"{other.label} ({basis})" + (f", nor from {text.joined(more)}" if more else "")


def _unmeasured(done: Sequence[Compared]) -> ComparisonSummary:
    silent = [f"{c.label}: {c.silent}" for c in done if c.silent is not None]
    how = "; ".join(silent) or "orchestrate eval " + " ".join(c.run.id for c in done)
    why = f"the runs were not scored on the same rows: {how}"
    prices = [(cost, c) for c in done if (cost := price(c)) is not None]
    if len(prices) < len(done) or len({c.run.dataset_digest for c in done}) > 1:
        return ComparisonSummary(sentence=f"Can't compare quality, because {why}")
    cheapest = min(prices, key=lambda pair: pair[0])[1]
    recommendation = f"{cheapest.label} is the cheapest to train at {priced_as(cheapest)}"
    return ComparisonSummary(sentence=f"{recommendation}. Can't compare quality, because {why}")


def _forgotten(c: Compared) -> str:
    abilities = [r.probe for r in c.regression.forgotten] if c.regression else []
    return f"; it has forgotten part of {text.joined(abilities)}" if abilities else ""
