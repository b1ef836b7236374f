"""Files: uploaded, listed, given back."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from orchestrate.gateway import showing
from orchestrate.gateway.calls import Call, endpoint, placed, streamed
from orchestrate.gateway.contents import Contents, Draft
from orchestrate.gateway.forms import Form, known_only
from orchestrate.gateway.refusals import no_file
from orchestrate.tracking import Store
from orchestrate.tracking.gateway.objects import FILE, Addition
from orchestrate.types import GatewayJob, JobStatus
from orchestrate.wire.bodies import HostError, parse
from orchestrate.wire.openai import objects
from orchestrate.wire.openai.objects import MAX_FILE, PURPOSES
from orchestrate.wire.openai.pages import number, page_with_ends
from orchestrate.wire.openai.tuning import ExpiresAfter

TAKEN = tuple(purpose for purpose in PURPOSES if purpose != "evals")
"""The published description has no file with that one."""
_MOST_TEXT = 1 << 16
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"


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
        ]

    def now(self) -> float:
        return self._store.clock.now().timestamp()

    async def create(self, call: Call) -> Response:
        async with Form(call.request, _MOST_TEXT) as form:
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile):
                raise HostError(422, "'file' is a required property", param="file")
            if purpose not in TAKEN:
                raise HostError(422, f"'{purpose}' is not one of {list(TAKEN)} - 'purpose'", param="purpose")
            known_only(form, ("file", "purpose", _ANCHOR, _SECONDS))
            name, expires = upload.filename or "file", _expiry(form)
            require_file(name, str(purpose), upload.size)

            def keep() -> dict[str, Any]:
                with self.contents.draft([upload.file], MAX_FILE) as draft:
                    made, added = self.new(name, str(purpose), draft, expires)
                    self._objects.add_content(call.project, added)
                    call.about(made["id"])
                    return made

            made = await run_in_threadpool(keep)
        return JSONResponse(made)

    def new(
        self, name: str, purpose: str, draft: Draft, expires: ExpiresAfter | None
    ) -> tuple[dict[str, Any], Addition]:
        """A file as it is shown, and as it is kept."""
        id, now = f"file-{secrets.token_hex(12)}", self.now()
        until = {} if expires is None else {"expires_at": int(now) + expires.seconds}
        made = objects.file(id, name, purpose, draft.bytes, now, **until)
        return made, Addition(FILE, {**made, "sha256": draft.sha256}, draft.keep)

    def listed(self, call: Call) -> Any:
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
        """Raises `HostError` 404."""
        file = self._objects.get(FILE, project, id)
        if file is None or self._expired(file):
            raise no_file(id, param)
        return file

    def _expired(self, file: dict[str, Any]) -> bool:
        return self.now() > file.get("expires_at", float("inf"))

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
        try:
            # Open, it can be read to its end whoever deletes it.
            content = self.contents.path(file["sha256"]).open("rb")
        except FileNotFoundError as error:
            self.found(call.project, id)  # it was deleted just now
            told = f"the content of {id} is not in {self.contents.folder} any more"
            raise HostError(404, told, param="id", code="content_lost") from error
        headers = {
            "content-length": str(file["bytes"]),
            "content-disposition": f"attachment; filename*=utf-8''{quote(file['filename'], safe='')}",
        }
        return StreamingResponse(_blocks(content), media_type="application/octet-stream", headers=headers)

    def delete(self, call: Call) -> Any:
        id = call.path("id")
        gone = self._objects.remove(FILE, call.project, id)
        if gone is None:
            raise no_file(id)
        self.contents.release(gone["sha256"])
        call.about(id)
        return objects.deleted(id, "file")

    def sweep(self) -> None:
        """Files whose time is over."""
        for project, file in self._objects.every(FILE):
            if self._expired(file) and self._objects.remove(FILE, project, file["id"]) is not None:
                self.contents.release(file["sha256"])

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


def require_file(name: str, purpose: str, size: int | None) -> None:
    """Before anything of it is kept. Raises `HostError` 422."""
    if size == 0:
        raise HostError(422, "The file is empty", param="file", code="file_empty")
    if purpose == "fine-tune" and not name.endswith(".jsonl"):
        told = f"Invalid extension of {name!r}. Supported formats: ['jsonl']"
        raise HostError(422, told, param="file")


def _expiry(form: Any) -> ExpiresAfter | None:
    told = {"anchor": form.get(_ANCHOR), "seconds": form.get(_SECONDS)}
    return None if told == dict.fromkeys(told) else parse(ExpiresAfter, told)


def _blocks(content: IO[bytes]) -> Iterator[bytes]:
    with content:
        while block := content.read(1 << 20):
            yield block


def _shown(file: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in file.items() if name != "sha256"}
