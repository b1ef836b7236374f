"""Base class of backends that use OpenAI's API through the official SDK: calls, responses and files.

Subclasses define what differs between hosts: limits, the fields of the create request, the job field that
holds the run's ref, and how tuned models are named. The first call that needs the SDK imports it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from orchestrate.data.dialects import target
from orchestrate.errors import NotFound, UnexpectedAnswer, UsageError
from orchestrate.providers import base as provider_base
from orchestrate.providers import settings
from orchestrate.providers.base import (
    Cancels,
    Deletes,
    DeletesData,
    KeepsCheckpoints,
    ListsStored,
    Measures,
    Pauses,
    Progress,
    Resumes,
)
from orchestrate.providers.calls import Unreadable, plain, redact_text, when
from orchestrate.providers.calls.clients import CachedClient, completions, connect, wire_of
from orchestrate.providers.calls.hosted import Wire, made_since
from orchestrate.providers.compatible import responses
from orchestrate.providers.compatible.files import MULTIPART_BYTES, PART_BYTES, CompatibleFiles
from orchestrate.providers.files import MOST_FILE_BYTES, fetch_by_id
from orchestrate.providers.hosted import HostedChats, HostedProvider, file_of
from orchestrate.types import (
    Checkpoint,
    Event,
    Job,
    JobHandle,
    JobRecovery,
    JobStatus,
    MetricPoint,
    RemoteDataset,
    ReportedSettings,
    Storage,
    StoredItem,
    Translation,
)

if TYPE_CHECKING:
    from openai import OpenAI

    from orchestrate.data import TrainingData
    from orchestrate.providers.chat import Chat
    from orchestrate.settings.config import HostConfig
    from orchestrate.spec import JobSpec

_CHAT_THREADS = 8
_REASONING = re.compile(r"(ft:)?o\d")


class SdkProvider(HostedProvider):
    """Backend on OpenAI's SDK. See `orchestrate.providers.base` for the interface, and
    `orchestrate.providers.calls.clients` for a host's options."""

    ready_files: ClassVar[frozenset[str]] = frozenset({"processed"})
    """The host's statuses for a file that is ready for training."""
    refused_files: ClassVar[frozenset[str]] = frozenset({"error", "deleted"})
    most_listed: ClassVar[int] = 100
    """Maximum entries per page."""

    def __init__(self, config: HostConfig, *, wire: Wire | None = None) -> None:
        super().__init__(config, wire or wire_of(config))
        self._client = CachedClient(self.connect)
        options = config.options
        self._files = CompatibleFiles(
            lambda: self.client,
            self._wire,
            target(self.name, self.profile),
            multipart_bytes=int(options.get("multipart_bytes", MULTIPART_BYTES)),
            part_bytes=int(options.get("part_bytes", PART_BYTES)),
            ready=self.ready_files,
            refused=self.refused_files,
        )

    @property
    def client(self) -> OpenAI:
        """The SDK's client, with retries disabled. Raises `MissingKey` if the key is not set."""
        return self._client()

    def connect(self) -> OpenAI:
        return connect(self.config)

    def close(self) -> None:
        self._client.close()

    def _file(self, id: str) -> dict[str, Any]:
        return plain(self._wire.read(lambda: self.client.files.retrieve(id)))

    def reported_settings(self, job: Job) -> ReportedSettings:
        return responses.reported_settings(job)

    def fetch_file(self, id: str, file: Path) -> None:
        fetch_by_id(self._wire, self.client.files, id, file, MOST_FILE_BYTES)

    def recover_job(self, job: Job) -> JobRecovery | None:
        return responses.job_recovery(job, self._file)

    # -- submitting ----------------------------------------------------------------------------------------

    def upload(
        self, spec: JobSpec, data: TrainingData, translation: Translation, *, progress: Progress | None = None
    ) -> RemoteDataset:
        return self._brought(data, self._files.bring, progress)

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        """Create the job. Raises `TranslationRefused` before anything is sent if a setting was rejected."""
        body = settings.body(translation) | {"training_file": remote.train_id}
        if remote.validation_id is not None:
            body["validation_file"] = remote.validation_id
        body |= self.tag(spec, ref)
        jobs = self.client.fine_tuning.jobs
        known, further = _fields(self.sent(body))
        job = self._wire.send_once(
            ref, lambda: jobs.create(**known, extra_body=further or None), lambda answer: answer.id
        )
        return JobHandle(provider=self.name, job_id=job.id, ref=ref)

    def tag(self, spec: JobSpec, ref: str) -> dict[str, Any]:
        """Return the fields of the create request that contain the ref, so the job can be found by it
        later."""
        del spec
        return {"metadata": {responses.REF_KEY: ref}}

    def sent(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the final request body. Subclasses override this to add fields. By default, the body is
        returned unchanged."""
        return body

    def wanted(self, ref: str) -> dict[str, Any]:
        """Return the query parameters that filter the list of jobs by this ref, or an empty dict if the host
        has no such filter."""
        return {"metadata": {responses.REF_KEY: ref}}

    def find(self, ref: str) -> list[JobHandle]:
        jobs = self._jobs(None, **self.wanted(ref))
        found = [job.handle for job in jobs if job.handle.ref == ref]
        return list({handle.job_id: handle for handle in found}.values())

    # -- reading -------------------------------------------------------------------------------------------

    def get(self, job: JobHandle) -> Job:
        answer = self._wire.read(lambda: self.client.fine_tuning.jobs.retrieve(job.job_id))
        return self._job(answer)

    def list(self, *, since: datetime | None = None) -> Iterator[Job]:
        return self._jobs(since)

    def _jobs(self, since: datetime | None, **filters: Any) -> Iterator[Job]:
        source = self.client.fine_tuning.jobs.with_raw_response
        ask = partial(source.list, limit=self.most_listed, **filters)
        pages = self._wire.pages(lambda: ListedPage(ask))
        jobs = ([self._job(answer) for answer in page.data] for page in pages)
        return made_since(jobs, _second(since) if since else None)

    def _job(self, answer: object) -> Job:
        job = responses.job_of(answer, self.name, self.profile.status)
        if job.handle.job_id == "None":
            raise UnexpectedAnswer(self.name, "a job in the list has no id")
        return job

    def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
        """Yield events, oldest first. The host lists the newest first and cannot reverse the order, so pages
        are read until `after` is found."""
        newest_first: list[Event] = []
        jobs = self.client.fine_tuning.jobs
        for page in self._wire.pages(lambda: jobs.list_events(job.job_id, limit=self.most_listed)):
            fresh = [responses.event_of(e) for e in page.data]
            ids = [event.id for event in fresh]
            if after is not None and after in ids:
                newest_first += fresh[: ids.index(after)]
                break
            newest_first += fresh
        return reversed(newest_first)

    # -- acting --------------------------------------------------------------------------------------------

    def _ask(
        self, job: JobHandle, act: Callable[[str], object], reached: Callable[[JobStatus], bool]
    ) -> None:
        self._act(job, lambda: self._wire.read(lambda: act(job.job_id)), reached)

    # -- the tuned model -----------------------------------------------------------------------------------

    def _answering(self, job: Job) -> str | None:
        """Return the name under which a tuned model can be called, or `None` while nothing answers."""
        deployment = self.config.options.get("deployment")
        return str(deployment) if deployment else job.tuned_model

    def _base(self, job: Job) -> str | None:
        """Return the name under which its base model can be called."""
        return job.model


# -- features that only some hosts have ----------------------------------------------------------------------


class SdkMeasures(SdkProvider, Measures):
    def metrics(self, job: JobHandle) -> list[MetricPoint]:
        """Return the job's metrics, merged from two sources: metric events, which have timestamps, and result
        files, which cover all steps but may not exist yet."""
        files: list[Any] = self.get(job).payload.get("result_files") or []
        found = responses.points_of_events(self.events(job))
        for file in files:
            found += responses.points_of_file(self._content(str(file)))
        return responses.merged(found)

    def _content(self, file_id: str) -> bytes:
        return self._wire.read(lambda: self.client.files.content(file_id)).content


class SdkCheckpoints(SdkProvider, KeepsCheckpoints):
    def checkpoints(self, job: JobHandle) -> list[Checkpoint]:
        source = self.client.fine_tuning.jobs.checkpoints
        pages = self._wire.pages(lambda: source.list(job.job_id, limit=self.most_listed))
        found = [responses.checkpoint_of(c) for page in pages for c in page.data]
        return sorted(found, key=lambda checkpoint: checkpoint.step or 0)


class SdkCancels(SdkProvider, Cancels):
    def cancel(self, job: JobHandle) -> None:
        """Cancel the job without checking its state first. If the job has already ended, some hosts accept
        the request and some reject it."""
        self._ask(job, self.client.fine_tuning.jobs.cancel, lambda status: status.terminal)


class SdkPauses(SdkProvider, Pauses):
    def pause(self, job: JobHandle) -> None:
        self._ask(job, self.client.fine_tuning.jobs.pause, lambda status: status is JobStatus.PAUSED)


class SdkResumes(SdkProvider, Resumes):
    def resume(self, job: JobHandle) -> None:
        going = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCEEDED)
        self._ask(job, self.client.fine_tuning.jobs.resume, lambda status: status in going)


class SdkDeletes(SdkProvider, Deletes, DeletesData, ListsStored):
    def stored(self) -> Storage:
        return provider_base.stored(self, {"files": self._stored_files, "models": self._stored_models})

    def _stored_files(self) -> Iterator[StoredItem]:
        for page in self._wire.pages(lambda: self.client.files.list()):
            yield from (file_of(self.name, plain(file)) for file in page.data)

    def _stored_models(self) -> Iterator[StoredItem]:
        """List the tuned models of the account among all models that its key can use."""
        jobs = {job.tuned_model: job.handle.job_id for job in self.list() if job.tuned_model}
        for page in self._wire.pages(lambda: self.client.models.list()):
            for model in page.data:
                if model.id.startswith("ft:") or model.id in jobs:
                    yield StoredItem(
                        provider=self.name,
                        kind="model",
                        id=model.id,
                        created_at=when(model.created),
                        job_id=jobs.get(model.id),
                    )

    def delete_stored(self, item: StoredItem) -> None:
        source = self.client.files if item.kind == "file" else self.client.models
        with suppress(NotFound):
            self._wire.read(lambda: source.delete(item.id))

    def delete_data(self, remote: RemoteDataset) -> None:
        for file in filter(None, (remote.train_id, remote.validation_id)):
            with suppress(NotFound):
                self._wire.read(lambda file=file: self.client.files.delete(file))

    def delete(self, job: JobHandle) -> None:
        """Delete the tuned model. The job's record remains."""
        tuned = self.get(job).tuned_model
        if tuned is None:
            return
        try:
            self._wire.read(lambda: self.client.models.delete(tuned))
        except NotFound:
            return  # gone already


class SdkChats(SdkProvider, HostedChats):
    @property
    def chat_limit(self) -> str:
        """Name of the host's request parameter that limits the number of tokens in a response."""
        return self.profile.chat_limit

    def chat(
        self, job: JobHandle, *, base: bool = False, max_tokens: int = 256, temperature: float = 0.0
    ) -> Chat:
        """Open a chat with the job's model. Raises `UsageError` if the job has no model yet."""
        from orchestrate.providers.chat import Chat

        known = self.get(job)
        model = self._base(known) if base else self._answering(known)
        if model is None:
            raise UsageError(f"job {job.job_id} has no model yet (status {known.status})")
        # Reasoning models accept neither max_tokens nor temperature.
        options: dict[str, Any] = {self.chat_limit: max_tokens}
        if not _REASONING.match(known.model or ""):
            options["temperature"] = temperature
        return Chat(self._wire, completions(self.client, self.config), model, options, _CHAT_THREADS)


def _fields(body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split fields into those for which the SDK's create call has a parameter and those that go into the
    body beside them."""
    from openai.types.fine_tuning import JobCreateParams

    known = JobCreateParams.__annotations__
    return (
        {name: value for name, value in body.items() if name in known},
        {name: value for name, value in body.items() if name not in known},
    )


def _second(at: datetime) -> datetime:
    """Truncate to whole seconds like the host's times, so that `since` compares correctly."""
    return at.astimezone(UTC).replace(microsecond=0)


# -- lists -------------------------------------------------------------------------------------------------
# A list of the API, read page by page as plain JSON. The SDK's own pages create an object for each field of
# each entry, which takes 40% of the time of listing 10,000 jobs.


class ListedPage:
    """One page of a paginated list, with the entries in `data`."""

    def __init__(self, ask: Callable[..., Any], after: str | None = None) -> None:
        """Request a page. `ask` is a list method of `with_raw_response` that accepts `after`. Raises
        `Unreadable`. Errors of the SDK propagate."""
        self._ask = ask
        text: str = (ask() if after is None else ask(after=after)).text
        try:
            body: Any = json.loads(text)
        except ValueError:
            raise Unreadable(
                f"expected one page of a paginated list, got {redact_text(text)[:120]!r}"
            ) from None
        found = plain(body).get("data")
        if not isinstance(found, list):
            raise Unreadable(f"expected a list, got {redact_text(str(body))[:120]}")
        self.data = cast("list[object]", found)
        self._more = body.get("has_more") is not False

    def has_next_page(self) -> bool:
        return self._more and self.next_page_info() is not None

    def next_page_info(self) -> str | None:
        found = plain(self.data[-1]).get("id") if self.data else None
        return found if isinstance(found, str) else None

    def get_next_page(self) -> ListedPage:
        return ListedPage(self._ask, self.next_page_info())
