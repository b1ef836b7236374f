"""The backend `together`; see `orchestrate.providers.base` for the contract.

- Reads go through the SDK's own methods. The create request does not: the SDK's `fine_tuning.create` sends
  three requests and takes no options, so the same body is sent by the SDK's client as one POST.
- A job carries its ref in `suffix`, behind the user's own (`<suffix>-<ref>`, at most 40 characters), which
  comes back in `suffix` and in `model_output_name`.
- `live_price` asks for the host's estimate and refuses what is above the spec's `max_cost_usd` or above the
  account's limit; call it between `upload` and `create`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrate.errors import (
    InvalidRequest,
    NotFound,
    PermissionRefused,
    UnexpectedAnswer,
    UsageError,
)
from orchestrate.packages import require_recent
from orchestrate.profile import Profile
from orchestrate.providers import accounts, offline, settings, standing
from orchestrate.providers.base import Progress, Provider
from orchestrate.providers.calls.clients import Kept, completions
from orchestrate.providers.calls.hosted import Retry, Wire
from orchestrate.providers.calls.values import (
    items,
    plain,
    ref_in,
    rows,
    table,
    tagged,
    text,
)
from orchestrate.providers.files import archives, transfer
from orchestrate.providers.settings import UNPAIRED
from orchestrate.providers.together import limits as model_limits
from orchestrate.providers.together import pricing, reading, recalled, weights
from orchestrate.providers.together.adapters import TogetherAdapters
from orchestrate.providers.together.files import Files
from orchestrate.providers.together.profile import PROFILE
from orchestrate.providers.together.serving import Serving
from orchestrate.providers.together.translation import NO_RFT, tag, translate
from orchestrate.settings.config import HostConfig
from orchestrate.types import (
    ADAPTER_JOB,
    Account,
    Artifact,
    Billing,
    Checkpoint,
    Endpoint,
    Event,
    Feature,
    Job,
    JobHandle,
    MetricPoint,
    Quote,
    Recalled,
    RemoteDataset,
    Standing,
    Told,
    Translation,
)

if TYPE_CHECKING:
    from together import Together

    from orchestrate.catalog import HostModel
    from orchestrate.data import TrainingData
    from orchestrate.providers.chat.completions import Chat
    from orchestrate.spec import JobSpec


class TogetherProvider(Provider):
    profile: ClassVar[Profile] = PROFILE
    features = frozenset(Feature) - {Feature.KTO, Feature.RFT, Feature.QLORA, Feature.PAUSE, Feature.RESUME}
    missing: ClassVar[Mapping[Feature, str]] = {
        Feature.KTO: f"Together has no KTO; {UNPAIRED}",
        Feature.RFT: NO_RFT,
        Feature.QLORA: "Together does not publish its base's precision; such a spec is trained as LoRA",
        Feature.PAUSE: "Together cannot pause a job",
        Feature.RESUME: "Together cannot resume a job; a new one goes on from a checkpoint (continue_from)",
    }
    status_map = reading.STATUS_MAP

    def __init__(self, config: HostConfig, *, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(config)
        self._wire = Wire(self.name, retry=Retry.of(config), sleep=sleep)
        self._client = Kept(self._connect)
        self._limits: dict[str, dict[str, Any]] = {}
        self._files = Files(self._client, self._wire, self.target, sleep=sleep)
        self._serving = Serving(self.name, self._client, self._wire, config.project, self._inference_url)
        self._adapters = TogetherAdapters(self.name, self._client, self._wire, self._serving)

    # -- offline -------------------------------------------------------------------------------------------

    def translate(self, spec: JobSpec) -> Translation:
        return translate(spec, self.name)

    # -- whose jobs ----------------------------------------------------------------------------------------

    def account(self) -> Account:
        return self._account

    @cached_property
    def _account(self) -> Account:
        return accounts.asked(self._ask_account, self.config, self.host)

    def _ask_account(self) -> Account | None:
        who = plain(self._wire.read(lambda: self._client().whoami()))
        project = text(table(who.get("project")).get("id")) or self.config.project
        organization = text(table(who.get("organization")).get("id"))
        if organization is None:
            return accounts.told(user=text(table(who.get("user")).get("id")))
        return accounts.told(organization=organization, project=project)

    def holds(self, remote: RemoteDataset) -> bool:
        try:
            return self._files.get(remote.train_id).get("id") == remote.train_id
        except (NotFound, PermissionRefused):
            return False

    def recall(self, job: Job) -> Recalled:
        return recalled.of(job, self._files.get)

    def asked_for(self, job: Job) -> Told:
        return recalled.told(job)

    def fetch_file(self, id: str, file: Path) -> None:
        content: Any = self._client().files.with_streaming_response.content

        def opened(headers: dict[str, str]) -> AbstractContextManager[transfer.Stream]:
            return content(id, extra_headers=headers)

        transfer.fetch(self._wire, opened, file, limit_bytes=transfer.MOST_FILE_BYTES)

    # -- submitting ----------------------------------------------------------------------------------------

    def upload(
        self, spec: JobSpec, data: TrainingData, translation: Translation, *, progress: Progress | None = None
    ) -> RemoteDataset:
        """Asks for the model's limits first, so that nothing is sent for a job that would be refused."""
        body = settings.body(translation)
        model_limits.require(body, self._model_limits(body), data)
        folder = transfer.work_folder(self.config)
        train = self._files.bring(data.train, folder, progress)
        validation = self._files.bring(data.validation, folder, progress) if data.validation else None
        return RemoteDataset(
            provider=self.name,
            digest=data.digest,
            train_id=str(train["id"]),
            validation_id=str(validation["id"]) if validation else None,
            details={
                "train": table(train.get("validation_report")),
                "validation": table((validation or {}).get("validation_report")),
            },
        )

    def live_price(self, spec: JobSpec, remote: RemoteDataset, translation: Translation) -> Quote:
        """Raises `OverBudget` above the spec's limit and `QuotaExceeded` where the account may not go on."""
        body = self._filled(translation, remote)
        asked = pricing.asked(body)
        answer = plain(self._wire.read(lambda: self._client().fine_tuning.estimate_price(**asked)))
        return pricing.quote(self.name, str(asked.get("model") or asked.get("from_checkpoint")), answer, spec)

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
        return reading.job_of(raw, job.ref or _ref(raw), self.name)

    def list(self, *, since: datetime | None = None) -> Iterator[Job]:
        """One request: the host has no pages."""
        jobs = [reading.job_of(raw, _ref(raw), self.name) for raw in self._raw_jobs()]
        for job in sorted(
            jobs, key=lambda j: j.created_at.timestamp() if j.created_at else 0.0, reverse=True
        ):
            if since is None or job.created_at is None or job.created_at >= since:
                yield job

    def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
        listed = self._wire.entries(lambda: self._client().fine_tuning.list_events(job.job_id), "data")
        found = reading.events_of(listed)
        ids = [event.id for event in found]
        yield from found[ids.index(after) + 1 :] if after in ids else found

    def billing(self) -> Billing:
        return standing.joined(
            self,
            {"jobs": lambda: standing.jobs(self), "endpoints": self.deployments},
            "GPU clusters and their volumes",
        )

    def base_models(self) -> Sequence[HostModel]:
        client = self._client()
        pages = self._wire.pages(lambda: client.models.list_supported(product="PRODUCT_FINE_TUNING"))
        return reading.models_of(row for page in pages for row in items(page))

    def metrics(self, job: JobHandle) -> list[MetricPoint]:
        metrics = self._client().fine_tuning.list_metrics
        return reading.metrics_of(self._wire.entries(lambda: metrics(job.job_id), "metrics"))

    def checkpoints(self, job: JobHandle) -> list[Checkpoint]:
        checkpoints = self._client().fine_tuning.list_checkpoints
        return reading.checkpoints_of(self._wire.entries(lambda: checkpoints(job.job_id), "data"), job.job_id)

    def preview(
        self, spec: JobSpec, remote: RemoteDataset, *, rows_shown: int = 3
    ) -> list[reading.TokenMask]:
        """How the host tokenises the first rows, and which tokens carry loss. SFT only."""
        from together import omit

        body = self._filled(self.translate(spec), remote)
        method = table(body.get("training_method"))
        if method.get("method") != "sft" or "model" not in body:
            raise UsageError("Together previews SFT on a base model only")
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
        return reading.masks_of(rows(plain(answer).get("rows")))

    # -- acting --------------------------------------------------------------------------------------------

    def cancel(self, job: JobHandle) -> None:
        status = self.status(text(self._raw_job(job).get("status")))
        if status.terminal or status.value == "cancelling":
            return
        try:
            self._wire.read(lambda: self._client().fine_tuning.cancel(job.job_id))
        except InvalidRequest:
            # It ended between the two requests.
            if not self.status(text(self._raw_job(job).get("status"))).terminal:
                raise

    def delete(self, job: JobHandle) -> None:
        """Deletes the job and its checkpoints on the host."""
        with suppress(NotFound):
            self._wire.read(lambda: self._client().fine_tuning.delete(job.job_id))

    # -- the tuned model -----------------------------------------------------------------------------------

    def download(
        self, job: JobHandle, dest: Path, *, checkpoint: str | None = None, progress: Progress | None = None
    ) -> Artifact:
        """`checkpoint`: an id from `checkpoints` (`12:adapter`), a step, or `adapter` or `merged`. Without
        one the final adapter of a LoRA job, or the final weights of a full one."""
        archives.require_empty(dest)
        raw = self._raw_job(job)
        full = table(raw.get("training_type")).get("type") == "Full"
        query = reading.selection(checkpoint, full)
        content = self._client().fine_tuning.with_streaming_response.content
        most = transfer.limit_bytes(self.config, self.size_of(text(raw.get("model"))))
        files = weights.fetch(
            self._wire, content, job.job_id, query, dest, limit_bytes=most, progress=progress
        )
        return Artifact(
            kind=archives.kind_of(files, full=full),
            folder=str(dest),
            files=files,
            base_model=archives.base_of(dest) or text(raw.get("model")),
            provider=self.name,
            job_id=job.job_id,
        )

    def deployment_price(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Decimal | None:
        return self._serving.price(job.job_id, self._raw_job(job), options)

    def deploy(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Endpoint:
        """`options`: see `serving.DeployOptions`."""
        return self._serving.deploy(job.job_id, self._raw_job(job), options)

    def undeploy(self, job: JobHandle) -> None:
        self._serving.remove(job.job_id)

    def deployments(self) -> Iterator[Standing]:
        return self._serving.standing()

    def endpoint(self, job: JobHandle) -> Endpoint | None:
        return self._serving.find(job.job_id)

    def adapters(self) -> TogetherAdapters:
        return self._adapters

    def chat(
        self, job: JobHandle, *, base: bool = False, max_tokens: int = 256, temperature: float = 0.0
    ) -> Chat:
        from orchestrate.providers.chat.completions import Chat

        model = str(self._raw_job(job).get("model")) if base else self._serving.model_of(job.job_id)
        create = completions(self._client().with_options(base_url=self._inference_url), self.config)
        return Chat(self._wire, create, model, {"max_tokens": max_tokens, "temperature": temperature})

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
        """The real host answers chats under another name; any other server under its own."""
        base = self.config.base_url or PROFILE.url or ""
        return PROFILE.chat_url or base if base == PROFILE.url else base

    def _filled(self, translation: Translation, remote: RemoteDataset) -> dict[str, Any]:
        """The body with the files, and with the rank that the host wants beside any other LoRA setting."""
        body = settings.body(translation) | {"training_file": remote.train_id}
        if remote.validation_id is not None:
            body["validation_file"] = remote.validation_id
        lora = table(body.get("training_type"))
        if lora.get("type") == "Lora" and not {"lora_r", "lora_alpha"} <= lora.keys():
            rank = lora.setdefault("lora_r", model_limits.default_rank(self._model_limits(body)))
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
            raise UnexpectedAnswer(self.name, f"no job {job.job_id} in the answer")
        return raw

    def _raw_jobs(self) -> list[dict[str, Any]]:
        listed = self._wire.entries(lambda: self._client().fine_tuning.list(), "data")
        if not all(text(raw.get("id")) for raw in listed):
            raise UnexpectedAnswer(self.name, "a job without an id in the list of jobs")
        return listed


def _ref(raw: Mapping[str, Any]) -> str | None:
    return ref_in(raw.get("suffix"), raw.get("model_output_name"))
