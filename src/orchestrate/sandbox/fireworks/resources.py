"""Evaluators and secrets: kept under their names, as the gateway keeps them. An evaluator's code is taken
and not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.fireworks.names import paged, short
from orchestrate.sandbox.host import Body, Host, HostError, iso, json_answer, json_body, parse, route
from orchestrate.sandbox.state import token


class Evaluator(Body):
    commitHash: str | None = None
    criteria: list[dict[str, Any]] | None = None
    defaultDataset: str | None = None
    description: str | None = None
    displayName: str | None = None
    entryPoint: str | None = None
    requirements: str | None = None
    source: dict[str, Any] | None = None
    prepareCodeUpload: bool | None = None


class CreateEvaluator(Body):
    evaluator: Evaluator
    evaluatorId: str | None = None


class Secret(Body):
    keyName: str = Field(min_length=1)
    name: str | None = None
    value: str | None = None


class Resources:
    """Routes over the evaluators and the secrets of an account."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def routes(self) -> list[BaseRoute]:
        account = "/v1/accounts/{account}"
        evaluator, secret = f"{account}/evaluators/{{id}}", f"{account}/secrets/{{id}}"
        return [
            route(f"{account}/evaluatorsV2", "POST", self.create_evaluator),
            route(f"{account}/evaluators", "GET", self.list_evaluators),
            route(f"{evaluator}:getUploadEndpoint", "POST", self.upload_endpoint),
            route(f"{evaluator}:validateUpload", "POST", self.validate_upload),
            route(evaluator, "GET", self.get),
            route(evaluator, "PATCH", self.update_evaluator),
            route(evaluator, "DELETE", self.delete),
            route("/_signed/evaluator/{id}", "PUT", self.take_code),
            route(f"{account}/secrets", "POST", self.create_secret),
            route(f"{account}/secrets", "GET", self.list_secrets),
            route(secret, "GET", self.get),
            route(secret, "PATCH", self.update_secret),
            route(secret, "DELETE", self.delete),
        ]

    # -- both ----------------------------------------------------------------------------------------------

    def _kind(self, request: Request) -> str:
        return request.url.path.split("/")[4]

    def _found(self, request: Request) -> dict[str, Any]:
        kind, id = self._kind(request), request.path_params["id"]
        found = self.host.state.get(self.host.name, kind, id)
        if found is None:
            raise HostError(404, f"{kind} {id} was not found")
        return found

    def _save(self, kind: str, body: dict[str, Any]) -> Response:
        self.host.state.put(self.host.name, kind, short(body["name"]), body)
        return json_answer(body)

    def _make(self, kind: str, id: str, given: Mapping[str, Any]) -> Response:
        if self.host.state.get(self.host.name, kind, id) is not None:
            raise HostError(409, f"{kind} {id} already exists")
        return self._save(kind, {**given, "name": f"accounts/{here()}/{kind}/{id}"})

    def get(self, request: Request) -> Response:
        return json_answer(self._found(request))

    def delete(self, request: Request) -> Response:
        self._found(request)
        self.host.state.delete(self.host.name, self._kind(request), request.path_params["id"])
        return json_answer({})

    def _list(self, request: Request, kind: str) -> Response:
        found = iter(list(self.host.state.all(self.host.name, kind)))
        return paged(request, kind, found, dict, key=lambda body: short(body["name"]))

    # -- evaluators ----------------------------------------------------------------------------------------

    async def create_evaluator(self, request: Request) -> Response:
        asked = parse(CreateEvaluator, await json_body(request))
        now = iso(self.host.clock.now())
        given = asked.evaluator.model_dump(exclude_none=True)
        state = {"state": "ACTIVE", "createTime": now, "updateTime": now, "createdBy": "sandbox@localhost"}
        return self._make("evaluators", asked.evaluatorId or f"evaluator-{token(8)}", {**given, **state})

    def list_evaluators(self, request: Request) -> Response:
        return self._list(request, "evaluators")

    async def update_evaluator(self, request: Request) -> Response:
        found = self._found(request)
        given = parse(Evaluator, await json_body(request)).model_dump(exclude_unset=True)
        given.pop("prepareCodeUpload", None)
        return self._save("evaluators", {**found, **given, "updateTime": iso(self.host.clock.now())})

    async def upload_endpoint(self, request: Request) -> Response:
        self._found(request)
        files: dict[str, Any] = (await json_body(request)).get("filenameToSize") or {}
        id = request.path_params["id"]
        return json_answer(
            {"filenameToSignedUrls": {name: self.host.signed(f"evaluator/{id}") for name in files}}
        )

    async def take_code(self, request: Request) -> Response:
        await request.body()
        return Response()

    def validate_upload(self, request: Request) -> Response:
        self._found(request)
        return json_answer({})

    # -- secrets -------------------------------------------------------------------------------------------

    async def create_secret(self, request: Request) -> Response:
        """The value is never given back."""
        asked = parse(Secret, await json_body(request))
        return self._make("secrets", short(asked.name or f"secret-{token(8)}"), {"keyName": asked.keyName})

    def list_secrets(self, request: Request) -> Response:
        return self._list(request, "secrets")

    async def update_secret(self, request: Request) -> Response:
        found = self._found(request)
        asked = parse(Secret, {"keyName": found["keyName"], **await json_body(request)})
        return self._save("secrets", {**found, "keyName": asked.keyName})
