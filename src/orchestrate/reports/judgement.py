"""What may be compared, and what the numbers then say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from orchestrate import text
from orchestrate.reports.records import Compared, Reason, billed, ended, quoted

if TYPE_CHECKING:
    from orchestrate.types import EvaluationResult


def reasons(runs: Sequence[Compared]) -> list[Reason]:
    """Each reason for which some aspect of the runs must not be compared; none for a single run."""
    if len(runs) < 2:
        return []
    return [*_data(runs), *_worlds(runs), *_losses(runs), *_scores(runs), *_unfinished(runs)]


def _data(runs: Sequence[Compared]) -> Iterable[Reason]:
    groups = _grouped((c.run.dataset_digest, c.label) for c in runs)
    if len(groups) > 1:
        who = "; ".join(f"{text.joined(labels)} on {digest[:12]}" for digest, labels in groups.items())
        yield Reason(aspect="data", text=f"they were trained on different data: {who}")


def _worlds(runs: Sequence[Compared]) -> Iterable[Reason]:
    made_up = [c.label for c in runs if c.run.sandbox]
    if made_up and len(made_up) < len(runs):
        yield Reason(
            aspect="all",
            text=f"{text.joined(made_up)} ran in a sandbox, which trains a tiny model in place of the one "
            "named; the others did not",
        )


def _losses(runs: Sequence[Compared]) -> Iterable[Reason]:
    methods = _grouped((_method(c), c.label) for c in runs)
    if len(methods) > 1:
        yield Reason(
            aspect="loss", text=f"their methods differ ({', '.join(methods)}), and so do their losses"
        )
    models = _grouped((_bare(c.run.model), c.label) for c in runs)
    if len(models) > 1:
        yield Reason(
            aspect="loss",
            text=f"their base models differ ({', '.join(models)}): a loss per token of one tokenizer is not "
            "on the scale of another's",
        )
    # Unsaid and "auto" are the hosts' default for conversations: the assistant's tokens only.
    inputs = {c.settings.get("method.train_on_inputs", "").lower() == "true" for c in runs}
    if len(inputs) > 1:
        yield Reason(
            aspect="loss", text="some train on the prompts too, which changes what the loss is taken over"
        )


def _scores(runs: Sequence[Compared]) -> Iterable[Reason]:
    scored = [(c, e) for c in runs for e in c.evaluations]
    without = [c.label for c in runs if not c.evaluations]
    if not scored:
        return
    if without:
        have = "has" if len(without) == 1 else "have"
        yield Reason(aspect="scores", text=f"{text.joined(without)} {have} not been evaluated")
    metrics = {e.metric for _, e in scored}
    for metric in sorted(metrics):
        digests = {e.dataset_digest for _, e in scored if e.metric == metric}
        if len(digests) > 1:
            yield Reason(aspect="scores", text=f"{metric} was measured on different held-out rows")
    if len(metrics) > 1 and not _shared(runs):
        yield Reason(
            aspect="scores",
            text=f"no metric was measured on all of them (there are {', '.join(sorted(metrics))})",
        )


def _unfinished(runs: Sequence[Compared]) -> Iterable[Reason]:
    for c in runs:
        if not ended(c):
            state = "is still " if not c.run.status.terminal else ""
            yield Reason(
                aspect="all",
                text=f"{c.label} {state}{c.run.status.value}: its cost, time and loss are not final",
            )


def findings(runs: Sequence[Compared]) -> list[str]:
    """Sentences about cost and scores, drawn only where the runs may be compared in that respect."""
    done = [c for c in runs if ended(c)]
    return [*_cheapest(done), *_best(done), *_each(done)]


def _cheapest(runs: Sequence[Compared]) -> Iterable[str]:
    priced = [
        (cost, c) for c in runs if (cost := billed(c) if billed(c) is not None else quoted(c)) is not None
    ]
    if len(priced) < 2 or _mixed(runs) or len({c.run.dataset_digest for _, c in priced}) > 1:
        return
    priced.sort(key=lambda pair: pair[0])
    (low, first), (high, last) = priced[0], priced[-1]
    kind = "billed" if first.run.bill else "quoted"
    if low == high:
        yield f"They cost the same, {text.money(low)}."
        return
    times = f", {high / low:.1f} times as much" if low else ""
    yield (
        f"{first.label} is the cheapest to train: {text.money(low)} ({kind}); {last.label} costs "
        f"{text.money(high)}{times}."
    )


def _mixed(runs: Sequence[Compared]) -> bool:
    """Whether some ran in a sandbox and others did not."""
    return len({c.run.sandbox for c in runs}) > 1


def _best(runs: Sequence[Compared]) -> Iterable[str]:
    if _mixed(runs):
        return
    for metric, pairs in _shared(runs).items():
        ranked = sorted(pairs, key=lambda pair: pair[1].tuned.value, reverse=True)
        (first, top), (second, next_) = ranked[0], ranked[1]
        gap = f"{top.tuned.value:.3f} against {next_.tuned.value:.3f} of {second.label}"
        if top.tuned.low > next_.tuned.high:
            yield f"{first.label} scores best on {metric}: {gap}; the 95% intervals do not overlap."
        else:
            yield (
                f"On {metric} {first.label} is ahead, {gap}, but the 95% intervals overlap: no "
                "difference is shown."
            )


def _shared(runs: Sequence[Compared]) -> dict[str, list[tuple[Compared, EvaluationResult]]]:
    """Metrics that all runs have on the same rows, for two runs or more."""
    found: dict[tuple[str, str], list[tuple[Compared, EvaluationResult]]] = {}
    for c in runs:
        for e in c.evaluations:
            found.setdefault((e.metric, e.dataset_digest), []).append((c, e))
    return {metric: pairs for (metric, _), pairs in found.items() if len(pairs) == len(runs) >= 2}


def _each(runs: Sequence[Compared]) -> Iterable[str]:
    for c in runs:
        for e in c.evaluations:
            if e.difference is None:
                continue
            moved = "better than" if e.difference.low > 0 else "worse than" if e.difference.high < 0 else None
            gap = f"{e.difference.value:+.3f} ({e.difference.low:+.3f} to {e.difference.high:+.3f})"
            flips = f"{e.gained} rows gained, {e.lost} lost"
            if moved:
                yield f"{c.label} is {moved} its base model on {e.metric}: {gap}; {flips}."
            else:
                yield f"{c.label} shows no difference to its base model on {e.metric}: {gap}; {flips}."


def notes(runs: Sequence[Compared]) -> list[str]:
    """What a reader must know about the numbers."""
    found: list[str] = []
    if any(c.run.sandbox for c in runs):
        found.append(
            "SANDBOX: these jobs were trained by a local stand-in on a tiny model. Prices follow the "
            "host's rates; "
            "loss, scores and times say nothing about the host's real model."
        )
    guessed = [c.label for c in runs if c.train_curve and not c.tokens_known]
    if guessed:
        found.append(
            f"The host does not report tokens by step for {text.joined(guessed)}: "
            "the tokens of the whole run are spread evenly over its steps."
        )
    local = [
        c.label
        for c in runs
        if c.reconciliation and "electricity" in {d.component for d in c.reconciliation.components}
    ]
    if local:
        found.append(f"{text.joined(local)}: electricity only; the hardware counts as paid for.")
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
    """The base model under its canonical name, so that two hosts' ids of one model are the same."""
    from orchestrate.catalog.models import lookup

    known = lookup(model)
    return known.name if known else model
