"""OpenAI, OpenAI-compatible hosts and Azure OpenAI, through the official SDK.

`translation` and `checking` work offline, `files` uploads, `reading` turns
answers into records, `sunset` tells about the end of fine-tuning there. The SDK is imported with the first
call that needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrate import catalog
from orchestrate.catalog import HostModel, ModelOnHost
from orchestrate.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    PermissionRefused,
    TrainingClosed,
    UnexpectedAnswer,
    UsageError,
)
from orchestrate.profile import Profile
from orchestrate.providers import accounts, settings, standing
from orchestrate.providers.base import Progress, Provider
from orchestrate.providers.chat import Chat
from orchestrate.providers.compatible import connect, is_azure, wire_of
from orchestrate.providers.hosted import Wire, headers_of
from orchestrate.providers.openai import checking, reading, recalled
from orchestrate.providers.openai.files import MULTIPART_BYTES, PART_BYTES, Files
from orchestrate.providers.openai.profile import PROFILE
from orchestrate.providers.openai.sunset import closed
from orchestrate.providers.openai.translation import REF_KEY, translate
from orchestrate.providers.pages import made_since
from orchestrate.providers.settings import UNPAIRED
from orchestrate.providers.transfer import work_folder
from orchestrate.types import (
    Account,
    Billing,
    Checkpoint,
    Endpoint,
    Event,
    Feature,
    Job,
    JobHandle,
    JobStatus,
    Message,
    MetricPoint,
    Problem,
    Recalled,
    RemoteDataset,
    Reply,
    Translation,
)

if TYPE_CHECKING:
    from openai import OpenAI

    from orchestrate.config import HostConfig
    from orchestrate.data import TrainingData
    from orchestrate.spec import JobSpec

_CHAT_THREADS = 8
_REASONING = re.compile(r"(ft:)?o\d")
_HOST_CHOOSES = "OpenAI chooses how it adapts the weights, and does not say how"


class OpenAIProvider(Provider):
    """See `orchestrate.providers.base` for the contract, `.connection` for the options of a host."""

    profile: ClassVar[Profile] = PROFILE
    features: ClassVar[frozenset[Feature]] = frozenset(
        {
            Feature.SFT,
            Feature.DPO,
            Feature.RFT,
            Feature.TOOLS,
            Feature.MESSAGE_WEIGHTS,
            Feature.VISION,
            Feature.CONTINUE_FROM,
            Feature.WANDB,
            Feature.CANCEL,
            Feature.PAUSE,
            Feature.RESUME,
            Feature.DELETE,
            Feature.EVENTS,
            Feature.METRICS,
            Feature.CHECKPOINTS,
            Feature.CHAT,
        }
    )
    missing: ClassVar[Mapping[Feature, str]] = {
        Feature.KTO: f"OpenAI has no KTO; {UNPAIRED}",
        Feature.LORA: _HOST_CHOOSES,
        Feature.QLORA: _HOST_CHOOSES,
        Feature.FULL: _HOST_CHOOSES,
        Feature.REASONING: "OpenAI takes no reasoning in training rows",
        Feature.DOWNLOAD: "OpenAI does not hand out weights; train an open model elsewhere to own them",
        Feature.DEPLOY: "a tuned model answers without a deployment; `orchestrate chat` asks it",
        Feature.LIVE_PRICE: "OpenAI has no estimate endpoint; `orchestrate quote` computes the price",
    }
    sends_wandb_key: ClassVar[bool] = False
    status_map: ClassVar[Mapping[str, JobStatus]] = reading.STATUS_MAP

    def __init__(self, config: HostConfig, *, wire: Wire | None = None) -> None:
        super().__init__(config)
        self._wire = wire or wire_of(config)
        options = config.options
        self._files = Files(
            lambda: self.client,
            self._wire,
            self.target,
            multipart_bytes=int(options.get("multipart_bytes", MULTIPART_BYTES)),
            part_bytes=int(options.get("part_bytes", PART_BYTES)),
        )

    @cached_property
    def client(self) -> OpenAI:
        """The SDK's client, retries off. Raises `MissingKey`."""
        return connect(self.config)

    def close(self) -> None:
        if (client := vars(self).pop("client", None)) is not None:
            client.close()

    # -- offline -------------------------------------------------------------------------------------------

    def resolve(self, spec: JobSpec) -> ModelOnHost:
        """A host other than OpenAI is told the name as it is written; Azure, for a model of OpenAI's,
        OpenAI's id of it."""
        if self.name == self.kind:
            return super().resolve(spec)
        asked = spec.model_for(self.name)
        try:
            model = catalog.find(asked)
        except UsageError:
            return ModelOnHost(provider=self.name, id=asked)
        id = model.ids.get(self.kind, asked) if is_azure(self.config) else asked
        return ModelOnHost(provider=self.name, id=id, model=model)

    def translate(self, spec: JobSpec) -> Translation:
        return translate(self.name, spec, self.resolve(spec), (self.kind,))

    def check(self, spec: JobSpec, data: TrainingData, translation: Translation) -> list[Problem]:
        return checking.check(self, spec, data, translation)

    @property
    def prices(self) -> str:
        """A compatible host is another company, with prices of its own."""
        return str(self.config.options.get("prices", self.name))

    # -- whose jobs ----------------------------------------------------------------------------------------

    def account(self) -> Account:
        """The organization and project, which OpenAI names in the headers of its answers; it has no call that
        tells them, and a project's jobs are that project's alone. An Azure resource is its address."""
        return self._account

    @cached_property
    def _account(self) -> Account:
        if is_azure(self.config):
            return Account(id=f"resource {self.host}", told=True)
        return accounts.asked(self._ask_account, self.config, self.host)

    def _ask_account(self) -> Account | None:
        jobs = self.client.fine_tuning.jobs.with_raw_response
        try:
            headers = self._wire.read(lambda: jobs.list(limit=1)).headers
        except PermissionRefused as error:
            headers = headers_of(error.__cause__ or error)
        organization = headers.get("openai-organization")
        project = headers.get("openai-project") or self.config.project
        return accounts.told(organization=organization, project=project) if organization and project else None

    def holds(self, remote: RemoteDataset) -> bool:
        try:
            return self._wire.read(lambda: self.client.files.retrieve(remote.train_id)).id == remote.train_id
        except (NotFound, PermissionRefused):
            return False

    def recall(self, job: Job) -> Recalled:
        return recalled.of(job, lambda id: self._wire.read(lambda: self.client.files.retrieve(id)))

    # -- submitting ----------------------------------------------------------------------------------------

    def upload(
        self, spec: JobSpec, data: TrainingData, translation: Translation, *, progress: Progress | None = None
    ) -> RemoteDataset:
        folder = work_folder(self.config)
        train = self._files.bring(data.train, folder, progress)
        validation = self._files.bring(data.validation, folder, progress) if data.validation else None
        return RemoteDataset(
            provider=self.name,
            digest=data.digest,
            train_id=str(train["id"]),
            validation_id=str(validation["id"]) if validation else None,
        )

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        """As the contract says; raises `TranslationRefused` before anything is sent when a setting cannot be
        kept, and `TrainingClosed` with the dates and the way out when OpenAI takes no new jobs."""
        body = settings.body(translation) | {"training_file": remote.train_id}
        if remote.validation_id is not None:
            body["validation_file"] = remote.validation_id
        body["metadata"] = {REF_KEY: ref}
        jobs = self.client.fine_tuning.jobs
        known, further = _fields(body)
        try:
            job = self._wire.send_once(
                ref, lambda: jobs.create(**known, extra_body=further or None), lambda answer: answer.id
            )
        except TrainingClosed as error:
            raise closed(error, self.resolve(spec)) from error
        return JobHandle(provider=self.name, job_id=job.id, ref=ref)

    def find(self, ref: str) -> list[JobHandle]:
        wanted = {REF_KEY: ref}
        found = [job.handle for job in self._jobs(None, metadata=wanted) if job.handle.ref == ref]
        return list({handle.job_id: handle for handle in found}.values())

    # -- reading -------------------------------------------------------------------------------------------

    def get(self, job: JobHandle) -> Job:
        answer = self._wire.read(lambda: self.client.fine_tuning.jobs.retrieve(job.job_id))
        return self._job(answer)

    def list(self, *, since: datetime | None = None) -> Iterator[Job]:
        return self._jobs(since)

    def _jobs(self, since: datetime | None, **filters: Any) -> Iterator[Job]:
        source = self.client.fine_tuning.jobs
        pages = self._wire.pages(lambda: source.list(limit=100, **filters))
        jobs = ([self._job(answer) for answer in page.data] for page in pages)
        return made_since(jobs, _second(since) if since else None)

    def _job(self, answer: object) -> Job:
        job = reading.job_of(answer, self.name)
        if job.handle.job_id == "None":
            raise UnexpectedAnswer(self.name, "a job without an id")
        return job

    def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
        """The host lists newest first and has no order to ask for: pages are read until `after` is met."""
        newest_first: list[Event] = []
        jobs = self.client.fine_tuning.jobs
        for page in self._wire.pages(lambda: jobs.list_events(job.job_id, limit=100)):
            fresh = [reading.event_of(e) for e in page.data]
            ids = [event.id for event in fresh]
            if after is not None and after in ids:
                newest_first += fresh[: ids.index(after)]
                break
            newest_first += fresh
        return reversed(newest_first)

    def metrics(self, job: JobHandle) -> list[MetricPoint]:
        """From the metric events, which have times, and from the result file once there is one, which has all
        steps."""
        files: list[Any] = self.get(job).payload.get("result_files") or []
        found = reading.points_of_events(self.events(job))
        for file in files:
            found += reading.points_of_file(self._content(str(file)))
        return reading.merged(found)

    def _content(self, file_id: str) -> bytes:
        return self._wire.read(lambda: self.client.files.content(file_id)).content

    def checkpoints(self, job: JobHandle) -> list[Checkpoint]:
        source = self.client.fine_tuning.jobs.checkpoints
        pages = self._wire.pages(lambda: source.list(job.job_id, limit=100))
        found = [reading.checkpoint_of(c) for page in pages for c in page.data]
        return sorted(found, key=lambda checkpoint: checkpoint.step or 0)

    def billing(self) -> Billing:
        """Jobs. OpenAI asks nothing for tuned models and files that lie still; what is deployed on Azure only
        its portal lists."""
        unseen = "deployments of models on Azure, which bill by the hour: its data API has no list of them"
        return standing.of_jobs(self, *([unseen] if is_azure(self.config) else []))

    def base_models(self) -> Sequence[HostModel]:
        """The end dates are OpenAI's word. Whether it tunes a model it does not tell: that is the catalog's
        word, and for a model that the catalog does not have `unconfirmed`."""
        known = {
            model.ids.get(self.name): model.on(self.name) for model in catalog.search(provider=self.name)
        }
        pages = self._wire.pages(lambda: self.client.models.list())
        found = [reading.model_of(m, known) for page in pages for m in page.data]
        return [model for model in found if not model.id.startswith("ft:")]

    # -- acting --------------------------------------------------------------------------------------------

    def cancel(self, job: JobHandle) -> None:
        self._act(job, self.client.fine_tuning.jobs.cancel, lambda status: status.terminal)

    def pause(self, job: JobHandle) -> None:
        self._act(job, self.client.fine_tuning.jobs.pause, lambda status: status is JobStatus.PAUSED)

    def resume(self, job: JobHandle) -> None:
        going = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCEEDED)
        self._act(job, self.client.fine_tuning.jobs.resume, lambda status: status in going)

    def _act(
        self, job: JobHandle, act: Callable[[str], object], reached: Callable[[JobStatus], bool]
    ) -> None:
        """A refusal is no error when the job is where it should be."""
        try:
            self._wire.read(lambda: act(job.job_id))
        except (InvalidRequest, Conflict):
            if not reached(self.get(job).status):
                raise

    def delete(self, job: JobHandle) -> None:
        """Deletes the tuned model. OpenAI keeps the record of the job."""
        tuned = self.get(job).tuned_model
        if tuned is None:
            return
        try:
            self._wire.read(lambda: self.client.models.delete(tuned))
        except NotFound:
            return  # gone already

    # -- the tuned model -----------------------------------------------------------------------------------

    def endpoint(self, job: JobHandle) -> Endpoint | None:
        """A tuned model answers at once, without a deployment and without an hourly price; on Azure only the
        configured deployment does."""
        tuned = self._answering(self.get(job))
        if tuned is None:
            return None
        return Endpoint(
            provider=self.name,
            id=tuned,
            model=tuned,
            state="serverless",
            base_url=self.config.base_url,
            usd_per_hour=None if is_azure(self.config) else Decimal(0),
        )

    def _answering(self, job: Job) -> str | None:
        deployment = self.config.options.get("deployment")
        return str(deployment) if deployment else job.tuned_model

    def generate(
        self,
        job: JobHandle,
        prompts: Sequence[Sequence[Message]],
        *,
        base: bool = False,
        max_tokens: int = 256,
        temperature: float = 0.0,
    ) -> list[Reply]:
        chat = self.chat(job, base=base, max_tokens=max_tokens, temperature=temperature)
        return chat.replies(prompts)

    def chat(
        self, job: JobHandle, *, base: bool = False, max_tokens: int = 256, temperature: float = 0.0
    ) -> Chat:
        """Raises `UsageError` while the job has no model yet."""
        known = self.get(job)
        model = known.model if base else self._answering(known)
        if model is None:
            raise UsageError(f"job {job.job_id} has no model yet (it is {known.status})")
        # Reasoning models take neither max_tokens nor a temperature; compatible servers know max_tokens.
        limit = self.profile.chat_limit if self.name == self.kind else "max_tokens"
        options: dict[str, Any] = {limit: max_tokens}
        if not _REASONING.match(known.model or ""):
            options["temperature"] = temperature
        return Chat(self._wire, self.client.chat.completions.create, model, options, _CHAT_THREADS)


def _fields(body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the SDK's create call has a parameter for, and what goes into the body beside it."""
    from openai.types.fine_tuning import JobCreateParams

    known = JobCreateParams.__annotations__
    return (
        {name: value for name, value in body.items() if name in known},
        {name: value for name, value in body.items() if name not in known},
    )


def _second(at: datetime) -> datetime:
    """The host's times are whole seconds, so that `since` must be one too."""
    return at.astimezone(UTC).replace(microsecond=0)
