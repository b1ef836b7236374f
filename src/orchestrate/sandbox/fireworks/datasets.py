"""Datasets of the Fireworks host: creation, upload (directly or to signed URLs), and validation."""

from __future__ import annotations

import shutil
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute

from orchestrate.core.files import opener
from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.fireworks import aip_filter, paged, short
from orchestrate.sandbox.host import Body, HostError, iso, json_answer, json_body, parse, route
from orchestrate.sandbox.shared import SandboxFiles, StoredFile, store_stream
from orchestrate.sandbox.state import token

# Request bodies of the Fireworks gateway, with the documented ranges of values.


Rank = Literal[1, 2, 4, 8, 16, 32]
_REJECTED = (
    "batchSize",
    "gradientAccumulationSteps",
    "jinjaTemplate",
    "mtpEnabled",
    "mtpNumDraftTokens",
    "mtpFreezeBaseModel",
    "earlyStop",
)


class FireworksWandB(Body):
    enabled: bool = False
    apiKey: str | None = None
    project: str | None = None
    entity: str | None = None
    runId: str | None = None


class Decay(Body):
    minLrRatio: Annotated[float, Field(ge=0, le=1)] | None = None
    decayRatio: Annotated[float, Field(ge=0, le=1)] | None = None


class Schedule(Body):
    constant: dict[str, Any] | None = None
    linear: Decay | None = None
    cosine: Decay | None = None

    @model_validator(mode="after")
    def _one(self) -> Schedule:
        if len(self.model_fields_set) != 1:
            raise ValueError("specify exactly one of constant, linear and cosine")
        return self


class Training(Body):
    """Training fields of a request that creates a job. Supervised jobs have them at the top level, all other
    jobs in `trainingConfig`."""

    baseModel: str | None = None
    warmStartFrom: str | None = None
    outputModel: str | None = None
    epochs: Annotated[int, Field(ge=1)] = 1
    learningRate: Annotated[float, Field(gt=0)] | None = None
    learningRateWarmupSteps: Annotated[int, Field(ge=0)] | None = None
    loraRank: Rank = 8
    maxContextLength: Annotated[int, Field(ge=1)] | None = None
    batchSizeSamples: Annotated[int, Field(ge=1)] | None = None
    optimizerWeightDecay: Annotated[float, Field(ge=0)] | None = None
    samplerCheckpointSaveIntervalSteps: Annotated[int, Field(ge=0)] | None = None
    region: str | None = None
    lrScheduler: Schedule | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_taken_any_more(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in _REJECTED:
                if name in values:
                    raise ValueError(f"{name} is not supported by Training V2")
        return values  # pyright: ignore[reportUnknownVariableType]

    @model_validator(mode="after")
    def _one_start(self) -> Training:
        if (self.baseModel is None) == (self.warmStartFrom is None):
            raise ValueError("exactly one of baseModel and warmStartFrom must be specified")
        return self


class OwnTraining(Training):
    """The fields of `trainingConfig`."""

    loraAlpha: Annotated[int, Field(ge=0)] | None = None
    loraDropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    loraTargetModules: list[str] | None = None
    trainerShardingScheme: dict[str, Any] | None = None


class Common(Body):
    dataset: str
    displayName: str | None = None
    wandbConfig: FireworksWandB | None = None
    reservationTarget: str | None = None
    useReservation: bool | None = None
    purpose: Literal["PURPOSE_UNSPECIFIED", "PURPOSE_PILOT"] | None = None
    awsS3Config: dict[str, Any] | None = None
    azureBlobStorageConfig: dict[str, Any] | None = None


class SupervisedJob(Training, Common):
    evaluationDataset: str | None = None
    evalAutoCarveout: bool | None = None
    isTurbo: bool | None = None
    nodes: int | None = None
    metricsFileSignedUrl: str | None = None
    rendererHuggingFaceRepoId: str | None = None
    usePurpose: str | None = None

    def training(self) -> Training:
        return self


class DpoConfig(Body):
    beta: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    refCacheConcurrency: int | None = None
    refCacheBatchSize: int | None = None


class OrpoConfig(Body):
    # The API's name for this field, `lambda`, is a Python keyword.
    weight: float | None = Field(default=None, alias="lambda", ge=0)


class LossConfig(Body):
    method: Literal["METHOD_UNSPECIFIED", "GRPO", "DAPO", "DPO", "ORPO", "GSPO_TOKEN"] = "METHOD_UNSPECIFIED"
    dpo: DpoConfig | None = None
    orpo: OrpoConfig | None = None
    klBeta: float | None = None


class DpoJob(Common):
    trainingConfig: OwnTraining
    rendererHuggingFaceRepoId: str | None = None
    lossConfig: LossConfig | None = None

    @property
    def evaluationDataset(self) -> str | None:
        return None

    def training(self) -> Training:
        return self.trainingConfig


class InferenceParameters(Body):
    maxOutputTokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    topP: Annotated[float, Field(ge=0, le=1)] | None = None
    topK: Annotated[int, Field(ge=0)] | None = None
    responseCandidatesCount: Annotated[int, Field(ge=1)] | None = None
    extraBody: str | None = None


class ReinforcementJob(Common):
    evaluator: str
    trainingConfig: OwnTraining
    lossConfig: LossConfig | None = None
    evaluationDataset: str | None = None
    evalAutoCarveout: bool | None = None
    inferenceParameters: InferenceParameters | None = None
    chunkSize: int | None = None
    maxConcurrentRollouts: int | None = None
    maxConcurrentEvaluations: int | None = None
    maxInferenceReplicaCount: int | None = None
    mcpServer: str | None = None
    nodeCount: int | None = None

    def training(self) -> Training:
        return self.trainingConfig


class FireworksDataset(Body):
    displayName: str | None = None
    exampleCount: str | int | None = None
    userUploaded: dict[str, Any] | None = None
    format: Literal["FORMAT_UNSPECIFIED", "CHAT", "COMPLETION", "RL"] | None = None
    externalUrl: str | None = None
    evalProtocol: Any = None
    evaluationResult: Any = None
    sourceJobName: str | None = None
    splitted: Any = None
    transformed: Any = None


class CreateDataset(Body):
    datasetId: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    dataset: FireworksDataset
    sourceDatasetId: str | None = None


class DatasetUploadEndpoint(Body):
    filenameToSize: Annotated[dict[str, str | int], Field(min_length=1)]
    readMask: str | None = None


MAX_DIRECT = 150 * 1024 * 1024
URL_LIFE_S = 3600
FORMATS = {"chat": "CHAT", "completion": "COMPLETION", "preference": "CHAT"}
TOKENIZER = "o200k"
"""Tokenizer for estimating a dataset's token count before the model is known."""


class FireworksDatasetRoutes:
    """Routes for datasets. A dataset's bytes are stored in one file."""

    def __init__(self, files: SandboxFiles) -> None:
        self.files = files
        self.host = files.host

    def routes(self) -> list[BaseRoute]:
        root = "/v1/accounts/{account}/datasets"
        one = f"{root}/{{id}}"
        return [
            route(root, "POST", self.create),
            route(root, "GET", self.list_datasets),
            route(f"{one}:getUploadEndpoint", "POST", self.upload_endpoint),
            route(f"{one}:validateUpload", "POST", self.validate),
            route(f"{one}:upload", "POST", self.upload),
            route(f"{one}:getDownloadEndpoint", "GET", self.download_endpoint),
            route(one, "GET", self.get),
            route(one, "DELETE", self.delete),
            route("/_signed/dataset/{ticket}", "PUT", self.receive),
            route("/_signed/dataset/{id}", "GET", self.content),
        ]

    # -- used by jobs --------------------------------------------------------------------------------------

    def file_of(self, id: str) -> StoredFile | None:
        dataset = self._stored(id)
        return self.files.get(dataset["file"]) if dataset and dataset.get("file") else None

    def name_of(self, file: str) -> str:
        return f"accounts/{here()}/datasets/{file.partition('.')[0].removeprefix('dataset-')}"

    def is_ready(self, id: str) -> bool:
        dataset = self._stored(id)
        return dataset is not None and self._state(dataset) == "READY"

    # -- routes --------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        body = parse(CreateDataset, await json_body(request))
        id = body.datasetId
        if self._stored(id) is not None:
            raise HostError(409, f"dataset {id} already exists")
        dataset: dict[str, Any] = {
            "id": id,
            "displayName": body.dataset.displayName or "",
            "exampleCount": str(body.dataset.exampleCount or 0),
            "created_at": self.host.clock.now(),
            "urls": {},
            "file": None,
        }
        self._save(dataset)
        return json_answer(self.render(dataset))

    def _stored(self, id: str) -> dict[str, Any] | None:
        return self.host.state.get("fireworks", "dataset", short(id))

    def _save(self, dataset: dict[str, Any]) -> None:
        self.host.state.put("fireworks", "dataset", dataset["id"], dataset)

    def _found(self, request: Request) -> dict[str, Any]:
        dataset = self._stored(request.path_params["id"])
        if dataset is None:
            raise HostError(404, f"dataset {request.path_params['id']} was not found")
        return dataset

    def _state(self, dataset: dict[str, Any]) -> str:
        file = self.files.get(dataset["file"]) if dataset["file"] else None
        return "READY" if file is not None and self.files.ready(file) else "UPLOADING"

    def render(self, dataset: dict[str, Any]) -> dict[str, Any]:
        file = self.files.get(dataset["file"]) if dataset["file"] else None
        report = file.report if file else None
        ready = self._state(dataset) == "READY"
        wrong = report.error if report and ready else None
        body: dict[str, Any] = {
            "name": f"accounts/{here()}/datasets/{dataset['id']}",
            "displayName": dataset["displayName"],
            "createTime": iso(dataset["created_at"]),
            "updateTime": iso(dataset["created_at"]),
            "createdBy": "sandbox@localhost",
            "state": self._state(dataset),
            "status": {"code": "INVALID_ARGUMENT" if wrong else "OK", "message": wrong or ""},
            "exampleCount": str(report.examples) if report and ready else dataset["exampleCount"],
            "userUploaded": {},
            "format": FORMATS.get(report.format or "", "FORMAT_UNSPECIFIED")
            if report
            else "FORMAT_UNSPECIFIED",
            "sandbox": True,
        }
        if report and ready and not wrong and file is not None:
            body["estimatedTokenCount"] = str(self.files.tokens(file, TOKENIZER))
            body["averageTurnCount"] = report.turns / max(1, report.examples)
        return body

    def list_datasets(self, request: Request) -> Response:
        found = self.host.state.all("fireworks", "dataset")
        chosen = aip_filter(
            found, request, lambda d: {"state": self._state(d), "display_name": d["displayName"]}
        )
        return paged(request, "datasets", chosen, self.render, key=lambda d: d["id"])

    def get(self, request: Request) -> Response:
        return json_answer(self.render(self._found(request)))

    def delete(self, request: Request) -> Response:
        dataset = self._found(request)
        if dataset["file"]:
            self.files.remove(dataset["file"])
        self.host.state.delete("fireworks", "dataset", dataset["id"])
        return json_answer({})

    async def upload_endpoint(self, request: Request) -> Response:
        """Return signed URLs for all files at once. Each call replaces the URLs of the previous one."""
        dataset = self._found(request)
        if dataset["file"]:
            raise HostError(400, f"dataset {dataset['id']} is already uploaded")
        body = parse(DatasetUploadEndpoint, await json_body(request))
        expires = self.host.clock.now() + URL_LIFE_S
        dataset["urls"] = {
            token(): {"name": name, "size": int(size), "expires": expires, "done": False}
            for name, size in body.filenameToSize.items()
        }
        self._save(dataset)
        for ticket in dataset["urls"]:
            self.host.state.put("fireworks", "ticket", ticket, {"dataset": dataset["id"]})
        urls = {u["name"]: self.host.signed(f"dataset/{t}") for t, u in dataset["urls"].items()}
        return json_answer({"filenameToSignedUrls": urls})

    async def receive(self, request: Request) -> Response:
        ticket = request.path_params["ticket"]
        known = self.host.state.get("fireworks", "ticket", ticket)
        dataset = self._stored(known["dataset"]) if known else None
        slot = dataset["urls"].get(ticket) if dataset else None
        if dataset is None or slot is None or self.host.clock.now() > slot["expires"]:
            raise HostError(403, "this signed URL is invalid or has expired")
        size = slot["size"]
        if request.headers.get("x-goog-content-length-range") != f"{size},{size}":
            raise HostError(
                400, f"the header x-goog-content-length-range must be {size},{size}, to match the signature"
            )
        if request.headers.get("content-type") != "application/octet-stream":
            raise HostError(403, "the content type must be application/octet-stream, to match the signature")
        path = self.files.path(f"dataset-{dataset['id']}.{ticket}")
        got = await store_stream(path, request.stream(), size)
        if got != size:
            path.unlink()
            raise HostError(400, f"got {got} bytes, but the URL was signed for {size}")
        slot["done"] = True
        self._save(dataset)
        return Response(status_code=200)

    def validate(self, request: Request) -> Response:
        dataset = self._found(request)
        if dataset["file"]:
            return json_answer({})
        if not dataset["urls"] or not all(slot["done"] for slot in dataset["urls"].values()):
            raise HostError(400, "not all files of the dataset have been uploaded")
        id = f"dataset-{dataset['id']}"
        with open(self.files.path(id), "wb", opener=opener) as out:
            for ticket in dataset["urls"]:
                part = self.files.path(f"{id}.{ticket}")
                with part.open("rb") as data:
                    shutil.copyfileobj(data, out)
                part.unlink()
        self._finish(dataset, next(iter(dataset["urls"].values()))["name"])
        return json_answer({})

    def _finish(self, dataset: dict[str, Any], name: str) -> None:
        id = f"dataset-{dataset['id']}"
        self.files.add(id, name, "fine-tune", self.files.path(id).stat().st_size)
        dataset |= {"file": id, "urls": {}}
        self._save(dataset)

    async def upload(self, request: Request) -> Response:
        """Upload a small dataset in one request."""
        dataset = self._found(request)
        if dataset["file"]:
            raise HostError(400, f"dataset {dataset['id']} is already uploaded")
        async with request.form(max_part_size=MAX_DIRECT) as form:
            upload = form.get("file")
            if not isinstance(upload, UploadFile):
                raise HostError(400, "file is required")
            if (upload.size or 0) > MAX_DIRECT:
                raise HostError(413, f"files over {MAX_DIRECT} bytes require getUploadEndpoint")
            with open(self.files.path(f"dataset-{dataset['id']}"), "wb", opener=opener) as out:
                shutil.copyfileobj(upload.file, out)
            name = upload.filename or "data.jsonl"
        self._finish(dataset, name)
        return json_answer({"filename": name, "bytes": upload.size, "object": "file", "purpose": "fine-tune"})

    def download_endpoint(self, request: Request) -> Response:
        dataset = self._found(request)
        file = self.files.get(dataset["file"]) if dataset["file"] else None
        if file is None:
            raise HostError(400, f"dataset {dataset['id']} has no files")
        url = self.host.signed(f"dataset/{dataset['id']}")
        return json_answer({"filenameToSignedUrls": {file.name: url}})

    def content(self, request: Request) -> Response:
        dataset = self._found(request)
        if not dataset["file"]:
            raise HostError(404, "the file was not found")
        return FileResponse(self.files.path(dataset["file"]), media_type="application/octet-stream")
