"""Together's uploads and jobs. Clients are redirected to a signed URL and upload the file there with one PUT.
They upload large files in parts. Creating a job validates it, estimates its price and finds the weights that
it starts from."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute

from orchestrate.core.files import opener
from orchestrate.providers.together import billed_tokens, unpacked_tokens
from orchestrate.sandbox.host import HostError, iso, json_answer, json_body, parse, route
from orchestrate.sandbox.jobs import Phase, SandboxJob
from orchestrate.sandbox.shared import (
    SandboxFiles,
    StoredFile,
    base_model,
    context_of,
    store_stream,
    tokenizer_of,
    training_usd,
)
from orchestrate.sandbox.state import token
from orchestrate.sandbox.together import (
    Abort,
    Complete,
    FullType,
    Initiate,
    LoraType,
    Sft,
    TogetherCreateJob,
    TogetherDpo,
    limits_of,
)
from orchestrate.sandbox.training import Trainer

# -- files -----------------------------------------------------------------------------------------------


URL_LIFE_S = 3600
PURPOSES = ("fine-tune", "eval", "batch-api", "calibration")
FORMATS = {
    "chat": "CONVERSATION",
    "completion": "INSTRUCTION",
    "text": "GENERAL",
    "preference": "PREFERENCE_OPENAI",
}


class TogetherFiles:
    """Routes for files on the Together host."""

    def __init__(self, files: SandboxFiles) -> None:
        self.files = files
        self.host = files.host

    def routes(self) -> list[BaseRoute]:
        return [
            route("/v1/files", "POST", self.start_upload),
            route("/v1/files", "GET", self.list_files),
            route("/v1/files/multipart/initiate", "POST", self.initiate),
            route("/v1/files/multipart/complete", "POST", self.complete),
            route("/v1/files/multipart/abort", "POST", self.abort),
            route("/v1/files/upload", "POST", self.direct),
            route("/v1/files/{id}", "GET", self.retrieve),
            route("/v1/files/{id}", "DELETE", self.delete),
            route("/v1/files/{id}/content", "GET", self.content),
            route("/v1/files/{id}/preprocess", "POST", self.preprocess),
            route("/_signed/upload/{id}", "PUT", self.receive),
            route("/_signed/part/{id}/{number:int}", "PUT", self.receive_part),
        ]

    def render(self, file: StoredFile) -> dict[str, Any]:
        status, report = self.status(file), file.report
        body: dict[str, Any] = {
            "id": file.id,
            "object": "file",
            "created_at": int(file.created_at),
            "bytes": file.bytes,
            "filename": file.name,
            "purpose": file.purpose,
            "FileType": file.extra.get("file_type", "jsonl"),
            "LineCount": report.examples if report else 0,
            "Processed": status in ("COMPLETED", None),
            "processing_status": status,
            "sandbox": True,
        }
        if report is not None and status in ("COMPLETED", "INVALID_FORMAT"):
            body["validation_report"] = {
                "file_id": file.id,
                "valid": report.error is None,
                "dataset_format": FORMATS.get(report.format or ""),
                "nlines": report.examples,
                "error": report.error,
                "error_type": "INVALID_FORMAT" if report.error else None,
                "dataset_has_tools": report.tools,
                "dataset_has_parallel_tool_calls": report.parallel_tools,
                "dataset_has_reasoning": report.reasoning,
                "dataset_has_message_weights": report.message_weights,
                "dataset_has_sample_weights": report.row_weights,
                "dataset_is_multimodal": report.images,
            }
        return body

    def status(self, file: StoredFile) -> str | None:
        """Return the status of the host's validation, or `None` for files that the host does not validate."""
        if file.report is None:
            return None
        now = self.host.clock.now()
        if now < file.checked_at:
            share = (now - file.created_at) / max(1e-9, file.checked_at - file.created_at)
            return ("PENDING", "QUEUED", "RUNNING")[min(2, max(0, int(share * 3)))]
        return "INVALID_FORMAT" if file.report.error else "COMPLETED"

    # -- uploads with a single PUT -------------------------------------------------------------------------

    async def start_upload(self, request: Request) -> Response:
        """Start an upload, and redirect the client to its signed URL."""
        async with request.form() as form:
            values = {k: str(v) for k, v in form.items()}
        self._check(values.get("purpose"), values.get("file_name"))
        self._refuse_known(values.get("checksum"))
        id = f"file-{uuid.uuid4()}"
        self._expect(id, values, parts=1)
        url = self.host.signed(f"upload/{id}")
        return Response(
            status_code=302, headers={"Location": url, "X-Together-File-Id": id, "x-request-id": token()}
        )

    def _check(self, purpose: str | None, name: str | None) -> None:
        if purpose not in PURPOSES:
            raise HostError(400, f"purpose must be one of {', '.join(PURPOSES)}", param="purpose")
        if not name or not name.endswith((".jsonl", ".parquet", ".csv")):
            raise HostError(400, "file_name must end in .jsonl, .parquet or .csv", param="file_name")

    def _refuse_known(self, checksum: str | None) -> None:
        """Raise `FileExists` if the same bytes were already uploaded. The SDK then uses the existing file."""
        if not checksum:
            return
        for file in self.files.all():
            if file.extra.get("checksum") == checksum:
                raise FileExists(file.id)

    def _expect(self, id: str, values: dict[str, Any], *, parts: int) -> None:
        expires = self.host.clock.now() + URL_LIFE_S
        self.host.state.put(self.host.name, "pending", id, {**values, "parts": parts, "expires": expires})

    def _pending(self, id: str) -> dict[str, Any]:
        pending = self.host.state.get(self.host.name, "pending", id)
        if pending is None or self.host.clock.now() > pending["expires"]:
            raise HostError(403, "this signed URL is invalid or has expired", code="expired_url")
        return pending

    async def receive(self, request: Request) -> Response:
        id = request.path_params["id"]
        self._pending(id)
        await store_stream(self.files.path(id), request.stream())
        return Response(status_code=200)

    def preprocess(self, request: Request) -> Response:
        id = request.path_params["id"]
        pending = self._pending(id)
        if not self.files.path(id).exists():
            raise HostError(400, f"the bytes of {id} were not uploaded")
        return json_answer(self.render(self._finish(id, pending)))

    def _finish(self, id: str, pending: dict[str, Any]) -> StoredFile:
        path = self.files.path(id)
        digest = hashlib.sha256()
        with path.open("rb") as data:
            while block := data.read(1 << 20):
                digest.update(block)
        if pending.get("checksum") not in (None, "", digest.hexdigest()):
            path.unlink()
            raise HostError(400, "checksum mismatch", param="checksum")
        file = self.files.add(
            id,
            pending["file_name"],
            pending["purpose"],
            path.stat().st_size,
            checksum=digest.hexdigest(),
            file_type=pending.get("file_type") or pending["file_name"].rsplit(".", 1)[-1],
        )
        self.host.state.delete(self.host.name, "pending", id)
        return file

    async def direct(self, request: Request) -> Response:
        """Handle a direct multipart upload without a redirect, as documented in Together's API reference."""
        async with request.form(max_part_size=1 << 32) as form:
            upload = form.get("file")
            if upload is None or isinstance(upload, str):
                raise HostError(400, "file is required", param="file")
            purpose, name = str(form.get("purpose")), str(form.get("file_name") or upload.filename)
            self._check(purpose, name)
            id = f"file-{uuid.uuid4()}"
            self.host.state.save_bytes(id, iter(lambda: upload.file.read(1 << 20), b""))
        return json_answer(self.render(self._finish(id, {"file_name": name, "purpose": purpose})))

    # -- uploads in parts ----------------------------------------------------------------------------------

    async def initiate(self, request: Request) -> Response:
        body = parse(Initiate, await json_body(request))
        self._check(body.purpose, body.file_name)
        self._refuse_known(body.checksum)
        id = f"file-{uuid.uuid4()}"
        self._expect(id, body.model_dump(), parts=body.num_parts)
        parts: list[dict[str, Any]] = [
            {
                "PartNumber": n,
                "URL": self.host.signed(f"part/{id}/{n}"),
                "Headers": {},
            }
            for n in range(1, body.num_parts + 1)
        ]
        return json_answer({"upload_id": id, "file_id": id, "parts": parts})

    async def receive_part(self, request: Request) -> Response:
        id, number = request.path_params["id"], request.path_params["number"]
        pending = self._pending(id)
        if not 1 <= number <= pending["parts"]:
            raise HostError(404, f"upload {id} has no part {number}")
        path = self.files.path(f"{id}.{number}")
        await store_stream(path, request.stream())
        etag = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        return Response(status_code=200, headers={"ETag": f'"{etag}"'})

    async def complete(self, request: Request) -> Response:
        body = parse(Complete, await json_body(request))
        pending = self._pending(body.file_id)
        numbers = [int(part.get("part_number", part.get("PartNumber", 0))) for part in body.parts]
        if numbers != list(range(1, pending["parts"] + 1)):
            raise HostError(400, f"all {pending['parts']} parts must be listed in order", param="parts")
        with open(self.files.path(body.file_id), "wb", opener=opener) as out:
            for part, number in zip(body.parts, numbers, strict=True):
                path = self.files.path(f"{body.file_id}.{number}")
                data = path.read_bytes() if path.exists() else b""
                tag = hashlib.md5(data, usedforsecurity=False).hexdigest()
                if tag != part.get("etag", part.get("ETag")):
                    raise HostError(400, f"part {number} is missing or has a different etag", param="parts")
                out.write(data)
        self._drop_parts(body.file_id, pending)
        return json_answer({"file": self.render(self._finish(body.file_id, pending))})

    async def abort(self, request: Request) -> Response:
        body = parse(Abort, await json_body(request))
        self._drop_parts(body.file_id, self._pending(body.file_id))
        self.host.state.delete(self.host.name, "pending", body.file_id)
        return json_answer({"sandbox": True})

    def _drop_parts(self, id: str, pending: dict[str, Any]) -> None:
        for number in range(1, pending["parts"] + 1):
            self.files.path(f"{id}.{number}").unlink(missing_ok=True)

    # -- reading -------------------------------------------------------------------------------------------

    def _found(self, request: Request) -> StoredFile:
        id = request.path_params["id"]
        file = self.files.get(id)
        if file is None:
            raise HostError(404, f"file {id} was not found", code="not_found")
        return file

    def list_files(self, request: Request) -> Response:
        return json_answer({"object": "list", "data": [self.render(file) for file in self.files.all()]})

    def retrieve(self, request: Request) -> Response:
        return json_answer(self.render(self._found(request)))

    def content(self, request: Request) -> Response:
        file = self._found(request)
        return FileResponse(
            self.files.path(file.id), media_type="application/octet-stream", filename=file.name
        )

    def delete(self, request: Request) -> Response:
        file = self._found(request)
        self.files.remove(file.id)
        return json_answer({"id": file.id, "deleted": True})


class FileExists(HostError):
    """Error 409 for bytes that were already uploaded. Its body contains the file's id."""

    def __init__(self, file_id: str) -> None:
        super().__init__(409, f"the file already exists as {file_id}", code="file_exists")
        self.file_id = file_id


# -- jobs ------------------------------------------------------------------------------------------------


class TogetherJobMaker:
    """Converts request bodies to jobs, and rejects the ones that Together would reject."""

    def __init__(self, files: SandboxFiles) -> None:
        self.files = files
        self.host = files.host

    def make(self, body: dict[str, Any]) -> SandboxJob:
        parsed = parse(TogetherCreateJob, body)
        train = self._file(parsed.training_file, "training_file")
        valid = self._file(parsed.validation_file, "validation_file") if parsed.validation_file else None
        base, earlier, step = self._start_from(parsed)
        kind = parsed.training_method.method
        self._check_ranges(parsed, base, kind)
        self._check_rows(kind, train, valid)
        id = f"ft-{uuid.uuid4()}"
        tokens = self._tokens(train, base)
        validation_tokens = self._tokens(valid, base) if valid else 0
        now = self.host.clock.now()  # counting may have taken longer than some states do
        lora = parsed.training_type if isinstance(parsed.training_type, LoraType) else None
        limits = limits_of(base)
        job = SandboxJob(
            id=id,
            host=self.host.name,
            kind=kind,
            model=parsed.model or base,
            base=base,
            body={k: v for k, v in body.items() if k not in ("wandb_key", "wandb_api_key", "hf_api_token")},
            training_file=train.id,
            validation_file=valid.id if valid else None,
            trained=self.host.settings.train,
            seed=parsed.random_seed if parsed.random_seed is not None else 42,
            epochs=parsed.n_epochs,
            batch_size=8 if parsed.batch_size == "max" else parsed.batch_size,
            learning_rate=parsed.learning_rate,
            lora_rank=lora.lora_r if lora else limits["lora_training"]["default_rank"],
            preference=_preference(parsed.training_method),
            train_on_inputs=isinstance(parsed.training_method, Sft)
            and parsed.training_method.train_on_inputs is True,
            checkpoints=parsed.n_checkpoints,
            evals=parsed.n_evals,
            examples=train.report.examples if train.report else 0,
            tokens=tokens,
            validation_tokens=validation_tokens,
            output="sandbox/" + "-".join(p for p in (base.rsplit("/", 1)[-1], parsed.suffix, id[3:11]) if p),
            continues=earlier.id if earlier else None,
            continues_step=step,
            created_at=now,
            validated_at=now + self.host.wait("validating"),
        )
        each, longest = job.tokens, context_of(job.base, self.host.name, job.kind)
        if not parsed.packing and longest is not None:
            each = unpacked_tokens(job.examples, longest)
        billed = sum(billed_tokens(each, job.epochs, job.validation_tokens, job.evals))
        full = isinstance(parsed.training_type, FullType)
        usd = training_usd(self.host.name, job, full=full, tokens=billed)
        job.price_usd = str(usd) if usd is not None else None
        return job

    def _tokens(self, file: StoredFile, base: str) -> int:
        return self.files.tokens(file, tokenizer_of(base, self.host.name))

    def _file(self, id: str, param: str) -> StoredFile:
        file = self.files.get(id)
        if file is None:
            raise HostError(400, f"file {id} was not found", param=param, code="invalid_file")
        if file.purpose not in ("fine-tune", "eval"):
            raise HostError(400, f"file {id} has purpose {file.purpose}, not fine-tune", param=param)
        if not self.files.ready(file):
            raise HostError(
                400,
                f"file {id} has not been validated yet (processing_status PENDING)",
                param=param,
                code="file_not_ready",
            )
        if file.report is not None and file.report.error:
            raise HostError(
                400, f"file {id} is invalid: {file.report.error}", param=param, code="invalid_file"
            )
        return file

    def _start_from(self, body: TogetherCreateJob) -> tuple[str, SandboxJob | None, int | None]:
        """Return the base model, and the job and step to continue from, if any."""
        if body.from_checkpoint is None:
            return self.base(body.model or ""), None, None
        name, _, step = body.from_checkpoint.partition(":")
        job = self.by_name(name)
        if job is None or job.phase(self.host.clock.now()) is not Phase.SUCCEEDED:
            raise HostError(400, f"checkpoint {body.from_checkpoint} was not found", param="from_checkpoint")
        return job.base, job, int(step) if step.isdigit() else None

    def by_name(self, name: str) -> SandboxJob | None:
        """Find a job by its id or by its tuned model's name."""
        if name.startswith("ft-"):
            return self.host.job(name)
        return next(self.host.jobs(where=("$.output", name)), None)

    def base(self, model: str) -> str:
        found = base_model(model, self.host.name)
        if found is None or found.tunable == "no":
            raise HostError(
                400,
                f"model {model} is not supported for fine-tuning",
                param="model",
                code="model_not_supported",
            )
        return found.id

    def _check_ranges(self, body: TogetherCreateJob, base: str, kind: str) -> None:
        """Check the limits that `models/limits` reports."""
        limits = limits_of(base)
        lora = body.training_type if isinstance(body.training_type, LoraType) else None
        if isinstance(body.training_type, FullType) and not limits["supports_full_training"]:
            raise HostError(400, f"full training is not supported for {base}", param="training_type")
        sizes = (
            limits["lora_training"]
            if not isinstance(body.training_type, FullType)
            else limits["full_training"]
        )
        most = sizes["max_batch_size_dpo" if kind == "dpo" else "max_batch_size"]
        context = limits["max_seq_length_dpo" if kind == "dpo" else "max_seq_length_sft"]
        for name, value, low, high in (
            ("n_epochs", body.n_epochs, 1, limits["max_num_epochs"]),
            ("n_evals", body.n_evals, 0, limits["max_num_evals"]),
            ("n_checkpoints", body.n_checkpoints, 1, limits["max_num_checkpoints"]),
            ("learning_rate", body.learning_rate, limits["min_learning_rate"], limits["max_learning_rate"]),
            ("lora_r", lora.lora_r if lora else 1, 1, limits["lora_training"]["max_rank"]),
            (
                "batch_size",
                most if body.batch_size == "max" else body.batch_size,
                sizes["min_batch_size"],
                most,
            ),
            ("max_seq_length", body.max_seq_length or context, limits["min_max_seq_length"], context),
        ):
            if not low <= value <= high:
                raise HostError(
                    400, f"{name} must be from {low} to {high} for {base}, got {value}", param=name
                )

    def _check_rows(self, kind: str, *files: StoredFile | None) -> None:
        for file in files:
            if file is None or file.report is None:
                continue
            preference = file.report.format == "preference"
            if preference != (kind == "dpo"):
                wanted = "preference" if kind == "dpo" else "conversation, instruction or text"
                raise HostError(
                    400, f"file {file.id} must have {wanted} rows for {kind}", param="training_file"
                )


def _preference(method: Sft | TogetherDpo) -> dict[str, Any]:
    if not isinstance(method, TogetherDpo):
        return {}
    body = {
        "beta": method.dpo_beta,
        "normalize_by_length": method.dpo_normalize_logratios_by_length,
        "rpo_alpha": method.rpo_alpha,
        "simpo_gamma": method.simpo_gamma,
    }
    # The SDK's command line sends 0 for options that were not set.
    return {name: value for name, value in body.items() if value}


# A job's events and metrics in Together's format.


_NAMES = {
    "train_loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "train_accuracy": "train/accuracy",
    "valid_loss": "eval/loss",
    "valid_accuracy": "eval/accuracy",
}


def events_of(job: SandboxJob, now: float, trainer: Trainer) -> list[dict[str, Any]]:
    """List events, oldest first, up to `now`."""
    found: list[dict[str, Any]] = []

    def say(at: float | None, type: str, message: str, level: str = "info", **more: Any) -> None:
        if at is not None and at <= now:
            found.append(_event(job, at, type, message, level, **more))

    say(job.created_at, "job_pending", "Fine-tune request created")
    say(job.created_at, "warning", f"Sandbox: {trainer.describe(job)}", "warning")
    say(job.started_at, "job_start", "Job started in the sandbox")
    say(job.started_at, "model_downloading", f"Downloading model {job.base}")
    say(job.started_at, "model_download_complete", "Model downloaded", param_count=None)
    say(job.started_at, "training_data_downloading", f"Downloading {job.training_file}")
    say(
        job.started_at,
        "training_data_download_complete",
        "Training data downloaded",
        token_count=job.tokens,
    )
    say(job.started_at, "training_start", "Training started", total_steps=job.total_steps)
    if job.started_at is not None and now >= job.started_at:
        _progress(job, now, trainer, say)
    if job.trained_at is not None and job.cancel_at is None and job.failed_at is None:
        end, finished = job.trained_at, job.finished_at or now
        middle = (end + finished) / 2
        say(end, "training_complete", "Training completed", step=job.total_steps)
        if job.early_stopped:
            say(end, "early_stopped", "The validation loss stopped improving")
        say(end, "model_compressing", "Compressing output model")
        say(middle, "model_compression_complete", "Output model compressed")
        say(middle, "model_uploading", "Uploading output model")
        say(
            job.finished_at,
            "model_upload_complete",
            "Output model uploaded",
            model_path=f"sandbox://{job.output}",
        )
        say(job.finished_at, "job_complete", f"Job finished, model {job.output}")
    say(job.cancel_at, "cancel_requested", "Cancel requested")
    if job.cancel_at is not None:
        say(job.cancelled_at, "job_stopped", "Job stopped")
    if job.trouble is not None:
        say(job.failed_at, "job_error", job.trouble.message, "error")
    return sorted(found, key=lambda event: event["created_at"])


def _progress(job: SandboxJob, now: float, trainer: Trainer, say: Any) -> None:
    start, until = job.started_at or now, min(now, job.trained_at or now)
    fraction = job.fraction(now)
    for epoch in range(1, int(fraction * job.epochs) + 1):
        at = start + (until - start) * (epoch / job.epochs) / max(fraction, 1e-9)
        step = job.total_steps * epoch // job.epochs
        say(min(at, until), "epoch_complete", f"Epoch completed, at step {step}", step=step)
    for checkpoint in trainer.checkpoints(job, now):
        at = max(start, min(checkpoint.at, until))
        path = f"sandbox://{job.output}/{checkpoint.step}"
        say(
            at,
            "checkpoint_save",
            f"Checkpoint saved, at step {checkpoint.step}",
            step=checkpoint.step,
            checkpoint_path=path,
        )


def _event(job: SandboxJob, at: float, type: str, message: str, level: str, **more: Any) -> dict[str, Any]:
    return {
        "object": "fine-tune-event",
        "created_at": iso(at),
        "type": type,
        "message": message,
        "level": level,
        "hash": hashlib.sha256(f"{job.id}\n{type}\n{message}".encode()).hexdigest()[:16],
        "step": 0,
        "total_steps": 0,
        "token_count": 0,
        "param_count": 0,
        "checkpoint_path": "",
        "model_path": "",
        "wandb_url": "",
        "training_offset": 0,
        **{name: value for name, value in more.items() if value is not None},
    }


def metrics_of(
    job: SandboxJob, now: float, trainer: Trainer, query: Mapping[str, str]
) -> list[dict[str, float]]:
    """Return metrics rows in chronological order. Each row has either `train/...` or `eval/...` values."""
    if job.phase(now) in (Phase.VALIDATING, Phase.QUEUED):
        return []
    rows: list[dict[str, float]] = []
    for point in trainer.metrics(job, now):
        at = point.at.timestamp() if point.at else now
        for group in ("train", "eval"):
            values = {
                _NAMES.get(name, f"train/{name}"): value
                for name, value in point.values.items()
                if _NAMES.get(name, "train/").startswith(group)
            }
            if values:
                step = {"timestamp": at * 1e9, f"{group}/global_step": float(point.step)}
                if point.epoch is not None:
                    step[f"{group}/epoch"] = point.epoch
                rows.append({**step, **values})
    return _sampled([row for row in rows if _wanted(row, query)], query)


def _wanted(row: dict[str, float], query: Mapping[str, str]) -> bool:
    step = row.get("train/global_step", row.get("eval/global_step", 0.0))
    at = row["timestamp"] / 1e9
    return (
        step >= float(query.get("global_step_from", "-inf"))
        and step <= float(query.get("global_step_to", "inf"))
        and at >= _moment(query.get("logged_at_from"), float("-inf"))
        and at <= _moment(query.get("logged_at_to"), float("inf"))
    )


def _moment(text: str | None, default: float) -> float:
    return datetime.fromisoformat(text).timestamp() if text else default


def _sampled(rows: list[dict[str, float]], query: Mapping[str, str]) -> list[dict[str, float]]:
    """Choose at most `resolution` training rows, evenly spaced. All evaluation rows stay."""
    wanted = int(query.get("resolution") or 0)
    train = [n for n, row in enumerate(rows) if "train/global_step" in row]
    if not 0 < wanted < len(train):
        return rows
    kept = {train[n * len(train) // wanted] for n in range(wanted)}
    return [row for n, row in enumerate(rows) if n in kept or "eval/global_step" in row]
