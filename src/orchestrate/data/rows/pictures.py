"""The sizes of images, from the first bytes of the file or of the data URL: nothing is decoded or fetched."""

from __future__ import annotations

import base64
import io
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from orchestrate.data.rows.examples import ChatMessage, ImageUrl

MOST_SIZES = 1000
"""Kept apart; of more each is counted as the next larger multiple of `STEP`."""
STEP = 32
_HEAD = 64 << 10
"""Bytes that hold the size of nearly every image; of others all bytes are looked at."""


class Picture(NamedTuple):
    """What an image costs depends on these. Pixels are `None` where they cannot be told: an image by URL, an
    unknown kind, a file that is not there."""

    width: int | None
    height: int | None
    detail: str | None
    """`low`, `high` or `auto`, as the row has it; hosts take none for `auto`."""


def pictures(messages: Iterable[ChatMessage], folder: Path) -> Counter[Picture]:
    """Images of a row by size and detail; relative paths begin in `folder`, or else in the working folder."""
    found: Counter[Picture] = Counter()
    for m in messages:
        for part in m.content if isinstance(m.content, list) else ():
            if part.image_url is not None:
                found[picture(part.image_url, folder)] += 1
    return found


def picture(image: ImageUrl, folder: Path) -> Picture:
    width, height = _size(image.url, folder)
    return Picture(width, height, image.detail)


def add(total: Counter[Picture], more: Mapping[Picture, int]) -> None:
    """Memory stays bounded: sizes that are new to a full table are rounded up."""
    for size, count in more.items():
        if size not in total and len(total) >= MOST_SIZES and size.width and size.height:
            size = size._replace(width=_up(size.width), height=_up(size.height))
        total[size] += count


def _up(pixels: int) -> int:
    return -(-pixels // STEP) * STEP


def _size(url: str, folder: Path) -> tuple[int, int] | tuple[None, None]:
    if url.startswith("data:"):
        data = url.partition(",")[2]
        return _read(_decoded(data[: _HEAD // 3 * 4])) or _read(_decoded(data)) or (None, None)
    if "://" in url[:12] and not url.startswith("file://"):
        return None, None
    path = Path(url.removeprefix("file://")).expanduser()
    for file in (folder / path, path):
        try:
            with file.open("rb") as opened:
                return _read(opened.read(_HEAD)) or _read(file.read_bytes()) or (None, None)
        except (OSError, ValueError):
            continue
    return None, None


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data)
    except ValueError:
        return b""


def _read(head: bytes) -> tuple[int, int] | None:
    import imagesize  # pyright: ignore[reportMissingTypeStubs]

    try:
        width, height = cast("Any", imagesize).get(io.BytesIO(head))
    except (ValueError, OSError, IndexError, OverflowError, struct.error):  # a broken header
        return None
    return (int(width), int(height)) if width > 0 and height > 0 else None
