"""Answers of the stand-in model and of what was tuned from it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from orchestrate.errors import DataError, RunFailed
from orchestrate.local import Generator
from orchestrate.local.answers.worker import Worker
from orchestrate.types import Message, Reply

GATHERING_S = 0.01
"""Those whose answers came just now ask again within this time, and need not wait for another batch."""


@dataclass(frozen=True, eq=False)
class _Asked:
    adapter: Path | None
    messages: Sequence[Message]
    max_tokens: int
    temperature: float
    reply: Future[Reply] = field(default_factory=Future[Reply])

    def beside(self, other: _Asked) -> bool:
        """Whether both can be answered at once. What is drawn by chance would depend on the company."""
        greedy = self.temperature == other.temperature == 0
        return greedy and (self.adapter, self.max_tokens) == (other.adapter, other.max_tokens)


class Generators:
    """All from one process, which holds the stand-in and the adapter that was asked for last. Requests that
    come while others are being answered are answered together, each as if it were alone."""

    def __init__(self, model: str, threads: int, start: Callable[..., Generator] = Generator) -> None:
        """`start`: of what answers for an adapter."""
        self.model = model
        self.threads = threads
        self._start = start
        self._answering = threading.Lock()
        self._queue = threading.Lock()
        self._waiting: list[_Asked] = []
        self._worker = Worker()
        self._known: dict[Path | None, Generator] = {}
        self._closed = False

    def reply(
        self, adapter: Path | None, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Reply:
        """Without an adapter the stand-in itself answers. Raises what `Generator` raises."""
        asked = _Asked(adapter, messages, max_tokens, temperature)
        with self._queue:
            self._waiting.append(asked)
        with self._answering:
            if not asked.reply.done():  # else answered with the one before
                if temperature == 0:
                    time.sleep(GATHERING_S)
                self._answer(asked)
        return asked.reply.result()

    def _answer(self, first: _Asked) -> None:
        with self._queue:
            together = [one for one in self._waiting if one is first or one.beside(first)]
            self._waiting = [one for one in self._waiting if one not in together]
        try:
            if self._closed:  # those who still wait start no process that nobody ends
                raise RunFailed("the sandbox has ended")
            replies = self._generator(first.adapter).attempt(
                [one.messages for one in together],
                max_tokens=first.max_tokens,
                temperature=first.temperature,
                rounding="mended" if first.temperature == 0 else "left",
            )
        except BaseException as error:  # noqa: BLE001  each of those who asked is told
            for one in together:
                one.reply.set_exception(error)
            return
        for one, reply in zip(together, replies, strict=True):
            if isinstance(reply, DataError):
                one.reply.set_exception(reply)
            else:
                one.reply.set_result(reply)

    def _generator(self, adapter: Path | None) -> Generator:
        if adapter not in self._known:
            self._known[adapter] = self._start(
                self.model, adapter, threads=self.threads, device="cpu", worker=self._worker
            )
        return self._known[adapter]

    def close(self) -> None:
        with self._answering:
            self._closed = True
            self._worker.close()
