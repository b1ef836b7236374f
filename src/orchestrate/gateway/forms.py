"""Files as they come in: forms of several parts."""

from __future__ import annotations

import io
from typing import IO, Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from orchestrate.gateway.contents import room
from orchestrate.wire.bodies import HostError


class Form:
    """The form of a request, for the length of an `async with` block. Raises `HostError` 422 for what is
    none, 503 where there is no room for it."""

    def __init__(self, request: Request, most_text: int) -> None:
        """`most_text`: bytes of a field that is no file, and is held in memory."""
        self._opening = request.form(max_files=1, max_part_size=most_text)

    async def __aenter__(self) -> Any:
        try:
            with room():
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


def bytes_of(value: Any, param: str) -> IO[bytes]:
    """Of a file, or of a text, which is as good. Raises `HostError` 422."""
    if isinstance(value, UploadFile):
        return value.file
    if isinstance(value, str):
        return io.BytesIO(value.encode())
    raise HostError(422, f"'{param}' is a required property", param=param)


def known_only(form: Any, names: tuple[str, ...]) -> None:
    """Raises `HostError` 422: nothing that was asked for is left out without a word."""
    for name in form:
        if name not in names:
            raise HostError(422, f"Unrecognized request argument supplied: {name}", param=name)
