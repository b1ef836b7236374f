"""Answers of the stand-in model and of what was tuned from it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from orchestrate.local import Generator
from orchestrate.types import Message, Reply

MOST_PROCESSES = 2


class Generators:
    """A few answering processes, one for each adapter asked for lately; the oldest one makes room."""

    def __init__(self, model: str, threads: int) -> None:
        self.model = model
        self.threads = threads
        self._lock = threading.Lock()
        self._open: OrderedDict[Path | None, Generator] = OrderedDict()

    def reply(
        self, adapter: Path | None, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Reply:
        """One at a time; without an adapter the stand-in itself answers. Raises what `Generator` raises."""
        with self._lock:
            generator = self._open.pop(adapter, None)
            if generator is None:
                while len(self._open) >= MOST_PROCESSES:
                    self._open.popitem(last=False)[1].close()
                generator = Generator(self.model, adapter, threads=self.threads, device="cpu")
            self._open[adapter] = generator
            return generator.generate([messages], max_tokens=max_tokens, temperature=temperature)[0]

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()
