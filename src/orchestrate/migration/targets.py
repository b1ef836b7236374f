"""Where a tuned model can go: the models that one backend would tune in its place, nearest first, with what
speaks for and against each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import date
from typing import TYPE_CHECKING

from orchestrate import catalog
from orchestrate.text import count
from orchestrate.types import Feature, Record

if TYPE_CHECKING:
    from orchestrate.profile import Profile

MOST = 3
"""Models that are proposed on a backend."""


class Needs(Record, frozen=True, kw_only=True):
    """What the data of the old model asks of a new one."""

    method: str
    rows: int
    longest: int
    """Tokens of the longest row; of another tokenizer a little more or less."""
    tools: bool = False
    images: bool = False


class Suited(Record, frozen=True, kw_only=True):
    """A base model on one backend."""

    model: str
    """As a spec names it."""
    params_b: float | None = None
    active_params_b: float | None = None
    context: int | None = None
    """Most tokens of a training row there; `None` where it is not known."""
    licence: str | None = None
    vision: bool = False
    reasoning: bool = False
    reasons: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    """Why it would not do; none where nothing speaks against it."""


def base_of(model: str, profile: Profile) -> catalog.Model | None:
    """The catalog's entry of the base that a run trained, be it named by a tuned model of it."""
    base = profile.tuned_base(model) if profile.tuned_base else None
    return catalog.lookup(base or model)


def suited(
    source: catalog.Model | None,
    profile: Profile,
    features: Iterable[Feature],
    needs: Needs,
    today: date,
    asked: str | None = None,
) -> list[Suited]:
    """At most `MOST` models, those against which nothing speaks first; only the one that was `asked` for,
    where one was. None where nothing is known to be near."""
    if asked is not None:
        found = [(asked, "you named it")]
    else:
        found = [(model.name, why) for model, why in _near(source, profile, today)]
    judged = [_judged(name, why, profile, set(features), needs, today) for name, why in found]
    return sorted(judged, key=lambda one: bool(one.against))[:MOST]


def _near(source: catalog.Model | None, profile: Profile, today: date) -> Sequence[tuple[catalog.Model, str]]:
    """The same base, then what the catalog names as nearest, then those of like size."""
    if source is None:
        return []
    kind = profile.kind
    found: dict[str, tuple[catalog.Model, str]] = {}
    if source.on(kind) is not None:
        found[source.name] = (source, "the same base model")
    for place, other in enumerate(catalog.alternatives(source, kind), 1):
        found.setdefault(other.name, (other, f"number {place} of the open models nearest to {source.name}"))
    if (closed := catalog.closest_closed(source, kind)) is not None:
        found.setdefault(closed.name, (closed, f"{source.name} is the open model nearest to it"))
    if not found and (size := source.params_b) is not None:
        sized = [m for m in catalog.search(provider=kind) if m.params_b and _open_to_jobs(m, profile, today)]
        sized.sort(key=lambda m: abs(math.log((m.params_b or 1) / size)))
        found = {m.name: (m, f"nearest in size to {source.name}") for m in sized[:MOST]}
    return list(found.values())


def _open_to_jobs(model: catalog.Model, profile: Profile, today: date) -> bool:
    host = model.on(profile.kind)
    return host is not None and host.tunable == "yes" and not _ended(host, today)


def _ended(host: catalog.HostModel, today: date) -> bool:
    closed = host.no_new_jobs_after is not None and host.no_new_jobs_after <= today
    return closed or (host.shutdown is not None and host.shutdown < today)


def _judged(
    name: str, why: str, profile: Profile, features: set[Feature], needs: Needs, today: date
) -> Suited:
    model = catalog.lookup(name)
    host = model.on(profile.kind) if model is not None else None
    reasons, against = [why], list[str]()
    if closed := profile.closed(today):
        against.append(closed)
    if needs.tools and Feature.TOOLS not in features:
        against.append(f"{profile.title} does not train calls of tools, which the rows hold")
    if model is None or host is None:
        if model is not None:
            against.append(f"{profile.title} does not tune it")
        return Suited(model=name, reasons=tuple(reasons), against=tuple(against))
    context = catalog.ModelOnHost(provider=profile.kind, id=host.id, model=model, host=host).context(
        needs.method
    )
    if model.params_b is not None:
        active = f", {model.active_params_b:g} active" if model.active_params_b else ""
        reasons.append(f"{model.params_b:g} billion parameters{active}")
    if context is not None and context < needs.longest:
        cut = f"rows of up to {needs.longest:,} tokens would be cut at {context:,}"
        against.append(cut)
    elif context is not None:
        reasons.append(f"the longest row, {needs.longest:,} tokens, fits in {context:,}")
    if needs.images and not model.vision:
        against.append("it reads no images, which the rows hold")
    if needs.method not in host.methods:
        against.append(f"{profile.title} tunes it by {', '.join(host.methods) or 'no method'}")
    if _ended(host, today) or host.tunable != "yes":
        against.append(f"{profile.title} does not tune it today")
    elif host.shutdown is not None:
        reasons.append(f"{profile.title} shuts it down after {host.shutdown}")
    reasons.append(f"licence {model.licence}" if model.licence else "its licence is not in the catalog")
    return Suited(
        model=model.name,
        params_b=model.params_b,
        active_params_b=model.active_params_b,
        context=context,
        licence=model.licence,
        vision=model.vision,
        reasoning=model.reasoning,
        reasons=tuple(reasons),
        against=tuple(against),
    )


def told(needs: Needs) -> str:
    """`1,000 rows, the longest of 812 tokens, with tools`."""
    extra = [word for word, there in (("tools", needs.tools), ("images", needs.images)) if there]
    with_ = f", with {' and '.join(extra)}" if extra else ""
    return f"{count(needs.rows, 'row')}, the longest of {needs.longest:,} tokens{with_}"
