"""The catalog's records, read once from `models.yaml`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import msgspec

from orchestrate import description
from orchestrate.bundled import bundled
from orchestrate.description import Described
from orchestrate.errors import UsageError
from orchestrate.profile import this_machine
from orchestrate.types import Record, decoding

WARN_DAYS = 90
"""Number of days before a model's shutdown when warnings begin."""

_DISK_METHODS = ("sft", "dpo")
_DISK_ADAPTERS = ("lora", "qlora", "full")


class HostModel(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A base model as one backend offers it: its id on the backend, training methods, limits and dates."""

    id: str
    tunable: Literal["yes", "unconfirmed", "no"] = "yes"
    methods: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    context: tuple[int, int] | None = None
    """Maximum tokens in a training row, as a pair (SFT, DPO). `None` if the host does not publish a limit."""
    max_rank: int | None = None
    no_new_jobs_after: date | None = None
    """First day on which the host no longer accepts new jobs for this model."""
    shutdown: date | None = None
    """Last day of service. Afterwards, the base model and all models tuned from it are unavailable."""
    successor: str | None = None
    """Replacement that the host recommends, if it has announced a shutdown."""
    successor_note: str | None = None
    """Note on the replacement's price."""
    deployable: Literal["yes", "no"] = "yes"
    """`yes` if the host can serve models tuned from this base model. `no` if tuned models can only be
    downloaded."""
    deploy_note: str | None = None
    """Source for `deployable`."""
    note: str | None = None
    sources: tuple[str, ...] = ()


class Model(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A base model under its canonical name."""

    name: str
    title: str | None = None
    hub: str | None = None
    """Repository id on the Hugging Face Hub. Backends that load the weights themselves load them from
    there."""
    folder: str | None = None
    """Folder below `orchestrate/bundled`, for a bundled model."""
    params_b: float | None = None
    """Billions of parameters. `None` if the number is not published."""
    active_params_b: float | None = None
    """Billions of parameters used per token, for a mixture of experts."""
    context: int | None = None
    reasoning: bool = False
    vision: bool = False
    aliases: tuple[str, ...] = ()
    tokenizer: str | None = None
    """Name of the tokenizer or its family, such as o200k, qwen3.5 or llama-3. Defined in
    `orchestrate.data.tokens.counters`."""
    license: str | None = None
    """The license's name on the Hub. `None` if the license is unknown or the weights are not available."""
    template: str | None = None
    """Name of the matching LLaMA-Factory chat template. `None` if unknown."""
    precision: Literal["bf16", "fp8", "mxfp4"] = "bf16"
    """Precision of the published weights."""
    note: str | None = None
    sources: tuple[str, ...] = ()
    """Sources for facts about the model that do not depend on a host."""
    alternatives: tuple[str, ...] = ()
    """Open models to migrate to when this one is shut down, most similar first."""
    hosts: dict[str, HostModel] = msgspec.field(default_factory=dict[str, HostModel])

    @property
    def ids(self) -> dict[str, str]:
        """The model's id on each backend. For the local backend, the id is the Hub id or the bundled
        folder."""
        ids = {name: host.id for name, host in self.hosts.items()}
        if local := self.local_id:
            ids[this_machine().kind] = local
        return ids

    @property
    def local_id(self) -> str | None:
        if self.folder is not None:
            return str(bundled(self.folder))
        return self.hub

    def on(self, provider: str) -> HostModel | None:
        """Return the model's entry for one backend, or `None` if the backend does not offer the model.
        Backends that load weights themselves (local, Ray ...) support any open model."""
        if provider in self.hosts:
            return self.hosts[provider]
        catalog = _catalog()
        if (found := catalog.described.get(provider, {}).get(self.name)) is not None:
            return found
        if provider in catalog.host_names or self.local_id is None:
            return None
        return HostModel(id=self.local_id, methods=_DISK_METHODS, adapters=_DISK_ADAPTERS)

    def methods(self, provider: str) -> tuple[str, ...]:
        host = self.on(provider)
        return host.methods if host else ()

    @property
    def open(self) -> bool:
        """True if the weights are available."""
        return self.local_id is not None


class _Catalog(msgspec.Struct, frozen=True):
    models: tuple[Model, ...]
    sources: dict[str, str]
    by_name: dict[str, Model]
    host_names: frozenset[str]
    described: dict[str, dict[str, HostModel]]
    """Models of hosts that are defined in YAML files, as `{host: {model name: entry}}`."""
    comparison: str
    starters: tuple[str, ...]


def _catalog() -> _Catalog:
    return _read(description.entries())


@cache
def _read(entries: tuple[description.Entry, ...]) -> _Catalog:
    """Read the catalog. `entries` are the hosts that list their models in files of their own."""
    import yaml

    described = description.readable(entries)

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = files("orchestrate.catalog").joinpath("models.yaml").read_text(encoding="utf-8")
    raw: dict[str, Any] = yaml.load(text, Loader=loader)  # noqa: S506  a safe loader, the C one where built
    defaults: dict[str, dict[str, Any]] = raw["host_defaults"]
    sources: dict[str, str] = raw["sources"]
    for entry in raw["models"]:
        hosts: dict[str, dict[str, Any]] = entry.get("hosts", {})
        entry["hosts"] = {name: _host(defaults[name], host, sources) for name, host in hosts.items()}
        entry["sources"] = [sources[key] for key in entry.get("sources", ())]
    models = decoding.convert(raw["models"], tuple[Model, ...])
    return _Catalog(
        models=models,
        sources=sources,
        by_name=_index(models),
        host_names=frozenset([*defaults, *(kind for kind, host in described.items() if not host.hub)]),
        described={
            kind: {name: _described_host(host, model) for name, model in host.models.items()}
            for kind, host in described.items()
        },
        comparison=raw["comparison"],
        starters=tuple(raw["starters"]),
    )


def _host(defaults: dict[str, Any], host: dict[str, Any], sources: dict[str, str]) -> dict[str, Any]:
    merged = {**defaults, **host}
    for name in ("tunable", "deployable"):
        if isinstance(merged.get(name), bool):  # YAML reads yes and no as booleans
            merged[name] = "yes" if merged[name] else "no"
    merged["sources"] = [sources[key] for key in merged["sources"]]
    return merged


def _described_host(host: Described, model: description.OfferedModel) -> HostModel:
    given = {name: value for name, value in msgspec.structs.asdict(model).items() if value not in (None, ())}
    own: dict[str, Any] = {"methods": tuple(host.methods), "adapters": tuple(host.adapters) or ("lora",)}
    sources = tuple(host.sources.get(key, key) for key in model.sources)
    fields: dict[str, Any] = {**own, **given, "sources": sources}
    return HostModel(**fields)


def _index(models: Iterable[Model]) -> dict[str, Model]:
    found: dict[str, Model] = {}
    for model in models:
        keys = [model.name, *model.aliases, *(host.id for host in model.hosts.values())]
        for key in [*keys, *([model.hub] if model.hub else [])]:
            other = found.setdefault(key.lower(), model)
            if other is not model:
                raise ValueError(f"models.yaml: {key!r} names both {other.name} and {model.name}")
    for model in found.copy().values():
        if model.hub:  # people leave the organisation out: llama-3.3-70b-instruct
            found.setdefault(model.hub.rpartition("/")[2].lower(), model)
    return found


def all_models() -> tuple[Model, ...]:
    return _catalog().models


def lookup(name: str) -> Model | None:
    """Look up a model as `find` does, but return `None` for a name that is not in the catalog."""
    return _catalog().by_name.get(name.strip().lower())


def find(name: str) -> Model:
    """Find a model by canonical name, alias, Hub id or host id, ignoring case. Raises `UsageError` with
    suggestions."""
    if model := lookup(name):
        return model
    names = like(name)
    hint = f"; did you mean {' or '.join(names)}?" if names else ""
    raise UsageError(f"unknown model {name!r}{hint}", fix="list them with: orchestrate models")


def like(name: str, *, least: float = 0.5, provider: str | None = None) -> list[str]:
    """Suggest up to three model names for a misspelled one. `provider` limits the suggestions to models that
    the backend offers. `least` is the minimum similarity, 0 to 1."""
    by_name = _catalog().by_name
    offered = [key for key, model in by_name.items() if provider is None or model.on(provider) is not None]
    close = difflib.get_close_matches(name.lower(), offered, n=8, cutoff=least)
    return list(dict.fromkeys(by_name[key].name for key in close))[:3]


def search(query: str = "", provider: str | None = None) -> list[Model]:
    """Return the models whose names contain every word of `query`, in catalog order. `provider` limits the
    result to models that the backend offers. The words `vision` and `images` match models that accept
    images."""
    words = query.lower().split()
    return [
        model
        for model in all_models()
        if (provider is None or model.on(provider) is not None)
        and all(word in _haystack(model) for word in words)
    ]


def _haystack(model: Model) -> str:
    takes = ["vision images"] if model.vision else []
    return " ".join([model.name, model.title or "", *model.aliases, *model.ids.values(), *takes]).lower()


def alternatives(model: Model, provider: str | None = None) -> list[Model]:
    """List open models that can replace `model`, most similar first. `provider` limits the list to models
    that the backend can tune."""
    found = [find(name) for name in model.alternatives]
    return [other for other in found if provider is None or _tunable(other.on(provider))]


def _tunable(host: HostModel | None) -> bool:
    return host is not None and host.tunable == "yes"


def shutdown_warning(model: Model, provider: str, today: date) -> str | None:
    """Return a warning if the backend has shut down the model, or will do so within 90 days. Otherwise
    returns `None`."""
    host = model.on(provider)
    if host is None or host.shutdown is None:
        return None
    left = (host.shutdown - today).days
    if left > WARN_DAYS:
        return None
    if left < 0:
        text = f"{model.name} and all models tuned from it were shut down on {provider} on {host.shutdown}"
    else:
        text = (
            f"{provider} shuts down {model.name} and all models tuned from it on {host.shutdown} "
            f"({left} days from now)"
        )
    if others := alternatives(model):
        places = trained_on(others[0], host.methods)
        text += f"; nearest open model: {others[0].name} ({', '.join([*places, this_machine().kind])})"
    return text


def trained_on(model: Model, methods: Sequence[str]) -> list[str]:
    """List the hosts that can tune the model with at least one of the methods. Omits the local backend, which
    supports all methods."""
    hosts = model.hosts.items()
    return [name for name, host in hosts if _tunable(host) and not set(methods).isdisjoint(host.methods)]


def ended_method(provider: str, method: str, today: date) -> str | None:
    """Return a message saying that the host has shut down its last model for this method. Returns `None` if
    the host still has a model for it, or if the catalog never listed one."""
    hosts = ((model, model.hosts.get(provider)) for model in all_models())
    offered = [(model, host) for model, host in hosts if host and method in host.methods]
    open_now = (host for _, host in offered if host.tunable != "no")
    if not offered or any(host.shutdown is None or host.shutdown >= today for host in open_now):
        return None
    model, last = max(offered, key=lambda pair: pair[1].shutdown or date.min)
    return f"its last model for this method, {model.name}, was shut down on {last.shutdown}"


def starters() -> tuple[Model, ...]:
    """Return the models to propose for a new spec, best first."""
    return tuple(map(find, _catalog().starters))


def comparison() -> Model:
    """Return the model that cost comparisons use by default: the cost of tuning is compared with the cost of
    prompting this model."""
    return find(_catalog().comparison)


def closest_closed(model: Model, provider: str) -> Model | None:
    """Return the host's tunable closed model that is most similar to the open model `model`: the one whose
    list of alternatives, most similar first, contains `model` at the earliest position. Returns `None` if no
    list contains it."""
    closed = [
        (other.alternatives.index(model.name), other)
        for other in all_models()
        if not other.open and model.name in other.alternatives and _tunable(other.on(provider))
    ]
    return min(closed, key=lambda pair: pair[0])[1] if closed else None


def known_hosts() -> frozenset[str]:
    """Return the backends whose models the catalog lists. All others load weights from the Hub or from
    disk."""
    return _catalog().host_names


class License(Record, frozen=True, kw_only=True):
    """A short summary of a license, shown before the user accepts it. Only the license itself is binding."""

    id: str
    """The license's name on the Hub."""
    title: str
    url: str | None = None
    asks: tuple[str, ...] = ()
    """Conditions that the user must accept. Empty if there are none."""
    notice: str | None = None
    """Text that must be included with the weights."""
    name_begins: str | None = None


@cache
def _known() -> dict[str, dict[str, Any]]:
    import yaml

    text = files("orchestrate.catalog").joinpath("licenses.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def license(id: str) -> License:
    """Return a license by its name on the Hub. For an unlisted license, `asks` is empty."""
    entry = dict(_known().get(id.lower(), {"title": id}))
    if entry.pop("unread", False):
        entry["asks"] = ["the license has not been reviewed for this catalog. Read it before you continue"]
    return decoding.convert({"id": id, **entry}, License)


def license_of(model: str) -> License | None:
    """Return the license of a base model, given by any of its names. Returns `None` if the license is
    unknown."""
    found = lookup(model)
    return license(found.license) if found is not None and found.license is not None else None
