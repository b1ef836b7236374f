"""Together's uploads: one PUT to a signed URL after a redirect, or several parts for a large file."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute

from orchestrate.core.files import opener
from orchestrate.sandbox.host import HostError, json_answer, json_body, parse, route
from orchestrate.sandbox.shared import SandboxFiles, StoredFile, store_stream
from orchestrate.sandbox.state import token
from orchestrate.sandbox.together import Abort, Complete, Initiate

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
            route("/v1/files", "POST", self.ask),
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
        """Return the stage of the host's validation, or `None` for files that it does not validate."""
        if file.report is None:
            return None
        now = self.host.clock.now()
        if now < file.checked_at:
            share = (now - file.created_at) / max(1e-9, file.checked_at - file.created_at)
            return ("PENDING", "QUEUED", "RUNNING")[min(2, max(0, int(share * 3)))]
        return "INVALID_FORMAT" if file.report.error else "COMPLETED"

    # -- one PUT -------------------------------------------------------------------------------------------

    async def ask(self, request: Request) -> Response:
        """Start an upload. The SDK sends the file name, and the response redirects to the upload URL."""
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
        """A file whose bytes are already there answers 409 with its id; the SDK then takes that one."""
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
        """Handle a direct multipart upload as in the published API description, without a redirect."""
        async with request.form(max_part_size=1 << 32) as form:
            upload = form.get("file")
            if upload is None or isinstance(upload, str):
                raise HostError(400, "file is required", param="file")
            purpose, name = str(form.get("purpose")), str(form.get("file_name") or upload.filename)
            self._check(purpose, name)
            id = f"file-{uuid.uuid4()}"
            self.host.state.save_bytes(id, iter(lambda: upload.file.read(1 << 20), b""))
        return json_answer(self.render(self._finish(id, {"file_name": name, "purpose": purpose})))

    # -- parts ---------------------------------------------------------------------------------------------

    async def initiate(self, request: Request) -> Response:
        asked = parse(Initiate, await json_body(request))
        self._check(asked.purpose, asked.file_name)
        self._refuse_known(asked.checksum)
        id = f"file-{uuid.uuid4()}"
        self._expect(id, asked.model_dump(), parts=asked.num_parts)
        parts: list[dict[str, Any]] = [
            {
                "PartNumber": n,
                "URL": self.host.signed(f"part/{id}/{n}"),
                "Headers": {},
            }
            for n in range(1, asked.num_parts + 1)
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
        asked = parse(Complete, await json_body(request))
        pending = self._pending(asked.file_id)
        numbers = [int(part.get("part_number", part.get("PartNumber", 0))) for part in asked.parts]
        if numbers != list(range(1, pending["parts"] + 1)):
            raise HostError(400, f"all {pending['parts']} parts must be listed in order", param="parts")
        with open(self.files.path(asked.file_id), "wb", opener=opener) as out:
            for part, number in zip(asked.parts, numbers, strict=True):
                path = self.files.path(f"{asked.file_id}.{number}")
                data = path.read_bytes() if path.exists() else b""
                tag = hashlib.md5(data, usedforsecurity=False).hexdigest()
                if tag != part.get("etag", part.get("ETag")):
                    raise HostError(400, f"part {number} is missing or has a different etag", param="parts")
                out.write(data)
        self._drop_parts(asked.file_id, pending)
        return json_answer({"file": self.render(self._finish(asked.file_id, pending))})

    async def abort(self, request: Request) -> Response:
        asked = parse(Abort, await json_body(request))
        self._drop_parts(asked.file_id, self._pending(asked.file_id))
        self.host.state.delete(self.host.name, "pending", asked.file_id)
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
