"""Fireworks takes adapters: a model, its files over signed URLs, and a validation that ends the upload."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.host import Body, Host, HostError, iso, json_answer, json_body, parse, route
from orchestrate.sandbox.shared import brought
from orchestrate.sandbox.shared.billing import base_model
from orchestrate.sandbox.state import token

_ID = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")


class PeftDetails(Body):
    baseModel: str
    r: Annotated[int, Field(ge=4, le=64)]
    targetModules: list[str]


class NewModel(Body):
    kind: Literal["HF_PEFT_ADDON"] = "HF_PEFT_ADDON"
    peftDetails: PeftDetails
    displayName: Annotated[str, Field(max_length=63)] | None = None
    description: Annotated[str, Field(max_length=999)] | None = None


class CreateModel(Body):
    modelId: str
    model: NewModel


class UploadEndpoint(Body):
    filenameToSize: dict[str, str]
    enableResumableUpload: bool = False


class Bringing:
    """Routes over adapters that are being uploaded to the Fireworks host."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def routes(self) -> list[BaseRoute]:
        models = "/v1/accounts/{account}/models"
        return [
            route(models, "POST", self.create),
            route(f"{models}/{{id}}:getUploadEndpoint", "POST", self.endpoint),
            route(f"{models}/{{id}}:validateUpload", "GET", self.validate),
            route("/_signed/model/{ticket}", "PUT", self.receive),
        ]

    async def create(self, request: Request) -> Response:
        asked = parse(CreateModel, await json_body(request))
        if not _ID.match(asked.modelId):
            raise HostError(400, f"model id {asked.modelId!r} must be lower-case letters, digits and hyphens")
        base = asked.model.peftDetails.baseModel
        if base_model(base, "fireworks") is None:
            raise HostError(404, f"base model {base} was not found")
        if self.begun(asked.modelId) is not None:
            raise HostError(409, f"model {asked.modelId} already exists")
        now = iso(self.host.clock.now())
        model = {
            "id": asked.modelId,
            "name": f"accounts/{here()}/models/{asked.modelId}",
            "kind": asked.model.kind,
            "state": "UPLOADING",
            "status": {"code": "OK", "message": ""},
            "createTime": now,
            "updateTime": now,
            "public": False,
            "peftDetails": asked.model.peftDetails.model_dump(),
            "sandbox": True,
        }
        self.host.state.put("fireworks", "model", asked.modelId, model)
        return json_answer(model)

    def begun(self, id: str) -> dict[str, Any] | None:
        """A model that waits for its files."""
        return self.host.state.get("fireworks", "model", id)

    def _found(self, request: Request) -> dict[str, Any]:
        found = self.begun(request.path_params["id"])
        if found is None:
            raise HostError(404, f"model {request.path_params['id']} was not found")
        return found

    async def endpoint(self, request: Request) -> Response:
        model = self._found(request)
        asked = parse(UploadEndpoint, await json_body(request))
        urls: dict[str, str] = {}
        for name, size in asked.filenameToSize.items():
            if name not in brought.FILES:
                raise HostError(400, f"file {name} is not of an adapter")
            ticket = token()
            values = {"model": model["id"], "name": name, "size": int(size)}
            self.host.state.put("fireworks", "model-file", ticket, values)
            urls[name] = self.host.signed(f"model/{ticket}")
        return json_answer({"filenameToSignedUrls": urls})

    async def receive(self, request: Request) -> Response:
        slot = self.host.state.get("fireworks", "model-file", request.path_params["ticket"])
        if slot is None:
            raise HostError(403, "this signed URL is not valid, or has expired")
        if "authorization" in request.headers:
            raise HostError(400, "a signed URL takes no key")
        size = slot["size"]
        if request.headers.get("x-goog-content-length-range") != f"{size},{size}":
            raise HostError(400, f"the header x-goog-content-length-range must be {size},{size}, as signed")
        data = await request.body()
        if len(data) != size:
            raise HostError(400, f"{len(data)} bytes came, {size} were signed")
        (brought.folder_of(self.host, slot["model"]) / slot["name"]).write_bytes(data)
        return Response(status_code=200)

    def validate(self, request: Request) -> Response:
        model = self._found(request)
        job = brought.add(self.host, model["id"], model["name"], model["peftDetails"]["baseModel"])
        if job.lora_rank != model["peftDetails"]["r"]:
            self.host.state.delete("fireworks", brought.KIND, job.id)
            raise HostError(
                400, f"the adapter has rank {job.lora_rank}, and {model['peftDetails']['r']} was told"
            )
        return json_answer({"warnings": []})
