"""Together's registry takes adapters: registered, uploaded in parts of 20 MB, completed."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.sandbox.host import Body, Host, HostError, json_answer, json_body, parse, route
from orchestrate.sandbox.shared import brought
from orchestrate.sandbox.state import token
from orchestrate.sandbox.together.registry import PUBLIC, Registry, object_id

PART_BYTES = 20 * 1024 * 1024


class CreateModel(Body):
    base_model_id: Annotated[str, Field(alias="baseModelId")]
    name: Annotated[str, Field(pattern=r"^([a-z0-9-]+/)?[A-Za-z0-9._-]{1,96}$")]
    type: Literal["model", "adapter", "models", "adapters"]
    description: str | None = None


class FileToCome(Body):
    path: str
    hash: str
    numParts: Annotated[int, Field(ge=1)]


class CreateUpload(Body):
    objectId: str
    files: Annotated[list[FileToCome], Field(min_length=1)]


class PartDone(Body):
    partNumber: int
    hash: str


class Details(Body):
    uploadId: str
    parts: list[PartDone]


class FileDone(Body):
    path: str
    hash: str
    uploadDetails: Details | None = None
    skipUpload: bool = False


class CompleteUpload(Body):
    objectId: str
    files: list[FileDone]


class Bringing:
    """Routes over registered adapters of the Together host."""

    def __init__(self, host: Host, registry: Registry) -> None:
        self.host, self.registry = host, registry

    def routes(self) -> list[BaseRoute]:
        root = "/v2/projects/{project}/models"
        return [
            route(root, "POST", self.create),
            route(f"{root}/upload/create", "POST", self.begin),
            route(f"{root}/upload/complete", "POST", self.complete),
            route("/_signed/model-part/{upload}/{number}", "PUT", self.receive),
        ]

    async def create(self, request: Request) -> Response:
        asked = parse(CreateModel, await json_body(request))
        base = self.registry.base_of(asked.base_model_id)
        if base is None:
            raise HostError(
                400, f"base model {asked.base_model_id} is not supported", code="invalid_argument"
            )
        if not asked.type.startswith("adapter"):
            raise HostError(400, "the sandbox takes adapters only", code="invalid_argument")
        name = asked.name if "/" in asked.name else f"sandbox/{asked.name}"
        id = object_id("ml", name)
        if self.host.state.get("together", "registered", id) is not None:
            raise HostError(409, f"model {name} already exists", code="already_exists")
        body: dict[str, Any] = {
            "id": id,
            "name": name,
            "projectId": request.path_params["project"],
            "organizationId": "org-sandbox",
            "visibility": "VISIBILITY_PRIVATE",
            "weights": {},
            "baseModel": f"projects/{PUBLIC}/models/{asked.base_model_id}",
            "baseModelId": asked.base_model_id,
            "description": asked.description,
            "sandbox": True,
            "sandbox_base": base,
        }
        self.host.state.put("together", "registered", id, body)
        return json_answer(body)

    def _registered(self, id: str) -> dict[str, Any]:
        found = self.host.state.get("together", "registered", id)
        if found is None:
            raise HostError(404, f"model {id} was not found", code="not_found")
        return found

    async def begin(self, request: Request) -> Response:
        asked = parse(CreateUpload, await json_body(request))
        self._registered(asked.objectId)
        folder = brought.folder_of(self.host, asked.objectId)
        told: list[dict[str, Any]] = []
        for file in asked.files:
            if file.path not in brought.FILES:
                raise HostError(400, f"file {file.path} is not of an adapter", code="invalid_argument")
            there = folder / file.path
            if there.is_file() and _etag(there.read_bytes()) == file.hash:
                told.append({"path": file.path, "skipUpload": True})
                continue
            upload = token()
            values = {"object": asked.objectId, "path": file.path, "parts": file.numParts}
            self.host.state.put("together", "upload", upload, values)
            parts = [
                {
                    "partNumber": n,
                    "url": self.host.signed(f"model-part/{upload}/{n}"),
                    "headers": {"x-part": str(n)},
                }
                for n in range(1, file.numParts + 1)
            ]
            told.append({"path": file.path, "uploadId": upload, "parts": parts})
        return json_answer({"files": told, "sandbox": True})

    async def receive(self, request: Request) -> Response:
        number = request.path_params["number"]
        upload = self.host.state.get("together", "upload", request.path_params["upload"])
        if upload is None or request.headers.get("x-part") != number:
            raise HostError(403, "the signed URL is not valid", code="permission_denied")
        if "authorization" in request.headers:
            raise HostError(400, "a signed URL takes no key", code="invalid_argument")
        data = await request.body()
        if len(data) > PART_BYTES:
            raise HostError(400, "a part is at most 20 MB", code="invalid_argument")
        self._part(request.path_params["upload"], int(number)).write_bytes(data)
        return Response(headers={"etag": f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'})

    def _part(self, upload: str, number: int) -> Any:
        return self.host.state.files / f"part-{upload}-{number}"

    async def complete(self, request: Request) -> Response:
        asked = parse(CompleteUpload, await json_body(request))
        registered = self._registered(asked.objectId)
        folder = brought.folder_of(self.host, asked.objectId)
        for file in asked.files:
            if file.skipUpload:
                continue
            details = file.uploadDetails
            upload = self.host.state.get("together", "upload", details.uploadId) if details else None
            if details is None or upload is None or upload["path"] != file.path:
                raise HostError(400, f"no upload of {file.path} was begun", code="invalid_argument")
            numbers = [part.partNumber for part in details.parts]
            if numbers != list(range(1, upload["parts"] + 1)):
                raise HostError(400, f"parts of {file.path} are missing", code="invalid_argument")
            try:
                data = b"".join(self._part(details.uploadId, n).read_bytes() for n in numbers)
            except FileNotFoundError as error:
                raise HostError(400, f"parts of {file.path} never came", code="invalid_argument") from error
            if _etag(data) != file.hash:
                raise HostError(400, f"{file.path} has another hash", code="invalid_argument")
            (folder / file.path).write_bytes(data)
        brought.add(self.host, asked.objectId, registered["name"], registered["sandbox_base"])
        return json_answer({"revisionId": object_id("rv", registered["name"]), "sandbox": True})


def _etag(data: bytes) -> str:
    """As S3 has it for an object of several parts."""
    sums = [
        hashlib.md5(data[at : at + PART_BYTES], usedforsecurity=False)
        for at in range(0, len(data), PART_BYTES)
    ]
    if len(sums) == 1:
        return sums[0].hexdigest()
    return f"{hashlib.md5(b''.join(s.digest() for s in sums), usedforsecurity=False).hexdigest()}-{len(sums)}"
