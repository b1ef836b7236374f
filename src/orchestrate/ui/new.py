"""The form for a new run, generated from the spec's schema.

The form shows how each setting is translated, what is wrong, and what the run costs. Nothing is sent until
you confirm the price.
"""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.errors import DataError, OrchestrateError, SetupError, UsageError
from orchestrate.paid.consent import require_consent
from orchestrate.spec import JobSpec, specfile
from orchestrate.types import Outcome, Run, Severity
from orchestrate.ui import actions
from orchestrate.ui.site import Copy, Form, Site, compact, first

if TYPE_CHECKING:
    from orchestrate.runs.preparing.prepared import Offer

_FIRST = (
    "model",
    "train",
    "validation",
    "method.type",
    "adapter.type",
    "adapter.r",
    "epochs",
    "learning_rate",
)
_LAST = ("batch_size", "seed", "suffix", "max_cost_usd")
_SHOWN = 40


@dataclass(frozen=True)
class Field:
    """One form field, generated from the schema."""

    name: str
    hint: str = ""
    words: tuple[str, ...] = ()
    kind: str = "text"
    needed: bool = False
    low: float | None = None
    table: bool = False
    """True if the value is entered as YAML."""


def fields() -> tuple[list[Field], list[Field]]:
    """Return two lists of form fields: the ones that most runs set, and all others."""
    schema = specfile.json_schema()
    found: dict[str, Field] = {}
    for name, part in cast("dict[str, Any]", schema["properties"]).items():
        if name in ("method", "adapter"):
            found |= _tagged(name, part, schema["$defs"])
        else:
            found[name] = _field(name, part, schema["$defs"], needed=name in schema["required"])
    common = [name for name in (*_FIRST, *_LAST) if name in found]
    return [found[name] for name in common], [one for name, one in found.items() if name not in common]


def _field(name: str, part: Mapping[str, Any], defs: Mapping[str, Any], *, needed: bool = False) -> Field:
    kinds = _kinds(part, defs)
    # If one of the schemas allows any string, don't restrict the field to the words of an enum.
    free = any(one.get("type") == "string" and "enum" not in one for one in kinds)
    words = () if free else tuple(str(word) for one in kinds for word in one.get("enum", ()))
    types = {one.get("type") for one in kinds}
    if not words and "boolean" in types:
        words = ("true", "false")
    low = next((one[key] for one in kinds for key in ("minimum", "exclusiveMinimum") if key in one), None)
    table = not free and bool({"object", "array"} & types)
    number = not table and not free and bool({"integer", "number"} & types)
    kind = "number" if number else "text"
    return Field(name, part.get("description", ""), words, kind, needed, low, table)


def _kinds(part: Mapping[str, Any], defs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the schemas allowed for a value, with references resolved."""
    found: list[Mapping[str, Any]] = []
    for one in cast("list[Mapping[str, Any]]", part.get("anyOf") or part.get("oneOf") or [part]):
        named = one.get("$ref")
        found += _kinds(defs[str(named).rpartition("/")[2]], defs) if named else [one]
    return found


def _tagged(name: str, part: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Field]:
    """Return the field that selects a variant, and the fields of each variant."""
    union = next(one for one in [*part.get("anyOf", ()), part] if "discriminator" in one)
    mapping: dict[str, str] = union["discriminator"]["mapping"]
    found = {f"{name}.type": Field(f"{name}.type", "", tuple(mapping))}
    for word, place in mapping.items():
        for inner, one in kinds[place.rpartition("/")[2]]["properties"].items():
            dotted = f"{name}.{inner}"
            if inner != "type" and dotted not in found:
                found[dotted] = _field(dotted, {**one, "description": f"for {word}"}, kinds)
    return found


@dataclass(frozen=True)
class FormCheck:
    """The form's contents, as far as they could be parsed."""

    spec: JobSpec | None = None
    offer: Offer | None = None
    wrong: list[str] = field(default_factory=list[str])
    fix: str | None = None

    @property
    def ready(self) -> bool:
        offer = self.offer
        return (
            offer is not None
            and not any(s.outcome is Outcome.REFUSED for s in offer.translation.settings)
            and not any(p.severity is Severity.ERROR for p in offer.problems)
        )

    @property
    def agreed_usd(self) -> Decimal | None:
        """Return the amount that the user confirms: the spec's own limit, or the high end of the price."""
        if self.spec is None or self.offer is None:
            return self.spec.max_cost_usd if self.spec else None
        return self.spec.max_cost_usd or self.offer.quote.high_usd or None


def _values(given: Mapping[str, str]) -> dict[str, Any]:
    """Return the spec's fields from the form, each parsed as YAML. Raises `UsageError`."""
    asked = [f"{name}={value}" for name, value in given.items() if value and name not in ("provider", "word")]
    values: dict[str, Any] = {}
    for name, value in specfile.parse_settings(asked).items():
        specfile.put(values, name, value)
    return values


def checked(site: Site, given: Mapping[str, str]) -> FormCheck:
    """Check the form. Usage, data and setup errors are returned instead of raised, so the page can show them
    next to the form."""
    if not given.get("model") or not given.get("train"):
        return FormCheck()
    spec: JobSpec | None = None
    try:
        spec = specfile.build(_values(given), place="the form")
        return FormCheck(spec, site.ft.prepare(spec, given.get("provider", "")).offers[0])
    except (UsageError, DataError, SetupError) as error:
        return FormCheck(spec, None, error.message.splitlines(), error.fix)


def continued(run: Run, origin: str) -> dict[str, str]:
    """Return the form values for a run that continues from another run or one of its checkpoints."""
    given = {"provider": run.provider}
    for name, value in run.spec.items():
        inner = cast("dict[str, Any]", value) if name in ("method", "adapter") and value else None
        parts = {name: value} if inner is None else {f"{name}.{key}": one for key, one in inner.items()}
        given |= {key: compact(one) for key, one in parts.items() if one not in (None, "", [], {})}
    return {**given, "continue_from": origin}


def routes(site: Site) -> list[Route]:
    if site.read_only:
        return []
    common, others = fields()

    def page(request: Request) -> Response:
        given = {name: value.strip() for name, value in request.query_params.items()}
        backends = site.ft.backends()
        return site.page(
            request,
            "new.html",
            here="new run",
            copy=_copy(given),
            given={"provider": backends[0], **given},
            common=common,
            others=others,
            backends=backends,
            models=[model.name for model in site.ft.models()],
            checked=checked(site, {"provider": backends[0], **given}),
            shown=_SHOWN,
        )

    def confirm(request: Request) -> Response:
        given = {name: value.strip() for name, value in request.query_params.items()}
        found = checked(site, given)
        if not found.ready or found.spec is None:
            return page(request)
        return site.page(
            request,
            "agree.html",
            here="new run",
            copy=_copy(given),
            given=given,
            checked=found,
            backend=site.ft.provider(given["provider"]),
            spec=json.dumps(found.spec.asked()),
            key=f"ui-{secrets.token_hex(8)}",
        )

    return [
        Route("/new", page, methods=["GET"]),
        Route("/new/confirm", confirm, methods=["GET"]),
        site.action("/new", lambda _, form: _submit(site, form)),
    ]


def _submit(site: Site, form: Form) -> str:
    """Submit the form. Submitting it twice creates one run: the second submission finds an identical run or,
    if the user agreed to a repeat, has the same idempotency key."""
    try:
        spec = JobSpec.parse(json.loads(first(form, "spec")))
    except ValueError as error:
        raise UsageError("the form contains no spec: start again") from error
    limit = actions.number(form, "max_cost_usd")
    agreed = partial(actions.ticked, form, "unknown")
    fix = f"{actions.TICK}, or set max_cost_usd"
    require_consent(limit, agreed, otherwise="not submitted", limited=limit is not None, fix=fix)
    again = actions.ticked(form, "again")
    run = site.ft.submit(
        spec,
        first(form, "provider"),
        max_cost_usd=limit,
        idempotency_key=first(form, "key") if again else None,
        again=again,
    )
    return f"/runs/{run.id}"


def _copy(given: Mapping[str, str]) -> Copy:
    """Return the equivalent command and Python code."""
    asked = {name: value for name, value in given.items() if value and name not in ("provider", "word")}
    plain = ("model", "train", "validation", "epochs")
    words = ["orchestrate", "submit", "--provider", given.get("provider") or "BACKEND"]
    for name, value in asked.items():
        words += [f"--{name}", value] if name in plain else ["--set", f"{name}={value}"]
    try:
        values = _values(given)
    except OrchestrateError:
        values = dict(asked)
    return Copy(
        command=shlex.join(words),
        python="from orchestrate import JobSpec, Orchestrator\n\n"
        f"spec = JobSpec.parse({values!r})\nwith Orchestrator() as ft:\n"
        f"    run = ft.submit(spec, {given.get('provider') or 'BACKEND'!r})",
    )
