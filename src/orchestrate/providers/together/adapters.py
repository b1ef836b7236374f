"""Adapters of elsewhere at Together: registered in the project, uploaded in parts, deployed as its own are.

The requests are those of the SDK's command line (`models create`, `models upload`): the SDK has no method
for the upload itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate.errors import ProviderError, UnexpectedAnswer, UsageError
from orchestrate.providers import adapters
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.calls.values import items, plain, rows, table, text, whole
from orchestrate.providers.files import transfer
from orchestrate.providers.together.profile import PROFILE
from orchestrate.providers.together.serving import Serving
from orchestrate.types import Adapter

if TYPE_CHECKING:
    import httpx
    from together import Together

PART_BYTES = 20 << 20
"""As the SDK's command line cuts files: the host compares hashes that depend on it."""


class TogetherAdapters(adapters.Adapters):
    def __init__(self, name: str, client: Callable[[], Together], wire: Wire, serving: Serving) -> None:
        self._provider, self._client, self._wire, self._serving = name, client, wire, serving

    def price(self, adapter: Adapter, options: Mapping[str, Any] | None) -> Decimal | None:
        base = self._base_id(adapter)
        return self._serving.price_on(adapter.id, base, options)

    def upload(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> None:
        registered = self.find(adapter.id) or self._register(adapter)
        object_id = str(registered["id"])
        local = {file.name: _File(file) for file in adapters.files(adapter)}
        told = [{"path": n, "hash": f.hash, "numParts": len(f.parts)} for n, f in local.items()]
        asked = self._send("upload/create", {"objectId": object_id, "files": told})
        total, done, sent = sum(f.size for f in local.values()), 0, list[dict[str, Any]]()
        import httpx

        # It never carries the key.
        with httpx.Client(timeout=httpx.Timeout(600.0, connect=30.0)) as http:
            for remote in rows(asked.get("files")):
                file = local.get(str(remote.get("path")))
                if file is None:
                    raise UnexpectedAnswer(self._provider, f"it asks for a file {remote.get('path')!r}")
                sent.append(self._sent(http, file, remote))
                done += file.size
                if progress is not None:
                    progress(done, total)
        self._send("upload/complete", {"objectId": object_id, "files": sent})

    def _sent(self, http: httpx.Client, file: _File, remote: Mapping[str, Any]) -> dict[str, Any]:
        """One file, in the words in which its upload is completed."""
        entry: dict[str, Any] = {"path": file.path.name, "hash": file.hash}
        if remote.get("skipUpload"):
            return {**entry, "skipUpload": True}
        parts = [self._part(http, file, part) for part in rows(remote.get("parts"))]
        if len(parts) != len(file.parts):
            raise UnexpectedAnswer(
                self._provider,
                f"it asks for {len(parts)} parts of {file.path.name}, which has {len(file.parts)}",
            )
        return {**entry, "uploadDetails": {"uploadId": text(remote.get("uploadId")) or "", "parts": parts}}

    def find(self, id: str) -> dict[str, Any] | None:
        """The registry's record of an adapter of this name."""
        client, project = self._client(), self._serving.project()
        for page in self._wire.pages(lambda: client.models.list(project_id=project, limit=100)):
            for raw in items(page):
                if str(raw.get("name")).rsplit("/", 1)[-1] == id:
                    return raw
        return None

    def as_job(self, id: str) -> dict[str, Any]:
        """In the form of the job that would have made it. Raises `UsageError` where it is not there."""
        found = self.find(id)
        if found is None:
            raise UsageError(f"{self._provider} has no adapter {id}", fix="orchestrate deploy RUN --to ...")
        base = text(found.get("baseModelId"))
        name = None
        if base is not None:
            project = self._base_project(found)
            name = plain(self._wire.read(lambda: self._client().models.retrieve(base, project_id=project)))
        return {
            "id": id,
            "status": "completed",
            "adapter_object_id": found["id"],
            "model": table(name).get("name"),
        }

    # -- steps ---------------------------------------------------------------------------------------------

    def _base_project(self, registered: Mapping[str, Any]) -> str:
        """`projects/{baseProject}/models/{baseModelId}`, else our own."""
        parts = str(registered.get("baseModel") or "").split("/")
        return parts[1] if len(parts) == 4 else self._serving.project()

    def _base_id(self, adapter: Adapter) -> str:
        """Of the host's own deployable base of this name, as the SDK's command line finds it."""
        name = adapters.base_at(PROFILE, adapter)
        found: set[str] = set()
        for page in self._wire.pages(lambda: self._client().models.list_supported(search=name)):
            for model in items(page):
                for profile in rows(model.get("deploymentProfiles")):
                    parts = str(profile.get("model")).split("/")
                    if profile.get("modelName") == name and len(parts) >= 4:
                        found.add(parts[3])
        if len(found) != 1:
            raise UsageError(
                f"Together serves no adapters on {name}"
                if not found
                else f"Together has several bases {name}",
                fix="tg models public --search NAME   shows what it deploys",
            )
        return found.pop()

    def _register(self, adapter: Adapter) -> dict[str, Any]:
        """Costs nothing. One whose answer was lost, or that another process made, is found."""
        client, base = self._client(), self._base_id(adapter)
        project = self._serving.project()
        try:
            made = self._wire.once(
                lambda: client.models.create(
                    project_id=project, base_model_id=base, name=adapter.id, type="adapter"
                )
            )
        except ProviderError:
            there = self.find(adapter.id)
            if there is None:
                raise
            return there
        return plain(made)

    def _send(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Both requests may be repeated: they name what they are about."""
        from together._utils import path_template

        project, client = self._serving.project(), self._client()
        url = path_template("/v2/projects/{project_id}/models/", project_id=project) + path
        return plain(self._wire.read(lambda: client.post(url, cast_to=object, body=body), expect=object))

    def _part(self, http: httpx.Client, file: _File, remote: Mapping[str, Any]) -> dict[str, Any]:
        number = whole(remote.get("partNumber"))
        if number is None or not 1 <= number <= len(file.parts):
            raise UnexpectedAnswer(
                self._provider, f"it asks for part {number} of {len(file.parts)} of a file"
            )
        offset, size = file.parts[number - 1]
        url = transfer.safe_url(self._provider, remote.get("url"))
        headers = {str(k): str(v) for k, v in table(remote.get("headers")).items()}

        def put() -> httpx.Response:
            with file.path.open("rb") as opened:
                opened.seek(offset)
                answer = http.put(url, content=opened.read(size), headers=headers)
            answer.raise_for_status()
            return answer

        tag = self._wire.read(put).headers.get("etag", "").strip().strip('"')
        if not tag:
            raise UnexpectedAnswer(
                self._provider, f"part {number} of {file.path.name} was not confirmed (no ETag)"
            )
        return {"partNumber": number, "hash": tag}


class _File:
    """Parts as (offset, bytes), and the hash of an object that was uploaded in them."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        self.parts = [(at, min(PART_BYTES, self.size - at)) for at in range(0, self.size, PART_BYTES)]
        sums: list[bytes] = []
        with path.open("rb") as file:
            while piece := file.read(PART_BYTES):
                sums.append(hashlib.md5(piece, usedforsecurity=False).digest())
        joined = hashlib.md5(b"".join(sums), usedforsecurity=False).hexdigest()
        self.hash = sums[0].hex() if len(sums) == 1 else f"{joined}-{len(sums)}"
