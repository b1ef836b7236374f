"""Default `check` and `quote` of all backends. They only use the backend's profile, its configuration and the
catalog, and don't contact the host."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate import catalog, costing
from orchestrate.core import days
from orchestrate.data import Dataset, dialects, rules
from orchestrate.errors import MissingKey, UsageError
from orchestrate.settings.config import HostConfig, Secret
from orchestrate.spec import JobSpec, method_word
from orchestrate.text import count, joined
from orchestrate.types import Feature, Problem, Quote, Severity, TokensFrom, Translation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date

    from orchestrate.catalog import ModelOnHost
    from orchestrate.data import TrainingData
    from orchestrate.data.tokens import Remark
    from orchestrate.providers.base import Provider

NO_QUOTE = ("model", "method", "method.type")
"""Settings that the price depends on. If one of them is rejected, there is no quote."""
_ALIKE = 0.85
"""Minimum similarity at which a model name counts as a typo of a catalog entry. The threshold is high because
a host may have models that the catalog lacks."""


def wandb_key(config: HostConfig) -> str:
    """Return the W&B key to send to a host. Raises `MissingKey` if it is not set."""
    key = config.options.get("wandb_api_key")
    if not key:
        raise MissingKey("W&B", "WANDB_API_KEY")
    return key.reveal() if isinstance(key, Secret) else str(key)


def ended_methods(provider: Provider, today: date) -> Mapping[Feature, str]:
    """Return the training methods that the host's API still offers but none of its models supports anymore,
    as {method: reason}. Returns an empty mapping for sandboxes and for hosts that the user configured,
    because the catalog doesn't contain their models."""
    kind = provider.profile.kind
    if provider.name != kind or provider.config.sandbox:
        return {}
    methods = [f for f in (Feature.SFT, Feature.DPO, Feature.RFT) if f in provider.features]
    found = {f: catalog.ended_method(kind, f.value, today) for f in methods}
    return {feature: reason for feature, reason in found.items() if reason is not None}


def problems(
    provider: Provider,
    spec: JobSpec,
    data: TrainingData,
    translation: Translation,
    *,
    renders: bool = False,
) -> list[Problem]:
    """Report rejected settings, a missing W&B key, and violations of the host's data rules in each file.
    `renders` is True if the backend trains with the same chat template that is used to count tokens
    locally."""
    name, profile = provider.name, provider.profile
    found = [
        _problem(name, "setting-refused", f"{s.name} = {s.asked!r}: {s.rule}", field=s.name)
        for s in translation.refused
    ]
    if (
        spec.wandb is not None
        and profile.sends_wandb_key
        and not provider.config.options.get("wandb_api_key")
    ):
        text = "the spec uses W&B, but there is no W&B key to send"
        found.append(_problem(name, "wandb-key-missing", text, field="wandb", fix="export WANDB_API_KEY=..."))
    today = days.today()
    if not provider.config.sandbox and (
        shut := provider.profile.closed(today) or provider.profile.gated(today)
    ):
        # Only a warning: the host may still accept this account's jobs, and creates nothing if it rejects
        # one.
        found.append(_problem(name, "host-closing", shut, severity=Severity.WARNING))
    try:
        model = provider.resolve(spec)
    except UsageError:
        return found  # the translation's row of the model says so
    if model.model is None and (meant := catalog.like(model.id, least=_ALIKE, provider=profile.kind)):
        message = f"{model.id} is not in the catalog. Did you mean {' or '.join(meant)}?"
        found.append(_problem(name, "model-unknown", message, field="model", severity=Severity.WARNING))
    for dataset in (data.train, data.validation):
        if dataset is not None:
            found += _of_file(provider, spec, dataset, model, dataset is data.validation, renders)
    return found


def quote(
    provider: Provider,
    spec: JobSpec,
    data: TrainingData,
    translation: Translation,
    prices: costing.Prices,
    gpu_hours: Decimal | None,
) -> Quote:
    """Build a quote from token counts and the billing rules in the host's profile."""
    for setting in translation.refused:
        if setting.name in NO_QUOTE:
            return Quote(provider=provider.name, model=translation.model, unavailable=setting.rule)
    return costing.quote_tokens_job(
        costing.PlannedJob(provider.name, provider.profile, spec, data, translation, provider.resolve(spec)),
        prices=prices,
        sandbox=provider.config.sandbox,
        gpu_hours=gpu_hours,
    )


def _of_file(
    provider: Provider,
    spec: JobSpec,
    dataset: Dataset,
    model: ModelOnHost,
    validation: bool,
    renders: bool,
) -> list[Problem]:
    target, kind = dialects.target(provider.name, provider.profile), provider.profile.kind
    counter = costing.tokenizer_for(model, spec)
    tokens = None if dataset.tokens_from is TokensFrom.NONE else dataset.tokens(counter)
    found = rules.check(
        dataset,
        target,
        method=method_word(spec.method),
        tokens=tokens,
        context=spec.max_seq_length or model.context(spec.method.type),
        truncation=spec.truncation,
        epochs=spec.epochs,
        validation=validation,
    )
    if tokens is not None:
        found += _rendered(provider, dataset.path, tokens.remarks, renders)
    if (
        dataset.content.images
        and not any(one.code == "no-vision" for one in found)
        and model.model is not None
        and model.host is not None
        and not model.model.vision
    ):
        seeing = [
            one.name
            for one in catalog.search(provider=kind)
            if one.vision
            if (there := one.on(kind)) is not None and there.tunable != "no"
        ]
        some = f": {joined(seeing)}" if seeing else f" ({provider.profile.title} has none)"
        fix = f"choose a model that accepts images{some}, or remove the images"
        text = f"{model.name} does not accept images"
        found.append(_problem(target.name, "no-vision", text, fix=fix, source=dataset.path))
    return found


def _rendered(
    provider: Provider,
    source: str,
    remarks: Sequence[Remark],
    ours: bool,
) -> Iterator[Problem]:
    """Report what the model's own chat template did with the rows, where it is available."""
    for remark in remarks:
        rows = count(remark.count, "row")
        if remark.refused:
            code, text = "template-refuses", f"{rows}: {remark.text}"
            text += "" if ours else f"; {rows} are not counted"
            severity = Severity.ERROR if ours else Severity.WARNING
        elif ours:
            code, text, severity = "template-changes", f"{rows}: {remark.text}", Severity.WARNING
        else:
            continue  # the host renders rows with a template of its own
        for number in remark.first[:1] or (None,):
            yield _problem(
                provider.name, code, text, fix=remark.fix, source=source, severity=severity, row=number
            )


def _problem(
    provider: str,
    code: str,
    message: str,
    *,
    field: str | None = None,
    fix: str | None = None,
    source: str | None = None,
    severity: Severity = Severity.ERROR,
    row: int | None = None,
) -> Problem:
    return Problem(
        code=code,
        message=message,
        severity=severity,
        row=row,
        field=field,
        providers=(provider,),
        fix=fix,
        source=source,
    )
