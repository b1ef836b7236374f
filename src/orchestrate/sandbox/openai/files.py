"""OpenAI's files and multi-part uploads."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute

from orchestrate.core.files import opener
from orchestrate.http.wire import openai
from orchestrate.http.wire.openai import MAX_FILE, MAX_PART, PURPOSES, page_with_ends
from orchestrate.http.wire.openai.tuning import CompleteUpload, CreateUpload
from orchestrate.sandbox.host import HostError, json_answer, json_body, number, page_of, parse, route
from orchestrate.sandbox.shared import SandboxFiles, StoredFile
from orchestrate.sandbox.state import token


class OpenAIFiles:
    """Routes for files on the OpenAI host."""

    def __init__(
        self,
        files: SandboxFiles,
        result: Callable[[str], tuple[str, bytes] | None],
        status: Callable[[StoredFile], str],
    ) -> None:
        """Set up the routes. `result` returns the name and content of a job's result file, by its id."""
        self.files = files
        self._result, self._status = result, status
        self.host = files.host

    def routes(self) -> list[BaseRoute]:
        return [
            route("/v1/files", "POST", self.create),
            route("/v1/files", "GET", self.list_files),
            route("/v1/files/{id}", "GET", self.retrieve),
            route("/v1/files/{id}", "DELETE", self.delete),
            route("/v1/files/{id}/content", "GET", self.content),
            route("/v1/uploads", "POST", self.create_upload),
            route("/v1/uploads/{id}/parts", "POST", self.add_part),
            route("/v1/uploads/{id}/complete", "POST", self.complete),
            route("/v1/uploads/{id}/cancel", "POST", self.cancel),
        ]

    async def create(self, request: Request) -> Response:
        async with request.form(max_part_size=MAX_FILE) as form:
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile):
                raise HostError(400, "'file' is a required property", param="file")
            if purpose not in PURPOSES:
                raise HostError(
                    400, f"'{purpose}' is not one of {list(PURPOSES)} - 'purpose'", param="purpose"
                )
            if (upload.size or 0) > MAX_FILE:
                raise HostError(413, f"The file is larger than {MAX_FILE} bytes. Use the Uploads API")
            id = f"file-{token()}"
            with open(self.files.path(id), "wb", opener=opener) as out:
                shutil.copyfileobj(upload.file, out)
            size = self.files.path(id).stat().st_size
            file = self._add(id, upload.filename or "file", str(purpose), size)
        return json_answer(self.render(file))

    def _add(self, id: str, name: str, purpose: str, size: int) -> StoredFile:
        if size == 0:
            self.files.path(id).unlink()
            raise HostError(400, "The file is empty", param="file", code="file_empty")
        return self.files.add(id, name, purpose, size)

    def render(self, file: StoredFile) -> dict[str, Any]:
        shown = openai.file(file.id, file.name, file.purpose, file.bytes, file.created_at)
        own = {"expires_at": None, "status": self._status(file), "status_details": None, "sandbox": True}
        return {**shown, **own}

    def _found(self, id: str) -> StoredFile:
        file = self.files.get(id)
        if file is None:
            raise HostError(404, f"No such File object: {id}", param="id")
        return file

    def list_files(self, request: Request) -> Response:
        limit = number(request, "limit", 10000, 1, 10000)
        purpose = request.query_params.get("purpose")
        found = (
            f for f in self.files.all(after=request.query_params.get("after")) if purpose in (None, f.purpose)
        )
        files, more = page_of(iter(found), limit)
        data = [self.render(file) for file in files]
        return json_answer(page_with_ends(data, more=more))

    def retrieve(self, request: Request) -> Response:
        id = request.path_params["id"]
        if result := self._result(id):
            name, content = result
            now = self.host.clock.now()
            shown = openai.file(id, name, openai.RESULTS, len(content), now, sandbox=True)
            return json_answer(shown)
        return json_answer(self.render(self._found(id)))

    def content(self, request: Request) -> Response:
        id = request.path_params["id"]
        if result := self._result(id):
            return Response(result[1], media_type="application/octet-stream")
        file = self._found(id)
        return FileResponse(
            self.files.path(file.id), media_type="application/octet-stream", filename=file.name
        )

    def delete(self, request: Request) -> Response:
        file = self._found(request.path_params["id"])
        self.files.remove(file.id)
        return json_answer(openai.deleted(file.id, "file"))

    # -- multi-part uploads --------------------------------------------------------------------------------

    async def create_upload(self, request: Request) -> Response:
        body = parse(CreateUpload, await json_body(request))
        now = self.host.clock.now()
        made = openai.upload(f"upload_{token()}", body.filename, body.purpose, body.bytes, now)
        upload = {**made, "sandbox": True}
        self._save(upload)
        return json_answer(upload)

    def _save(self, upload: dict[str, Any]) -> None:
        self.host.state.put(self.host.name, "upload", upload["id"], upload)

    def _upload(self, id: str) -> dict[str, Any]:
        upload = self.host.state.get(self.host.name, "upload", id)
        if upload is None:
            raise HostError(404, f"No such Upload object: {id}", param="upload_id")
        if upload["status"] == "pending" and self.host.clock.now() > upload["expires_at"]:
            upload["status"] = "expired"
        if upload["status"] != "pending":
            raise HostError(400, f"Upload {id} has status {upload['status']!r}, not 'pending'")
        return upload

    async def add_part(self, request: Request) -> Response:
        upload = self._upload(request.path_params["id"])
        async with request.form(max_part_size=MAX_PART) as form:
            data = form.get("data")
            if not isinstance(data, UploadFile):
                raise HostError(400, "'data' is a required property", param="data")
            if (data.size or 0) > MAX_PART:
                raise HostError(413, f"A part must be at most {MAX_PART} bytes", param="data")
            id = f"part_{token()}"
            with open(self.files.path(id), "wb", opener=opener) as out:
                shutil.copyfileobj(data.file, out)
        part = openai.part(id, upload["id"], self.host.clock.now())
        self.host.state.put(self.host.name, "part", id, part, tag=upload["id"])
        return json_answer(part)

    async def complete(self, request: Request) -> Response:
        upload = self._upload(request.path_params["id"])
        body = parse(CompleteUpload, await json_body(request))
        known = {part["id"] for part in self.host.state.all(self.host.name, "part", tag=upload["id"])}
        if unknown := [id for id in body.part_ids if id not in known]:
            raise HostError(400, f"No such part of this upload: {unknown[0]}", param="part_ids")
        id = f"file-{token()}"
        digest = hashlib.md5(usedforsecurity=False)
        with open(self.files.path(id), "wb", opener=opener) as out:
            for part in body.part_ids:
                data = self.files.path(part).read_bytes()
                digest.update(data)
                out.write(data)
        size = self.files.path(id).stat().st_size
        if size != upload["bytes"]:
            self.files.path(id).unlink()
            raise HostError(
                400, f"The parts have {size} bytes, but the upload was created for {upload['bytes']}"
            )
        if body.md5 is not None and body.md5 != digest.hexdigest():
            self.files.path(id).unlink()
            raise HostError(400, "Checksum mismatch: the parts have a different MD5 hash", param="md5")
        file = self._add(id, upload["filename"], upload["purpose"], size)
        for part in known:
            self.files.path(part).unlink(missing_ok=True)
        upload |= {"status": "completed", "file": self.render(file)}
        self._save(upload)
        return json_answer(upload)

    def cancel(self, request: Request) -> Response:
        upload = self._upload(request.path_params["id"])
        upload["status"] = "cancelled"
        self._save(upload)
        return json_answer(upload)
