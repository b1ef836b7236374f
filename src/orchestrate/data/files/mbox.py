"""Mail folders -> rows of one message each, with `thread`, `sender`, `time` and `text`."""

from __future__ import annotations

import mailbox
from collections.abc import Iterator
from email.header import decode_header, make_header
from email.message import Message
from email.utils import parseaddr
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


def is_mbox(path: str) -> bool:
    """By the first line, which each message of such a file begins with. A file that cannot be read is none:
    whoever reads it will say why."""
    file = Path(path)
    try:
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            return opened.read(5) == b"From "
    except (OSError, ValueError):
        return False


def mbox_rows(path: str) -> Iterator[dict[str, Any]]:
    """In the order of the file. Messages belong to the thread of the first that they refer to."""
    box = mailbox.mbox(path, create=False)
    try:
        parents = {_id(m.get("Message-ID")): _parent(m) for m in box}
        for m in box:
            yield {
                "thread": _root(_id(m.get("Message-ID")), parents),
                "sender": parseaddr(_text(m.get("From")))[1].lower(),
                "time": _text(m.get("Date")),
                "subject": _text(m.get("Subject")),
                "text": _body(m),
            }
    finally:
        box.close()


def _text(header: Any) -> str:
    try:
        return str(make_header(decode_header(str(header or ""))))
    except (LookupError, UnicodeError, ValueError):
        return str(header or "")


def _id(header: Any) -> str:
    return str(header or "").strip()


def _parent(m: Message) -> str | None:
    before = f"{m.get('References') or ''} {m.get('In-Reply-To') or ''}".split()
    return before[0] if before else None


def _root(message: str, parents: dict[str, str | None]) -> str:
    seen: set[str] = set()
    while (parent := parents.get(message)) and message not in seen:
        seen.add(message)
        message = parent
    return message


def _body(m: Message) -> str:
    """The plain text, else that of the HTML."""
    found: dict[str, str] = {}
    for part in m.walk():
        kind = part.get_content_type()
        if kind in ("text/plain", "text/html") and kind not in found and not part.get_filename():
            raw: Any = part.get_payload(decode=True)
            try:
                found[kind] = raw.decode(part.get_content_charset() or "utf-8", "replace")
            except LookupError:
                found[kind] = raw.decode("utf-8", "replace")
    if "text/plain" in found:
        return found["text/plain"].replace("\r\n", "\n")
    reader = _Words()
    reader.feed(found.get("text/html", ""))
    return "".join(reader.words).strip()


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("style", "script", "blockquote")
        if tag in ("br", "p", "div", "tr", "li"):
            self.words.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "script", "blockquote") and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)
