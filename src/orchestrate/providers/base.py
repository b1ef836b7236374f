"""Interface that every backend implements, built-in or plug-in.

A backend consists of a `Profile` and the `Provider` class that the profile names. A `Provider` holds a client
but never job state: everything about a job comes from the host or from the arguments. Methods are
synchronous. `AsyncOrchestrator` wraps them.

`Provider` defines the methods that every backend implements, and its `Profile` describes the host. Each
optional capability is a class below (`Deploys`, `Pauses`, ...). A backend inherits from the capabilities that
it implements. Callers check with `isinstance` or `capability`. `FEATURES` maps features to classes.
`host_account` and `billing_of` work for every backend. Methods raise `ProviderError` (mapped from the host's
status and code, never from a message), `MissingKey` or `MissingExtra`. Only `create` and `deploy` also raise
`OutcomeUnknown`."""

from __future__ import annotations

import hashlib
import hmac
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from orchestrate.errors import ProviderError, Unsupported
from orchestrate.settings.config import HostConfig
from orchestrate.types import (
    SESSION,
    Account,
    Allowance,
    Artifact,
    BilledResource,
    Billing,
    Checkpoint,
    Endpoint,
    Event,
    Feature,
    Fingerprint,
    Job,
    JobHandle,
    JobRecovery,
    JobStatus,
    MemoryPlan,
    Message,
    MetricPoint,
    Problem,
    Quote,
    RemoteDataset,
    Reply,
    ReportedSettings,
    Run,
    Storage,
    StoredItem,
    Translation,
)

if TYPE_CHECKING:
    from orchestrate.catalog import HostModel, ModelOnHost
    from orchestrate.costing import Lookup, RateBook
    from orchestrate.data import TrainingData
    from orchestrate.data.operations.preview import RowTokens
    from orchestrate.local.answers.generation import Generator
    from orchestrate.local.answers.worker import Worker
    from orchestrate.local.run import RunDir
    from orchestrate.profile import Profile
    from orchestrate.providers.adapters import Adapters
    from orchestrate.providers.chat import Chat
    from orchestrate.providers.sessions import SessionBackend, SessionOrder, SessionPrice
    from orchestrate.spec import JobSpec

Progress = Callable[[int, int], None]
"""Callback for transfers. Its arguments are the bytes transferred so far and the total bytes."""


_IN_PROFILE = frozenset({"own_rates", "prices", "status_map", "sends_wandb_key", "renders_rows"})
"""Attributes that moved to the profile. In a `Provider` class they would have no effect."""


class Provider(ABC):
    """A backend that can fine-tune models. The module docstring lists the errors that methods raise."""

    profile: ClassVar[Profile]
    """The host's name, URL, job statuses, row rules, models and prices."""
    features: ClassVar[frozenset[Feature]]
    missing: ClassVar[Mapping[Feature, str]]
    """Maps each `Feature` that is not in `features` to the reason why it is missing."""

    def __init__(self, config: HostConfig) -> None:
        self.config = config
        self.name = config.name
        """Name of this instance. Defaults to the profile's kind. The user can configure further instances of
        the host under other names."""

    def __init_subclass__(cls, **more: object) -> None:
        """Raise `TypeError` if a backend's `features` don't match the classes that it inherits from, if it
        defines a method of a class that it does not inherit from, or an attribute that moved to its
        profile."""
        super().__init_subclass__(**more)
        if moved := _IN_PROFILE & vars(cls).keys():
            raise TypeError(
                f"{cls.__name__} defines {', '.join(sorted(moved))}, which belongs in its Profile"
            )
        if not hasattr(cls, "features"):
            return  # a capability
        for part, name in _WITH_FALLBACK.items():
            if hasattr(cls, name) and not issubclass(cls, part):
                raise TypeError(f"{cls.__name__} has {name}, but does not inherit from {part.__name__}")
        for feature, part in FEATURES.items():
            if (feature in cls.features) != issubclass(cls, part):
                both = f"list the feature {feature.value} and inherit from {part.__name__}"
                raise TypeError(f"{cls.__name__} must {both}, or neither")

    # -- offline -------------------------------------------------------------------------------------------

    @abstractmethod
    def translate(self, spec: JobSpec) -> Translation:
        """Translate each setting of the spec for this backend, offline. Rejected settings are listed in the
        result and don't raise an error."""

    def check(self, spec: JobSpec, data: TrainingData, translation: Translation) -> list[Problem]:
        """List every reason why the host would reject the job, with the row and field. Works offline. The
        default implementation uses the translation and the profile."""
        from orchestrate.providers import offline

        return offline.problems(self, spec, data, translation, renders=isinstance(self, PlansTraining))

    def quote(
        self,
        spec: JobSpec,
        data: TrainingData,
        translation: Translation,
        rates: RateBook,
        *,
        gpu_hours: Decimal | None = None,
    ) -> Quote:
        """Compute the job's price from `rates`, offline. If the model has no price, the quote's `unavailable`
        says why. `gpu_hours` is the user's estimate for an RFT job, because hosts don't estimate GPU hours in
        advance. The default implementation counts tokens and bills them by the profile's rules."""
        from orchestrate import costing
        from orchestrate.providers import offline

        prices = costing.Prices(prices_of(self), rates)
        return offline.quote(self, spec, data, translation, prices, gpu_hours)

    def resolve(self, spec: JobSpec) -> ModelOnHost:
        """Find the spec's model on this backend. Raises `SpecError` if the backend does not offer it."""
        from orchestrate import catalog

        return catalog.resolve(spec.model_for(self.name), self.profile)

    # -- submitting ----------------------------------------------------------------------------------------

    @abstractmethod
    def upload(
        self, spec: JobSpec, data: TrainingData, translation: Translation, *, progress: Progress | None = None
    ) -> RemoteDataset:
        """Upload the data in the host's format and wait until the host can use it. Files with the same digest
        are uploaded only once. If a file's rows no longer match its digest, raises `DataError` and sends
        nothing (`Dataset.write` checks this)."""

    @abstractmethod
    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        """Send the create request exactly once, tagged with `ref`.

        Raises `OutcomeUnknown` if the response was lost or is not a job. Any other `ProviderError` guarantees
        that no job was created."""

    @abstractmethod
    def find(self, ref: str) -> list[JobHandle]:
        """Find all jobs tagged `ref`, regardless of their creation time, because clocks may be wrong. An
        empty result means that the account currently has no such job. Raises `UnexpectedAnswer` if the
        response is not a list."""

    # -- reading (never changes or bills anything) ---------------------------------------------------------

    @abstractmethod
    def get(self, job: JobHandle) -> Job: ...

    @abstractmethod
    def list(self, *, since: datetime | None = None) -> Iterator[Job]:
        """Yield the account's jobs page by page, newest first if the host sorts them. If `since` is given,
        skip older jobs."""

    @abstractmethod
    def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
        """Yield the job's events, oldest first. If `after` is given, only yield the events after the event
        with this id."""

    def close(self) -> None:  # noqa: B027  most backends hold nothing
        """Close all connections. The next call opens new ones."""

    # -- where data goes -------------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """Address of the host, for display and records."""
        return self.config.base_url or self.name

    @property
    def own(self) -> bool:
        """True if all data stays on the user's own machines: this machine, or a host that the user declared
        as their own."""
        return self.config.own or self.config.near or self.profile.near


# -- what backends can do with a job -------------------------------------------------------------------------


class Cancels(Provider):
    @abstractmethod
    def cancel(self, job: JobHandle) -> None:
        """Request cancellation of the job. Does nothing if the job has already ended, so it is safe to call
        more than once."""


class Measures(Provider):
    @abstractmethod
    def metrics(self, job: JobHandle) -> list[MetricPoint]: ...


class KeepsCheckpoints(Provider):
    @abstractmethod
    def checkpoints(self, job: JobHandle) -> list[Checkpoint]: ...


class ShowsRows(Provider):
    @abstractmethod
    def rendered(self, job: JobHandle) -> Sequence[RowTokens]:
        """Return the job's tokenized training rows, or as many of them as the host has stored."""


class Pauses(Provider):
    @abstractmethod
    def pause(self, job: JobHandle) -> None: ...


class Resumes(Provider):
    @abstractmethod
    def resume(self, job: JobHandle) -> None: ...


class Restarts(Provider):
    @abstractmethod
    def recover(self, job: JobHandle) -> bool:
        """Restart a crashed job unless the host does so automatically. Returns True if the job was restarted.
        Paused jobs stay paused."""


class Deletes(Provider):
    @abstractmethod
    def delete(self, job: JobHandle) -> None: ...


class DeletesData(Provider):
    @abstractmethod
    def delete_data(self, remote: RemoteDataset) -> None:
        """Delete the uploaded files. A file that is already deleted is not an error."""


class ListsStored(Provider):
    @abstractmethod
    def stored(self) -> Storage:
        """List every file and tuned model that the account stores, regardless of who created it. Raises
        `ProviderError` if none of the host's lists can be read."""

    @abstractmethod
    def delete_stored(self, item: StoredItem) -> None:
        """Delete a stored item permanently. An item that is already deleted is not an error."""


class StopsWorkers(Provider):
    @abstractmethod
    def stop_workers(self, ref: str) -> None:
        """Find a job's rented machines by their label and stop them. Works even if the job is recorded in
        another store."""


class Limited(StopsWorkers):
    """Backend whose workers stop when a run reaches its time or cost limit."""

    @abstractmethod
    def ends_usd(self, spec: JobSpec, translation: Translation, quote: Quote) -> Decimal | None:
        """Return the run's maximum cost in US dollars. This is the lower of its cost limit and the cost at
        its time limit. If the spec sets neither limit, it is the high end of the quote. Returns `None` if the
        hourly price is unknown or nothing is billed."""

    @abstractmethod
    def allowance(self, job: JobHandle) -> Allowance:
        """Return the job's limits and its usage so far. Raises `ProviderError` if they can't be read."""

    @abstractmethod
    def allow(self, job: JobHandle, *, max_hours: float | None, max_usd: Decimal | None) -> None:
        """Change the limits for workers that start after this call. Setting the same limits again has no
        effect. Raises `ProviderError` if the limits can't be changed."""


# -- the account ---------------------------------------------------------------------------------------------


class NamesAccount(Provider):
    @abstractmethod
    def account(self) -> Account:
        """Return the account whose jobs this configuration can list. Queries the host at most once per
        instance."""


class ListsBilled(Provider):
    @abstractmethod
    def billing(self) -> Billing:
        """Report everything in the account that is or could be billed, no matter who created it. This
        includes jobs that have not ended, deployments, endpoints, and stored files if the host charges for
        storage. The result also names what the host's API cannot list. Raises an error only if no list can be
        read."""


class RecoversJobs(Provider):
    """Backend that can describe jobs whose spec and data are not on this machine."""

    @abstractmethod
    def recover_job(self, job: Job) -> JobRecovery | None:
        """Return the details that determine a job's price, or `None` if the host reports none. Queries the
        size of the data only if the job's record has no token count."""

    @abstractmethod
    def reported_settings(self, job: Job) -> ReportedSettings:
        """Return the settings of a job that was created outside this store, as far as the host reports
        them."""

    def recoverable(self, *, since: datetime | None = None) -> Iterator[Job]:
        """List jobs as `list` does, with everything needed to rebuild a lost store. Also lists jobs that are
        not recorded on this machine. If an error interrupts the iteration, the jobs that were already yielded
        are still valid."""
        yield from self.list(since=since)

    def taken_over(self, job: Job) -> Job:
        """Store what this machine needs to continue a recoverable job, and return the job."""
        return job


class HoldsFiles(Provider):
    @abstractmethod
    def holds(self, remote: RemoteDataset) -> bool:
        """Return True if the files of an earlier upload can be found in this account by their ids. `False`
        does not prove that the files were deleted."""


class HandsOutFiles(Provider):
    @abstractmethod
    def fetch_file(self, id: str, file: Path) -> None:
        """Download a data file from the account. `id` is the file's id in the job's record. Raises `NotFound`
        if the account has no such file."""


class ListsModels(Provider):
    @abstractmethod
    def base_models(self) -> Sequence[HostModel]:
        """List the models that the host currently fine-tunes, with limits and shutdown dates if the host
        reports them. Fields without a reported value are `None`, empty or `unconfirmed`. `orchestrate models
        refresh` compares the list with the catalog."""


# -- planning a job ------------------------------------------------------------------------------------------


class PlansTraining(Provider):
    """Backend that trains with Orchestrate's own engine on known hardware."""

    @abstractmethod
    def memory(self, spec: JobSpec, data: TrainingData, translation: Translation) -> MemoryPlan | None:
        """Estimate the memory that training on these rows needs on the user's own hardware. Returns `None` if
        the hardware is not the user's."""

    @abstractmethod
    def device(self) -> str:
        """Return the device whose hours are billed: a GPU's name, or `cpu`."""


class EstimatesPrice(Provider):
    @abstractmethod
    def live_price(self, spec: JobSpec, remote: RemoteDataset, translation: Translation) -> Quote:
        """Return the host's price estimate for the uploaded data."""


# -- the tuned model ---------------------------------------------------------------------------------------


class Downloads(Provider):
    @abstractmethod
    def download(
        self, job: JobHandle, dest: Path, *, checkpoint: str | None = None, progress: Progress | None = None
    ) -> Artifact:
        """Download the model into `dest`. Interrupted downloads resume, files are hashed, archives are
        unpacked safely, and only safetensors weights are accepted. Raises `ArtifactRefused` if the artifact
        is unsafe or damaged, or contains no safetensors weights."""


class KeepsFingerprint(Provider):
    @abstractmethod
    def fingerprint(self, job: JobHandle) -> Fingerprint | None:
        """Return the fingerprint that identifies the tuned model on any server, or `None` if training
        recorded none."""


class Serves(Provider):
    @abstractmethod
    def endpoint(self, job: JobHandle) -> Endpoint | None:
        """Return the endpoint that currently serves the tuned model, if any."""


class Deploys(Serves):
    @abstractmethod
    def deployment_price(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Decimal | None:
        """Return the hourly price, in US dollars, of a deployment with these options, or `None` if it is
        unknown. The price applies whenever the deployment is up, even if it is idle. Changes nothing. Users
        see this price before they confirm."""

    @abstractmethod
    def deploy(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Endpoint:
        """Deploy the tuned model. Deployments may be billed hourly, so no other command deploys implicitly. A
        deployment is named after its job and never created twice: a second call completes an interrupted
        deployment or restarts a stopped one. Raises `OverBudget` if the hourly price exceeds the option
        `max_usd_per_hour`, and `OutcomeUnknown` if the response to the billed request was lost."""

    @abstractmethod
    def undeploy(self, job: JobHandle) -> None:
        """Request removal of the job's deployment. Safe to call more than once, and works even if the host no
        longer has the job. Call `deployed` to check that the deployment has ended."""

    @abstractmethod
    def deployments(self) -> Iterator[BilledResource]:
        """List all deployments and endpoints of the account, regardless of who created them. Raises an error
        if the response is not a list."""

    def deployed(self, job: JobHandle) -> Sequence[BilledResource]:
        """Find this job's deployment by its name, even if the host no longer has the job. An empty result
        means that the account currently has no such deployment."""
        return [item for item in self.deployments() if item.job_id == job.job_id.lower()]


class TakesAdapters(Provider):
    @abstractmethod
    def adapters(self) -> Adapters:
        """Return the interface for uploading adapters that were trained elsewhere."""


class Chats(Provider):
    @abstractmethod
    def generate(
        self,
        job: JobHandle,
        prompts: Sequence[Sequence[Message]],
        *,
        base: bool = False,
        max_tokens: int = 256,
        temperature: float = 0.0,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Reply]:
        """Generate one reply per conversation with the tuned model, or with its base model if `base` is True.
        `tools` are the tools that the model may call."""

    def chat(
        self, job: JobHandle, *, base: bool = False, max_tokens: int = 256, temperature: float = 0.0
    ) -> Chat | None:
        """Return a chat client that answers one conversation per call. Several threads may share it. Returns
        `None` if the backend does not support this."""
        return None


class AnswersHere(Provider):
    @abstractmethod
    def generator(
        self, job: JobHandle, *, checkpoint: str | None = None, worker: Worker | None = None
    ) -> Generator:
        """Load the tuned model and its base in `worker`, or in new processes on this machine if `worker` is
        `None`."""


class Sessions(Provider):
    """Backend with training sessions, in which the caller runs each step. The caller's process writes the run
    directory."""

    child: Callable[[], tuple[Path | None, dict[str, str]]] | None = None
    """Function that returns the working folder and the environment variables for the process that runs a
    submitted job. They make the process use the caller's settings."""

    @abstractmethod
    def session_dir(self, order: SessionOrder) -> RunDir:
        """Create a session's run directory, or return the directory that an earlier call created."""

    @abstractmethod
    def session_price(self, order: SessionOrder, rates: RateBook) -> SessionPrice:
        """Return the session's price. May query the host, but changes nothing and is not billed."""

    @abstractmethod
    def open_session(self, order: SessionOrder) -> SessionBackend:
        """Start the session and load its model. Raises `ProviderError` if the session can't be started.
        Errors from loading the base model propagate."""

    @abstractmethod
    def pause(self, job: JobHandle) -> None:
        """Ask the program that runs the session to save and exit."""

    @abstractmethod
    def checkpoints(self, job: JobHandle) -> list[Checkpoint]: ...


# -- looking up a capability ---------------------------------------------------------------------------------

FEATURES: Mapping[Feature, type[Provider]] = {
    Feature.CANCEL: Cancels,
    Feature.PAUSE: Pauses,
    Feature.RESUME: Resumes,
    Feature.DELETE: Deletes,
    Feature.METRICS: Measures,
    Feature.CHECKPOINTS: KeepsCheckpoints,
    Feature.DOWNLOAD: Downloads,
    Feature.DEPLOY: Deploys,
    Feature.CHAT: Chats,
    Feature.LIVE_PRICE: EstimatesPrice,
}
"""Maps each feature that has its own methods to the class that defines them. All other features describe what
a spec and its rows may contain, or belong to `Provider`."""
_OTHERS: Mapping[type[Provider], tuple[str, str]] = {
    ShowsRows: ("rendered rows", "the backend does not show how it tokenizes rows"),
    HandsOutFiles: ("data files", "the backend does not offer data files for download"),
    ListsStored: ("list of stored files", "the API does not list or delete stored files and models"),
    ListsModels: ("list of models", "the API does not list the models it can fine-tune"),
    Sessions: (
        "training sessions",
        'Orchestrate has no session client for this host. Use ft.session(provider="local")',
    ),
    TakesAdapters: ("uploaded adapters", "{title} only serves models that were trained there"),
}
"""Capabilities that are not features, as `{class: (name, reason why a backend may lack it)}`. Errors about a
missing capability show both."""
_WITH_FALLBACK: Mapping[type[Provider], str] = {
    NamesAccount: "account",
    ListsBilled: "billing",
}
"""Capabilities that have a fallback for backends without them, as `{class: method}`."""
P = TypeVar("P", bound=Provider)


def capability(provider: Provider, wanted: type[P]) -> P:
    """Return the same backend, typed as the capability's class. Raises `Unsupported` with the reason if the
    backend lacks the capability."""
    if isinstance(provider, wanted):
        return provider
    for feature, part in FEATURES.items():
        if issubclass(part, wanted):
            raise lacking(provider, feature)
    what, why = _OTHERS.get(wanted, (wanted.__name__, "this backend does not support it"))
    raise Unsupported(provider.name, what, why.format(title=provider.profile.title))


def pausing(run: Run) -> type[Pauses] | type[Sessions]:
    """Return the class that a backend must implement to pause this run: `Sessions` for a session, `Pauses`
    for a job. Some backends can pause only sessions."""
    return Sessions if run.job_kind == SESSION else Pauses


def lacking(provider: Provider, feature: Feature) -> Unsupported:
    reason = provider.missing.get(feature, "this backend does not support it")
    return Unsupported(provider.name, feature.value.replace("_", " "), reason)


def require(provider: Provider, feature: Feature) -> None:
    """Raise `Unsupported` with the reason if the backend lacks `feature`."""
    if feature not in provider.features:
        raise lacking(provider, feature)


# -- for every backend ---------------------------------------------------------------------------------------


def prices_of(provider: Provider) -> str:
    """Return the provider name under which this backend's rates are listed."""
    profile = provider.profile
    return str(provider.config.options.get("prices", provider.name if profile.others_speak else profile.kind))


def lookup(provider: Provider, spec: JobSpec) -> Lookup:
    """Return the query that finds the rates for a quote. Raises `SpecError` for a model that the backend does
    not know."""
    from orchestrate import costing

    resolved, prices = provider.resolve(spec), prices_of(provider)
    if own := provider.profile.own_rates:
        named = frozenset({resolved.id, resolved.name})
        return costing.Lookup(prices, tuple((one,) for one in own), named)
    gpu = provider.device() if isinstance(provider, PlansTraining) else None
    return costing.lookup(spec, resolved, prices, gpu=gpu)


def host_account(provider: Provider) -> Account:
    """Return the account whose jobs this configuration can list. If the backend does not name its account,
    the key identifies it. Errors of `NamesAccount.account` and `key_account` propagate."""
    if isinstance(provider, NamesAccount):
        return provider.account()
    return key_account(provider.config, provider.host)


def key_account(config: HostConfig, host: str) -> Account:
    """Identify the account by its key and the configuration. A backend without a key is identified by its
    host. Raises `MissingKey` if the key is not set, and `KeyElsewhere` if the key may not be sent to this
    host."""
    if config.api_key is None and config.key_variable is None:
        return Account(id=host, reported=True)
    beside = "\0".join(
        ["orchestrate account", *map(str, (config.organization, config.project, config.account_id))]
    )
    mark = hmac.new(config.require_key().reveal().encode(), beside.encode(), hashlib.sha256).hexdigest()
    return Account(id=f"key {mark[:16]}", reported=False)


def billing_of(provider: Provider) -> Billing:
    """Report what is billed in the backend's account: the result of `ListsBilled.billing`, or only the jobs
    if the backend lists nothing else."""
    if isinstance(provider, ListsBilled):
        return provider.billing()
    return of_jobs(provider, "anything else that this backend bills")


# Lists of what is or could be billed at a host: the code that all backends share.

T = TypeVar("T")


def jobs(
    provider: Provider,
    *,
    kind: Literal["job", "worker"] = "job",
    bills: bool | None = None,
    note: str | None = None,
) -> Iterator[BilledResource]:
    """Yield the jobs that have not ended. `bills` overrides whether the jobs count as billed. By default,
    this is False for paused jobs, `None` for jobs in an unknown state, and True for all others."""
    for job in provider.list():
        if job.status.terminal:
            continue
        billing = None if job.status is JobStatus.UNKNOWN else job.status is not JobStatus.PAUSED
        yield BilledResource(
            provider=provider.name,
            kind=kind,
            id=job.handle.job_id,
            name=job.handle.ref,
            state=job.raw_status.lower(),
            bills=billing if bills is None else bills,
            job_id=job.handle.job_id,
            created_at=job.created_at,
            note=note or job.model,
        )


def of_jobs(
    provider: Provider,
    *unseen: str,
    kind: Literal["job", "worker"] = "job",
    bills: bool | None = None,
    note: str | None = None,
) -> Billing:
    """Report what is billed on a backend that can only list jobs. `unseen` names what the backend can't
    list."""
    return Billing(items=tuple(jobs(provider, kind=kind, bills=bills, note=note)), unseen=unseen)


def joined(
    provider: Provider, parts: Mapping[str, Callable[[], Iterable[BilledResource]]], *unseen: str
) -> Billing:
    """Combine several lists of billed items. If one of the lists cannot be read, the result contains the
    others. Raises `ProviderError` if none can be read."""
    items, failed, unlisted = _read_lists(provider, parts, unseen)
    return Billing(items=items, partial=bool(failed), unseen=(*failed, *unlisted))


def stored(
    provider: Provider, parts: Mapping[str, Callable[[], Iterable[StoredItem]]], *unseen: str
) -> Storage:
    """Combine several lists of stored items. Handles errors in the same way as `joined`."""
    items, failed, unlisted = _read_lists(provider, parts, unseen)
    return Storage(items=items, partial=bool(failed), unseen=(*failed, *unlisted))


def _read_lists(
    provider: Provider, parts: Mapping[str, Callable[[], Iterable[T]]], unseen: Sequence[str]
) -> tuple[tuple[T, ...], list[str], list[str]]:
    items: list[T] = []
    failed: dict[str, ProviderError] = {}
    for name, ask in parts.items():
        try:
            items += ask()
        except ProviderError as error:
            failed[name] = error
    if len(failed) == len(parts):
        raise next(iter(failed.values()))
    known = [f"could not look up {name}: {error.message}" for name, error in failed.items()]
    return tuple(items), known, [f"{provider.profile.title} has no API to list {what}" for what in unseen]
