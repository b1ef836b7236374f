"""Inference process: keeps models loaded and answers requests. Requests are JSON lines on standard input, and
answers are JSON lines on standard output. Each answer has the `id` of its request.

    {"op": "open", "id", "base", "models", ...}      load a base with its adapters, see `Loading`; repeatable
    {"op": "costs", "id"}                            measure the cost of each adapter
    {"op": "load", "id", "name", "folder"}, {"op": "unload", "id", "name"}

    {"op": "add", "id", "model", "messages" | "text" | "ids", ...}    one request, see `GenerationRequest`
    {"op": "cancel", "id"}
    {"op": "tokenize", "id", "model", "messages" | "text", "tools"}

    {"op": "prompts", "id", "model", "prompts", ...} answer prompts in one batch, see `PromptsRequest`
    {"op": "likelihoods", "id", "model", "rows", "base"}

Prompts of `add` requests are tokenized while other answers are generated. Torch is imported when the first
model is loaded."""

from __future__ import annotations

import gc
import queue
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.core import child
from orchestrate.local.run import importing, leave
from orchestrate.types import decoding

if TYPE_CHECKING:
    from orchestrate.local.answers.engine import Engine

WorkerRequest = dict[str, Any]
LONG_BYTES = 64 << 10
"""Size in bytes above which requests are tokenized in a separate thread."""


class RequestQueue:
    """Reads requests in one thread and runs the model in another."""

    def __init__(self, send: Callable[[Mapping[str, Any]], None]) -> None:
        self._send = send
        self._engine: Engine | None = None
        self._asked: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._tokenizing = set[str]()
        """Long requests waiting to be tokenized. Canceled requests are removed."""

    def read(self, lines: Any) -> None:
        """Queue a work item for each input line. Queued work is completed even after the input has ended.
        Long requests are tokenized in a separate thread, so other requests don't have to wait for them."""
        with ThreadPoolExecutor(1, thread_name_prefix="tokenizes") as lane:
            for line in lines:
                asked = msgspec.json.decode(line, type=WorkerRequest)
                take = partial(self._guarded, asked, partial(self._take, asked))
                if len(line) > LONG_BYTES and asked["op"] in ("add", "tokenize"):
                    self._tokenizing.add(asked["id"])
                    lane.submit(take)
                else:
                    take()
        self._asked.put(None)

    def _take(self, asked: WorkerRequest) -> None:
        op = asked.pop("op")
        if op == "add":
            self._add(asked)
        elif op == "tokenize":
            from orchestrate.local.answers.engine import GenerationRequest

            self._answer(asked, ids=self.engine.prompt(decoding.convert(asked, GenerationRequest)))
        else:
            self._tokenizing.discard(asked["id"])
            self._put(asked, partial(getattr(self, f"_{op}"), asked))

    def _put(self, asked: WorkerRequest, work: Callable[[], None]) -> None:
        self._asked.put(lambda: self._guarded(asked, work))

    def _guarded(self, asked: WorkerRequest, work: Callable[[], None]) -> None:
        """Report a request's error to the client that sent it."""
        try:
            work()
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001
            self._tokenizing.discard(str(asked.get("id")))
            code = getattr(error, "code", type(error).__name__)
            self._answer(asked, **child.failure(error), code=code)

    def _answer(self, asked: WorkerRequest, **answer: Any) -> None:
        self._send({"id": asked.get("id"), **answer})

    # -- the operations ------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        assert self._engine is not None  # noqa: S101  whoever asks has opened it
        return self._engine

    def _open(self, asked: WorkerRequest) -> None:
        with importing():
            from orchestrate.local.answers.engine import Engine, Loading

            loading = decoding.convert(asked, Loading)
            held, self._engine = self._engine, None
            if held is None or not held.turn(loading):
                del held
                gc.collect()  # memory does for one base, perhaps not for two
                held = Engine(loading)
            self._engine = held
        self._answer(asked, context=held.folder.context, folder=str(held.folder.path))

    def _costs(self, asked: WorkerRequest) -> None:
        self._answer(asked, costs=self.engine.costs())

    def _prompts(self, asked: WorkerRequest) -> None:
        from orchestrate.local.answers.engine import PromptsRequest

        self.engine.answer(
            decoding.convert(asked, PromptsRequest), lambda answer: self._answer(asked, **answer)
        )

    def _likelihoods(self, asked: WorkerRequest) -> None:
        rows = self.engine.likelihoods(asked["model"], asked["rows"], base=asked["base"])
        self._answer(asked, likelihoods=rows)

    def _add(self, asked: WorkerRequest) -> None:
        from orchestrate.local.answers.engine import GenerationRequest

        request = decoding.convert(asked, GenerationRequest)
        long = request.id in self._tokenizing
        prompt = self.engine.prompt(request)
        if long and request.id not in self._tokenizing:
            return  # whoever asked has left
        self._tokenizing.discard(request.id)
        self._put(asked, lambda: self.engine.add(request, prompt, self._send))

    def _cancel(self, asked: WorkerRequest) -> None:
        self.engine.cancel(asked["id"])

    def _load(self, asked: WorkerRequest) -> None:
        self._answer(asked, seconds=self.engine.load(asked["name"], asked["folder"]))

    def _unload(self, asked: WorkerRequest) -> None:
        self.engine.unload(asked["name"])
        self._answer(asked, done=True)

    def work(self) -> None:
        """Process requests until the input has ended and everything is answered. If a step fails, the process
        exits and answers in progress are lost. The parent process then starts a new process."""
        open_ = True
        while open_ or not self._idle:
            while open_ and (self._idle or not self._asked.empty()):
                work = self._asked.get()
                open_ = work is not None
                if work is not None:
                    work()
            if not self._idle:
                self.engine.step(self._send)

    @property
    def _idle(self) -> bool:
        return self._engine is None or self._engine.batching.idle


if __name__ == "__main__":
    leave(child.serve_requests(RequestQueue))
