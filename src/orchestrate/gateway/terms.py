"""The gateway's settings: how clients' model names map to base models, and where tuned models are served."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrate.errors import ConfigError
from orchestrate.http.web import LOOPBACK
from orchestrate.settings import Secret
from orchestrate.types import GatewayKey

DEFAULT = "default"
"""The entry for all names that are not in the map."""
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")


class DeployLimits(BaseModel):
    """Permission to deploy the tuned models of a model name on demand, within limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_hours: Decimal = Field(gt=0)
    """Hours after which each deployment is taken down."""
    max_cost_usd: Decimal = Field(gt=0)
    """Limit, in US dollars, on the total cost of all deployments of this name."""
    max_usd_per_hour: Decimal | None = Field(default=None, gt=0)
    """Maximum total price of all replicas, in US dollars per hour. More expensive models are not deployed."""
    keys: tuple[str, ...] = ()
    """Names of the keys whose requests may deploy. Empty means all keys."""
    options: dict[str, Any] = {}
    """The backend's own options, such as `{idle_minutes: 30}`. They are the same as for `deploy --set`."""


class MappedModel(BaseModel):
    """The target of a client's model name: a base model or a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str = ""
    """The backend that trains the model."""
    model: str = ""
    """The base model, by any name that `orchestrate models search` finds."""
    run: str | None = None
    """A run with a tuned model, instead of `backend` and `model`. Clients can query the model and continue
    its training."""
    alias: str | tuple[str, ...] = ()
    """Other names for the same model."""
    on: Literal["host", "here"] = "host"
    """Where to serve models tuned from this name: on their host, or on the gateway's machine, which downloads
    the model and its base."""
    deploy: DeployLimits | None = None
    """Limits for automatic deployments. Without limits, requests never deploy a model."""
    base_learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate that corresponds to a `learning_rate_multiplier` of 1. Default: the backend's default."""
    settings: dict[str, Any] = {}
    """Additional fields of the spec, such as `{adapter: qlora}`."""

    @model_validator(mode="after")
    def _names_one(self) -> MappedModel:
        if self.run is None and not (self.backend and self.model):
            raise ValueError("set either `run`, or both `backend` and `model`")
        if self.run is not None and (self.backend or self.model or self.settings or self.base_learning_rate):
            raise ValueError(
                "`run` cannot be combined with `backend`, `model`, `settings` or `base_learning_rate`"
            )
        if self.deploy is not None and self.on == "here":
            raise ValueError(
                "`deploy` only applies to models served by their host: remove either `on` or `deploy`"
            )
        return self


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")

    organization: str = Field(default="orchestrate", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Organization in the names of tuned models (`ft:MODEL:ORGANIZATION:SUFFIX:ID`)."""
    files: str | None = None
    """The folder of uploaded files. Default: `gateway/` in the home folder."""
    webhook_url: str | None = None
    """URL of a webhook to call when a job ends."""
    models: dict[str, MappedModel] = {}
    """One table for each model name that clients request. `default` is for all other names."""


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """The gateway's settings. Create them with `read`."""

    host: str = LOOPBACK
    port: int = 8000
    names: tuple[str, ...] = ()
    """Additional host names that the gateway accepts."""
    behind_proxy: bool = False
    """True if a reverse proxy terminates TLS. Other machines may then connect to the gateway."""
    certificate: tuple[Path, Path] | None = None
    """PEM files of a certificate and its private key. If set, the gateway uses TLS."""
    organization: str = "orchestrate"
    models: Mapping[str, MappedModel] = field(default_factory=dict[str, MappedModel])
    files: Path
    """The folder of uploaded files, shared by all workers on a store."""
    webhook_url: str | None = None
    webhook_secret: Secret | None = None
    threads: int = 4
    """Number of jobs to submit concurrently."""
    most_requests: int = 512
    """Maximum number of requests in progress, including waiting ones. Further requests get status 429."""
    grace_s: float = 10.0


def read(values: Mapping[str, Any], home: Path, where: str, **more: Any) -> GatewaySettings:
    """Read the `gateway` table of an `orchestrate.toml`. Raises `ConfigError` if a setting is invalid."""
    try:
        table = _Table.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("gateway", *first["loc"]))
        raise ConfigError(f"{where}: {place}: {first['msg']}") from error
    if DEFAULT in table.models and table.models[DEFAULT].run is not None:
        raise ConfigError(
            f"{where}: gateway.models.{DEFAULT}: an entry that sets `run` needs a name other than {DEFAULT}"
        )
    files = Path(table.files).expanduser() if table.files else home / "gateway"
    return GatewaySettings(
        organization=table.organization,
        models=_with_aliases(table.models, where),
        files=files,
        webhook_url=table.webhook_url,
        **more,
    )


def _with_aliases(models: Mapping[str, MappedModel], where: str) -> dict[str, MappedModel]:
    """Return the entries by name and alias. Raises `ConfigError` for a name with two meanings."""
    found = dict(models)
    for name, target in models.items():
        for alias in (target.alias,) if isinstance(target.alias, str) else target.alias:
            if alias in found:
                raise ConfigError(
                    f"{where}: gateway.models.{name}: {alias!r} is already the name of another entry"
                )
            found[alias] = target
    return found


def target_of(asked: str, models: Mapping[str, MappedModel], key: GatewayKey) -> MappedModel | None:
    """Return the model to train for a requested name, or `None` if the name is not mapped. Searches in this
    order:

    1. The key's own names, for the name with or without its date
    2. The configuration, for the name with or without its date
    3. The key's default
    4. The configuration's default

    If the configuration makes the name private, the model is private even if the key maps the name
    elsewhere."""
    own = {name: parse_target(value) for name, value in key.map.items()}
    models = {name: target for name, target in models.items() if target.run is None}
    of_key, of_all = _named(asked, own), _named(asked, models)
    found = of_key or of_all or own.get(DEFAULT) or models.get(DEFAULT)
    general = of_all or models.get(DEFAULT)
    if found is None or general is None or not general.settings.get("private"):
        return found
    return found.model_copy(update={"settings": {**found.settings, "private": True}})


def answers_here(asked: str, base: str, backend: str, models: Mapping[str, MappedModel]) -> bool:
    """Return whether the configuration says to serve a tuned model on this machine."""
    found = of_tuned(asked, base, backend, models)
    return found is not None and found[1].on == "here"


def of_tuned(
    asked: str, base: str, backend: str, models: Mapping[str, MappedModel]
) -> tuple[str, MappedModel] | None:
    """Return the configuration entry for a tuned model, as `(name, entry)`. Looks up the name that the client
    requested (`asked`), then the model's `base`, then the default. Returns `None` if no entry applies."""
    found = models.get(asked) or _named(base, models) or models.get(DEFAULT)
    if found is None or (found.run is None and found.backend != backend):
        return None
    return next(name for name, target in models.items() if target is found), found  # aliases come later


def _named(asked: str, known: Mapping[str, MappedModel]) -> MappedModel | None:
    for name in (asked, _DATE.sub("", asked)):
        if name in known:
            return known[name]
    return next((target for name, target in known.items() if _DATE.sub("", name) == asked), None)


def parse_target(given: str) -> MappedModel:
    """Parse `backend:model`. Raises `ConfigError` if the text is not in this form."""
    backend, colon, model = given.partition(":")
    if not colon or not backend or not model:
        raise ConfigError(
            f"{given!r} must have the form BACKEND:MODEL", fix="list them with: orchestrate models search"
        )
    return MappedModel(backend=backend, model=model)


def names(models: Mapping[str, MappedModel], key: GatewayKey) -> list[str]:
    """List all model names that a client may use in job requests."""
    every = dict.fromkeys([*key.map, *(name for name, target in models.items() if target.run is None)])
    return [name for name in every if name != DEFAULT and (not key.models or name in key.models)]


def table(values: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", values) if isinstance(values, dict) else {}
