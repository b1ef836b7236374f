"""Backend profiles: address, row formats, models and prices of each backend.

Each backend has one `Profile`, in a module that imports quickly, because all profiles are loaded with the
settings. Built-in profiles are in `orchestrate.providers.<kind>`. Other packages register profiles as entry
points in the group `orchestrate.providers`. The entry point's name is the backend's kind. A host that
implements OpenAI's fine-tuning API is described by a YAML file, which is either built in or in the user's
configuration. The file's name is the kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from decimal import Decimal
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

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
"""Entry point group for packages that add a remote place where our training engine can run. Each entry point
names a `Profile` built by `away`."""
DESCRIBED = "openai-compatible"
"""The `type` of hosts described by a YAML file."""
OWN_DESCRIPTIONS = "hosts"
"""Name of the folder that holds the user's own host descriptions. The folder is next to the key file."""
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
OPTIONS = frozenset({"home", "prices"})
"""Options that every backend accepts: `home` is the home folder, and `prices` is the host whose prices
apply."""
HOSTED = frozenset({"retry_budget_s"})
"""Additional options of backends that are reached over the network."""
BY_SDK = HOSTED | {"api_version", "deployment", "headers", "multipart_bytes", "part_bytes"}
"""Options of backends that use OpenAI's SDK."""
RENTED = ("gpu", "spot", "max_hours", "max_usd_per_hour", "silence_minutes", "min_processes")
"""Options of remote places. `provider_options.<place>` accepts them in addition to the engine's own
options."""
AWAY = frozenset({*RENTED, "depot", "pass_env"})
TUNING_STATUSES: Mapping[str, JobStatus] = {
    "validating_files": JobStatus.VALIDATING,
    "queued": JobStatus.QUEUED,
    "running": JobStatus.RUNNING,
    "succeeded": JobStatus.SUCCEEDED,
    "failed": JobStatus.FAILED,
    "cancelled": JobStatus.CANCELLED,
    # These statuses are missing from the SDK but were observed: after a pause request, and on Azure.
    "paused": JobStatus.PAUSED,
    "pausing": JobStatus.RUNNING,
    "created": JobStatus.QUEUED,
    "pending": JobStatus.QUEUED,
    "notRunning": JobStatus.QUEUED,
    "canceled": JobStatus.CANCELLED,
}
"""Maps job statuses in OpenAI's fine-tuning API to ours."""


class Readable(Protocol):
    """A text file, either from a package or from the user."""

    def read_text(self, encoding: str) -> str: ...


class Delivery(Struct, frozen=True):
    """One webhook delivery. `id` is the same if the host resends the delivery. `job_id` is the job that
    changed, or `None`."""

    id: str
    job_id: str | None


class Gate(Struct, frozen=True):
    """The date on which a host starts rejecting new jobs from some accounts. Only a create request shows
    whether an account is affected."""

    since: date
    accounts: str
    """Description of the affected accounts, such as `accounts that never tuned a model`."""


class Profile(Struct, frozen=True, kw_only=True):
    """The profile of one kind of backend. All configured hosts of this `type` share the profile."""

    kind: str
    title: str
    """The display name, such as OpenAI, Together or This machine."""
    provider: str
    """The `Provider` class, as `package.module:Class`. It is imported on first use."""
    rank: int = 100
    """Position in lists. Plug-ins come after built-in backends."""

    # -- connection ---------------------------------------------------------------------------------------
    keyless: bool = False
    place: str = ""
    """Class of the remote place where our engine runs, as `package.module:Class`. Empty for other
    backends."""
    models_of: str | None = None
    """The backend kind whose models this kind uses. `None` if this kind has its own models."""
    near: bool = False
    """True if the backend is on this machine, so queries are free and can be frequent."""
    others_speak: bool = False
    """True if other companies' servers also implement this API. A host of this kind that is configured under
    another name then has its own models and prices."""
    url: str | None = None
    key_variable: str | None = None
    """Environment variable with the API key. Default: NAME_API_KEY. The URL's variable is always
    NAME_BASE_URL."""
    account_variable: str | None = None
    organization_variable: str | None = None
    project_variable: str | None = None
    chat_url: str | None = None
    """Base URL for chat completions, if it differs from `url`. A configured base URL, such as a sandbox's,
    replaces both."""
    chat_path: str = ""
    """Path of the chat completions API below the base URL. Empty for the root."""
    chat_limit: str = "max_tokens"
    """The request field for the maximum number of tokens of a chat completion."""
    origins: frozenset[str] = frozenset()
    """URLs that belong to the host's owner. A key may be sent to any of them."""
    webhook_variable: str | None = None
    """Environment variable with the secret that signs the host's webhooks. The key file names the secret
    `KIND-webhook`."""
    delivery: Callable[[str, Mapping[str, str], str], Delivery] | None = None
    """Parses a webhook, given its body, its headers and the secret. Raises `ValueError` if the signature is
    invalid or too old."""
    management_login: str = ""
    """Instructions for getting the host's management key, if deployments need a different key than training.
    The key is read from NAME_MANAGEMENT_TOKEN."""
    options: frozenset[str] | None = None
    """Allowed keys of `[hosts.NAME.options]`, in addition to `OPTIONS`. `None` accepts any key, even a
    misspelled one."""
    sdk: str | None = None
    """Distribution name of the host's official SDK. Orchestrate's requirements set the minimum version."""

    # -- jobs ----------------------------------------------------------------------------------------------
    statuses: Mapping[str, JobStatus] = msgspec.field(default_factory=dict[str, JobStatus])
    """Maps the host's job statuses to ours. Empty if our own engine writes them."""
    sends_wandb_key: bool = True
    """True if W&B logging needs a key from this machine. Otherwise, the key is stored in the host's
    account."""

    # -- rows ----------------------------------------------------------------------------------------------
    rules: HostRules | None = None
    dialect: Dialect | None = None

    # -- models --------------------------------------------------------------------------------------------
    ids: re.Pattern[str] | None = None
    """Pattern for accepted ids that are not in the catalog. `None` accepts any id."""
    tuned_base: Callable[[str], str | None] | None = None
    """Extracts the base model from a tuned model's name. `None` if names do not contain it."""
    no_new_jobs_after: date | None = None
    """First day on which the host accepts no new jobs from anyone."""
    closing_source: str = ""
    gates: tuple[Gate, ...] = ()
    """Dates from which the host rejects new jobs from some accounts, earliest first. All are before
    `no_new_jobs_after`."""

    # -- prices --------------------------------------------------------------------------------------------
    bills: Bills | None = None
    """Computes the quote lines of a job that is billed by tokens. `None` if the backend computes its own
    quotes."""
    picture_tokens: Callable[[str, Picture], tuple[int, int, int] | None] | None = None
    """Computes the minimum, typical and maximum token count of an image, given the host's model id and the
    image. `None` if the host publishes no rule. Quotes then exclude images, and say so."""
    own_rates: tuple[str, ...] = ()
    """Kinds of rates (`method` in the rate book) that only this backend's quotes use."""
    dpo_factor: Decimal = Decimal(1)
    """Price of a DPO token as a multiple of the SFT price, if no DPO price is published."""
    hourly_factor: Callable[[JobSpec], Decimal] = lambda spec: Decimal(1)
    """Computes the multiplier of the hourly GPU price for a spec, for example for the requested region."""
    default_epochs: int | None = None
    """The number of epochs if the spec sets none. `None` if it depends on the rows (see `auto_epochs`)."""
    auto_epochs: Callable[[int], int] = lambda rows: 1
    share_billed: Callable[[int, int], Decimal] | None = None
    """Computes which share of the price is billed if a job ends early, given its completed and total steps.
    `None` if the host does not publish a rule."""
    figures_are_estimates: bool = False
    """True if the prices that the host reports are only estimates, even after a job has ended."""
    reports_price: bool = False
    """True if the host reports the price of each billed job. A price computed by Orchestrate is then only
    preliminary."""
    unbilled_failure: Callable[[Job], bool] = lambda job: False
    """Tells whether the host charges nothing for a failed job. All other failed jobs count at their quoted
    prices until their bills are known."""
    checkpoints_answer: bool = False
    """True if each checkpoint of a successful run is served under its own name, without a deployment."""
    cap_gap: str = ""
    """Reason why a cost limit cannot end a running job, for example because the host doesn't report the cost
    so far. Empty if a cost limit can end it."""
    output_terms: str = ""
    """The host's terms for using its models' answers as training data, with the URL."""
    serving_note: str = ""
    """A note that is shown with the cost of a dedicated deployment."""

    def status(self, raw: str | None) -> JobStatus:
        """Translate the host's job status to ours. An unknown status becomes `UNKNOWN`, which is never
        terminal."""
        return self.statuses.get(raw or "", JobStatus.UNKNOWN)

    def gated(self, today: date) -> str | None:
        """Describe which accounts the host rejects today (UTC). Returns `None` if it rejects none or all."""
        begun = [gate for gate in self.gates if gate.since <= today]
        if not begun or self.closed(today):
            return None
        dates = " and ".join(f"since {gate.since} for {gate.accounts}" for gate in begun)
        end = (
            f", and will be closed to everyone from {self.no_new_jobs_after} (UTC)"
            if self.no_new_jobs_after
            else ""
        )
        return (
            f"{self.title} has been closed to new jobs {dates}{end} ({self.closing_source}). Only a "
            "submission shows whether this affects your account"
        )

    def closed(self, today: date) -> str | None:
        """Return why the host rejects all new jobs today, or `None` if it accepts some. Days are in UTC,
        because the host's page names no time zone."""
        if self.no_new_jobs_after is None or today < self.no_new_jobs_after:
            return None
        since = f"{self.no_new_jobs_after} ({self.closing_source})"
        return f"{self.title} has not accepted new fine-tuning jobs since {since}; today is {today} (UTC)"


def file_refused(job: Job) -> bool:
    """Return True if a job failed because the host rejected one of its files. Nothing was trained in that
    case. According to OpenAI's API reference, the `param` of the job's error names the file."""
    files = ("training_file", "validation_file")
    return not job.trained_tokens and job.error is not None and job.error.param in files


@cache
def built_in_folders() -> tuple[str, ...]:
    """List the kinds of the built-in backends, which are also the names of their folders. Imports nothing."""
    entries = files(GROUP).iterdir()
    return tuple(sorted(entry.name for entry in entries if entry.joinpath("provider.py").is_file()))


@cache
def built_in() -> Mapping[str, Profile]:
    """Map each built-in kind to its profile, in display order."""
    found: list[Profile] = [import_module(f"{GROUP}.{name}").PROFILE for name in built_in_folders()]
    return {one.kind: one for one in sorted(found, key=lambda one: one.rank)}


@cache
def session_hosts() -> tuple[str, ...]:
    """List the hosts that have training sessions but no job API. A training loop on this machine drives the
    sessions. You can select these hosts by name, but lists of backends don't include them. Imports
    nothing."""
    entries = [entry for entry in files(GROUP).iterdir() if entry.name not in built_in_folders()]
    return tuple(sorted(entry.name for entry in entries if entry.joinpath("sessions.py").is_file()))


@cache
def _entry_points() -> Any:
    """Read the entry points of all packages, once, because each read opens a file per package."""
    return entry_points()


@cache
def plug_ins() -> Mapping[str, EntryPoint]:
    """Map each kind of backend that another package adds to its entry point. Imports nothing."""
    found = _entry_points().select(group=GROUP)
    return {point.name: point for point in sorted(found, key=lambda point: point.name)}


@cache
def place_plug_ins() -> Mapping[str, EntryPoint]:
    """Map each kind of place that another package adds to its entry point. Imports nothing."""
    return {point.name: point for point in sorted(_entry_points().select(group=PLACES))}


@cache
def places() -> Mapping[str, str | EntryPoint]:
    """Map each kind of remote place to its module or entry point. Imports nothing."""
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
    """Build the profile of a backend that runs our engine's workers on remote machines.

    The backend supports the same row formats, models and settings as this machine. `options` are its own
    options, in addition to `AWAY`. `None` accepts any option. If `key_variable` is set, an API key is
    required. The key is sent to `url` or to the configured address, and the place's class is also given the
    `HostConfig`."""
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
        raise not_loaded(kind, f"{point.value} is not a Profile with the kind {kind} and a place")
    return found


def this_machine() -> Profile:
    """Return the profile of the backend that trains on this machine."""
    return next(one for one in built_in().values() if one.near)


def kinds() -> list[str]:
    return list(dict.fromkeys([*built_in(), *plug_ins()]))


_described_in: dict[Path, None] = {}
"""Folders with the user's own descriptions of hosts."""


def describe_from(folder: Path) -> None:
    """Register the hosts that YAML files in this folder describe. They replace built-in descriptions with the
    same names."""
    if folder.is_dir():
        _described_in[folder] = None


def described() -> dict[str, tuple[Readable, str]]:
    """Return the hosts that YAML files describe, as `{host: (file, display name of the file)}`. Doesn't read
    the files."""
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
"""Name of the commented template, which describes no host."""


def template() -> str:
    """Return the commented template for a host description."""
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


def unknown_backend(name: str, known: Iterable[str]) -> UsageError:
    """Build the error for a backend name that is not among the `known` ones."""
    return UsageError(f"unknown backend {name!r}{among(name, known)}", fix="orchestrate providers")


@cache
def _plugged(kind: str) -> Profile:
    point = plug_ins().get(kind)
    if point is None:
        raise unknown_backend(kind, [*kinds(), *described(), *places()])
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
