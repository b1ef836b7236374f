"""Uploads: files that come in parts."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from orchestrate.gateway.calls import Call, endpoint, retries, streamed
from orchestrate.gateway.files import TAKEN, Files, require_file
from orchestrate.gateway.forms import Form, bytes_of, known_only
from orchestrate.tracking import Store
from orchestrate.tracking.gateway.objects import PART, UPLOAD, Addition
from orchestrate.wire.bodies import HostError, parse
from orchestrate.wire.openai import objects
from orchestrate.wire.openai.objects import MAX_PART
from orchestrate.wire.openai.tuning import CompleteUpload, CreateUpload, ExpiresAfter

MAX_UPLOAD = 8 << 30


class Uploads:
    def __init__(self, store: Store, files: Files) -> None:
        self._files, self._contents = files, files.contents
        self._objects = store.gateway_objects

    def routes(self) -> list[BaseRoute]:
        return [
            endpoint("/v1/uploads", "POST", self.begin),
            streamed("/v1/uploads/{id}/parts", "POST", self.add_part),
            endpoint("/v1/uploads/{id}/complete", "POST", self.complete),
            endpoint("/v1/uploads/{id}/cancel", "POST", self.cancel),
        ]

    def begin(self, call: Call) -> Any:
        asked = parse(CreateUpload, call.body)
        if asked.purpose not in TAKEN:
            raise HostError(422, f"'{asked.purpose}' is not one of {list(TAKEN)}", param="purpose")
        require_file(asked.filename, asked.purpose, None)
        id = f"upload_{secrets.token_hex(12)}"
        made = objects.upload(id, asked.filename, asked.purpose, asked.bytes, self._files.now())
        expires = {"expires_after": asked.expires_after.model_dump()} if asked.expires_after else {}
        self._objects.add(UPLOAD, call.project, [{**made, **expires}])
        call.about(id)
        return made

    def _pending(self, upload: dict[str, Any]) -> dict[str, Any]:
        """Raises `HostError` 422 for one that takes nothing more."""
        if upload["status"] == "pending" and self._files.now() > upload["expires_at"]:
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
        return _shown(upload) if again and upload is not None and upload["status"] == status else None

    async def add_part(self, call: Call) -> Response:
        upload = await run_in_threadpool(self._upload, call)
        part = objects.part(f"part_{secrets.token_hex(12)}", upload["id"], self._files.now())
        async with Form(call.request, MAX_PART) as form:
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

    def complete(self, call: Call) -> Any:
        asked = parse(CompleteUpload, call.body)
        if done := self._repeated(call, "completed"):
            return done
        upload = self._upload(call)
        parts = {p["id"]: p for p in self._objects.listed(PART, call.project, parent=upload["id"])}
        if unknown := [id for id in asked.part_ids if id not in parts]:
            raise HostError(422, f"No such part of this upload: {unknown[0]}", param="part_ids")
        expires = ExpiresAfter(**told) if (told := upload.get("expires_after")) else None
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
                told = f"The parts have {draft.bytes} bytes, the upload was made for {upload['bytes']}"
                raise HostError(422, told, param="part_ids")
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
        return _shown(done or {})

    def _forget(self, project: str, upload: str) -> None:
        for part in self._objects.listed(PART, project, parent=upload):
            self._objects.remove(PART, project, part["id"])
            self._contents.release(part["sha256"])

    def cancel(self, call: Call) -> Any:
        if done := self._repeated(call, "cancelled"):
            return done
        upload = self._upload(call)
        done = self._objects.change(
            UPLOAD, call.project, upload["id"], lambda u: {**self._pending(u), "status": "cancelled"}
        )
        self._forget(call.project, upload["id"])
        call.about(upload["id"])
        return _shown(done or {})

    def sweep(self) -> None:
        """Parts that come to nothing: of uploads whose time is over, or that a kill left when they ended."""
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
        for block in _blocks(source):
            digest.update(block)
        source.seek(0)
    if digest.hexdigest() != md5.lower():
        raise HostError(422, "The md5 of the parts is another one", param="md5")


def _blocks(source: Any) -> Iterable[bytes]:
    return iter(lambda: source.read(1 << 20), b"")


def _shown(upload: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in upload.items() if name != "expires_after"}
