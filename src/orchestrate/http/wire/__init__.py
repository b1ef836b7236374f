"""Request bodies, errors and pages of HTTP APIs, for servers that implement these APIs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

# Strict validation of request bodies, and rejections that each API converts to its own format.


T = TypeVar("T", bound=BaseModel)


class HostError(Exception):
    """An error to return for a rejected request. Each host's API has its own format for errors."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        type: str = "invalid_request_error",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.type = type
        self.param = param
        self.headers = dict(headers or {})


class Body(BaseModel):
    """Base class of request bodies. Rejects unknown fields and wrong types."""

    model_config = ConfigDict(extra="forbid", strict=False, populate_by_name=True)


def parse(kind: type[T], values: Any) -> T:
    """Validate values against this model class. Raises `HostError` 400 for the first invalid field."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(p) for p in first["loc"])
        if first["type"] == "extra_forbidden":
            message = f"Unrecognized request argument supplied: {path}"
        elif first["type"] == "missing":
            message = f"you must provide a {path} parameter"
        else:
            reason = first["msg"].removeprefix("Value error, ")
            message = f"Invalid value for '{path}': {reason}" if path else reason
        raise HostError(400, message, param=path or None) from error


async def json_body(request: Request) -> dict[str, Any]:
    """Read the JSON body of a request. Raises `HostError` 400 if it is not a JSON object."""
    import json

    try:
        values = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError) as error:
        raise HostError(400, f"We could not parse the JSON body of your request: {error}") from error
    if not isinstance(values, dict):
        raise HostError(400, "the JSON body of the request must be an object")
    return values  # pyright: ignore[reportUnknownVariableType]  # JSON objects have string keys
