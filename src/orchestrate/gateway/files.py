"""Files: upload, list and download."""

from __future__ import annotations

import hashlib
import io
import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from orchestrate.core.files import opener, private_folder, sync
from orchestrate.gateway import job_objects
from orchestrate.gateway.calls import GatewayRequest, endpoint, no_file, placed, retries, streamed
from orchestrate.http.wire import HostError, openai, parse
from orchestrate.http.wire.openai import MAX_FILE, MAX_PART, PURPOSES, number, page_with_ends
from orchestrate.http.wire.openai.tuning import CompleteUpload, CreateUpload, ExpiresAfter
from orchestrate.store.gateway import FILE, PART, UPLOAD, Addition
from orchestrate.store.store import Store
from orchestrate.types import GatewayJob, JobStatus

_DRAFT_LIFE_S = 86_400
"""Seconds after which drafts are deleted. Killed processes leave drafts behind."""
_UNKNOWN_LIFE_S = 7 * 86_400
"""Seconds for which content without a record is kept. The record may be missing only because the store was
restored from an older backup."""
_ENDING = ".jsonl"


class UploadedContent:
    """Uploaded content. It is deleted unless `keep` is called."""

    def __init__(self, path: Path, target: Path, sha256: str, bytes: int) -> None:
        self._path, self._target = path, target
        self.sha256, self.bytes = sha256, bytes

    def keep(self) -> None:
        with room():
            self._path.replace(self._target)
            sync(self._target.parent)


class Contents:
    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self._objects = folder, store.gateway_objects

    def path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}{_ENDING}"

    @contextmanager
    def draft(self, sources: Sequence[IO[bytes]], most: int) -> Generator[UploadedContent]:
        """Write the sources, in order, to a temporary file. The file is deleted when the block exits, unless
        `keep` was called. Raises `HostError` 413 if the sources exceed `most` bytes, and 503 if they cannot
        be written to disk."""
        path = private_folder(self.folder) / f".{secrets.token_hex(8)}"
        digest, size = hashlib.sha256(), 0
        try:
            with room():
                with open(path, "xb", opener=opener) as out:
                    for source in sources:
                        while block := source.read(1 << 20):
                            size += len(block)
                            if size > most:
                                raise HostError(413, f"at most {most:,} bytes are allowed", param="file")
                            digest.update(block)
                            out.write(block)
                sync(path)
            sha256 = digest.hexdigest()
            yield UploadedContent(path, self.path(sha256), sha256, size)
        finally:
            path.unlink(missing_ok=True)

    def release(self, sha256: str) -> None:
        """Delete content that is no longer needed."""
        path = self.path(sha256)
        self._objects.unless_needed(sha256, lambda: path.unlink(missing_ok=True))

    def sweep(self) -> None:
        """Delete temporary files left by killed processes, and contents that have been unused for a long
        time."""
        now = time.time()
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another gateway sweeps too
                age = now - path.stat().st_mtime
                if path.suffix == _ENDING and age > _UNKNOWN_LIFE_S:
                    self.release(path.stem)
                elif path.name.startswith(".") and age > _DRAFT_LIFE_S:
                    path.unlink()


@contextmanager
def room() -> Generator[None]:
    """Raise `HostError` 503 if the block fails to write to disk."""
    try:
        yield
    except OSError as error:
        message = f"could not store the file: {error.strerror or error}"
        headers = {"retry-after": "60"}
        raise HostError(503, message, code="no_room", type="server_error", headers=headers) from error


class MultipartForm:
    """Async context manager that parses a multipart request. Raises `HostError` 422 if the body is not a
    form, and 503 if the disk is full."""

    def __init__(self, request: Request, most_text: int) -> None:
        """Parse the form. `most_text` limits the bytes of a field that is not a file and is kept in
        memory."""
        self._opening = request.form(max_files=1, max_part_size=most_text)

    async def __aenter__(self) -> Any:
        try:
            with room():
                return await self._opening.__aenter__()
        except (MultiPartException, AssertionError, KeyError, UnicodeDecodeError) as error:
            raise HostError(
                422, f"the body must be multipart/form-data with a file: {error}", param="file"
            ) from error
        except Exception as error:
            if getattr(error, "status_code", None) == 400:  # Starlette's own, of a form that is broken
                message = (
                    f"the body must be multipart/form-data with a file: {getattr(error, 'detail', error)}"
                )
                raise HostError(422, message, param="file") from error
            raise

    async def __aexit__(self, *error: Any) -> None:
        await self._opening.__aexit__(*error)


def bytes_of(value: Any, param: str) -> IO[bytes]:
    """Return the bytes of an uploaded file, or of text sent instead of a file. Raises `HostError` 422 if the
    field is missing."""
    if isinstance(value, UploadFile):
        return value.file
    if isinstance(value, str):
        return io.BytesIO(value.encode())
    raise HostError(422, f"'{param}' is a required property", param=param)


def known_only(form: Any, names: tuple[str, ...]) -> None:
    """Raise `HostError` 422 for an unknown field instead of silently ignoring it."""
    for name in form:
        if name not in names:
            raise HostError(422, f"Unrecognized request argument supplied: {name}", param=name)


TAKEN = tuple(purpose for purpose in PURPOSES if purpose != "evals")
"""Purposes that uploaded files may have. The published API description allows no others."""
_MOST_TEXT = 1 << 16
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"


class FileRoutes:
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
        ]

    def now(self) -> float:
        return self._store.clock.now().timestamp()

    async def create(self, call: GatewayRequest) -> Response:
        async with MultipartForm(call.request, _MOST_TEXT) as form:
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile):
                raise HostError(422, "'file' is a required property", param="file")
            if purpose not in TAKEN:
                raise HostError(422, f"'{purpose}' is not one of {list(TAKEN)} - 'purpose'", param="purpose")
            known_only(form, ("file", "purpose", _ANCHOR, _SECONDS))
            name, expires = upload.filename or "file", _expiry(form)
            if upload.size == 0:
                raise HostError(422, "The file is empty", param="file", code="file_empty")

            def keep() -> dict[str, Any]:
                with self.contents.draft([upload.file], MAX_FILE) as draft:
                    made, added = self.new(name, str(purpose), draft, expires)
                    self._objects.add_content(call.project, added)
                    call.about(made["id"])
                    return made

            made = await run_in_threadpool(keep)
        return JSONResponse(made)

    def new(
        self, name: str, purpose: str, draft: UploadedContent, expires: ExpiresAfter | None
    ) -> tuple[dict[str, Any], Addition]:
        """Create a file. Returns its API representation and its stored record."""
        id, now = f"file-{secrets.token_hex(12)}", self.now()
        until = {} if expires is None else {"expires_at": int(now) + expires.seconds}
        made = openai.file(id, name, purpose, draft.bytes, now, **until)
        return made, Addition(FILE, {**made, "sha256": draft.sha256}, draft.keep)

    def listed(self, call: GatewayRequest) -> Any:
        limit = number(call.request, "limit", 10000, 1, 10000)
        order, purpose = call.query("order") or "desc", call.query("purpose")
        if order not in ("asc", "desc"):
            raise HostError(422, f"'{order}' is not one of ['asc', 'desc'] - 'order'", param="order")
        with placed():
            found = self._objects.listed(
                FILE, call.project, after=call.query("after"), oldest_first=order == "asc"
            )
        wanted = [
            _shown(file) for file in found if purpose in (None, file["purpose"]) and not self._expired(file)
        ]
        shown = page_with_ends(wanted[:limit], more=len(wanted) > limit)
        return shown if wanted else {**shown, "first_id": "", "last_id": ""}

    def found(self, project: str, id: str, param: str = "id") -> dict[str, Any]:
        """Return a file. Raises `HostError` 404 if it does not exist or has expired."""
        file = self._objects.get(FILE, project, id)
        if file is None or self._expired(file):
            raise no_file(id, param)
        return file

    def _expired(self, file: dict[str, Any]) -> bool:
        return self.now() > file.get("expires_at", float("inf"))

    def retrieve(self, call: GatewayRequest) -> Any:
        id = call.path("id")
        if result := self._result(call, id):
            job, content = result
            at = (job.ended_at or job.created_at).timestamp()
            return openai.file(id, "step_metrics.csv", openai.RESULTS, len(content), at)
        return _shown(self.found(call.project, id))

    def content(self, call: GatewayRequest) -> Response:
        id = call.path("id")
        if result := self._result(call, id):
            return Response(result[1], media_type="application/octet-stream")
        file = self.found(call.project, id)
        try:
            # Once the file is open, it can be read to the end even if it is deleted.
            content = self.contents.path(file["sha256"]).open("rb")
        except FileNotFoundError as error:
            self.found(call.project, id)  # it was deleted just now
            message = f"the content of {id} is no longer in {self.contents.folder}"
            raise HostError(404, message, param="id", code="content_lost") from error
        headers = {
            "content-length": str(file["bytes"]),
            "content-disposition": f"attachment; filename*=utf-8''{quote(file['filename'], safe='')}",
        }
        return StreamingResponse(_blocks(content), media_type="application/octet-stream", headers=headers)

    def delete(self, call: GatewayRequest) -> Any:
        id = call.path("id")
        gone = self._objects.remove(FILE, call.project, id)
        if gone is None:
            raise no_file(id)
        self.contents.release(gone["sha256"])
        call.about(id)
        return openai.deleted(id, "file")

    def sweep(self) -> None:
        """Delete expired files."""
        for project, file in self._objects.every(FILE):
            if self._expired(file) and self._objects.remove(FILE, project, file["id"]) is not None:
                self.contents.release(file["sha256"])

    def _result(self, call: GatewayRequest, id: str) -> tuple[GatewayJob, bytes] | None:
        """Return a job and the content of its metrics file, if `id` is the id of such a file."""
        job_id = job_objects.job_of_result(id)
        job = self._store.gateway_jobs.get(job_id, call.project) if job_id else None
        if job is None or job.run_id is None:
            return None
        run = self._store.runs.get(job.run_id)
        if run.status is not JobStatus.SUCCEEDED:
            return None
        return job, job_objects.result_content(self._store.history.metrics(run.id))


def _expiry(form: Any) -> ExpiresAfter | None:
    given = {"anchor": form.get(_ANCHOR), "seconds": form.get(_SECONDS)}
    return None if given == dict.fromkeys(given) else parse(ExpiresAfter, given)


def _blocks(content: IO[bytes]) -> Iterator[bytes]:
    with content:
        while block := content.read(1 << 20):
            yield block


def _shown(file: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in file.items() if name != "sha256"}


MAX_UPLOAD = 8 << 30


class Uploads:
    def __init__(self, store: Store, files: FileRoutes) -> None:
        self._files, self._contents = files, files.contents
        self._objects = store.gateway_objects

    def routes(self) -> list[BaseRoute]:
        return [
            endpoint("/v1/uploads", "POST", self.begin),
            streamed("/v1/uploads/{id}/parts", "POST", self.add_part),
            endpoint("/v1/uploads/{id}/complete", "POST", self.complete),
            endpoint("/v1/uploads/{id}/cancel", "POST", self.cancel),
        ]

    def begin(self, call: GatewayRequest) -> Any:
        asked = parse(CreateUpload, call.body)
        if asked.purpose not in TAKEN:
            raise HostError(422, f"'{asked.purpose}' is not one of {list(TAKEN)}", param="purpose")
        id = f"upload_{secrets.token_hex(12)}"
        made = openai.upload(id, asked.filename, asked.purpose, asked.bytes, self._files.now())
        expires = {"expires_after": asked.expires_after.model_dump()} if asked.expires_after else {}
        self._objects.add(UPLOAD, call.project, [{**made, **expires}])
        call.about(id)
        return made

    def _pending(self, upload: dict[str, Any]) -> dict[str, Any]:
        """Return the upload. Raises `HostError` 422 unless it still accepts parts."""
        if upload["status"] == "pending" and self._files.now() > upload["expires_at"]:
            upload = {**upload, "status": "expired"}
        if upload["status"] != "pending":
            message = f"Upload {upload['id']} has status {upload['status']!r}, not 'pending'"
            raise HostError(422, message, code="invalid_upload_status")
        return upload

    def _upload(self, call: GatewayRequest) -> dict[str, Any]:
        id = call.path("id")
        upload = self._objects.get(UPLOAD, call.project, id)
        if upload is None:
            raise HostError(404, f"No such Upload object: {id}", param="upload_id")
        return self._pending(upload)

    def _repeated(self, call: GatewayRequest, status: str) -> dict[str, Any] | None:
        """Return the upload if it already has this status and the client is retrying a request."""
        upload = self._objects.get(UPLOAD, call.project, call.path("id"))
        again = retries(call.request) > 0
        return _upload_shown(upload) if again and upload is not None and upload["status"] == status else None

    async def add_part(self, call: GatewayRequest) -> Response:
        upload = await run_in_threadpool(self._upload, call)
        part = openai.part(f"part_{secrets.token_hex(12)}", upload["id"], self._files.now())
        async with MultipartForm(call.request, MAX_PART) as form:
            data = bytes_of(form.get("data"), "data")
            known_only(form, ("data",))

            def keep() -> None:
                with self._contents.draft([data], MAX_PART) as draft:
                    entry = {**part, "sha256": draft.sha256}
                    added = Addition(PART, entry, draft.keep, parent=upload["id"])
                    self._objects.change(UPLOAD, call.project, upload["id"], self._pending, added)

            await run_in_threadpool(keep)
        call.about(part["id"])
        return JSONResponse(part)

    def complete(self, call: GatewayRequest) -> Any:
        asked = parse(CompleteUpload, call.body)
        if done := self._repeated(call, "completed"):
            return done
        upload = self._upload(call)
        parts = {p["id"]: p for p in self._objects.listed(PART, call.project, parent=upload["id"])}
        if unknown := [id for id in asked.part_ids if id not in parts]:
            raise HostError(422, f"No such part of this upload: {unknown[0]}", param="part_ids")
        expires = ExpiresAfter(**message) if (message := upload.get("expires_after")) else None
        with ExitStack() as stack:
            try:
                sources = [
                    stack.enter_context(self._contents.path(parts[id]["sha256"]).open("rb"))
                    for id in asked.part_ids
                ]
            except FileNotFoundError:
                self._upload(call)  # it was completed or cancelled meanwhile
                raise
            _require_md5(sources, asked.md5)
            draft = stack.enter_context(self._contents.draft(sources, MAX_UPLOAD))
            if draft.bytes != upload["bytes"]:
                message = (
                    f"The parts have {draft.bytes} bytes, but the upload was created for {upload['bytes']}"
                )
                raise HostError(422, message, param="part_ids")
            file, added = self._files.new(upload["filename"], upload["purpose"], draft, expires)
            done = self._objects.change(
                UPLOAD,
                call.project,
                upload["id"],
                lambda upload: {**self._pending(upload), "status": "completed", "file": file},
                added,
            )
        call.about(file["id"])
        self._forget(call.project, upload["id"])
        return _upload_shown(done or {})

    def _forget(self, project: str, upload: str) -> None:
        for part in self._objects.listed(PART, project, parent=upload):
            self._objects.remove(PART, project, part["id"])
            self._contents.release(part["sha256"])

    def cancel(self, call: GatewayRequest) -> Any:
        if done := self._repeated(call, "cancelled"):
            return done
        upload = self._upload(call)
        done = self._objects.change(
            UPLOAD, call.project, upload["id"], lambda u: {**self._pending(u), "status": "cancelled"}
        )
        self._forget(call.project, upload["id"])
        call.about(upload["id"])
        return _upload_shown(done or {})

    def sweep(self) -> None:
        """Delete unusable parts: parts of expired uploads, and parts that a killed process left after their
        upload ended."""
        over = {
            upload["id"]
            for _, upload in self._objects.every(UPLOAD)
            if upload["status"] != "pending" or self._files.now() > upload["expires_at"]
        }
        for project, upload in {(p, part["upload_id"]) for p, part in self._objects.every(PART)}:
            if upload in over:
                self._forget(project, upload)


def _require_md5(sources: Sequence[Any], md5: str | None) -> None:
    if md5 is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    for source in sources:
        while block := source.read(1 << 20):
            digest.update(block)
        source.seek(0)
    if digest.hexdigest() != md5.lower():
        raise HostError(422, "The MD5 hash of the parts does not match", param="md5")


def _upload_shown(upload: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in upload.items() if name != "expires_after"}
