"""Translation of specs to requests, setting by setting. `Rows` collects one row for each setting and builds
the request body.

A backend calls one of `keep`, `map`, `default` and `refuse` for each setting that it knows. `build` then
rejects requested settings that have no row, so no setting is dropped silently. Settings are named by their
dotted path in the spec: `epochs`, `method.beta`, `adapter.r`, `wandb.project`. A backend must always add rows
for `method.type` and `adapter.type`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from msgspec.structs import replace

from orchestrate.errors import SpecError, TranslationRefused
from orchestrate.settings import masked
from orchestrate.spec import JobSpec
from orchestrate.spec.methods import merged
from orchestrate.types import Authority, Outcome, Setting, Translation

OURS: Mapping[str, str] = {
    "test": "used by Orchestrate for evaluation, never sent",
    "max_cost_usd": "checked by Orchestrate before anything is sent",
    "tags": "stored with the run by Orchestrate",
    "columns": "used by Orchestrate to read the files before anything is sent",
    "private": "checked by Orchestrate before anything is sent",
}
"""Settings that are never sent to a backend."""


UNPAIRED = "The closest option is DPO on preference pairs (loss: dpo). Local training supports KTO"
"""Advice for users of backends that reject KTO."""
KTO_ONLY = ("desirable_weight", "undesirable_weight")


_OF_ENGINES: Mapping[str, tuple[str, Any]] = {
    "added_tokens": ("trains with the model's own tokenizer", None),
    "chat_template": ("renders rows with its own template", None),
    "chat_template_kwargs": ("renders rows with its own template", None),
    "max_steps": ("trains full epochs. Set epochs", None),
    "optimizer": ("chooses the optimizer", None),
    "eval_steps": ("has no setting for steps between evaluations", None),
    "keep_best": ("returns the weights of the last step", False),
    "checkpoint_steps": ("has no setting for steps between checkpoints", None),
    "warmup_steps": ("has no setting for warm-up steps", None),
    "min_lr_ratio": ("has no setting for the final learning rate", None),
    "decay_ratio": ("has no schedule with a stable phase", None),
    "schedule_power": ("has no polynomial schedule", None),
    "truncation": ("has no setting for truncating long rows", None),
    "save_total_limit": ("decides which checkpoints to keep", None),
    "method.train_on": (
        "trains on every assistant message. To skip some, set their weight to 0 in the rows, if supported",
        "all",
    ),
    "method.ignore_empty_think": ("renders and masks reasoning according to its own rules", False),
    "method.label_smoothing": ("assumes that every label is correct", 0),
    "adapter.init_lora_weights": ("does not let you choose the adapter's initialization", None),
    "adapter.rank_pattern": ("uses one rank for all modules", None),
    "adapter.alpha_pattern": ("uses one scale for all modules", None),
    "adapter.layers_to_transform": ("adapts all layers", None),
    "adapter.exclude_modules": ("has no setting to exclude modules", None),
    "adapter.target_parameters": ("cannot adapt individual expert weights", None),
    "adapter.modules_to_save": ("cannot train entire modules alongside the adapter", None),
    "adapter.loraplus_lr_ratio": ("uses one learning rate for the entire adapter", 1),
}
"""Engine settings that no host's published API offers, as `{setting: (what hosts do instead, accepted
value)}`. A spec may request the accepted value, because it matches what hosts do. If it is `None`, the
setting is always rejected."""


def body(translation: Translation) -> dict[str, Any]:
    """Return a copy of the request body for the caller to complete. Raises `TranslationRefused` if settings
    were rejected."""
    if translation.refused:
        raise TranslationRefused(translation.provider, translation.refused)
    return copy.deepcopy(translation.body)


class Rows:
    """Collects the rows and the request body of one translation. `requested` contains the user's settings,
    keyed by dotted name."""

    def __init__(
        self, provider: str, spec: JobSpec, *, aliases: Iterable[str] = (), fields: Fields | None = None
    ) -> None:
        """Start a translation. `aliases` are additional names under which `provider_options` of this backend
        may be written. `fields` are the fields that its host is known to have."""
        self.provider = provider
        self.fields = fields
        self.spec = spec
        self.body: dict[str, Any] = {}
        self._rows: dict[str, Setting] = {}
        self._own_options: dict[str, Any] = {}
        values = spec.asked()
        options = cast("dict[str, dict[str, Any]]", values.pop("provider_options", {}))
        for name in (*aliases, provider):
            self._own_options |= options.get(name, {})
        self.requested = _flat(values)
        self.requested.pop("model", None)

    # -- answering -----------------------------------------------------------------------------------------

    @property
    def refused(self) -> frozenset[str]:
        """Names of the settings that have been rejected so far."""
        return frozenset(n for n, row in self._rows.items() if row.outcome is Outcome.REFUSED)

    def given(self, name: str) -> Any:
        """Return the value that the user set under this dotted name, or `None` if there is none."""
        return self.requested.get(name)

    def keep(self, name: str, wire: str | None, value: Any = None, *, rule: str | None = None) -> None:
        """Keep a setting and send it as requested. Pass `value` only if the API represents the setting
        differently."""
        sent = self.given(name) if value is None else value
        self._put(name, Outcome.KEPT, sent, wire, rule)

    def map(self, name: str, wire: str | None, value: Any, rule: str, *, exact: bool = True) -> None:
        """Map a setting to `value`. `rule` explains the mapping, and `exact` is True if the meaning does not
        change."""
        self._put(name, Outcome.MAPPED, value, wire, rule, exact=exact)

    def default(
        self, name: str, wire: str | None, value: Any, rule: str | None = None, *, send: bool = False
    ) -> None:
        """Record a setting that was not requested. `value` is the default that the host will use. The default
        is only included in the request if `send` is True."""
        self._put(name, Outcome.DEFAULTED, value, wire, rule, send=send)

    def refuse(self, name: str, reason: str, *, instead: Any = None) -> None:
        """Reject a setting. `instead` is the nearest value that the backend accepts."""
        self._put(name, Outcome.REFUSED, None, None, reason, send=False)
        self._rows[name] = replace(self._rows[name], instead=instead)

    def offer(self, name: str, wire: str, default: Any = None, rule: str | None = None) -> None:
        """Keep the setting if it was requested, otherwise record the host's default."""
        if self.given(name) is not None:
            self.keep(name, wire)
        else:
            self.default(name, wire, default, rule)

    def plain_dpo(self, reasons: Mapping[str, str]) -> None:
        """Keep DPO's standard loss if it was requested, and reject other losses with the given reasons."""
        if (loss := self.given("method.loss")) is None:
            return
        if loss == "dpo":
            self.keep("method.loss", None, rule="the backend's default")
        else:
            self.refuse("method.loss", reasons[loss])
            if loss == "kto":
                self.refuse_if_set({f"method.{name}": "part of KTO" for name in KTO_ONLY})

    def annotate(self, name: str, rule: str) -> None:
        """Append a note to the rule of a setting, unless the setting is rejected."""
        row = self._rows[name]
        if row.outcome is not Outcome.REFUSED:
            self._rows[name] = replace(row, rule=f"{row.rule}; {rule}" if row.rule else rule)

    def train(self, rule: str) -> None:
        """Add the row for the training data. `rule` explains how the data is sent. If there are several
        files, the row also says that they are mixed by weight."""
        self.keep("train", None, self.spec.train_description, rule=self._mixing(rule))

    def _mixing(self, rule: str) -> str:
        return rule if isinstance(self.spec.train, str) else f"mixed into one file by weight: {rule}"

    def without_engine_settings(self, host: str) -> None:
        """Reject settings that training engines support but hosts' APIs do not. A value that matches the
        host's behavior is kept."""
        for name, (reason, always) in _OF_ENGINES.items():
            given = self._requested(name)
            if given is None or name in self._rows:
                continue
            if always is not None and given == always:
                self.keep(name, None, rule="always on here")
            else:
                self.refuse(name, f"{host} {reason}")

    def refuse_if_set(self, reasons: Mapping[str, str]) -> None:
        """Reject those settings in `reasons` that the user set, unless they already have a row. `reasons`
        maps each setting to the reason for rejecting it."""
        for name, reason in reasons.items():
            if self._requested(name) is not None and name not in self._rows:
                self.refuse(name, reason)

    def in_options(self, wire: str) -> bool:
        """Return True if the user sets this field in `provider_options`."""
        return wire in _flat(self._own_options)

    def send(self, wire: str, value: Any) -> None:
        """Set a value in the request body, at a dotted path, without adding a row. Use this for values that
        are not settings."""
        target = self.body
        *path, last = wire.split(".")
        for key in path:
            target = target.setdefault(key, {})
        target[last] = value

    # -- finishing -----------------------------------------------------------------------------------------

    def build(self, model: str, *, reserved: Iterable[str] = ()) -> Translation:
        """Build the translation. `model` is the backend's id of the model.

        Adds rows for Orchestrate's own settings. Merges the backend's `provider_options` into the body, but
        rejects an option that is in `reserved` or would change a value already in the body. Rejects requested
        settings that have no row."""
        for name, rule in OURS.items():
            if any(key == name or key.startswith(f"{name}.") for key in self.requested):
                self._put(name, Outcome.KEPT, None, None, rule, send=False)
        for key, value in self._own_options.items():
            self._merge(key, value, frozenset(reserved))
        if "model" not in self._rows:
            kept = model == self.spec.model
            outcome = Outcome.KEPT if kept else Outcome.MAPPED
            rule = None if kept else f"its id at {self.provider}"
            self._put("model", outcome, model, None, rule)
            self._rows = {"model": self._rows.pop("model"), **self._rows}
        if self._rows["model"].outcome is not Outcome.REFUSED:  # else the others were never looked at
            for name in self.requested:
                if not any(name == row or name.startswith(f"{row}.") for row in self._rows):
                    self.refuse(name, f"{self.provider} has no such setting")
        return Translation(
            provider=self.provider, model=model, settings=tuple(self._rows.values()), body=self.body
        )

    def _merge(self, key: str, value: Any, reserved: frozenset[str]) -> None:
        for path, leaf in _flat({key: value}).items():
            name = f"provider_options.{path}"
            present = _at(self.body, path)
            if path.split(".", 1)[0] in reserved:
                self._put(
                    name,
                    Outcome.REFUSED,
                    None,
                    None,
                    "Orchestrate sets this field",
                    asked=leaf,
                    send=False,
                )
            elif present is not None and present != leaf:
                reason = f"the spec already sets this field to {present!r}"
                self._put(name, Outcome.REFUSED, None, path, reason, asked=leaf, send=False)
            elif present is None and (setting := self._setting_of(path)) and setting.sent != leaf:
                # If the spec doesn't contain the setting, quotes and plans assume the host's default.
                reason = f"set {setting.name} in the spec instead, or under overrides.{self.provider}"
                self._put(name, Outcome.REFUSED, None, path, reason, asked=leaf, send=False)
            else:
                known = self.fields is None or self.fields.authority(path) is not Authority.NONE
                unknown = "" if known else ", although the host's published API does not mention this field"
                self._put(name, Outcome.KEPT, leaf, path, f"sent unchanged{unknown}", asked=leaf)

    def _setting_of(self, path: str) -> Setting | None:
        """Return the setting of the spec that corresponds to this field of the request."""
        rows = (row for row in self._rows.values() if not row.name.startswith("provider_options."))
        return next((r for r in rows if r.wire == path and r.outcome is not Outcome.REFUSED), None)

    def _put(
        self,
        name: str,
        outcome: Outcome,
        value: Any,
        wire: str | None,
        rule: str | None,
        *,
        exact: bool = True,
        send: bool = True,
        asked: Any = None,
    ) -> None:
        known = self.fields if wire is not None and outcome is not Outcome.REFUSED else None
        self._rows[name] = Setting(
            name=name,
            asked=masked(self._requested(name) if asked is None else asked, name),
            outcome=outcome,
            sent=masked(value, name),
            wire=wire,
            rule=rule,
            exact=exact,
            authority=known.authority(wire) if known and wire else None,
        )
        if send and wire is not None and value is not None:
            self.send(wire, value)

    def _requested(self, name: str) -> Any:
        if name == "model":
            return self.spec.model
        if name in self.requested:
            return self.requested[name]
        below = {k.removeprefix(f"{name}."): v for k, v in self.requested.items() if k.startswith(f"{name}.")}
        return below or None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted names. Lists stay as they are, and `None` (not set) is left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and name != "method.grader":
            flat |= _flat(cast("Mapping[str, Any]", value), f"{name}.")
        elif value is not None and value != {}:
            flat[name] = value
    return flat


def _at(body: Mapping[str, Any], path: str) -> Any:
    value: Any = body
    for key in path.split("."):
        value = cast("Mapping[str, Any]", value).get(key) if isinstance(value, Mapping) else None
    return value


# Where the fields of a host's create request are documented.


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Fields of a host's create request, as dotted names separated by spaces. A name includes all of its
    subfields."""

    sdk: str
    """Fields from the types in the host's SDK."""
    specification: str = ""
    """Fields that are in the host's published API specification, but in no SDK type."""
    documentation: str = ""
    """Fields that only the host's web pages document."""

    @cached_property
    def names(self) -> dict[str, Authority]:
        by = {
            Authority.DOCUMENTATION: self.documentation,
            Authority.SPECIFICATION: self.specification,
            Authority.SDK: self.sdk,
        }
        return {name: authority for authority, names in by.items() for name in names.split()}

    def authority(self, field: str) -> Authority:
        """Return the kind of source that documents a field. A field also counts as documented if one of its
        subfields or a field that contains it is documented."""
        for name, authority in self.names.items():
            if field == name or field.startswith(f"{name}.") or name.startswith(f"{field}."):
                return authority
        return Authority.NONE


# Overrides for the settings that a backend rejects. With them, users can change the backend by changing only
# its name.


ESSENTIAL = ("model", "method", "method.type", "method.loss", "method.grader", "continue_from")
"""Settings that define the run. They are never dropped."""
_TURNS = 8
"""Maximum number of rounds in which rejected settings are dropped. Several rounds may be needed, because
dropping one setting may cause another to be rejected."""


def overrides(
    spec: JobSpec, translation: Translation, translate: Callable[[JobSpec], Translation]
) -> dict[str, Any] | None:
    """Return the `overrides:` section that makes this backend accept the spec.

    Each rejected field is omitted (`None`) or set to the nearest accepted value. Returns `None` if no setting
    is rejected, or if a rejected setting is essential to the run."""
    found: dict[str, Any] = {}
    asked = values = spec.asked()
    for _ in range(_TURNS):
        if not translation.refused:
            return found or None
        for row in translation.refused:
            *parts, last = row.name.split(".")
            name = row.name.partition(".")[0]
            if row.name in ESSENTIAL or values.get(name) is None or name == "provider_options":
                return None
            if found.get(name, {}) is None:
                continue
            table = found
            for part in parts:
                table = table.setdefault(part, {})
            table[last] = row.instead
        values = merged(asked, found)
        for name in found:
            if values.get(name) == {}:  # `early_stopping: {}` would turn it on
                found[name] = values[name] = None
        try:
            translation = translate(JobSpec.parse(values))
        except SpecError:
            return None
    return None
