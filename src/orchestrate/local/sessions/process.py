"""The process that holds the models of training sessions. Requests are JSON lines on standard input, and
responses are JSON lines on standard output. Each response has the `id` of its request.

{"op": "open", "id", "base", ...}                     load the base, see `Opening`; must come first
    {"op": "create", "id", "model", "shape"}              see `AdapterShape`
    {"op": "forward", "id", "model", "data", "loss", "config", "backward"}
    {"op": "step", "id", "model", "adam"}
    {"op": "save", "id", "model", "folder", "optimizer", "note", "overwrite"}
    {"op": "load", "id", "model", "folder", "optimizer"}
    {"op": "unload", "id", "model"}
    {"op": "sample", "id", ...}                           see `SampleRequest`

Requests for one model are executed in order. Models take turns, and sampling continues in between. A model's
live weights only change after all answers that are being sampled from them are complete."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.core import child
from orchestrate.local.run import importing, leave
from orchestrate.types import decoding

if TYPE_CHECKING:
    from orchestrate.local.sessions import SessionEngine

WorkerRequest = dict[str, Any]
CHANGES = ("step", "load", "unload")
"""Requests that change a model's weights."""


class SessionBench:
    """Reads requests in one thread and runs the models in another."""

    def __init__(self, send: Callable[[Mapping[str, Any]], None]) -> None:
        self._send = send
        self._engine: SessionEngine | None = None
        self._lines: queue.Queue[WorkerRequest | None] = queue.Queue()
        self._turns: dict[str, deque[WorkerRequest]] = {}
        """Waiting requests, as {model id: requests in order}. The model whose request runs next comes
        first."""

    def read(self, lines: Any) -> None:
        for line in lines:
            self._lines.put(msgspec.json.decode(line, type=WorkerRequest))
        self._lines.put(None)

    @property
    def engine(self) -> SessionEngine:
        assert self._engine is not None  # noqa: S101  it is opened first
        return self._engine

    def work(self) -> None:
        """Process requests until standard input is closed and every request has been answered."""
        open_ = True
        while open_ or self._turns or not self._idle:
            while open_ and ((not self._turns and self._idle) or not self._lines.empty()):
                asked = self._lines.get()
                open_ = asked is not None
                if asked is not None:
                    self._turns.setdefault(str(asked.get("model", "")), deque()).append(asked)
            if self._turns:
                model, waiting = next(iter(self._turns.items()))
                if self._idle or waiting[0]["op"] not in CHANGES or not self.engine.samples_from(model):
                    self._guarded(waiting.popleft())
                del self._turns[model]
                if waiting:
                    self._turns[model] = waiting
            if not self._idle:
                self._step_answers()

    def _step_answers(self) -> None:
        """Advance the answers. Errors in answers leave the models intact."""
        try:
            self.engine.step_answers(self._send)
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001  whoever asked gets it
            self.engine.give_up(str(child.failure(error)["error"]), self._send)

    @property
    def _idle(self) -> bool:
        return self._engine is None or self._engine.idle

    def _guarded(self, asked: WorkerRequest) -> None:
        try:
            answer = getattr(self, f"_{asked.pop('op')}")(asked)
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001  whoever asked gets it
            answer = child.failure(error)
        if answer is not None:
            self._send({"id": asked["id"], **answer})

    def _open(self, asked: WorkerRequest) -> WorkerRequest:
        with importing():
            from orchestrate.local.sessions import Opening, SessionEngine

            self._engine = SessionEngine(decoding.convert(asked, Opening))
        folder = self._engine.folder
        return {"context": folder.context, "folder": str(folder.path), "tied": self._engine.tied}

    def _create(self, asked: WorkerRequest) -> WorkerRequest:
        from orchestrate.local.sessions import AdapterShape

        return {"trained": self.engine.create(asked["model"], decoding.convert(asked["shape"], AdapterShape))}

    def _forward(self, asked: WorkerRequest) -> WorkerRequest:
        from orchestrate.local.sessions import Datum

        data = decoding.convert(asked["data"], list[Datum])
        model, loss, config = asked["model"], asked["loss"], asked["config"]
        log_p, metrics = self.engine.forward(model, data, loss, config, backward=asked["backward"])
        return {"logprobs": log_p, "metrics": metrics}

    def _step(self, asked: WorkerRequest) -> WorkerRequest:
        from orchestrate.local.sessions import Adam

        return {"metrics": self.engine.step(asked["model"], decoding.convert(asked["adam"], Adam))}

    def _save(self, asked: WorkerRequest) -> WorkerRequest:
        more = {name: asked[name] for name in ("optimizer", "note", "overwrite")}
        self.engine.save(asked["model"], Path(asked["folder"]), **more)
        return {}

    def _load(self, asked: WorkerRequest) -> WorkerRequest:
        folder = Path(asked["folder"])
        return {"trained": self.engine.load(asked["model"], folder, optimizer=asked["optimizer"])}

    def _unload(self, asked: WorkerRequest) -> WorkerRequest:
        self.engine.unload(asked["model"])
        return {}

    def _sample(self, asked: WorkerRequest) -> None:
        from orchestrate.local.sessions import SampleRequest

        self.engine.ask(decoding.convert(asked, SampleRequest))


if __name__ == "__main__":
    leave(child.serve_requests(SessionBench))
