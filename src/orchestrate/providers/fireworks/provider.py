"""Backend `fireworks`. See `orchestrate.providers.base` for the interface.

- The caller chooses the job id. Orchestrate uses the run's ref as the id. If a create request is sent
  twice, the host rejects the second (409), and the job is found by its name.
- `JobHandle.kind` is the host's collection that contains the job: supervised, dpo or reinforcement.
- For managed jobs, the host stores no events and lists no checkpoints."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from orchestrate.data.dialects import target
from orchestrate.errors import Conflict, NotFound, OutcomeUnknown, QuotaExceeded, UsageError
from orchestrate.profile import Profile
from orchestrate.providers import base as accounts
from orchestrate.providers import files, offline, settings
from orchestrate.providers.base import (
    Cancels,
    Deletes,
    DeletesData,
    Downloads,
    EstimatesPrice,
    ListsModels,
    ListsStored,
    Measures,
    Progress,
    Resumes,
    ShowsRows,
    TakesAdapters,
)
from orchestrate.providers.calls import items, table, text, when
from orchestrate.providers.calls.hosted import Retry, Wire, made_since
from orchestrate.providers.fireworks import PROFILE, responses
from orchestrate.providers.fireworks.connection import PAGE, Connection, FireworksDatasetFiles, Weights
from orchestrate.providers.fireworks.deployments import FireworksAdapters, FireworksDeployments, TunedPair
from orchestrate.providers.fireworks.responses import ID_PARAMETER, KINDS, state_of
from orchestrate.providers.fireworks.translation import (
    fill_steps,
    job_id_of,
    needs_steps,
    output_model,
    translate,
)
from orchestrate.providers.hosted import DedicatedProvider, later, named_account
from orchestrate.providers.settings import UNPAIRED
from orchestrate.settings.config import HostConfig
from orchestrate.types import (
    ADAPTER_JOB,
    Account,
    Artifact,
    BilledResource,
    Billing,
    Endpoint,
    Event,
    Feature,
    Job,
    JobHandle,
    JobRecovery,
    JobStatus,
    MetricPoint,
    Quote,
    RemoteDataset,
    ReportedSettings,
    Storage,
    StoredItem,
    Translation,
)

if TYPE_CHECKING:
    from fireworks import Fireworks

    from orchestrate.catalog import HostModel
    from orchestrate.data import TrainingData
    from orchestrate.data.operations.preview import RowTokens
    from orchestrate.spec import JobSpec

_KIND_OF = {"sft": "supervised", "dpo": "dpo", "rft": "reinforcement"}


class FireworksProvider(
    DedicatedProvider[TunedPair],
    TakesAdapters,
    Downloads,
    Cancels,
    Measures,
    ShowsRows,
    Resumes,
    Deletes,
    DeletesData,
    ListsStored,
    EstimatesPrice,
    ListsModels,
):
    profile: ClassVar[Profile] = PROFILE
    features = frozenset(Feature) - {
        Feature.KTO,
        Feature.QLORA,
        Feature.FULL,
        Feature.PAUSE,
        Feature.CHECKPOINTS,
    }
    missing: ClassVar[Mapping[Feature, str]] = {
        Feature.KTO: f"Fireworks does not support KTO. {UNPAIRED}",
        Feature.QLORA: "Fireworks does not publish its base models' precision, so qlora is trained as LoRA",
        Feature.FULL: "Fireworks' managed jobs train LoRA adapters only",
        Feature.PAUSE: "Fireworks cannot pause a job, only cancel it",
        Feature.CHECKPOINTS: "Fireworks does not list checkpoints of managed jobs. Download the final model",
    }
    file_id = "name"

    def __init__(self, config: HostConfig, *, sleep: Callable[[float], None] = time.sleep) -> None:
        codes = {"quota_exceeded": QuotaExceeded}
        super().__init__(config, Wire(config.name, codes=codes, retry=Retry.of(config), sleep=sleep))
        self._at = Connection(config, self._wire)
        at = self._at
        self._datasets = FireworksDatasetFiles(
            at.client, at.plain, at.account, self._wire, target(self.name, PROFILE), sleep=sleep
        )
        self._weights = Weights(at.client, at.plain, self._wire)
        self._serving = FireworksDeployments(self.name, at.client, at.account, self._wire, at.inference_url)
        self._adapters = FireworksAdapters(at, self._wire, self._serving, sleep)

    # -- offline -------------------------------------------------------------------------------------------

    def translate(self, spec: JobSpec) -> Translation:
        return translate(spec, self.name)

    # -- the account -----------------------------------------------------------------------------------------

    def _query_account(self) -> Account | None:
        return named_account(account=self._at.seen_account())

    def _file(self, id: str) -> dict[str, Any]:
        """Return a file by its resource name, in this account alone."""
        prefix, _, dataset_id = id.rpartition("/")
        mine = prefix == f"accounts/{self._at.account()}/datasets"
        return (self._datasets.get(dataset_id) if mine else None) or {}

    def recover_job(self, job: Job) -> JobRecovery:
        return responses.job_recovery(job, self._datasets.get)

    # -- submitting ----------------------------------------------------------------------------------------

    def reported_settings(self, job: Job) -> ReportedSettings:
        return responses.reported_settings(job)

    def fetch_file(self, id: str, file: Path) -> None:
        self._datasets.fetch(id, file)

    def upload(
        self, spec: JobSpec, data: TrainingData, translation: Translation, *, progress: Progress | None = None
    ) -> RemoteDataset:
        settings.body(translation)  # a spec that cannot be sent is refused before its data are

        def details(train: dict[str, Any], _: object) -> dict[str, Any]:
            return {"examples": train.get("exampleCount"), "tokens": train.get("estimatedTokenCount")}

        validates = spec.method.type != "dpo"
        return self._brought(data, self._datasets.bring, progress, details, validates=validates)

    def live_price(self, spec: JobSpec, remote: RemoteDataset, translation: Translation) -> Quote:
        """Return the host's price estimate, which is only available for SFT jobs."""
        model = translation.model
        if spec.method.type != "sft":
            reason = "Fireworks estimates prices only for SFT jobs"
            return Quote(provider=self.name, model=model, unavailable=reason)
        body = self._filled(spec, remote, translation)
        path = f"/v1/accounts/{self._at.account()}/supervisedFineTuningJobs:estimateCost"
        client = self._at.client()
        answer = table(self._wire.read(lambda: client.post(path, body=body, cast_to=object), expect=dict))
        return responses.estimate(self.name, model, answer)

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        kind = _KIND_OF[spec.method.type]
        body = self._filled(spec, remote, translation)
        if spec.suffix is not None:
            place = body if kind == "supervised" else body.setdefault("trainingConfig", {})
            place["outputModel"] = output_model(spec.suffix, ref)
        if spec.wandb is not None:
            body["wandbConfig"]["apiKey"] = offline.wandb_key(self.config)
        job_id = job_id_of(ref)
        path, client = f"/v1/accounts/{self._at.account()}/{KINDS[kind]}", self._at.client()
        try:
            self._wire.send_once(
                ref,
                lambda: client.post(
                    path,
                    body=body,
                    cast_to=object,
                    # Following a redirect would send the POST twice.
                    options={"params": {ID_PARAMETER[kind]: job_id}, "follow_redirects": False},
                ),
                lambda job: job_id if text(table(job).get("name")) else None,
            )
        except Conflict as error:
            raise OutcomeUnknown(self.name, ref, "the host already has a job with this id") from error
        return JobHandle(provider=self.name, job_id=job_id, ref=ref, kind=kind)

    def find(self, ref: str) -> list[JobHandle]:
        """Find jobs by name, with one request to each of the three collections."""
        job_id = job_id_of(ref)
        found: list[JobHandle] = []
        for kind in KINDS:
            with suppress(NotFound):
                self._at.job(kind, job_id)
                found.append(JobHandle(provider=self.name, job_id=job_id, ref=ref, kind=kind))
        return found

    # -- reading -------------------------------------------------------------------------------------------

    def get(self, job: JobHandle) -> Job:
        raw, kind = self._at.find(job)
        return responses.job_of(raw, kind, job.ref, self.name)

    def list(self, *, since: datetime | None = None) -> Iterator[Job]:
        def age(job: Job) -> float:
            return -job.created_at.timestamp() if job.created_at else 0.0

        yield from heapq.merge(*(self._list(kind, since) for kind in KINDS), key=age)

    def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
        """Derive events from the job's state and progress, because the host stores no events."""
        raw, _ = self._at.find(job)
        yield from later(responses.events_of(raw), after)

    def billing(self) -> Billing:
        return accounts.joined(
            self,
            {"jobs": lambda: accounts.jobs(self), "deployments": self.deployments},
            "training clusters, batch jobs and reserved capacity",
        )

    def base_models(self) -> Sequence[HostModel]:
        client = self._at.client()
        pages = self._wire.pages(lambda: client.models.list(account_id="fireworks", page_size=PAGE))
        return responses.models_of(row for page in pages for row in items(page))

    def metrics(self, job: JobHandle) -> list[MetricPoint]:
        """Read the host's metrics file. Returns an empty list until the file exists."""
        raw, kind = self._at.find(job)
        url = text(raw.get("metricsFileSignedUrl"))
        try:
            if kind != "supervised":
                path = f"{self._at.path(kind, job.job_id)}:getMetricsFileEndpoint"
                client = self._at.client()
                answer = self._wire.read(lambda: client.get(path, cast_to=object), expect=dict)
                url = text(table(answer).get("signedUrl"))
        except NotFound:
            return []
        return responses.metrics_of(self._at.lines(url))

    def rendered(self, job: JobHandle) -> Sequence[RowTokens]:
        """Return up to 20 rows of an SFT job. The host writes them after the job has ended."""
        raw, _ = self._at.find(job)
        return responses.rendered_of(self._at.lines(text(raw.get("renderSamplesSignedUrl"))))

    # -- acting --------------------------------------------------------------------------------------------

    def _status(self, job: JobHandle) -> JobStatus:
        return PROFILE.status(state_of(self._at.find(job)[0].get("state")))

    def cancel(self, job: JobHandle) -> None:
        self._cancel(job, lambda: self._at.act(self._at.kind(job), job.job_id, "cancel"))

    def resume(self, job: JobHandle) -> None:
        """Resume a paused job. Raises an error for a job that has ended, because the host would restart it
        under the same id and bill it again without a quote."""
        raw, kind = self._at.find(job)
        status = PROFILE.status(state_of(raw.get("state")))
        if status.terminal or status is JobStatus.CANCELLING:
            raise UsageError(
                f"job {job.job_id} has ended ({raw.get('state')}). A restart would be billed "
                "again, in addition to the price you confirmed",
                fix="submit a new run",
            )
        if status is not JobStatus.PAUSED:
            return
        self._at.act(kind, job.job_id, "resume")

    def delete_data(self, remote: RemoteDataset) -> None:
        for dataset in filter(None, (remote.train_id, remote.validation_id)):
            self._datasets.delete(dataset.rsplit("/", 1)[-1])

    def stored(self) -> Storage:
        return accounts.stored(
            self, {"datasets": self._datasets.stored, "models": self._stored_models}, "their sizes"
        )

    def _stored_models(self) -> Iterator[StoredItem]:
        client, account = self._at.client(), self._at.account()
        for page in self._wire.pages(
            lambda: client.models.list(account_id=account, page_size=PAGE), omits_empty=True
        ):
            for raw in items(page):
                job = text(raw.get("fineTuningJob"))
                yield StoredItem(
                    provider=self.name,
                    kind="model",
                    id=str(raw["name"]),
                    name=text(raw.get("displayName")),
                    created_at=when(raw.get("createTime")),
                    job_id=responses.id_of(job) if job else None,
                )

    def delete_stored(self, item: StoredItem) -> None:
        id = responses.id_of(item.id)
        if item.kind == "file":
            self._datasets.delete(id)
            return
        client, account = self._at.client(), self._at.account()
        with suppress(NotFound):
            self._wire.read(lambda: client.models.delete(id, account_id=account), expect=object)

    def delete(self, job: JobHandle) -> None:
        """Delete the tuned model and then the job. The host does not delete the model along with its job."""
        with suppress(NotFound):
            raw, kind = self._at.find(job)
            path, client = self._at.path(kind, job.job_id), self._at.client()
            if PROFILE.status(state_of(raw.get("state"))) is JobStatus.SUCCEEDED:
                model, account = responses.id_of(responses.tuned_model(raw)), self._at.account()
                with suppress(NotFound):
                    self._wire.read(lambda: client.models.delete(model, account_id=account), expect=object)
            self._wire.read(lambda: client.delete(path, cast_to=object), expect=object)

    # -- the tuned model -----------------------------------------------------------------------------------

    def download(
        self, job: JobHandle, dest: Path, *, checkpoint: str | None = None, progress: Progress | None = None
    ) -> Artifact:
        """Download the final model, file by file over signed URLs. Complete files are not fetched again."""
        if checkpoint is not None:
            raise UsageError(f"{PROFILE.title}: {self.missing[Feature.CHECKPOINTS]}")
        files.require_empty(dest)
        raw, _ = self._at.find(job)
        model = self._tuned(job, raw)
        base = text(responses.settings_of(raw).get("baseModel"))

        def fetch(folder: Path, most: int) -> None:
            self._weights.fetch(model, folder, most, progress)

        return self._downloaded(job, dest, job.job_id, base, fetch)

    @property
    def _deployments(self) -> FireworksDeployments:
        return self._serving

    def _to_deploy(self, job: JobHandle) -> TunedPair:
        raw = self._made_by(job)
        return TunedPair(self._tuned(job, raw), text(responses.settings_of(raw).get("baseModel")) or "")

    def deployed(self, job: JobHandle) -> Sequence[BilledResource]:
        return self._serving.deployed(job.job_id)

    def endpoint(self, job: JobHandle) -> Endpoint | None:
        raw = self._made_by(job)
        return self._serving.find(job.job_id, responses.tuned_model(raw))

    def adapters(self) -> FireworksAdapters:
        return self._adapters

    def _name_of(self, job: JobHandle, *, base: bool) -> str:
        raw = self._made_by(job)
        tuned = responses.tuned_model(raw)
        named = responses.settings_of(raw).get("baseModel")
        return str(named) if base else self._serving.model_of(job.job_id, tuned)

    def _inference(self) -> Fireworks:
        return self._at.client().with_options(base_url=self._at.inference_url)

    def close(self) -> None:
        self._at.close()

    # -- own -----------------------------------------------------------------------------------------------

    def _filled(self, spec: JobSpec, remote: RemoteDataset, translation: Translation) -> dict[str, Any]:
        """Return the body with the datasets and with the settings that are counted in steps."""
        body = settings.body(translation) | {"dataset": remote.train_id}
        if remote.validation_id is not None and spec.method.type != "dpo":
            body["evaluationDataset"] = remote.validation_id
        place = cast("dict[str, Any]", responses.settings_of(body))
        warm = text(place.get("warmStartFrom"))
        if warm is not None and not warm.startswith("accounts/"):
            place["warmStartFrom"] = f"accounts/{self._at.account()}/models/{warm}"
        if needs_steps(spec):
            examples = remote.details.get("examples") or self._datasets.examples(remote.train_id)
            fill_steps(body, spec, int(examples or 1))
        return body

    def _list(self, kind: str, since: datetime | None) -> Iterator[Job]:
        pages = (
            [responses.job_of(raw, kind, None, self.name) for raw in page] for page in self._at.pages(kind)
        )
        return made_since(pages, since)

    def _tuned(self, job: JobHandle, raw: Mapping[str, Any]) -> str:
        if PROFILE.status(state_of(raw.get("state"))) is not JobStatus.SUCCEEDED:
            raise UsageError(
                f"{job.job_id} has no model yet (state {raw.get('state')})", fix="wait until the job succeeds"
            )
        return responses.tuned_model(raw)

    def _made_by(self, job: JobHandle) -> dict[str, Any]:
        """Return the job of a tuned model, or an uploaded adapter in the form of a job."""
        return self._adapters.as_job(job.job_id) if job.kind == ADAPTER_JOB else self._at.find(job)[0]
