"""Files and uploads in parts."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute

from orchestrate.files import opener, private_folder, sync
from orchestrate.gateway import showing
from orchestrate.gateway.calls import Call, endpoint, retries, streamed
from orchestrate.gateway.refusals import no_file
from orchestrate.tracking import Store
from orchestrate.types import GatewayJob, JobStatus
from orchestrate.wire.bodies import HostError, parse
from orchestrate.wire.openai import objects
from orchestrate.wire.openai.objects import MAX_FILE, MAX_PART, PURPOSES
from orchestrate.wire.openai.pages import number, page_with_ends
from orchestrate.wire.openai.tuning import CompleteUpload, CreateUpload

FILE, UPLOAD, PART = "file", "upload", "part"
TAKEN = tuple(purpose for purpose in PURPOSES if purpose != "evals")
"""The published description has no file with that one."""


class Content(NamedTuple):
    sha256: str
    bytes: int


class Contents:
    """What files hold, by the sha256 of it; a content is there for as long as a file or a job needs it."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self._store = folder, store

    def path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.jsonl"

    def keep(self, sources: Sequence[IO[bytes]], most: int) -> Content:
        """One after the other. Raises `HostError` 413."""
        draft = private_folder(self.folder) / f".{secrets.token_hex(8)}"
        digest, size = hashlib.sha256(), 0
        try:
            with open(draft, "xb", opener=opener) as out:
                for source in sources:
                    while block := source.read(1 << 20):
                        size += len(block)
                        if size > most:
                            raise HostError(413, f"at most {most:,} bytes are taken", param="file")
                        digest.update(block)
                        out.write(block)
            sync(draft)
            draft.replace(self.path(digest.hexdigest()))
            sync(self.folder)
        finally:
            draft.unlink(missing_ok=True)
        return Content(digest.hexdigest(), size)

    def release(self, sha256: str) -> None:
        needed = self._store.gateway_objects.with_text(FILE, sha256)
        needed = needed or self._store.gateway_objects.with_text(PART, sha256)
        if not needed and not self._store.gateway_jobs.trains_on(sha256):
            self.path(sha256).unlink(missing_ok=True)


class Files:
    def __init__(self, store: Store, contents: Contents) -> None:
        self._store, self.contents = store, contents
        self._objects = store.gateway_objects

    def routes(self) -> list[BaseRoute]:
        return [
            streamed("/v1/files", "POST", self.create),
            endpoint("/v1/files", "GET", self.listed),
            endpoint("/v1/files/{id}", "GET", self.retrieve),
            endpoint("/v1/files/{id}", "DELETE", self.delete),
            endpoint("/v1/files/{id}/content", "GET", self.content),
            endpoint("/v1/uploads", "POST", self.begin),
            streamed("/v1/uploads/{id}/parts", "POST", self.add_part),
            endpoint("/v1/uploads/{id}/complete", "POST", self.complete),
            endpoint("/v1/uploads/{id}/cancel", "POST", self.cancel),
        ]

    def now(self) -> float:
        return self._store.clock.now().timestamp()

    # -- files ---------------------------------------------------------------------------------------------

    async def create(self, call: Call) -> Response:
        async with _form(call.request, MAX_FILE) as form:
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile):
                raise HostError(422, "'file' is a required property", param="file")
            if purpose not in TAKEN:
                raise HostError(422, f"'{purpose}' is not one of {list(TAKEN)} - 'purpose'", param="purpose")
            name = upload.filename or "file"
            _require_file(name, str(purpose), upload.size)
            kept = await run_in_threadpool(self.contents.keep, [upload.file], MAX_FILE)
            made = await run_in_threadpool(self._add, call, name, str(purpose), kept)
        return JSONResponse(made)

    def _add(self, call: Call, name: str, purpose: str, content: Content) -> dict[str, Any]:
        id = f"file-{secrets.token_hex(12)}"
        made = objects.file(id, name, purpose, content.bytes, self.now())
        self._objects.add(FILE, call.project, [{**made, "sha256": content.sha256}])
        call.about(id)
        return made

    def listed(self, call: Call) -> Any:
        limit = number(call.request, "limit", 10000, 1, 10000)
        order, purpose = call.query("order") or "desc", call.query("purpose")
        if order not in ("asc", "desc"):
            raise HostError(422, f"'{order}' is not one of ['asc', 'desc'] - 'order'", param="order")
        found = self._objects.listed(
            FILE, call.project, after=call.query("after"), oldest_first=order == "asc"
        )
        wanted = [_shown(file) for file in found if purpose in (None, file["purpose"])]
        shown = page_with_ends(wanted[:limit], more=len(wanted) > limit)
        return shown if wanted else {**shown, "first_id": "", "last_id": ""}

    def found(self, project: str, id: str, param: str = "id") -> dict[str, Any]:
        """Raises `HostError` 404."""
        file = self._objects.get(FILE, project, id)
        if file is None:
            raise no_file(id, param)
        return file

    def retrieve(self, call: Call) -> Any:
        id = call.path("id")
        if result := self._result(call, id):
            job, content = result
            at = (job.ended_at or job.created_at).timestamp()
            return objects.file(id, "step_metrics.csv", objects.RESULTS, len(content), at)
        return _shown(self.found(call.project, id))

    def content(self, call: Call) -> Response:
        id = call.path("id")
        if result := self._result(call, id):
            return Response(result[1], media_type="application/octet-stream")
        file = self.found(call.project, id)
        path = self.contents.path(file["sha256"])
        return FileResponse(path, media_type="application/octet-stream", filename=file["filename"])

    def delete(self, call: Call) -> Any:
        id = call.path("id")
        gone = self._objects.remove(FILE, call.project, id)
        if gone is None:
            raise no_file(id)
        self.contents.release(gone["sha256"])
        call.about(id)
        return objects.deleted(id, "file")

    def _result(self, call: Call, id: str) -> tuple[GatewayJob, bytes] | None:
        """The file of a job's metrics, where `id` is one's."""
        job_id = showing.job_of_result(id)
        job = self._store.gateway_jobs.get(job_id, call.project) if job_id else None
        if job is None or job.run_id is None:
            return None
        run = self._store.runs.get(job.run_id)
        if run.status is not JobStatus.SUCCEEDED:
            return None
        return job, showing.result_content(self._store.history.metrics(run.id))

    # -- uploads in parts ----------------------------------------------------------------------------------

    def begin(self, call: Call) -> Any:
        asked = parse(CreateUpload, call.body)
        if asked.purpose not in TAKEN:
            raise HostError(422, f"'{asked.purpose}' is not one of {list(TAKEN)}", param="purpose")
        id = f"upload_{secrets.token_hex(12)}"
        made = objects.upload(id, asked.filename, asked.purpose, asked.bytes, self.now())
        self._objects.add(UPLOAD, call.project, [made])
        call.about(id)
        return made

    def _pending(self, upload: dict[str, Any]) -> dict[str, Any]:
        """Raises `HostError` 422 for one that takes nothing more."""
        if upload["status"] == "pending" and self.now() > upload["expires_at"]:
            upload = {**upload, "status": "expired"}
        if upload["status"] != "pending":
            told = f"Upload {upload['id']} has status {upload['status']!r}, not 'pending'"
            raise HostError(422, told, code="invalid_upload_status")
        return upload

    def _upload(self, call: Call) -> dict[str, Any]:
        id = call.path("id")
        upload = self._objects.get(UPLOAD, call.project, id)
        if upload is None:
            raise HostError(404, f"No such Upload object: {id}", param="upload_id")
        return self._pending(upload)

    def _repeated(self, call: Call, status: str) -> dict[str, Any] | None:
        """The upload as it is already, when a client whose answer did not come asks again."""
        upload = self._objects.get(UPLOAD, call.project, call.path("id"))
        again = retries(call.request) > 0
        return upload if again and upload is not None and upload["status"] == status else None

    async def add_part(self, call: Call) -> Response:
        upload = await run_in_threadpool(self._upload, call)
        async with _form(call.request, MAX_PART) as form:
            data = form.get("data")
            if not isinstance(data, UploadFile):
                raise HostError(422, "'data' is a required property", param="data")
            kept = await run_in_threadpool(self.contents.keep, [data.file], MAX_PART)
        part = objects.part(f"part_{secrets.token_hex(12)}", upload["id"], self.now())
        entry = {**part, "sha256": kept.sha256}
        await run_in_threadpool(lambda: self._objects.add(PART, call.project, [entry], parent=upload["id"]))
        call.about(part["id"])
        return JSONResponse(part)

    def complete(self, call: Call) -> Any:
        asked = parse(CompleteUpload, call.body)
        if done := self._repeated(call, "completed"):
            return done
        upload = self._upload(call)
        _require_file(upload["filename"], upload["purpose"], upload["bytes"])
        parts = {p["id"]: p for p in self._objects.listed(PART, call.project, parent=upload["id"])}
        if unknown := [id for id in asked.part_ids if id not in parts]:
            raise HostError(422, f"No such part of this upload: {unknown[0]}", param="part_ids")
        content = self._joined([parts[id]["sha256"] for id in asked.part_ids], asked.md5)
        if content.bytes != upload["bytes"]:
            told = f"The parts have {content.bytes} bytes, the upload was made for {upload['bytes']}"
            raise HostError(422, told, param="part_ids")
        file = self._add(call, upload["filename"], upload["purpose"], content)

        def finish(upload: dict[str, Any]) -> dict[str, Any]:
            return {**self._pending(upload), "status": "completed", "file": file}

        done = self._objects.change(UPLOAD, call.project, upload["id"], finish)
        self._forget(call.project, parts.values())
        return done

    def _joined(self, hashes: Sequence[str], md5: str | None) -> Content:
        sources = [self.contents.path(sha256).open("rb") for sha256 in hashes]
        try:
            if md5 is not None:
                digest = hashlib.md5(usedforsecurity=False)
                for source in sources:
                    for block in iter(lambda source=source: source.read(1 << 20), b""):
                        digest.update(block)
                    source.seek(0)
                if digest.hexdigest() != md5:
                    raise HostError(422, "The md5 of the parts is another one", param="md5")
            return self.contents.keep(sources, MAX_FILE * 16)
        finally:
            for source in sources:
                source.close()

    def _forget(self, project: str, parts: Any) -> None:
        for part in parts:
            self._objects.remove(PART, project, part["id"])
            self.contents.release(part["sha256"])

    def cancel(self, call: Call) -> Any:
        if done := self._repeated(call, "cancelled"):
            return done
        upload = self._upload(call)
        done = self._objects.change(
            UPLOAD, call.project, upload["id"], lambda u: {**self._pending(u), "status": "cancelled"}
        )
        self._forget(call.project, self._objects.listed(PART, call.project, parent=upload["id"]))
        return done


def _require_file(name: str, purpose: str, size: int | None) -> None:
    """Before anything of it is kept. Raises `HostError` 422."""
    if size == 0:
        raise HostError(422, "The file is empty", param="file", code="file_empty")
    if purpose == "fine-tune" and not name.endswith(".jsonl"):
        told = f"Invalid extension of {name!r}. Supported formats: ['jsonl']"
        raise HostError(422, told, param="file")


def _shown(file: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in file.items() if name != "sha256"}


class _form:
    """The form of a request. Raises `HostError` 422 for what is none."""

    def __init__(self, request: Request, most: int) -> None:
        self._opening = request.form(max_part_size=most)

    async def __aenter__(self) -> Any:
        try:
            return await self._opening.__aenter__()
        except (MultiPartException, AssertionError, KeyError, UnicodeDecodeError) as error:
            raise HostError(422, f"the body is no form with a file: {error}", param="file") from error
        except Exception as error:
            if getattr(error, "status_code", None) == 400:  # Starlette's own, of a form that is broken
                told = f"the body is no form with a file: {getattr(error, 'detail', error)}"
                raise HostError(422, told, param="file") from error
            raise

    async def __aexit__(self, *error: Any) -> None:
        await self._opening.__aexit__(*error)
