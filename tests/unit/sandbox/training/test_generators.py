"""Requests that come while others are answered are answered together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrate.errors import DataError, RunFailed
from orchestrate.sandbox.training import Generators
from orchestrate.types import Message, Reply


class Process:
    """Answers with the question and how many came with it; the first time when it is let go."""

    def __init__(self, model: str, adapter: Path | None, **_: Any) -> None:
        del model
        self.adapter = adapter
        self.asked: list[tuple[list[str], float, str]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def attempt(
        self, prompts: Sequence[Sequence[Message]], *, max_tokens: int, temperature: float, rounding: str
    ) -> list[Reply | DataError]:
        texts = [prompt[-1].content for prompt in prompts]
        self.asked.append((texts, temperature, rounding))
        self.begun.set()
        assert self.go.wait(120)
        if "die" in texts:
            raise RunFailed("it died")
        return [
            DataError("too long") if text == "long" else Reply(content=f"{text} {max_tokens}", model="m")
            for text in texts
        ]

    def close(self) -> None:
        pass


Until = Callable[[Callable[[], Any]], Any]


class Sandbox:
    def __init__(self, until: Until) -> None:
        self.until = until
        self.processes: list[Process] = []
        self.generators: Any = Generators("model", 1, self._started)

    def _started(self, *given: Any, **more: Any) -> Any:
        self.processes.append(Process(*given, **more))
        return self.processes[-1]

    def ask(self, text: str, adapter: Path | None = None, most: int = 8, temperature: float = 0.0) -> Reply:
        messages = [Message(role="user", content=text)]
        reply: Reply = self.generators.reply(adapter, messages, max_tokens=most, temperature=temperature)
        return reply

    def behind_one(self, pool: ThreadPoolExecutor, asked: Sequence[dict[str, Any]]) -> list[Future[Reply]]:
        """All of these wait while another one is being answered."""
        first = pool.submit(self.ask, "first")
        self.until(lambda: self.processes and self.processes[0].begun.is_set())
        waiting = [pool.submit(self.ask, **one) for one in asked]
        self.until(lambda: len(self.generators._waiting) == len(asked))
        self.processes[0].go.set()
        assert first.result().content == "first 8"
        for process in self.processes:
            process.go.set()
        return waiting


def test_what_waits_is_answered_in_one_batch(until: Until) -> None:
    sandbox = Sandbox(until)
    with ThreadPoolExecutor(8) as pool:
        texts = ["a", "b", "long", "c"]
        replies = sandbox.behind_one(pool, [{"text": text} for text in texts])
        assert [replies[n].result().content for n in (0, 1, 3)] == ["a 8", "b 8", "c 8"]
        with pytest.raises(DataError, match="too long"):
            replies[2].result()
    [_, (together, temperature, rounding)] = sandbox.processes[0].asked
    assert (sorted(together), temperature, rounding) == (sorted(texts), 0.0, "mended")


def test_what_is_drawn_by_chance_or_asked_otherwise_is_answered_apart(until: Until) -> None:
    sandbox = Sandbox(until)
    with ThreadPoolExecutor(8) as pool:
        asked = [{"text": "a"}, {"text": "b", "most": 9}, {"text": "c", "temperature": 1.0}]
        asked += [{"text": "d", "temperature": 1.0}]
        replies = sandbox.behind_one(pool, asked)
        assert [r.result().content for r in replies] == ["a 8", "b 9", "c 8", "d 8"]
    assert sorted(len(texts) for texts, _, _ in sandbox.processes[0].asked) == [1, 1, 1, 1, 1]
    assert {r for _, t, r in sandbox.processes[0].asked if t} == {"left"}


def test_all_of_a_batch_are_told_why_there_is_no_answer(until: Until) -> None:
    sandbox = Sandbox(until)
    with ThreadPoolExecutor(8) as pool:
        for reply in sandbox.behind_one(pool, [{"text": "die"}, {"text": "b"}]):
            with pytest.raises(RunFailed, match="it died"):
                reply.result()
    assert sandbox.ask("again").content == "again 8"
