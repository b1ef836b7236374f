"""The simulated Fireworks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import dropwhile, islice
from typing import Any, TypeVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.host import (
    Body,
    Host,
    HostError,
    iso,
    json_answer,
    json_body,
    number,
    page_of,
    parse,
    route,
)
from orchestrate.sandbox.state import token

# Resource names, pagination and filters in the format of the Fireworks gateway.


T = TypeVar("T")

GRPC = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 412: 9, 429: 8, 500: 13, 501: 12, 503: 14, 504: 4}
"""google.rpc code for each HTTP status."""
PAGE, MOST = 50, 200

_CLAUSE = re.compile(r"""\s*([\w.]+)\s*(!?=)\s*(?:"([^"]*)"|'([^']*)'|([\w.\-/]+))\s*""")


def short(name: str) -> str:
    """Return the last part of a resource name."""
    return name.rsplit("/", 1)[-1]


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])([A-Z])", lambda m: f"_{m[1].lower()}", name)


def paged(
    request: Request,
    collection: str,
    items: Iterator[T],
    render: Callable[[T], dict[str, Any]],
    *,
    key: Callable[[T], str],
) -> Response:
    """Return the page that the request's page token asks for, or the first page if the request has no token.
    A page token is the id of the previous page's last item."""
    if after := page_token(request):
        items = islice(dropwhile(lambda item: key(item) != after, items), 1, None)
    return page(request, collection, items, render, key=key)


def page_token(request: Request) -> str | None:
    return request.query_params.get("pageToken") or None


def page(
    request: Request,
    collection: str,
    items: Iterator[T],
    render: Callable[[T], dict[str, Any]],
    *,
    key: Callable[[T], str],
) -> Response:
    """Return a response with the first items, at most `pageSize` of them, and the token of the next page."""
    size = number(request, "pageSize", PAGE, 0, MOST) or PAGE
    first, more = page_of(items, size)
    body: dict[str, Any] = {collection: [render(item) for item in first]}
    body["nextPageToken"] = key(first[-1]) if more and first else ""
    return json_answer(body)


def aip_filter(items: Iterator[T], request: Request, fields: Callable[[T], dict[str, str]]) -> Iterator[T]:
    """Filter items by a subset of AIP-160: `field=value` and `field!=value`, joined by AND. A value may start
    or end with `*`.

    Raises `HostError` 400 for anything else."""
    text = request.query_params.get("filter")
    if not text:
        return items
    clauses: list[tuple[str, bool, str]] = []
    for part in re.split(r"\bAND\b", text):
        found = _CLAUSE.fullmatch(part)
        if found is None:
            raise HostError(400, f"this sandbox cannot parse the filter {text!r}")
        name, operator, *values = found.groups()
        clauses.append((snake(name), operator == "=", next(v for v in values if v is not None)))

    def kept(item: T) -> bool:
        values = fields(item)
        for name, equal, wanted in clauses:
            if name not in values:
                raise HostError(400, f"this sandbox cannot filter by {name!r}")
            if _like(values[name], wanted) != equal:
                return False
        return True

    return filter(kept, items)


def _like(value: str, pattern: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), value) is not None


# Evaluators and secrets are stored by name, as on the gateway. An evaluator's code is accepted but never run.


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


class FireworksSecret(Body):
    keyName: str = Field(min_length=1)
    name: str | None = None
    value: str | None = None


class FireworksResourceRoutes:
    """Routes for an account's evaluators and secrets."""

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
        body = parse(CreateEvaluator, await json_body(request))
        now = iso(self.host.clock.now())
        given = body.evaluator.model_dump(exclude_none=True)
        state = {"state": "ACTIVE", "createTime": now, "updateTime": now, "createdBy": "sandbox@localhost"}
        return self._make("evaluators", body.evaluatorId or f"evaluator-{token(8)}", {**given, **state})

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
        """Create a secret. Its value is never returned."""
        body = parse(FireworksSecret, await json_body(request))
        return self._make("secrets", short(body.name or f"secret-{token(8)}"), {"keyName": body.keyName})

    def list_secrets(self, request: Request) -> Response:
        return self._list(request, "secrets")

    async def update_secret(self, request: Request) -> Response:
        found = self._found(request)
        body = parse(FireworksSecret, {"keyName": found["keyName"], **await json_body(request)})
        return self._save("secrets", {**found, "keyName": body.keyName})
