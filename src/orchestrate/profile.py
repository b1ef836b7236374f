"""Backend profiles: address, row formats, models and prices of each backend.

Each backend has one `Profile` in a module with fast imports, because all profiles are loaded with the
settings. Built-in profiles are in `orchestrate.providers.<kind>`. Other packages register profiles by entry
points in the group `orchestrate.providers`. The entry point's name is the backend's kind. A host that
implements OpenAI's fine-tuning API is described by a YAML file, built in or in the user's configuration. The
file's name is the kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orchestrate.errors import SetupError, UsageError
from orchestrate.text import among
from orchestrate.types import JobStatus

if TYPE_CHECKING:
    from orchestrate.costing.size import Bills
    from orchestrate.data.dialects import Dialect
    from orchestrate.data.rows.traits import Picture
    from orchestrate.data.rules import HostRules
    from orchestrate.spec import JobSpec
    from orchestrate.types import Job

GROUP = "orchestrate.providers"
PLACES = "orchestrate.places"
"""The entry point group for packages that add a place for our engine's workers. Each names a `Profile` made
by `away`."""
DESCRIBED = "openai-compatible"
"""The `type` of hosts described by a YAML file."""
OWN_DESCRIPTIONS = "hosts"
"""The folder of the user's own descriptions, next to the key file."""
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
OPTIONS = frozenset({"home", "prices"})
"""Options of every backend: its folder, and the host that sets its prices."""
HOSTED = frozenset({"retry_budget_s"})
"""Options of backends that are queried over the network."""
BY_SDK = HOSTED | {"api_version", "deployment", "headers", "multipart_bytes", "part_bytes"}
"""Options of backends that are queried with OpenAI's SDK."""
RENTED = ("gpu", "spot", "max_hours", "max_usd_per_hour", "silence_minutes", "min_processes")
"""Options of places, and of `provider_options.<place>` besides the engine's own."""
AWAY = frozenset({*RENTED, "depot", "pass_env"})
TUNING_STATUSES: Mapping[str, JobStatus] = {
    "validating_files": JobStatus.VALIDATING,
    "queued": JobStatus.QUEUED,
    "running": JobStatus.RUNNING,
    "succeeded": JobStatus.SUCCEEDED,
    "failed": JobStatus.FAILED,
    "cancelled": JobStatus.CANCELLED,
    # Seen, but not in the SDK: the pause call's words, and Azure's.
    "paused": JobStatus.PAUSED,
    "pausing": JobStatus.RUNNING,
    "created": JobStatus.QUEUED,
    "pending": JobStatus.QUEUED,
    "notRunning": JobStatus.QUEUED,
    "canceled": JobStatus.CANCELLED,
}
"""Statuses of jobs in OpenAI's fine-tuning API."""


class Readable(Protocol):
    """A readable file, from the package or the user."""

    def read_text(self, encoding: str) -> str: ...


@dataclass(frozen=True)
class Delivery:
    """One webhook delivery. `id` is the same if it is sent again. `job_id` is the job that changed, if
    any."""

    id: str
    job_id: str | None


@dataclass(frozen=True)
class Gate:
    """A date from which a host rejects new jobs from some accounts. Only a create request shows which
    ones."""

    since: date
    accounts: str
    """The affected accounts, as in `accounts that never tuned a model`."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The profile of one kind of backend. Configured hosts of this `type` share it under their own names."""

    kind: str
    title: str
    """The display name, such as OpenAI, Together or This machine."""
    provider: str
    """The `Provider` class, as `package.module:Class`. It is imported on first use."""
    rank: int = 100
    """The position in lists. Plug-ins come after the built-in ones."""

    # -- reaching it ---------------------------------------------------------------------------------------
    keyless: bool = False
    place: str = ""
    """The place where our engine runs, as `package.module:Class`, if not on this machine."""
    models_of: str | None = None
    """The backend kind that has the same models, if it has no models of its own."""
    near: bool = False
    """True if it is on this machine, so queries cost nothing and may be frequent."""
    others_speak: bool = False
    """Whether other companies' servers speak its API. A host of this kind under another name then has its own
    models and prices."""
    url: str | None = None
    key_variable: str | None = None
    """Default: the name in capitals with _API_KEY. The URL's variable is always NAME_BASE_URL."""
    account_variable: str | None = None
    organization_variable: str | None = None
    project_variable: str | None = None
    chat_url: str | None = None
    """The URL for chats, if it differs from `url`. A different base URL, such as a sandbox's, replaces
    both."""
    chat_path: str = ""
    """The path of chat completions below the base URL, if it is not the root."""
    chat_limit: str = "max_tokens"
    """The field of chat completions for the maximum number of tokens."""
    origins: frozenset[str] = frozenset()
    """The URLs of the host's owner. A key may be shared among them."""
    webhook_variable: str | None = None
    """The environment variable with the secret that signs the host's webhooks. In the key file, the secret is
    named `KIND-webhook`."""
    delivery: Callable[[str, Mapping[str, str], str], Delivery] | None = None
    """Parses a webhook's body and headers, with the secret. Raises `ValueError` unless the signature is valid
    and recent."""
    management_login: str = ""
    """Instructions for getting the key of its management API, if deployments need a different key than
    training. The key is read from NAME_MANAGEMENT_TOKEN."""
    options: frozenset[str] | None = None
    """The fields that `[hosts.NAME.options]` may have, besides `OPTIONS`. `None` accepts any, even a
    misspelled one."""
    sdk: str | None = None
    """The distribution of its official SDK. The minimum version is in Orchestrate's own requirements."""

    # -- jobs ----------------------------------------------------------------------------------------------
    statuses: Mapping[str, JobStatus] = field(default_factory=dict[str, JobStatus])
    """The host's words for a job's status, see `status`. None where our own engine writes them."""
    sends_wandb_key: bool = True
    """Whether W&B needs a key from this machine, if it is supported. Otherwise the host's account has one."""

    # -- rows ----------------------------------------------------------------------------------------------
    rules: HostRules | None = None
    dialect: Dialect | None = None

    # -- models --------------------------------------------------------------------------------------------
    ids: re.Pattern[str] | None = None
    """A pattern for ids that are not in the catalog. `None` accepts any name."""
    tuned_base: Callable[[str], str | None] | None = None
    """Returns the base model in a tuned model's name, if names contain it."""
    no_new_jobs_after: date | None = None
    """The host accepts no new jobs from anyone from this day on."""
    closing_source: str = ""
    gates: tuple[Gate, ...] = ()
    """Accounts that are rejected before that day, the earliest first."""

    # -- prices --------------------------------------------------------------------------------------------
    bills: Bills | None = None
    """Computes the quote lines of a job billed by tokens. `None`: the backend quotes on its own."""
    picture_tokens: Callable[[str, Picture], tuple[int, int, int] | None] | None = None
    """The minimum, likely and maximum tokens of an image on a model, by the host's id. `None` if no rule is
    published: quotes then exclude images and say so."""
    own_rates: tuple[str, ...] = ()
    """Methods of the rates that a quote needs, if they are its own."""
    dpo_factor: Decimal = Decimal(1)
    """The price of a DPO token as a multiple of an SFT token's, if no DPO price is published."""
    hourly_factor: Callable[[JobSpec], Decimal] = lambda spec: Decimal(1)
    """A factor for the price of a GPU-hour for this spec, such as for a requested region."""
    default_epochs: int | None = None
    """The number of epochs if the spec sets none. `None` if it depends on the rows (see `auto_epochs`)."""
    auto_epochs: Callable[[int], int] = lambda rows: 1
    share_billed: Callable[[int, int], Decimal] | None = None
    """The share of the price that a job pays if it ended early, from its completed and total steps. `None` if
    the host does not publish it."""
    figures_are_estimates: bool = False
    """True if the price that the host reports for a job is never final, even after the job has ended."""
    reports_price: bool = False
    """True if the host reports the price of each billed job. A computed bill is then not final."""
    unbilled_failure: Callable[[Job], bool] = lambda job: False
    """Returns true if the host does not bill a job that failed like this. Other failed jobs count with their
    quote until a bill is known."""
    checkpoints_answer: bool = False
    """True if each checkpoint of a successful run is served under its own name, without a deployment."""
    cap_gap: str = ""
    """Reason that a limit cannot end a running job: the host doesn't report its cost so far. Empty if it
    does."""
    output_terms: str = ""
    """The host's terms on training on its models' answers, with the URL."""
    serving_note: str = ""
    """A note for readers of the cost of a dedicated deployment."""

    def status(self, raw: str | None) -> JobStatus:
        """Translate the host's word for a job's status. An unknown one becomes `UNKNOWN`, and is never
        terminal."""
        return self.statuses.get(raw or "", JobStatus.UNKNOWN)

    def gated(self, today: date) -> str | None:
        """Return which accounts the host rejects today (UTC), if it rejects some but not yet all."""
        shut = [gate for gate in self.gates if gate.since <= today]
        if not shut or self.closed(today):
            return None
        told = " and ".join(f"since {gate.since} for {gate.accounts}" for gate in shut)
        end = (
            f", and will be closed to everyone from {self.no_new_jobs_after} (UTC)"
            if self.no_new_jobs_after
            else ""
        )
        return (
            f"{self.title} has been closed to new jobs {told}{end} ({self.closing_source}). You "
            "only learn whether this affects your account when you submit"
        )

    def closed(self, today: date) -> str | None:
        """Return why the host accepts no new jobs from anyone today, or `None` if it accepts some. Days are
        in UTC, because the host's page names no time zone."""
        if self.no_new_jobs_after is None or today < self.no_new_jobs_after:
            return None
        since = f"{self.no_new_jobs_after} ({self.closing_source})"
        return f"{self.title} has not accepted new fine-tuning jobs since {since}; today is {today} (UTC)"


def file_refused(job: Job) -> bool:
    """Return true if a job failed because the host rejected a file, so nothing was trained. The `param` of
    the job's error then names the file (OpenAI's API reference)."""
    files = ("training_file", "validation_file")
    return not job.trained_tokens and job.error is not None and job.error.param in files


@cache
def built_in_folders() -> tuple[str, ...]:
    """List the folders of the built-in backends, named by kind, without importing them."""
    entries = files(GROUP).iterdir()
    return tuple(sorted(entry.name for entry in entries if entry.joinpath("provider.py").is_file()))


@cache
def built_in() -> Mapping[str, Profile]:
    """Map each built-in kind to its profile, in the order of lists."""
    found: list[Profile] = [import_module(f"{GROUP}.{name}").PROFILE for name in built_in_folders()]
    return {one.kind: one for one in sorted(found, key=lambda one: one.rank)}


@cache
def session_hosts() -> tuple[str, ...]:
    """Name the hosts with training sessions. Their jobs run as recipes over sessions. These hosts can be
    selected by name, but lists of backends don't include them. Imports nothing."""
    entries = [entry for entry in files(GROUP).iterdir() if entry.name not in built_in_folders()]
    return tuple(sorted(entry.name for entry in entries if entry.joinpath("sessions.py").is_file()))


@cache
def _entry_points() -> Any:
    """Read the entry points of all packages, once, because each read opens a file per package."""
    return entry_points()


@cache
def plug_ins() -> Mapping[str, EntryPoint]:
    """Map each kind to the entry point of a package that adds a backend, without importing it."""
    found = _entry_points().select(group=GROUP)
    return {point.name: point for point in sorted(found, key=lambda point: point.name)}


@cache
def place_plug_ins() -> Mapping[str, EntryPoint]:
    """Map each kind to the entry point of a package that adds a place, without importing it."""
    return {point.name: point for point in sorted(_entry_points().select(group=PLACES))}


@cache
def places() -> Mapping[str, str | EntryPoint]:
    """Map each kind of remote place to its module or entry point, without importing it."""
    entries = files(PLACES).joinpath("kinds").iterdir()
    modules = sorted(e.name.removesuffix(".py") for e in entries if e.name.endswith(".py"))
    ours = {name.replace("_", "-"): f"{PLACES}.kinds.{name}" for name in modules if not name.startswith("_")}
    return {**place_plug_ins(), **ours}


def away(
    kind: str,
    title: str,
    place: str,
    options: Iterable[str] | None = None,
    *,
    url: str | None = None,
    key_variable: str | None = None,
) -> Profile:
    """Build the profile of a remote place where our engine's workers run: rows, models and settings are those
    of this machine. `options` are its own options in addition to `AWAY`. `None` accepts any. With a
    `key_variable`, the place has a key, as hosts do. The key is sent to `url` or to the configured address,
    and the place's class also gets the `HostConfig`."""
    return replace(
        this_machine(),
        kind=kind,
        title=title,
        provider=f"{GROUP}.{this_machine().kind}.placed:{kind}",
        rank=100,
        near=False,
        place=place,
        keyless=key_variable is None,
        url=url,
        key_variable=key_variable,
        options=None if options is None else AWAY.union(options),
        models_of=this_machine().kind,
    )


@cache
def _placed(kind: str) -> Profile:
    point = places()[kind]
    if isinstance(point, str):
        return import_module(point).PROFILE
    try:
        found = point.load()
    except Exception as error:
        raise not_loaded(kind, error) from error
    if not isinstance(found, Profile) or found.kind != kind or not found.place:
        raise not_loaded(kind, f"{point.value} is not the Profile of a place of kind {kind}")
    return found


def this_machine() -> Profile:
    """Return the profile of the backend that trains on this machine."""
    return next(one for one in built_in().values() if one.near)


def kinds() -> list[str]:
    return list(dict.fromkeys([*built_in(), *plug_ins()]))


_described_in: dict[Path, None] = {}
"""Folders with the user's own descriptions of hosts."""


def describe_from(folder: Path) -> None:
    """Register the hosts that the YAML files of this folder describe. A host described here replaces a
    built-in one with the same name."""
    if folder.is_dir():
        _described_in[folder] = None


def described() -> dict[str, tuple[Readable, str]]:
    """Map each host described by a YAML file to that file and its display name. Doesn't read the files."""
    found = dict(_ours())
    for folder in _described_in:
        for file in sorted(folder.glob("*.yaml")):
            if file.stem not in built_in_folders():
                found[file.stem] = file, str(file)
    return found


@cache
def _ours() -> Mapping[str, tuple[Readable, str]]:
    entries = files(GROUP).joinpath("compatible", "profiles").iterdir()
    named = {entry.name.removesuffix(".yaml"): entry for entry in entries if entry.name.endswith(".yaml")}
    return {kind: (named[kind], named[kind].name) for kind in sorted(named) if kind != TEMPLATE}


TEMPLATE = "template"
"""The name of the commented template, which describes no host."""


def template() -> str:
    """Return the commented description, for copying."""
    return files(GROUP).joinpath("compatible", "profiles", f"{TEMPLATE}.yaml").read_text(encoding="utf-8")


def profile(kind: str) -> Profile:
    """Return the profile of a backend kind. Raises `UsageError` for an unknown kind, `ConfigError` for an
    invalid description, and `SetupError` for a broken plug-in."""
    if kind in built_in():
        return built_in()[kind]
    if (entry := described().get(kind)) is not None:
        return _described(kind, *entry)
    if kind in places():
        return _placed(kind)
    if kind in session_hosts():
        return import_module(f"{GROUP}.{kind}").PROFILE
    return _plugged(kind)


@cache
def _described(kind: str, file: Readable, name: str) -> Profile:
    return import_module(f"{GROUP}.compatible").profile_of(kind, file, name)


@cache
def _plugged(kind: str) -> Profile:
    point = plug_ins().get(kind)
    if point is None:
        known = [*kinds(), *described(), *places()]
        raise UsageError(
            f"unknown backend {kind!r}{among(kind, known)}",
            fix="orchestrate providers",
        )
    try:
        found = point.load()
    except Exception as error:
        raise not_loaded(kind, error) from error
    if not isinstance(found, Profile) or found.kind != kind:
        raise not_loaded(kind, f"{point.value} is not a Profile of kind {kind}")
    return found


def not_loaded(kind: str, error: object) -> SetupError:
    found = plug_ins().get(kind) or places().get(kind)
    point = None if isinstance(found, str) else found
    where = f" from {point.dist.name} {point.dist.version}" if point and point.dist else ""
    return SetupError(
        f"could not load the backend {kind!r}{where}: {error}", fix="update or uninstall that package"
    )
