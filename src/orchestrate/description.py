"""The YAML description of a host that implements OpenAI's fine-tuning API.

`profiles/template.yaml` explains each field. A description is pure data: nothing in it is executed. Errors
name the file and the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Any

import msgspec

from orchestrate.errors import ConfigError
from orchestrate.profile import Readable, described
from orchestrate.types import decoding


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table in the description file. Unknown fields are errors."""


class SettingRule(Table, frozen=True, kw_only=True):
    """Rule for translating one setting of a spec for the host. Exactly one of `field`, `always` and `refused`
    must be set."""

    field: str | None = None
    """Field of the create request, as a dotted name. `{method}` is replaced by the host's name for the
    method."""
    default: Any = None
    """The value that the host uses if the request omits the field, in the spec's notation."""
    least: Decimal | None = None
    most: Decimal | None = None
    one_of: tuple[Any, ...] = ()
    words: dict[str, Any] = {}
    """Values to send to the host, as `{spec value as text: value to send}`."""
    inexact: tuple[str, ...] = ()
    """Keys of `words` without an exact equivalent at the host. The value that is sent instead has a slightly
    different meaning."""
    always: Any = msgspec.UNSET
    """The only spec value that the host supports, for a setting that its API has no field for. `null` means
    that no spec value matches the host's fixed behavior."""
    refused: str | None = None
    """Why the host does not support the setting."""
    rule: str | None = None
    """A note that the plan shows."""
    methods: tuple[str, ...] = ()
    """Methods that the rule applies to. Empty means all."""

    def __post_init__(self) -> None:
        given = (self.field is not None) + (self.always is not msgspec.UNSET) + (self.refused is not None)
        if given != 1:
            raise ValueError("a setting must have exactly one of `field`, `always` and `refused`")
        if self.always is not msgspec.UNSET and self.rule is None:
            raise ValueError("`always` needs a `rule`, the text that the plan shows")


class RowRules(Table, frozen=True, kw_only=True):
    """The host's rules for rows of training files."""

    kinds: tuple[str, ...] = ("chat",)
    least: int = 1
    most: int | None = None
    most_bytes: int | None = None
    most_tokens: int | None = None
    refuses: tuple[str, ...] = ()
    """Traits of rows that the host rejects. `orchestrate.providers.compatible.TRAITS` lists all names."""
    developer: str = "developer"
    names: bool = True


class FileStates(Table, frozen=True, kw_only=True):
    ready: tuple[str, ...] = ("processed",)
    refused: tuple[str, ...] = ("error", "deleted")
    waiting: tuple[str, ...] = ("uploaded",)
    """Statuses of a file that is not ready yet. Unknown statuses also count as waiting."""
    whole_bytes: int | None = None
    """Maximum size of a file that is uploaded in one request. Larger files are uploaded in parts. `None`
    means OpenAI's limit."""


class Suffix(Table, frozen=True, kw_only=True):
    most: int = 64


class OfferedModel(Table, frozen=True, kw_only=True):
    """A base model that the host offers. The key in `models` is its catalog name."""

    id: str
    methods: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    context: tuple[int, int] | None = None
    max_rank: int | None = None
    no_new_jobs_after: date | None = None
    shutdown: date | None = None
    note: str | None = None
    sources: tuple[str, ...] = ()


class ClosingDates(Table, frozen=True, kw_only=True):
    no_new_jobs_after: date | None = None
    source: str = ""
    gates: tuple[tuple[date, str], ...] = ()


class HostRequest(Table, frozen=True, kw_only=True):
    method: str
    path: str
    body: dict[str, Any] | None = None
    query: dict[str, str] = {}


class DeploymentListing(Table, frozen=True, kw_only=True):
    """The API call that lists deployments, and the location of each field in its response."""

    path: str
    query: dict[str, str] = {}
    entries: str
    name: str
    model: str
    state: str
    created: str | None = None
    tier: str | None = None
    job: str | None = None
    """Response field that contains the job's id, which ends at the first colon, if any. If `None`, the id is
    taken from the deployment's name."""


class AdapterUpload(Table, frozen=True, kw_only=True):
    """The API call that uploads an adapter trained elsewhere, as a ZIP archive of the adapter's two PEFT
    files. The `make` call then creates a deployment from the uploaded file."""

    path: str
    """The path below the root of the deployments API."""
    field: str = "file"
    """The name of the form field for the file."""
    id: str = "id"
    """The response field that contains the file's id."""
    body: dict[str, Any]
    """Request body of the `make` call for deploying an uploaded adapter. It may contain `{file}` in addition
    to the other placeholders."""
    max_rank: int | None = None


class DeploymentDescription(Table, frozen=True, kw_only=True):
    """API calls that deploy a tuned model, for hosts that don't serve it automatically. Paths and bodies may
    contain `{name}`, `{model}`, `{base}`, `{job}`, `{checkpoint}`, `{tier}`, `{capacity}` and the host's own
    options."""

    url: str | None = None
    """URL of the deployments API. If `None`, it is derived from the base URL and `root`."""
    root: str = ""
    """Path that replaces the base URL's path."""
    login: str = ""
    """Instructions for getting this API's key, if it differs from the training key. The key is read from the
    variable NAME_MANAGEMENT_TOKEN."""
    options: dict[str, str] = {}
    """Required keys of `[hosts.NAME.options]`, as `{key: meaning}`."""
    tiers: tuple[str, ...] = ()
    """Allowed values of `deploy --set tier=...`, the default first. Each has its own `hosting` rate."""
    name_pattern: str = "orc-{job}"
    make: HostRequest
    list: DeploymentListing
    remove: HostRequest
    bills: dict[str, bool | None] = {}
    """Whether a deployment is billed hourly in each state, as `{state: true or false}`. `null` means
    unknown."""
    up: tuple[str, ...] = ()
    """The states in which the deployment serves requests."""
    tuned: str = ""
    """Text that appears in the names of tuned models but not in the names of base models."""
    answers_as: str = "name"
    """The listing field that contains the model name to use in requests: `name` or `model`."""
    adapters: AdapterUpload | None = None
    """Call that uploads an adapter. `None` means that the host only serves models that it trained."""
    note: str = ""
    source: str


class Described(Table, frozen=True, kw_only=True):
    """The contents of a description file."""

    title: str
    sources: dict[str, str]
    inferred: dict[str, str] = {}
    """Fields whose values aren't documented on the host's own pages, as `{field: source of the value}`."""
    url: str | None = None
    address: str = ""
    """Pattern of the base URL, if each customer has a separate one."""
    paths: tuple[str, ...] = ("/v1",)
    """Allowed paths of the base URL. The sandbox serves all of them."""
    key_header: str | None = None
    account: str = "key"
    """Identifier of the account that owns a job: the key's fingerprint (`key`) or the base URL
    (`address`)."""
    ref: str = "suffix"
    """Job field that stores Orchestrate's tag, which is used to find the job again: `suffix` or
    `metadata`."""
    suffix: Suffix = Suffix()
    rows: RowRules = RowRules()
    files: FileStates = FileStates()
    statuses: dict[str, str] = {}
    """Additional job statuses of the host, as `{host's status: Orchestrate's status}`."""
    page: int = 100
    features: tuple[str, ...]
    missing: dict[str, str]
    methods: dict[str, str]
    """Maps the spec's methods to the host's names for them."""
    method_type: str | None = None
    """The field that names the method."""
    adapters: dict[str, dict[str, Any]] = {}
    """Maps the spec's adapter fields to fields of the create request. If empty, the host chooses the adapter
    settings."""
    settings: dict[str, SettingRule] = {}
    fields: tuple[str, ...] = ()
    """Additional fields of the create request, for `provider_options`."""
    versions: dict[str, str] = {}
    """API versions that introduced fields of `provider_options`, as `{field or field=value: version}`."""
    wandb_in_request: bool = False
    """True if the W&B key is sent with the request. Otherwise, the key is stored at the host."""
    weights: bool = False
    """True if the host lists the weight files of each checkpoint."""
    tuned_name: str | None = None
    """Regular expression for a tuned model's name. The group `base` matches the base model."""
    default_epochs: int | None = None
    models: dict[str, OfferedModel] = {}
    hub: bool = True
    """True if the host accepts hub ids for models that are not in the catalog."""
    closing: ClosingDates = ClosingDates()
    rates: tuple[dict[str, Any], ...] = ()
    undated: tuple[str, ...] = ()
    """Keys in `sources` whose pages have no date."""
    deployment: DeploymentDescription | None = None
    chat_limit: str = "max_tokens"
    serving_note: str = ""
    cap_gap: str = ""

    def rule(self, name: str, method: str) -> SettingRule | None:
        found = self.settings.get(name)
        return found if found is not None and (not found.methods or method in found.methods) else None

    def field(self, rule: SettingRule, method: str) -> str:
        return (rule.field or "").replace("{method}", self.methods.get(method, method))

    @property
    def known_fields(self) -> Mapping[str, None]:
        """The known fields of the create request."""
        plain = ["model", "training_file", "validation_file", "seed", "suffix", "metadata", *self.fields]
        for method in self.methods:
            plain += [self.field(rule, method) for rule in self.settings.values() if rule.field]
        adapter = [field for fields in self.adapters.values() for field in fields]
        return dict.fromkeys([*plain, *adapter, *([self.method_type] if self.method_type else [])])


@cache
def read(file: Readable, name: str) -> Described:
    """Read a description file. `name` is the file's name in error messages. Raises `ConfigError` if the file
    is invalid."""
    import yaml

    from orchestrate.core.expansion import document

    try:
        values = document(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {name}: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    try:
        return decoding.convert(values, Described)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(
            f"{name}: {error}", fix="for an explanation of each field: orchestrate providers --template"
        ) from error


Entry = tuple[str, tuple[Readable, str]]


def entries() -> tuple[Entry, ...]:
    """List all hosts that have a description file. The result can be used as a cache key."""
    return tuple(described().items())


def readable(entries: Iterable[Entry]) -> dict[str, Described]:
    """Return all valid descriptions, as `{host kind: description}`. Invalid ones are skipped here and
    reported when their hosts are used."""
    found: dict[str, Described] = {}
    for kind, (file, name) in entries:
        with suppress(ConfigError):
            found[kind] = read(file, name)
    return found
