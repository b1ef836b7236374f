"""Images in a column of the row -> the places that its messages have for them.

LLaMA-Factory marks a place with `<image>` in the text, Transformers and TRL with a part `{type: image}`;
where a row marks none, TRL puts its images before the first question.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, cast

from orchestrate.data.rows.examples import ChatMessage, ImageUrl, Part
from orchestrate.data.rows.problems import problem
from orchestrate.types import Problem

COLUMNS = ("images", "image")
MARK = "<image>"
_HEADS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


def images_of(row: dict[str, Any]) -> list[Any]:
    """What the row's columns for images hold."""
    held: list[Any] = []
    for name in COLUMNS:
        value: Any = row.get(name)
        held += cast("list[Any]", value) if isinstance(value, list) else [] if value is None else [value]
    return held


def place(messages: Sequence[ChatMessage], held: Sequence[Any]) -> list[Problem]:
    """Fills the places of `messages` with the images, in order. Another number of places than images is an
    error: which belongs where is not known then."""
    urls = [_url(item) for item in held]
    if None in urls:
        return [
            problem(
                "bad-image", f"image {urls.index(None) + 1} is not a path, a URL or bytes", field="images"
            )
        ]
    marked = [m for m in messages if MARK in m.text or _places(m)]
    if not marked and (first := next((m for m in messages if m.role == "user"), None)) is not None:
        first.content = [*(Part(type="image_url") for _ in urls), *_parts(first)]
    elif (count := sum(m.text.count(MARK) + _places(m) for m in marked)) != len(urls):
        return [problem("bad-image", f"{len(urls)} images for {count} places in the text", field="images")]
    waiting = iter(cast("list[str]", urls))
    for m in messages:
        if MARK in m.text:
            m.content = [piece for part in _parts(m) for piece in _split(part)]
        for part in m.content if isinstance(m.content, list) else ():
            if part.type == "image_url" and part.image_url is None:
                part.image_url = ImageUrl(url=next(waiting))
    return []


def _places(m: ChatMessage) -> int:
    parts = m.content if isinstance(m.content, list) else ()
    return sum(part.type == "image_url" and part.image_url is None for part in parts)


def _parts(m: ChatMessage) -> list[Part]:
    if isinstance(m.content, list):
        return m.content
    return [Part(type="text", text=m.content)] if m.content else []


def _split(part: Part) -> list[Part]:
    if part.text is None or MARK not in part.text:
        return [part]
    pieces: list[Part] = []
    for i, text in enumerate(part.text.split(MARK)):
        pieces += [Part(type="image_url")] if i else []
        pieces += [Part(type="text", text=text)] if text else []
    return pieces


def _url(item: Any) -> str | None:
    """A path or an address as it is, bytes as a data URL; `datasets` holds images as `{bytes, path}`."""
    if isinstance(item, str):
        return item or None
    if not isinstance(item, dict):
        return None
    named = cast("dict[str, Any]", item)
    data: Any = named.get("bytes") or named.get("base64")
    if isinstance(data, dict):  # bytes of a column, as tables are read
        data = cast("dict[str, Any]", data).get("base64")
    if isinstance(data, str):
        try:
            head = base64.b64decode(data[:16])
        except ValueError:
            return None
        kind = next((kind for start, kind in _HEADS.items() if head.startswith(start)), "png")
        return f"data:image/{kind};base64,{data}"
    url: Any = named.get("url") or named.get("path")
    return url if isinstance(url, str) else None
