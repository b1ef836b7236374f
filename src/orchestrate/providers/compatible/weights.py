"""The files of a tuned model, where a checkpoint lists them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from orchestrate.files import own_folder
from orchestrate.providers.base import Progress
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.calls.values import plain, text
from orchestrate.providers.files import archives, transfer
from orchestrate.providers.files.transfer import Stream

if TYPE_CHECKING:
    from openai import OpenAI


def fetch(
    client: OpenAI, wire: Wire, ids: Sequence[str], folder: Path, most: int, progress: Progress | None
) -> None:
    """The wanted ones of these files into `folder`, at most `most` bytes in all; those that came whole are
    not fetched again."""
    own_folder(folder)
    for id in ids:
        found = plain(wire.read(partial(client.files.retrieve, id)))
        name = PurePosixPath(text(found.get("filename")) or id).name
        if not archives.wanted(name):
            continue
        file = folder / name
        if not file.exists():
            transfer.fetch(wire, partial(_opened, client, id), file, limit_bytes=most, progress=progress)
        most -= file.stat().st_size


def _opened(client: OpenAI, id: str, headers: dict[str, str]) -> AbstractContextManager[Stream]:
    content: Any = client.files.with_streaming_response.content(id, extra_headers=headers)
    return cast("AbstractContextManager[Stream]", content)
