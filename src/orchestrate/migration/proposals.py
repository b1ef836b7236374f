"""Records of a migration: its proposals and its results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from orchestrate import catalog
from orchestrate.evaluation.regression import Regression
from orchestrate.types import (
    Evaluation,
    Feature,
    JobStatus,
    Outcome,
    Problem,
    Quote,
    Record,
    Score,
    Setting,
    Severity,
    Translation,
)

if TYPE_CHECKING:
    from orchestrate.catalog import Model
    from orchestrate.data.facts import Content
    from orchestrate.profile import Profile


_QUIET = ("model", "train", "validation", "test", "tags", "max_cost_usd")
"""Settings that are not listed as changes, because they are reported elsewhere or are specific to
Orchestrate."""
Becomes = Literal["kept", "changed", "left out", "new"]


class SettingChange(Record, frozen=True, kw_only=True):
    """A changed setting, or a changed property of the rows. `was` and `now` contain the old and the new
    value. If the host has a different name for the field, the value includes that name."""

    what: str
    was: str
    now: str
    becomes: Becomes
    why: str = ""


def of_settings(
    before: Translation, after: Translation, refused: Mapping[str, str] | None = None
) -> list[SettingChange]:
    """List what becomes of each setting on the new backend: kept, changed, left out or new. `refused`
    contains the settings that the new backend does not support, each with the reason."""
    old, new = ({s.name: s for s in t.settings} for t in (before, after))
    found: list[SettingChange] = []
    for name in [*old, *(name for name in new if name not in old)]:
        if name.split(".")[0] in _QUIET:
            continue
        was, now = old.get(name), new.get(name)
        if now is None or now.outcome is Outcome.REFUSED:
            if was is not None and was.asked is not None:
                why = (refused or {}).get(name) or (now.rule if now is not None else None)
                why = why or "the new backend has no such setting"
                found.append(SettingChange(what=name, was=_value(was), now="-", becomes="left out", why=why))
        elif now.asked is None and (was is None or was.asked is None):
            if was is None or _value(was) != _value(now):
                said = _value(was) if was is not None else "-"
                found.append(
                    SettingChange(
                        what=name, was=said, now=_value(now), becomes="new", why=now.rule or "not set"
                    )
                )
        else:
            same = was is not None and _sent(was) == _sent(now) and now.exact
            found.append(
                SettingChange(
                    what=name,
                    was=_value(was) if was is not None else "-",
                    now=_value(now),
                    becomes="kept" if same else "changed",
                    why=now.rule or "",
                )
            )
    order: Sequence[Becomes] = ("left out", "changed", "kept", "new")
    return sorted(found, key=lambda change: order.index(change.becomes))


def of_unknown(settings: Mapping[str, object]) -> list[SettingChange]:
    """List the settings that the old host reports for an imported run and that no spec can hold."""
    why = "imported from the host, but a spec has no such setting or does not accept its value"
    return [
        SettingChange(what=name, was=str(value), now="-", becomes="left out", why=why)
        for name, value in settings.items()
    ]


def of_rows(
    content: Content, old: tuple[Profile, Model | None], new: tuple[Profile, Model | None]
) -> list[SettingChange]:
    """List the differences in chat template, tokenizer and roles when the new model is trained on the same
    rows."""
    (host, base), (there, model) = old, new
    found = [
        _changed(
            "chat template",
            _template(base),
            _template(model),
            "rows are rendered with the new model's template",
        )
    ]
    found.append(
        _changed("tokenizer", _tokenizer(base), _tokenizer(model), "lengths and prices are recomputed")
    )
    if {"system", "developer"} & set(content.roles):
        spelled = [p.dialect.developer if p.dialect is not None else "system" for p in (host, there)]
        was, now = ("system" if "developer" not in content.roles else f"system, {role}" for role in spelled)
        found.append(
            _changed("system prompts", was, now, "kept in the rows. Use the same prompts with the new model")
        )
    if content.tools:
        shape = "in the format of the chat completions API"
        rule = "the new model writes calls in its own format, and the host parses them"
        found.append(SettingChange(what="tools", was=shape, now=shape, becomes="kept", why=rule))
    return found


def of_problems(problems: Iterable[Problem], provider: str) -> list[SettingChange]:
    """List the row problems on the new backend: rows that are rejected, left out or trained differently.
    Problems of one kind are merged."""
    sorts: dict[str, list[Problem]] = {}
    for one in problems:
        if one.severity is not Severity.INFO and (not one.providers or provider in one.providers):
            sorts.setdefault(one.code, []).append(one)
    return [
        SettingChange(
            what=f"rows: {code}",
            was=f"row {first.row}" if first.row else "the file",
            now="refused" if first.severity is Severity.ERROR else "accepted with a warning",
            becomes="left out" if first.severity is Severity.ERROR else "changed",
            why=first.message + (f", and {len(more):,} similar problems" if more else ""),
        )
        for code, (first, *more) in sorts.items()
    ]


def _value(setting: Setting) -> str:
    """Format the value that is sent or, without one, the host's default, such as `1.8 as
    learning_rate_multiplier`."""
    if setting.outcome is Outcome.REFUSED:
        return str(setting.asked)
    value = _sent(setting)
    said = f"{value:g}" if isinstance(value, float) else "the host's default" if value is None else str(value)
    field = setting.wire.rsplit(".", 1)[-1] if setting.wire else ""
    return f"{said} as {field}" if field and field != setting.name.rsplit(".", 1)[-1] else said


def _sent(setting: Setting) -> object:
    """Return the value that is sent, under the host's own name for it."""
    return setting.sent if setting.sent is not None else setting.asked


def _changed(what: str, was: str, now: str, why: str) -> SettingChange:
    same = was == now
    return SettingChange(
        what=what, was=was, now=now, becomes="kept" if same else "changed", why="" if same else why
    )


def _template(model: Model | None) -> str:
    if model is not None and model.template:
        return model.template
    if model is not None and not model.open:
        return f"unpublished template of {model.name}"
    return "the model's default"


def _tokenizer(model: Model | None) -> str:
    if model is None:
        return "unknown"
    return model.tokenizer or f"unknown tokenizer of {model.name}"


# Replacements for a tuned model: base models that a backend can fine-tune, most similar first, with the
# reasons for and against each.

MOST = 3
"""Maximum number of models proposed for a backend."""


class ModelNeeds(Record, frozen=True, kw_only=True):
    """Requirements that a new model must meet to train on the old model's data."""

    method: str
    rows: int
    longest: int
    """Number of tokens in the longest row. Other tokenizers give slightly different numbers."""
    tools: bool = False
    images: bool = False


class Suited(Record, frozen=True, kw_only=True):
    """A base model on one backend that could replace the old one."""

    model: str
    """Model name, as written in a spec."""
    params_b: float | None = None
    active_params_b: float | None = None
    context: int | None = None
    """Maximum tokens per training row on this backend. `None` if unknown."""
    license: str | None = None
    vision: bool = False
    reasoning: bool = False
    reasons: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    """Reasons against choosing this model."""


def base_of(model: str, profile: Profile) -> catalog.Model | None:
    """Return the catalog entry for a run's base model, even if the run continued from a tuned model."""
    base = profile.tuned_base(model) if profile.tuned_base else None
    return catalog.lookup(base or model)


def suited(
    source: catalog.Model | None,
    profile: Profile,
    features: Iterable[Feature],
    needs: ModelNeeds,
    today: date,
    asked: str | None = None,
) -> list[Suited]:
    """List at most `MOST` candidate models. Models with no reasons against them come first. With `asked`,
    list only that model. Returns an empty list if no similar model is known."""
    if asked is not None:
        found = [(asked, "chosen by you")]
    else:
        found = [(model.name, why) for model, why in _near(source, profile, today)]
    judged = [_judged(name, why, profile, set(features), needs, today) for name, why in found]
    return sorted(judged, key=lambda one: bool(one.against))[:MOST]


def _near(source: catalog.Model | None, profile: Profile, today: date) -> Sequence[tuple[catalog.Model, str]]:
    """List the same base, then the models that the catalog names as most similar, then models of
    similar size."""
    if source is None:
        return []
    kind = profile.kind
    found: dict[str, tuple[catalog.Model, str]] = {}
    if source.on(kind) is not None:
        found[source.name] = (source, "the same base model")
    for place, other in enumerate(catalog.alternatives(source, kind), 1):
        found.setdefault(other.name, (other, f"#{place} among the open models most similar to {source.name}"))
    if (closed := catalog.closest_closed(source, kind)) is not None:
        found.setdefault(closed.name, (closed, f"the most similar open model is {source.name}"))
    if not found and (size := source.params_b) is not None:
        sized = [m for m in catalog.search(provider=kind) if m.params_b and _open_to_jobs(m, profile, today)]
        sized.sort(key=lambda m: abs(math.log((m.params_b or 1) / size)))
        found = {m.name: (m, f"closest in size to {source.name}") for m in sized[:MOST]}
    return list(found.values())


def _open_to_jobs(model: catalog.Model, profile: Profile, today: date) -> bool:
    host = model.on(profile.kind)
    return host is not None and host.tunable == "yes" and not _ended(host, today)


def _ended(host: catalog.HostModel, today: date) -> bool:
    closed = host.no_new_jobs_after is not None and host.no_new_jobs_after <= today
    return closed or (host.shutdown is not None and host.shutdown < today)


def _judged(
    name: str, why: str, profile: Profile, features: set[Feature], needs: ModelNeeds, today: date
) -> Suited:
    model = catalog.lookup(name)
    host = model.on(profile.kind) if model is not None else None
    reasons, against = [why], list[str]()
    if closed := profile.closed(today):
        against.append(closed)
    if needs.tools and Feature.TOOLS not in features:
        against.append(f"{profile.title} cannot train on tool calls, which the rows contain")
    if model is None or host is None:
        if model is not None:
            against.append(f"{profile.title} does not support fine-tuning this model")
        return Suited(model=name, reasons=tuple(reasons), against=tuple(against))
    context = catalog.ModelOnHost(provider=profile.kind, id=host.id, model=model, host=host).context(
        needs.method
    )
    if model.params_b is not None:
        active = f", {model.active_params_b:g} active" if model.active_params_b else ""
        reasons.append(f"{model.params_b:g} billion parameters{active}")
    if context is not None and context < needs.longest:
        cut = f"rows of up to {needs.longest:,} tokens would be truncated at {context:,}"
        against.append(cut)
    elif context is not None:
        reasons.append(f"the longest row, {needs.longest:,} tokens, fits in {context:,}")
    if needs.images and not model.vision:
        against.append("the model does not accept images, which the rows contain")
    if needs.method not in host.methods:
        against.append(f"{profile.title} fine-tunes this model with {', '.join(host.methods) or 'no method'}")
    if _ended(host, today) or host.tunable != "yes":
        against.append(f"{profile.title} currently does not support fine-tuning this model")
    elif host.shutdown is not None:
        reasons.append(f"{profile.title} shuts the model down after {host.shutdown}")
    reasons.append(f"license {model.license}" if model.license else "license not in the catalog")
    return Suited(
        model=model.name,
        params_b=model.params_b,
        active_params_b=model.active_params_b,
        context=context,
        license=model.license,
        vision=model.vision,
        reasoning=model.reasoning,
        reasons=tuple(reasons),
        against=tuple(against),
    )


Old = Literal["live", "recorded"]


class PricedModel(Record, frozen=True, kw_only=True):
    """A model on a backend, with its prices at the user's traffic."""

    suited: Suited
    quote: Quote
    serving: str = ""
    """Description of how the model would be served: billed per token or hourly."""
    monthly_usd: Decimal | None = None
    unserved: str | None = None
    """Reason why the serving price is unknown."""

    @property
    def against(self) -> tuple[str, ...]:
        """Return all reasons against choosing this model, including problems that its quote reports."""
        known = (self.quote.unavailable, self.quote.refused, self.quote.unlisted)
        return (*self.suited.against, *(reason for reason in known if reason))


class MigrationTarget(Record, frozen=True, kw_only=True):
    """The proposal for one backend."""

    provider: str
    candidates: tuple[PricedModel, ...]
    model: str | None = None
    """The model that would be trained. `None` if no suitable model is known."""
    quote: Quote | None = None
    """Price of training with all settings as they would be sent."""
    monthly_usd: Decimal | None = None
    """Monthly cost of serving the model at the given traffic. `None` if no price is known."""
    serving: str = ""
    """Description of how the model would be served, or the reason why its price is unknown."""
    changes: tuple[SettingChange, ...] = ()
    refused: str | None = None
    """Reason why the run cannot be migrated there."""

    @property
    def left_out(self) -> tuple[SettingChange, ...]:
        """Settings of the old run that the new backend does not support."""
        return tuple(change for change in self.changes if change.becomes == "left out")

    def rank(self, months: int) -> tuple[bool, Decimal, str]:
        """Return a key that sorts backends by cost: the maximum training cost plus `months` months of
        serving. Backends without a serving price sort last, and ties are broken by name."""
        training = self.quote.held_usd if self.quote is not None else Decimal(0)
        return (self.monthly_usd is None, training + months * (self.monthly_usd or Decimal(0)), self.provider)


class HeldOutRows(Record, frozen=True, kw_only=True):
    """Held-out prompts on which the old and the new model are compared."""

    path: str
    rows: int
    origin: str
    """Description of the prompts' source."""
    recording: str | None = None
    """Id of the recording that contains the old model's answers to these prompts."""


class Proposal(Record, frozen=True, kw_only=True):
    run_id: str
    provider: str
    model: str
    tuned_model: str | None
    silent_on: date | None
    days_left: int | None
    needs: ModelNeeds
    traffic: str
    """Description of the traffic used to price serving."""
    months: int
    """Number of months of serving costs to include when ranking backends."""
    held_out: HeldOutRows | None
    old: Old
    margin: float
    targets: tuple[MigrationTarget, ...]
    notes: tuple[str, ...] = ()


class ParitySlice(Record, frozen=True, kw_only=True):
    """Parity on all rows or on one slice."""

    slice: str
    """Name of the slice. Empty for all rows."""
    old: Score
    new: Score
    difference: Score
    parity: Literal["holds", "does not hold", "not shown"]


class MovedModel(Record, frozen=True, kw_only=True):
    """The new model on one backend."""

    provider: str
    model: str
    run_id: str
    status: JobStatus
    cost_usd: Decimal | None = None
    problem: str | None = None
    """Reason why nothing was compared."""
    metric: str = ""
    parts: tuple[ParitySlice, ...] = ()
    """Parity on all rows, followed by parity on each slice."""
    decision: str = ""
    """The evaluation's verdict on the new model: `ship`, `do not ship` or `not enough evidence`."""
    reasons: tuple[str, ...] = ()
    same_answers: int = 0
    """Number of prompts to which both models gave the same text and the same tool calls."""
    prompts: int = 0


class Migration(Record, frozen=True, kw_only=True):
    """The result of migrating one run."""

    at: datetime
    proposal: Proposal
    moved: tuple[MovedModel, ...] = ()
    old: str = ""
    """The old model's name in the evaluation."""
    evaluation: Evaluation | None = None
    forgotten: tuple[Regression, ...] = ()
    """Regression tests of the new models, each against its own base."""
    notes: tuple[str, ...] = ()

    @property
    def parity(self) -> bool:
        """Return True if parity was shown to hold on all rows for every new model."""
        return bool(self.moved) and all(m.parts and m.parts[0].parity == "holds" for m in self.moved)
