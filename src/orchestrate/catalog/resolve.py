"""Resolve the model name in a spec to the id that a backend expects."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from orchestrate.catalog.models import (
    HostModel,
    Model,
    all_models,
    alternatives,
    find,
    known_hosts,
    lookup,
    shutdown_warning,
)
from orchestrate.core import days
from orchestrate.errors import SpecError, UsageError
from orchestrate.profile import HUB_ID, Profile, profile
from orchestrate.types import Record

_COMPARED = ("tunable", "context", "max_rank", "shutdown")


class CatalogChange(Record, frozen=True, kw_only=True):
    provider: str
    model: str
    """Id of the model on the host."""
    field: str
    """Name of the field that differs. `model` if the model is missing from the host or from the catalog."""
    ours: str | None = None
    theirs: str | None = None


def differences(provider: str, seen: Iterable[HostModel]) -> list[CatalogChange]:
    """Compare a host's models with the catalog: new models, missing models and changed limits. A field that
    the host does not report (`None`) is not a difference."""
    theirs = {host.id: host for host in seen}
    ours = {m.hosts[provider].id: m.hosts[provider] for m in all_models() if provider in m.hosts}
    found: list[CatalogChange] = []
    for id, host in theirs.items():
        if id not in ours:
            if host.tunable == "yes":
                found.append(CatalogChange(provider=provider, model=id, field="model", theirs="tunable"))
            continue
        for field in _COMPARED:
            known, said = getattr(ours[id], field), getattr(host, field)
            if said is not None and said != "unconfirmed" and said != known:
                found.append(
                    CatalogChange(
                        provider=provider, model=id, field=field, ours=_text(known), theirs=_text(said)
                    )
                )
    for id, host in ours.items():
        if id not in theirs and host.tunable == "yes":
            found.append(CatalogChange(provider=provider, model=id, field="model", ours="tunable"))
    return found


def _text(value: object) -> str | None:
    if value is None:
        return None
    return "/".join(str(part) for part in value) if isinstance(value, tuple) else str(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # a pair of ints


_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)B(?![a-z])", re.IGNORECASE)


class ModelOnHost(Record, frozen=True, kw_only=True):
    """A model, with the id that one backend uses for it in requests."""

    provider: str
    id: str
    model: Model | None = None
    """Entry in the catalog. `None` for an id or folder that is not in the catalog."""
    host: HostModel | None = None
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The canonical name, or the backend's id if the model is not in the catalog."""
        return self.model.name if self.model else self.id

    @property
    def params_b(self) -> float | None:
        """Billions of parameters, from the catalog or from the name (`...-7B-...`). `None` if neither
        contains it."""
        if self.model is not None:
            return self.model.params_b
        found = _SIZE.search(
            self.id.rsplit("/", 1)[-1].replace("p", ".") if "accounts/" in self.id else self.id
        )
        return float(found.group(1)) if found else None

    @property
    def tokenizer(self) -> str | None:
        """The tokenizer's name in the catalog, as defined in `data.tokens.counters`."""
        return self.model.tokenizer if self.model else None

    @property
    def hub(self) -> str | None:
        """The model's id on the Hub, if it has one."""
        if self.model is not None:
            return self.model.hub
        return self.id if HUB_ID.match(self.id) and not _is_folder(self.id) else None

    @property
    def folder(self) -> Path | None:
        """The folder of the weights, for a model on this machine."""
        folder = Path(self.id).expanduser()
        return folder if folder.is_dir() else None

    def context(self, method: str = "sft") -> int | None:
        """Return the maximum number of tokens in a training row on this backend, or `None` if it is
        unknown."""
        if self.host is not None and self.host.context is not None:
            return self.host.context[1 if method == "dpo" else 0]
        return self.model.context if self.model else None


def usual_length(name: str, backend: Profile | str, method: str) -> int | None:
    """Return the model's own maximum row length on a backend, which hosts may report for a job that sets
    none. Returns `None` if it is unknown."""
    try:
        return resolve(name, backend).context(method)
    except SpecError:
        return None


def resolve(name: str, backend: Profile | str, today: date | None = None) -> ModelOnHost:
    """Resolve `name` to a model on a backend. `backend` is a profile or the backend's name. Shutdown warnings
    are based on `today` (default: the local date).

    Raises `SpecError` if the backend does not offer the model, or if the name is not in the catalog and does
    not look like an id of that backend."""
    known = backend if isinstance(backend, Profile) else profile(backend)
    provider = known.models_of or known.kind
    base = known.tuned_base(name) if known.tuned_base else None
    model = lookup(base or name)
    if model is None:
        return _raw(name, known)
    host = model.on(provider)
    if host is None:
        raise _not_offered(model, name, provider)
    warnings = [shutdown_warning(model, provider, today or days.today())]
    if host.tunable == "unconfirmed":
        warnings.append(
            f"{provider} may not support fine-tuning {model.name}: "
            f"{host.note or 'the host lists the model only for inference'}"
        )
    if host.deployable == "no":
        warnings.append(
            f"{provider} fine-tunes {model.name} but does not serve tuned models. You can only download "
            f"them ({host.deploy_note})"
        )
    return ModelOnHost(
        provider=provider,
        id=name if base else host.id,
        model=model,
        host=host,
        warnings=tuple(w for w in warnings if w),
    )


def _raw(name: str, known: Profile) -> ModelOnHost:
    provider = known.models_of or known.kind
    if provider not in known_hosts():
        if _is_folder(name):
            return ModelOnHost(provider=provider, id=name)
        if HUB_ID.match(name):
            return ModelOnHost(
                provider=provider,
                id=name,
                warnings=(f"{name} is not in the catalog, so it is treated as a Hugging Face Hub id",),
            )
    if _is_path(name) or (known.ids is not None and not known.ids.match(name)):
        raise _unknown(name)
    return ModelOnHost(
        provider=provider,
        id=name,
        warnings=(
            f"{name} is not in the catalog. Its name is sent to {provider} unchanged, and its limits are "
            "unknown",
        ),
    )


def _unknown(name: str) -> SpecError:
    try:
        find(name)
    except UsageError as error:
        return SpecError(error.message, fix=error.fix)
    raise AssertionError(f"{name} is in the catalog")


def _is_folder(name: str) -> bool:
    return _is_path(name) or os.path.isdir(name)  # noqa: PTH112  a name may be too long for a path


def _is_path(name: str) -> bool:
    """Return whether the name is the path of a model folder or GGUF file."""
    return name.startswith(("/", "./", "../", "~", ".\\")) or name.endswith(".gguf")


def _not_offered(model: Model, name: str, provider: str) -> SpecError:
    near = [m.name for m in alternatives(model, provider)]
    there = (
        f"Most similar models that it can fine-tune: {', '.join(near)}"
        if near
        else f"It fine-tunes: {_offers(provider)}"
    )
    return SpecError(
        f"{provider} cannot fine-tune {model.name}. {there}",
        fix=f"list its models with: orchestrate models --provider {provider}. To name one model per "
        f"backend, write  model: {{{provider}: ..., default: {name}}}",
    )


def _offers(provider: str) -> str:
    here = [m.name for m in all_models() if (host := m.on(provider)) is not None and host.tunable == "yes"]
    return ", ".join(here[:6]) + (f" and {len(here) - 6} more" if len(here) > 6 else "")
