"""Answers of the chat completions API as they are written, for the time of the first token and for people who
read along."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from orchestrate.providers.calls.payloads import CutShort
from orchestrate.providers.calls.values import plain, rows, table, text, whole

_SAID = ("content", "reasoning", "reasoning_content")


class Timed:
    """In the place of an SDK client's `chat.completions.create`: asks for a stream, gives the answer in the
    form that it has without one, and keeps when the first piece of it came. `tell` gets its text as it comes.
    """

    def __init__(self, create: Callable[..., Any], tell: Callable[[str], object] | None = None) -> None:
        self._create = create
        self._tell = tell
        self._local = threading.local()

    @property
    def first_seconds(self) -> float | None:
        """Of this thread's last answer; `None` where it held no text."""
        return getattr(self._local, "first", None)

    def __call__(self, **options: Any) -> dict[str, Any]:
        """A host that does not know `stream_options` is asked without: its tokens are then not told. Nor do
        all SDKs know it."""
        more = {**options.get("extra_body", {}), "stream_options": {"include_usage": True}}
        try:
            answer = self._ask({**options, "stream": True, "extra_body": more})
        except Exception as error:
            if getattr(error, "status_code", None) not in (400, 422):
                raise
            answer = self._ask({**options, "stream": True})
        return answer

    def _ask(self, options: dict[str, Any]) -> dict[str, Any]:
        aloud = None if self._tell is None else _Aloud(self._tell)
        try:
            answer, self._local.first = _assembled(self._create, options, aloud)
        except Exception:
            if aloud is not None and aloud.said:
                aloud.tell("\n(the answer broke off here)\n")  # what is asked again begins anew
            raise
        return answer


class _Aloud:
    """Tells the text of one answer, but none that begins with markup: that is thinking, or a call of a tool,
    which is read when it is whole."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.tell = tell
        self.said = False
        self._silent = False

    def __call__(self, piece: str) -> None:
        if not self.said:
            piece = piece.lstrip()
            self._silent = self._silent or piece.startswith(("<", "[TOOL"))
        if piece and not self._silent:
            self.said = True
            self.tell(piece)


def _assembled(
    send: Callable[..., Iterable[Any]], options: dict[str, Any], aloud: _Aloud | None
) -> tuple[dict[str, Any], float | None]:
    started = time.monotonic()
    first: float | None = None
    message: dict[str, Any] = {"role": "assistant"}
    calls: dict[int, dict[str, Any]] = {}
    choice: dict[str, Any] = {"message": message}
    whole_answer: dict[str, Any] = {"choices": [choice]}
    for piece in send(**options):
        chunk = plain(piece)
        whole_answer |= {name: chunk[name] for name in ("model", "usage") if chunk.get(name)}
        for part in rows(chunk.get("choices"))[:1]:
            delta = table(part.get("delta"))
            for name in _SAID:
                if said := text(delta.get(name)):
                    first = first if first is not None else time.monotonic() - started
                    message[name] = str(message.get(name, "")) + said
                    if aloud is not None and name == "content":
                        aloud(said)
            for call in rows(delta.get("tool_calls")):
                first = first if first is not None else time.monotonic() - started
                _add(calls, call)
            if part.get("finish_reason"):
                choice["finish_reason"] = part["finish_reason"]
    if "finish_reason" not in choice:
        raise CutShort  # what came is no answer of the model
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return whole_answer, first


def _add(calls: dict[int, dict[str, Any]], piece: dict[str, Any]) -> None:
    """A call comes in pieces: its name first, then its arguments bit by bit."""
    index = whole(piece.get("index")) or 0
    call = calls.setdefault(index, {"type": "function", "function": {"name": "", "arguments": ""}})
    if id := text(piece.get("id")):
        call["id"] = id
    for name in ("name", "arguments"):
        call["function"][name] += text(table(piece.get("function")).get(name)) or ""
