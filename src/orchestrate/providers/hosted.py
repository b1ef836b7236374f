"""Base classes of all hosted backends: accounts, uploads, cancellation, downloads, deployments and chats.
Each host's subclass adds the calls of its API. `calls.hosted.Wire` sends the requests."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from orchestrate import catalog
from orchestrate.core.files import new_folder
from orchestrate.errors import (
    Conflict,
    DataError,
    HostUnavailable,
    InvalidRequest,
    NotFound,
    PermissionRefused,
    SpecError,
)
from orchestrate.providers import files as archives
from orchestrate.providers.base import (
    Chats,
    Deploys,
    HandsOutFiles,
    HoldsFiles,
    ListsBilled,
    NamesAccount,
    Progress,
    RecoversJobs,
    key_account,
)
from orchestrate.providers.calls import integer, text, when
from orchestrate.providers.calls.clients import completions
from orchestrate.providers.calls.hosted import Wire
from orchestrate.text import duration
from orchestrate.types import (
    Account,
    Artifact,
    ArtifactFile,
    BilledResource,
    Endpoint,
    Event,
    JobHandle,
    JobStatus,
    Message,
    Problem,
    RemoteDataset,
    Reply,
    Severity,
    StoredItem,
)

if TYPE_CHECKING:
    from orchestrate.data import Dataset, TrainingData
    from orchestrate.providers.chat import Chat
    from orchestrate.settings.config import HostConfig

_Made = TypeVar("_Made", contravariant=True)
_M = TypeVar("_M")
_R = TypeVar("_R")


def named_account(**parts: str | None) -> Account | None:
    """Build an account from its parts: `named_account(organization="o", project="p")` is `organization o,
    project p`. Returns `None` if all parts are unknown."""
    words = [f"{name} {value}" for name, value in parts.items() if value]
    return Account(id=", ".join(words), reported=True) if words else None


class HostedProvider(NamesAccount, ListsBilled, RecoversJobs, HoldsFiles, HandsOutFiles):
    file_id = "id"
    """Field of a file's record that holds the id to use in create requests."""

    def __init__(self, config: HostConfig, wire: Wire) -> None:
        super().__init__(config)
        self._wire = wire

    # -- the account -----------------------------------------------------------------------------------------

    def account(self) -> Account:
        return self._account

    @cached_property
    def _account(self) -> Account:
        """Fall back to the key's fingerprint where the host does not report the account, or this key may not
        read it. Raises all other errors: the account is unknown while the host can't be reached."""
        try:
            found = self._query_account()
        except (NotFound, InvalidRequest, PermissionRefused):
            found = None
        return found or key_account(self.config, self.host)

    def _query_account(self) -> Account | None:
        """Return the account as the host reports it, or `None` where it does not and the key identifies
        it."""
        return None

    # -- files ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _file(self, id: str) -> Mapping[str, Any]:
        """Return the host's record of a file. Raises `NotFound`."""

    def holds(self, remote: RemoteDataset) -> bool:
        try:
            return self._file(remote.train_id).get(self.file_id) == remote.train_id
        except (NotFound, PermissionRefused):
            return False

    def _brought(
        self,
        data: TrainingData,
        bring: Callable[[Dataset, Path, Progress | None], dict[str, Any]],
        progress: Progress | None,
        details: Callable[[dict[str, Any], dict[str, Any] | None], dict[str, Any]] | None = None,
        *,
        validates: bool = True,
    ) -> RemoteDataset:
        folder = archives.work_folder(self.config)
        train = bring(data.train, folder, progress)
        validation = bring(data.validation, folder, progress) if data.validation and validates else None
        return RemoteDataset(
            provider=self.name,
            digest=data.digest,
            train_id=str(train[self.file_id]),
            validation_id=str(validation[self.file_id]) if validation else None,
            details=details(train, validation) if details else {},
        )

    # -- jobs ----------------------------------------------------------------------------------------------

    def _status(self, job: JobHandle) -> JobStatus:
        return self.get(job).status

    def _act(self, job: JobHandle, act: Callable[[], object], reached: Callable[[JobStatus], bool]) -> None:
        """A refusal is no error when the job is where it should be: it ended between two requests."""
        try:
            act()
        except (InvalidRequest, Conflict):
            if not reached(self._status(job)):
                raise

    def _cancel(self, job: JobHandle, act: Callable[[], object]) -> None:
        """Of a host that has no patience with a job that has ended or is about to."""
        status = self._status(job)
        if not status.terminal and status is not JobStatus.CANCELLING:
            self._act(job, act, lambda status: status.terminal)

    # -- the tuned model -----------------------------------------------------------------------------------

    def _most_bytes(self, base: str | None) -> int:
        """Return the maximum size of a download, by the size of the base model where that is known."""
        params_b: float | None = None
        with suppress(SpecError):
            params_b = catalog.resolve(base, self.profile).params_b if base else None
        return archives.limit_bytes(self.config, params_b)

    def _downloaded(
        self,
        job: JobHandle,
        dest: Path,
        name: str,
        base: str | None,
        fetch: Callable[[Path, int], None],
    ) -> Artifact:
        """Download what `fetch` brings file by file into a folder beside `dest`, with a limit on the
        bytes. Complete files stay there for a later call."""
        waiting = new_folder(dest.parent) / f".{dest.name}.{name}.download"
        fetch(waiting, self._most_bytes(base))
        return self._artifact(job, dest, archives.settled(waiting, dest), base)

    def _artifact(
        self,
        job: JobHandle,
        dest: Path,
        files: tuple[ArtifactFile, ...],
        base: str | None,
        *,
        full: bool = False,
    ) -> Artifact:
        return Artifact(
            kind=archives.kind_of(files, full=full),
            folder=str(dest),
            files=files,
            base_model=archives.base_of(dest) or base,
            provider=self.name,
            job_id=job.job_id,
        )


class HostedChats(HostedProvider, Chats):
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
        chat = self.chat(job, base=base, max_tokens=max_tokens, temperature=temperature)
        return chat.replies(prompts, tools)

    @abstractmethod
    def chat(
        self, job: JobHandle, *, base: bool = False, max_tokens: int = 256, temperature: float = 0.0
    ) -> Chat: ...


class HostedDeployments(Protocol[_Made]):
    """Deployments of tuned models, each named after its job's id. `_Made` is the type that identifies the
    model to deploy."""

    def price(self, id: str, made: _Made, options: Mapping[str, Any] | None) -> Decimal | None: ...
    def deploy(self, id: str, made: _Made, options: Mapping[str, Any] | None) -> Endpoint: ...
    def remove(self, id: str) -> None: ...
    def billing_items(self) -> Iterator[BilledResource]: ...


class DedicatedProvider(HostedChats, Deploys, Generic[_M]):
    """Backend that serves tuned models only on deployments, which are billed hourly."""

    @property
    @abstractmethod
    def _deployments(self) -> HostedDeployments[_M]: ...

    @abstractmethod
    def _to_deploy(self, job: JobHandle) -> _M: ...

    @abstractmethod
    def _name_of(self, job: JobHandle, *, base: bool) -> str:
        """Return the name by which the model answers. Raises `UsageError` for a tuned model that is not
        deployed."""

    @abstractmethod
    def _inference(self) -> Any:
        """Return the SDK's client for the address that answers chats."""

    def deployment_price(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Decimal | None:
        return self._deployments.price(job.job_id, self._to_deploy(job), options)

    def deploy(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Endpoint:
        """Deploy the tuned model. For `options`, see the host's deploy options class."""
        return self._deployments.deploy(job.job_id, self._to_deploy(job), options)

    def undeploy(self, job: JobHandle) -> None:
        self._deployments.remove(job.job_id)

    def deployments(self) -> Iterator[BilledResource]:
        return self._deployments.billing_items()

    def chat(
        self, job: JobHandle, *, base: bool = False, max_tokens: int = 256, temperature: float = 0.0
    ) -> Chat:
        """Open a chat with the deployed model. With `base`, open a chat with the base model under its own
        name. Hosts serve some base models without a deployment."""
        from orchestrate.providers.chat import Chat

        model = self._name_of(job, base=base)
        create = completions(self._inference(), self.config)
        return Chat(self._wire, create, model, {"max_tokens": max_tokens, "temperature": temperature})


def later(found: Sequence[Event], after: str | None) -> Sequence[Event]:
    """Return the events after the event with this id, or all events if the id is unknown."""
    ids = [event.id for event in found]
    return found[ids.index(after) + 1 :] if after in ids else found


def awaited(
    query: Callable[[], tuple[_R | None, object]],
    *,
    provider: str,
    what: str,
    sleep: Callable[[float], None],
    within_s: float,
    fix: str,
) -> _R:
    """Call `query` until it returns a record, and return that record. `query` returns `(record, state)`: the
    record is `None` until it is ready, and `state` is the host's name for its state. Raises `HostUnavailable`
    if the record is not ready after `within_s` seconds. Errors raised by `query` propagate."""
    waited, pause = 0.0, 0.5
    while True:
        found, state = query()
        if found is not None:
            return found
        if waited >= within_s:
            raise HostUnavailable(provider, f"{what} is still {state} after {duration(within_s)}", fix=fix)
        sleep(pause)
        waited, pause = waited + pause, min(10.0, pause * 1.5)


def refused(
    host: str, title: str, dataset: Dataset, reason: str, code: object, name: str | None = None
) -> DataError:
    """Build a `DataError` from a host's report of rejected rows."""
    problem = Problem(
        code=str(code).lower(),
        message=reason,
        severity=Severity.ERROR,
        providers=(host,),
        fix=f"orchestrate check --provider {host}",
        source=dataset.path,
    )
    named = f" ({name})" if name else ""
    return DataError(
        f"{title} would reject {dataset.path}{named}: {reason}", problems=[problem], fix=problem.fix
    )


def file_of(provider: str, raw: Mapping[str, Any]) -> StoredItem:
    """Parse one entry of a file list in the format that OpenAI and Together use."""
    return StoredItem(
        provider=provider,
        kind="file",
        id=str(raw["id"]),
        name=text(raw.get("filename")),
        bytes=integer(raw.get("bytes")),
        created_at=when(raw.get("created_at")),
        expires_at=when(raw.get("expires_at")),
        note=text(raw.get("purpose")),
    )
