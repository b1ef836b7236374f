"""Backend `together`. See `orchestrate.providers.base` for the interface.

- Reads use the SDK's methods. Creating a job does not use `fine_tuning.create`, which sends three requests
  and accepts no request options. Instead, the SDK's client sends the same body in a single POST.
- A job's ref is sent in `suffix`, after the user's suffix (`<suffix>-<ref>`, at most 40 characters). The host
  returns it in `suffix` and in `model_output_name`.
- `live_price` queries the host's estimate and raises an error if it exceeds the account's limit. Call it
  between `upload` and `create`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from orchestrate.core import require_recent
from orchestrate.core.files import new_folder
from orchestrate.data import Dataset
from orchestrate.data.dialects import target
from orchestrate.data.rules import RowTarget
from orchestrate.errors import ArtifactRefused, NotFound, UnexpectedAnswer, UsageError
from orchestrate.profile import Profile
from orchestrate.providers import base as accounts
from orchestrate.providers import files as archives
from orchestrate.providers import offline, settings
from orchestrate.providers.base import (
    Cancels,
    Deletes,
    DeletesData,
    Downloads,
    EstimatesPrice,
    KeepsCheckpoints,
    ListsModels,
    ListsStored,
    Measures,
    Progress,
    TakesAdapters,
)
from orchestrate.providers.calls import items, plain, ref_in, rows, table, tagged, text
from orchestrate.providers.calls.clients import CachedClient
from orchestrate.providers.calls.hosted import Retry, Wire
from orchestrate.providers.hosted import DedicatedProvider, awaited, file_of, later, named_account, refused
from orchestrate.providers.settings import UNPAIRED
from orchestrate.providers.together import PROFILE, responses
from orchestrate.providers.together.deployments import TogetherAdapters, TogetherDeployments
from orchestrate.providers.together.translation import NO_RFT, default_rank, require_limits, tag, translate
from orchestrate.settings.config import HostConfig
from orchestrate.types import (
    ADAPTER_JOB,
    Account,
    Artifact,
    ArtifactFile,
    Billing,
    Checkpoint,
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
    from together import Together

    from orchestrate.catalog import HostModel
    from orchestrate.data import TrainingData
    from orchestrate.spec import JobSpec

# -- uploads and downloads -------------------------------------------------------------------------------
# Each dataset is one file, named after its digest. A tuned model is downloaded as one archive.


BAD = ("FAILED", "INVALID_FORMAT")
DONE = ("COMPLETED", None)
"""Statuses of files that are ready. `None` is the status of old files, which Together did not validate."""
WAIT_S = 1800.0


class TogetherUploads:
    def __init__(
        self,
        client: Callable[[], Together],
        wire: Wire,
        target: RowTarget,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._wire = wire
        self._target = target
        self._sleep = sleep

    def bring(self, dataset: Dataset, folder: Path, progress: Progress | None) -> dict[str, Any]:
        """Upload the file and return the host's record once the file is ready for training.

        Reuses an earlier upload if its name contains the dataset's digest. If the host rejects the file,
        raises `DataError` with the host's report."""
        path = dataset.write(self._target, folder)
        found = self._known(path) or self._send(path, progress)
        return self._ready(found, dataset)

    def get(self, file_id: str) -> dict[str, Any]:
        return plain(self._wire.read(lambda: self._client().files.retrieve(file_id)))

    def _known(self, path: Path) -> dict[str, Any] | None:
        listed = self._wire.entries(lambda: self._client().files.list(), "data")
        same = (
            f
            for f in listed
            if f.get("filename") == path.name
            and f.get("bytes") == path.stat().st_size
            and f.get("processing_status") not in BAD
        )
        return next(same, None)

    def _send(self, path: Path, progress: Progress | None) -> dict[str, Any]:
        def report(event: Any) -> None:
            if progress is not None:
                progress(event.uploaded_bytes, event.total_bytes)

        # Skip the SDK's check: the rows were already checked when they were read. If a file is sent twice,
        # the host recognizes its checksum (409), and the SDK returns the first upload.
        def send() -> Any:
            return self._client().files.upload(
                path, purpose="fine-tune", check=False, progress_callback=report
            )

        return plain(self._wire.read(send))

    def _ready(self, file: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
        file_id = str(file["id"])

        def query() -> tuple[dict[str, Any] | None, object]:
            found = self.get(file_id)
            status, report = text(found.get("processing_status")), table(found.get("validation_report"))
            if status in BAD or (status in DONE and report.get("valid") is False):
                reason = text(report.get("error")) or f"validation ended with {status}"
                code = report.get("error_type") or status or "INVALID_FORMAT"
                raise refused("together", "Together", dataset, reason, code, text(found.get("id")))
            return (found if status in DONE else None), f"being validated ({status})"

        return awaited(
            query,
            provider="together",
            what=file_id,
            sleep=self._sleep,
            within_s=WAIT_S,
            fix="submit again later. Orchestrate reuses the uploaded file",
        )


def fetch_weights(
    wire: Wire,
    content: Callable[..., object],
    job_id: str,
    query: Mapping[str, Any],
    dest: Path,
    *,
    limit_bytes: int,
    progress: Progress | None,
) -> tuple[ArtifactFile, ...]:
    """Download a job's weights and unpack them into `dest`. `content` is the SDK's download method, and
    `query` selects the checkpoint. A partial download is kept next to `dest`, and a later call resumes it."""

    def opened(headers: dict[str, str]) -> AbstractContextManager[archives.DownloadStream]:
        stream = content(ft_id=job_id, extra_headers=headers, **query)
        return cast("AbstractContextManager[archives.DownloadStream]", stream)

    words = "-".join(str(v) for v in query.values())
    waiting = new_folder(dest.parent) / f".{dest.name}.{job_id}-{words}.download"
    archive = waiting / "archive"
    archives.fetch(wire, opened, archive, limit_bytes=limit_bytes, progress=progress)
    try:
        files = archives.unpack(archive, dest, limits=archives.DownloadLimits(total_bytes=limit_bytes))
    except ArtifactRefused:
        shutil.rmtree(waiting)  # kept only where the fault is on this side, such as a full disk
        raise
    shutil.rmtree(waiting)
    return files


# -- the backend -----------------------------------------------------------------------------------------


class TogetherProvider(
    DedicatedProvider[dict[str, Any]],
    TakesAdapters,
    Downloads,
    Cancels,
    Measures,
    KeepsCheckpoints,
    Deletes,
    DeletesData,
    ListsStored,
    EstimatesPrice,
    ListsModels,
):
    profile: ClassVar[Profile] = PROFILE
    features = frozenset(Feature) - {Feature.KTO, Feature.RFT, Feature.QLORA, Feature.PAUSE, Feature.RESUME}
    missing: ClassVar[Mapping[Feature, str]] = {
        Feature.KTO: f"Together does not support KTO. {UNPAIRED}",
        Feature.RFT: NO_RFT,
        Feature.QLORA: "Together does not publish its base models' precision, so qlora is trained as LoRA",
        Feature.PAUSE: "Together cannot pause a job",
        Feature.RESUME: "Together cannot resume a job. Start a new one from a checkpoint (continue_from)",
    }

    def __init__(self, config: HostConfig, *, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(config, Wire(config.name, retry=Retry.of(config), sleep=sleep))
        self._client = CachedClient(self._connect)
        self._limits: dict[str, dict[str, Any]] = {}
        self._files = TogetherUploads(self._client, self._wire, target(self.name, PROFILE), sleep=sleep)
        self._serving = TogetherDeployments(
            self.name, self._client, self._wire, config.project, self._inference_url
        )
        self._adapters = TogetherAdapters(self.name, self._client, self._wire, self._serving)

    # -- offline -------------------------------------------------------------------------------------------

    def translate(self, spec: JobSpec) -> Translation:
        return translate(spec, self.name)

    # -- account -------------------------------------------------------------------------------------------

    def _query_account(self) -> Account | None:
        who = plain(self._wire.read(lambda: self._client().whoami()))
        project = text(table(who.get("project")).get("id")) or self.config.project
        organization = text(table(who.get("organization")).get("id"))
        if organization is None:
            return named_account(user=text(table(who.get("user")).get("id")))
        return named_account(organization=organization, project=project)

    def _file(self, id: str) -> dict[str, Any]:
        return self._files.get(id)

    def recover_job(self, job: Job) -> JobRecovery | None:
        return responses.job_recovery(job, self._file)

    def reported_settings(self, job: Job) -> ReportedSettings:
        return responses.reported_settings(job)

    def fetch_file(self, id: str, file: Path) -> None:
        archives.fetch_by_id(self._wire, self._client().files, id, file, archives.MOST_FILE_BYTES)

    # -- submitting ----------------------------------------------------------------------------------------

    def upload(
        self, spec: JobSpec, data: TrainingData, translation: Translation, *, progress: Progress | None = None
    ) -> RemoteDataset:
        """Upload the files after checking the model's limits, so nothing is sent for a job that would be
        rejected."""
        body = settings.body(translation)
        require_limits(body, self._model_limits(body), data)

        def details(train: dict[str, Any], validation: dict[str, Any] | None) -> dict[str, Any]:
            kept = {"train": train, "validation": validation or {}}
            return {split: table(file.get("validation_report")) for split, file in kept.items()}

        return self._brought(data, self._files.bring, progress, details)

    def live_price(self, spec: JobSpec, remote: RemoteDataset, translation: Translation) -> Quote:
        """Return the host's own estimate. Raises `QuotaExceeded` if it exceeds the account's limit."""
        body = self._filled(translation, remote)
        request = responses.estimated(body)
        answer = plain(self._wire.read(lambda: self._client().fine_tuning.estimate_price(**request)))
        model = str(request.get("model") or request.get("from_checkpoint"))
        return responses.estimate(self.name, model, answer)

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        from together.types import FinetuneResponse

        body = self._filled(translation, remote)
        body["suffix"] = tag(spec.suffix, ref)
        if spec.wandb is not None:
            body["wandb_key"] = offline.wandb_key(self.config)
            if (server := self.config.options.get("wandb_base_url")) is not None:
                body["wandb_base_url"] = server
        client = self._client()
        answer = self._wire.send_once(
            ref,
            lambda: client.post(
                "/v1/fine-tunes",
                body=body,
                cast_to=FinetuneResponse,
                options={"follow_redirects": False},  # a redirected POST is a second POST
            ),
            lambda job: text(plain(job).get("id")),
        )
        return JobHandle(provider=self.name, job_id=str(plain(answer)["id"]), ref=ref)

    def find(self, ref: str) -> list[JobHandle]:
        return [
            JobHandle(provider=self.name, job_id=str(raw["id"]), ref=ref)
            for raw in self._raw_jobs()
            if tagged(ref, raw.get("suffix"), raw.get("model_output_name"))
        ]

    # -- reading -------------------------------------------------------------------------------------------

    def get(self, job: JobHandle) -> Job:
        raw = self._raw_job(job)
        return responses.job_of(raw, job.ref or _ref(raw), self.name)

    def list(self, *, since: datetime | None = None) -> Iterator[Job]:
        """List the jobs with a single request, because the host does not paginate this list."""
        jobs = [responses.job_of(raw, _ref(raw), self.name) for raw in self._raw_jobs()]
        for job in sorted(
            jobs, key=lambda j: j.created_at.timestamp() if j.created_at else 0.0, reverse=True
        ):
            if since is None or job.created_at is None or job.created_at >= since:
                yield job

    def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
        listed = self._wire.entries(lambda: self._client().fine_tuning.list_events(job.job_id), "data")
        yield from later(responses.events_of(listed), after)

    def billing(self) -> Billing:
        return accounts.joined(
            self,
            {"jobs": lambda: accounts.jobs(self), "endpoints": self.deployments},
            "GPU clusters and their volumes",
        )

    def base_models(self) -> Sequence[HostModel]:
        client = self._client()
        pages = self._wire.pages(lambda: client.models.list_supported(product="PRODUCT_FINE_TUNING"))
        return responses.models_of(row for page in pages for row in items(page))

    def metrics(self, job: JobHandle) -> list[MetricPoint]:
        metrics = self._client().fine_tuning.list_metrics
        return responses.metrics_of(self._wire.entries(lambda: metrics(job.job_id), "metrics"))

    def checkpoints(self, job: JobHandle) -> list[Checkpoint]:
        checkpoints = self._client().fine_tuning.list_checkpoints
        return responses.checkpoints_of(
            self._wire.entries(lambda: checkpoints(job.job_id), "data"), job.job_id
        )

    def preview(
        self, spec: JobSpec, remote: RemoteDataset, *, rows_shown: int = 3
    ) -> list[responses.TokenMask]:
        """Return how the host tokenizes the first rows of an SFT job, and which tokens contribute to the
        loss."""
        from together import omit

        body = self._filled(self.translate(spec), remote)
        method = table(body.get("training_method"))
        if method.get("method") != "sft" or "model" not in body:
            raise UsageError("Together previews rows only for SFT of a base model")
        inputs = method.get("train_on_inputs")
        answer = self._wire.read(
            lambda: self._client().fine_tuning.preview(
                model=str(body["model"]),
                training_file=remote.train_id,
                top_k=rows_shown,
                training_method="sft",
                train_on_inputs=inputs if isinstance(inputs, bool) else omit,
            )
        )
        return responses.masks_of(rows(plain(answer).get("rows")))

    # -- acting --------------------------------------------------------------------------------------------

    def _status(self, job: JobHandle) -> JobStatus:
        return PROFILE.status(text(self._raw_job(job).get("status")))

    def cancel(self, job: JobHandle) -> None:
        cancel = self._client().fine_tuning.cancel
        self._cancel(job, lambda: self._wire.read(lambda: cancel(job.job_id)))

    def delete_data(self, remote: RemoteDataset) -> None:
        for file in filter(None, (remote.train_id, remote.validation_id)):
            with suppress(NotFound):
                self._wire.read(lambda file=file: self._client().files.delete(file))

    def stored(self) -> Storage:
        return accounts.stored(
            self,
            {"files": self._stored_files, "models": self._stored_models},
            "individual checkpoints, which Together deletes along with their job's model",
        )

    def _stored_files(self) -> Iterator[StoredItem]:
        listed = self._wire.entries(lambda: self._client().files.list(), "data")
        return (file_of(self.name, raw) for raw in listed)

    def _stored_models(self) -> Iterator[StoredItem]:
        for job in self.list():
            if job.tuned_model:
                yield StoredItem(
                    provider=self.name,
                    kind="model",
                    id=job.tuned_model,
                    created_at=job.finished_at or job.created_at,
                    job_id=job.handle.job_id,
                    note=f"tuned from {job.model}" if job.model else None,
                )

    def delete_stored(self, item: StoredItem) -> None:
        """Delete a stored file or model. The host deletes a model together with its job."""
        with suppress(NotFound):
            if item.kind == "file":
                self._wire.read(lambda: self._client().files.delete(item.id))
            else:
                self._wire.read(lambda: self._client().fine_tuning.delete(item.job_id or item.id))

    def delete(self, job: JobHandle) -> None:
        """Delete the job and its checkpoints on the host."""
        with suppress(NotFound):
            self._wire.read(lambda: self._client().fine_tuning.delete(job.job_id))

    # -- the tuned model -----------------------------------------------------------------------------------

    def download(
        self, job: JobHandle, dest: Path, *, checkpoint: str | None = None, progress: Progress | None = None
    ) -> Artifact:
        """Download the weights. `checkpoint` is an id from `checkpoints` (`12:adapter`), a step, `adapter` or
        `merged`. The default is the final adapter of a LoRA job, or the final weights of a full fine-tuning
        job."""
        archives.require_empty(dest)
        raw = self._raw_job(job)
        full = table(raw.get("training_type")).get("type") == "Full"
        query = responses.selection(checkpoint, full)
        content = self._client().fine_tuning.with_streaming_response.content
        base = text(raw.get("model"))
        files = fetch_weights(
            self._wire,
            content,
            job.job_id,
            query,
            dest,
            limit_bytes=self._most_bytes(base),
            progress=progress,
        )
        return self._artifact(job, dest, files, base, full=full)

    @property
    def _deployments(self) -> TogetherDeployments:
        return self._serving

    def _to_deploy(self, job: JobHandle) -> dict[str, Any]:
        return self._raw_job(job)

    def endpoint(self, job: JobHandle) -> Endpoint | None:
        return self._serving.find(job.job_id)

    def adapters(self) -> TogetherAdapters:
        return self._adapters

    def _name_of(self, job: JobHandle, *, base: bool) -> str:
        return str(self._raw_job(job).get("model")) if base else self._serving.model_of(job.job_id)

    def _inference(self) -> Together:
        return self._client().with_options(base_url=self._inference_url)

    def close(self) -> None:
        self._client.close()

    # -- own -----------------------------------------------------------------------------------------------

    def _connect(self) -> Together:
        require_recent("together")
        from together import Together

        return Together(
            api_key=self.config.require_key().reveal(),
            base_url=self.config.base_url or PROFILE.url,
            project_id=self.config.project,
            timeout=self.config.timeout_s,
            max_retries=0,
        )

    @property
    def _inference_url(self) -> str:
        """The URL for chats. The real host answers them under another name, any other server under its
        own."""
        base = self.config.base_url or PROFILE.url or ""
        return PROFILE.chat_url or base if base == PROFILE.url else base

    def _filled(self, translation: Translation, remote: RemoteDataset) -> dict[str, Any]:
        """Return the body with the files, and with the rank that the host requires beside any other LoRA
        setting."""
        body = settings.body(translation) | {"training_file": remote.train_id}
        if remote.validation_id is not None:
            body["validation_file"] = remote.validation_id
        lora = table(body.get("training_type"))
        if lora.get("type") == "Lora" and not {"lora_r", "lora_alpha"} <= lora.keys():
            rank = lora.setdefault("lora_r", default_rank(self._model_limits(body)))
            lora.setdefault("lora_alpha", 2 * rank)
        return body

    def _model_limits(self, body: Mapping[str, Any]) -> dict[str, Any]:
        model = str(body.get("model") or str(body["from_checkpoint"]).split(":", 1)[0])
        if model not in self._limits:
            self._limits[model] = plain(
                self._wire.read(lambda: self._client().fine_tuning.model_limits(model_name=model))
            )
        return self._limits[model]

    def _raw_job(self, job: JobHandle) -> dict[str, Any]:
        if job.kind == ADAPTER_JOB:
            return self._adapters.as_job(job.job_id)
        raw = plain(self._wire.read(lambda: self._client().fine_tuning.retrieve(job.job_id)))
        if raw.get("id") != job.job_id:
            raise UnexpectedAnswer(self.name, f"no job {job.job_id} in the response")
        return raw

    def _raw_jobs(self) -> list[dict[str, Any]]:
        listed = self._wire.entries(lambda: self._client().fine_tuning.list(), "data")
        if not all(text(raw.get("id")) for raw in listed):
            raise UnexpectedAnswer(self.name, "a job in the list has no id")
        return listed


def _ref(raw: Mapping[str, Any]) -> str | None:
    return ref_in(raw.get("suffix"), raw.get("model_output_name"))
