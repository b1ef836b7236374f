"""Translation of a spec for a host that is described by a YAML file. The file defines how each setting is
translated."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec

from orchestrate.catalog import ModelOnHost
from orchestrate.description import Described, SettingRule
from orchestrate.providers.calls import suffix_room
from orchestrate.providers.settings import Fields, Rows
from orchestrate.spec import JobSpec
from orchestrate.types import Outcome, Translation

RESERVED = ("model", "training_file", "validation_file", "metadata", "suffix")
"""Request fields that Orchestrate fills in."""
_ELSEWHERE = ("method.type", "adapter.type", "suffix", "wandb", "continue_from", "train", "validation")


def translate(
    described: Described, name: str, spec: JobSpec, model: ModelOnHost, version: str | None
) -> Translation:
    """Translate the spec for a compatible host. `version` is the requested API version, if the API has
    versions."""
    rows = Rows(name, spec, fields=Fields(sdk="", documentation=" ".join(described.known_fields)))
    _files(rows)
    _start(described, rows, spec, model)
    _method(described, rows, spec)
    _adapter(described, rows, spec)
    for setting in described.settings:
        rule = described.rule(setting, spec.method.type)
        idle = setting.startswith("adapter.") and spec.adapter.type == "full"
        if setting not in _ELSEWHERE and rule is not None and not idle:
            _setting(described, rows, spec, setting, rule)
    if not any(name.startswith("early_stopping") for name in described.settings):
        rows.refuse_if_set({"early_stopping": f"{described.title} trains all epochs"})
    rows.without_engine_settings(described.title)
    _suffix(described, rows)
    _wandb(described, rows, spec)
    found = rows.build(model.id, reserved=RESERVED)
    return found if version is not None else _versioned(described, name, spec, found)


def _files(rows: Rows) -> None:
    rows.train("the file is uploaded and training_file is set to its id")
    if rows.given("validation"):
        rows.keep("validation", None, rule="the file is uploaded and validation_file is set to its id")


def _start(described: Described, rows: Rows, spec: JobSpec, model: ModelOnHost) -> None:
    if spec.continue_from is None:
        rows.send("model", model.id)
        return
    rule = described.rule("continue_from", spec.method.type)
    if rule is None or rule.field is None:
        reason = rule and (rule.refused or rule.rule)
        rows.refuse(
            "continue_from",
            reason or f"{described.title} does not document how to continue from a tuned model",
        )
        rows.send("model", model.id)
    else:
        rows.keep("continue_from", rule.field, rule="the tuned model replaces the base model")


def _method(described: Described, rows: Rows, spec: JobSpec) -> None:
    kind = spec.method.type
    word = described.methods.get(kind)
    if word is None:
        reason = described.missing.get(kind, f"{described.title} trains with {', '.join(described.methods)}")
        rows.refuse("method.type", reason)
        rows.refuse_if_set({name: reason for name in rows.requested if name.startswith("method.")})
    elif described.method_type is None:
        rows.keep("method.type", None, kind, rule="the host's only method")
    elif word == kind:
        rows.keep("method.type", described.method_type, word)
    else:
        rows.map("method.type", described.method_type, word, f"{kind} is called {word}")
    if kind == "dpo" and word is not None:
        reason = f"{described.title} only supports the original DPO loss"
        rows.plain_dpo(dict.fromkeys(("ipo", "orpo", "kto"), reason))


def _adapter(described: Described, rows: Rows, spec: JobSpec) -> None:
    kind, explicit = spec.adapter.type, "adapter" in spec.model_fields_set
    if not described.adapters:
        rule = f"not sent, because {described.title} chooses the adapter settings and does not publish them"
        if kind == "full":
            rows.refuse("adapter.type", rule, instead="lora")
        elif explicit:
            rows.map("adapter.type", None, "host decides", rule, exact=False)
        else:
            rows.default("adapter.type", None, "host decides", rule)
        return
    near = "lora" if kind == "qlora" and "lora" in described.adapters else kind
    fields = described.adapters.get(near)
    if fields is None:
        have = " or ".join(described.adapters)
        rows.refuse(
            "adapter.type", f"{described.title} trains {have}", instead=next(iter(described.adapters))
        )
        return
    for field, value in fields.items():
        rows.send(field, value)
    if near != kind:
        rule = f"{described.title} does not publish the precision of its base models, so the job trains LoRA"
        rows.map("adapter.type", None, near, rule, exact=False)
    elif explicit:
        rows.keep("adapter.type", None, kind)
    else:
        rows.default("adapter.type", None, kind, "the spec's default")


def _setting(described: Described, rows: Rows, spec: JobSpec, name: str, rule: SettingRule) -> None:
    value = rows.given(name)
    if value is None:
        if rule.field is not None:
            rows.default(name, described.field(rule, spec.method.type), rule.default, rule.rule)
        elif rule.refused is None:
            rows.default(name, None, rule.always, rule.rule)
    elif rule.refused is not None:
        rows.refuse(name, rule.refused)
    elif rule.field is None:
        _always(described, rows, name, value, rule)
    else:
        _sent(described, rows, name, value, rule, described.field(rule, spec.method.type))


def _always(described: Described, rows: Rows, name: str, value: Any, rule: SettingRule) -> None:
    if value == rule.always or (value is False and rule.always is None):
        rows.keep(name, None, rule=rule.rule)
    else:
        rows.refuse(name, f"{described.title}: {rule.rule}", instead=rule.always)


def _sent(described: Described, rows: Rows, name: str, value: Any, rule: SettingRule, field: str) -> None:
    word = str(value).lower() if isinstance(value, bool) else str(value)
    if word in rule.words:
        sent = rule.words[word]
        if sent is None:
            rows.keep(name, None, rule=rule.rule or "always on here")
        else:
            note = f"{word} is called {sent}" + (f"; {rule.rule}" if rule.rule else "")
            rows.map(name, field, sent, note, exact=word not in rule.inexact)
    elif rule.words and not isinstance(value, int | float):
        rows.refuse(name, f"{described.title} accepts {', '.join(rule.words)}")
    elif (why := _out_of_range(value, rule)) is not None:
        rows.refuse(name, f"{described.title} accepts {why[0]}", instead=why[1])
    else:
        rows.keep(name, field, rule=rule.rule)


def _out_of_range(value: Any, rule: SettingRule) -> tuple[str, Any] | None:
    """Return the accepted range, and the nearest value in it."""
    if isinstance(value, str) and rule.one_of and value not in rule.one_of:
        return ", ".join(map(str, rule.one_of)), None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = Decimal(str(value))
    if rule.one_of and not any(number == Decimal(str(one)) for one in rule.one_of if _is_number(one)):
        numbers = [one for one in rule.one_of if _is_number(one)]
        near = min(numbers, key=lambda one: abs(Decimal(str(one)) - number), default=None)
        return ", ".join(map(str, rule.one_of)), near
    for limit, wrong, word in (
        (rule.least, rule.least is not None and number < rule.least, "at least"),
        (rule.most, rule.most is not None and number > rule.most, "at most"),
    ):
        if limit is not None and wrong:
            near = int(limit) if limit == limit.to_integral_value() else float(limit)
            return f"{word} {limit.normalize():f}", near
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _suffix(described: Described, rows: Rows) -> None:
    suffix = rows.given("suffix")
    if described.ref == "metadata":
        rows.offer("suffix", "suffix", rule="none")
        return
    if suffix is None:
        rows.default("suffix", None, "<ref>", "the ref identifies the job")
        return
    room = suffix_room(described.suffix.most)
    cut = f". The suffix is shortened to {room} characters" if len(suffix) > room else ""
    rule = f"sent as <suffix>-<ref>, because the ref identifies the job{cut}"
    rows.map("suffix", None, f"{suffix[:room]}-<ref>", rule, exact=not cut)


def _wandb(described: Described, rows: Rows, spec: JobSpec) -> None:
    if spec.wandb is None:
        return
    rule = described.rule("wandb", spec.method.type)
    if rule is None or rule.field is None:
        rows.refuse("wandb", (rule and rule.refused) or f"{described.title} does not document W&B logging")
        return
    values = spec.wandb.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    where = (
        "the W&B key is sent with the request"
        if described.wandb_in_request
        else f"the W&B key is stored at {described.title}"
    )
    rows.keep("wandb", rule.field, [{"type": "wandb", "wandb": values}], rule=where)


def _versioned(described: Described, name: str, spec: JobSpec, found: Translation) -> Translation:
    """Reject fields that only another version of the API has."""
    options: Mapping[str, Any] = spec.provider_options.get(name, {})
    for needed, version in described.versions.items():
        field, equals, value = needed.partition("=")
        if field not in options or (equals and str(options[field]) != value):
            continue
        rule = f'needs API version {version}. Set api_version = "{version}" in [hosts.{name}.options]'
        row = f"provider_options.{field}"
        settings = tuple(
            msgspec.structs.replace(one, outcome=Outcome.REFUSED, sent=None, wire=None, rule=rule)
            if one.name == row
            else one
            for one in found.settings
        )
        body = {key: sent for key, sent in found.body.items() if key != field}
        found = msgspec.structs.replace(found, settings=settings, body=body)
    return found
