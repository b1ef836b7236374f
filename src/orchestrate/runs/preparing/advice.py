"""Advice on whether to use prompting, few-shot examples, retrieval or tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from orchestrate import catalog
from orchestrate.core import days
from orchestrate.costing import Ownership, ServingUse, latency
from orchestrate.costing.latency import Latency
from orchestrate.data import Dataset
from orchestrate.errors import UsageError
from orchestrate.providers.offline import ended_methods
from orchestrate.reports import advice
from orchestrate.reports.advice import Advice, DataTraits
from orchestrate.reports.advice import Needs as Needs
from orchestrate.reports.advice import advise as weigh
from orchestrate.runs.preparing import pricing
from orchestrate.runs.preparing.prepared import prepare
from orchestrate.types import Feature, Score

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrate.workspace import Workspace

_EPOCHS = 3


def advise(
    ft: Workspace,
    file: str | Path,
    needs: Needs,
    totals: Sequence[Ownership] = (),
    *,
    columns: Mapping[str, str] | None = None,
) -> Advice:
    """Recommend prompting, few-shot examples, retrieval or tuning. See `Orchestrator.advise`. For RFT
    prompts, the advice names the backends that no longer offer RFT."""
    dataset = Dataset.open(file, columns=columns)
    facts = advice.measure(dataset)
    found = weigh(facts, needs, totals, _latency(facts, needs))
    if dataset.kind != "rl":
        return found
    backends = [ft.provider(name) for name in ft.backends()]
    reasons = {b.name: ended_methods(b, days.today()).get(Feature.RFT) for b in backends}
    ended = (f"{name} no longer offers RFT: {reason}" for name, reason in reasons.items() if reason)
    return replace(found, warnings=(*found.warnings, *ended))


def _latency(facts: DataTraits, needs: Needs) -> tuple[list[Latency], list[Latency]]:
    """Return the latency of the model to tune and of the larger one. A list is empty if the size of its model
    is unknown."""
    if needs.latency_ms is None or needs.model is None:
        return [], []
    tokens = needs.tokens or (round(facts.prompt_tokens), max(1, round(facts.answer_tokens)))
    larger = catalog.lookup(needs.larger or latency.LARGER)
    if larger is None or larger.params_b is None:
        larger = catalog.find(latency.LARGER)
    return latency.of_model(catalog.find(needs.model), tokens), latency.of_model(larger, tokens)


def totals(
    ft: Workspace,
    file: str | Path,
    model: str,
    use: ServingUse,
    *,
    private: bool = False,
    columns: Mapping[str, str] | None = None,
) -> list[Ownership]:
    """Compute the total cost of tuning an open model for three epochs. For a host that does not offer this
    model, the most similar closed model is used instead. With `private`, only training and serving on this
    machine are considered. Works offline."""
    from orchestrate.spec import JobSpec

    chosen = {"default": model}
    entry = catalog.find(model)
    for name in ft.backends():
        kind = ft.provider(name).profile.kind
        if entry.on(kind) is None and (closed := catalog.closest_closed(entry, kind)):
            chosen[name] = closed.name
    given = {field: column or None for field, column in (columns or {}).items()}
    spec = JobSpec.parse(
        {"model": chosen, "train": str(file), "epochs": _EPOCHS} | ({"columns": given} if given else {})
    )
    return pricing.ownership(ft, spec, prepare(ft, spec, checked=False).quotes, use, private=private)


def given_score(value: float) -> Score:
    """Build a base-model score from a number that the user gave. Raises `UsageError` unless the number is
    between 0 and 1."""
    if not 0 <= value <= 1:
        raise UsageError(f"--base-score must be between 0 and 1, got {value:g}")
    return Score(value=value, low=value, high=value, n=0)


def base_score(ft: Workspace, run: str) -> Score:
    """Return the newest score of a run's base model. Raises `UsageError` if there is none."""
    record = ft.record(run)
    scored = [
        (e.created_at, score)
        for e in ft.store.history.evaluations(record.id)
        for c in e.contenders
        if c.kind == "base" and not c.shots and (score := e.score(c.name)) is not None
    ]
    if not scored:
        raise UsageError(
            f"run {record.id} has no score for its base model",
            fix=f"orchestrate eval {record.id} --test FILE",
        )
    return max(scored, key=lambda pair: pair[0])[1]
