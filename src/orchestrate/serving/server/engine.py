"""The server's client for the inference process. Sends requests, receives messages, and restarts the process
if it crashes."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from orchestrate.core.child import Ended
from orchestrate.core.files import known_sha256, sha256_once
from orchestrate.errors import OrchestrateError, RunFailed
from orchestrate.local.answers.worker import ModelProcess
from orchestrate.local.run import NO_COMPILER
from orchestrate.local.run.launcher import require_packages
from orchestrate.types import decoding
from orchestrate.types.serving import AdapterCost

_log = logging.getLogger(__name__)
LONGEST_REST_S = 60
"""Maximum wait in seconds between attempts to restart a failing process. Also the maximum wait reported to
clients."""


class EngineLost(Exception):
    """Raised if the process crashed. A new process will be ready in about `retry_s` seconds."""

    def __init__(self, message: str, retry_s: int) -> None:
        super().__init__(message)
        self.message, self.retry_s = message, retry_s


class EngineRefused(Exception):
    """Raised if the engine rejected the request. `code` is the API's error code, or the error's name."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message, self.code = message, code


class EngineClient:
    """A client of the inference process, usable from any event loop between `start` and `close`."""

    def __init__(self, loading: Mapping[str, Any]) -> None:
        """Create the client. `loading` has the form of `orchestrate.local.answers.engine.Loading`."""
        self._loading = dict(loading)
        self.models: dict[str, str] = dict(loading.get("models", {}))
        """Maps names to folders, including adapters added since the start."""
        self.held_back: dict[str, str] = {}
        """Maps the adapters that a restarted process did not load to the reason: their files changed. Their
        base and its other adapters answer."""
        self.context: int | None = None
        self.load_seconds = 0.0
        self.costs: list[AdapterCost] = []
        """Load time and latency of each adapter loaded at the start."""
        self.restarts = 0
        self.failure = ""
        """The reason why the last attempt to restart the process failed, or an empty string."""
        self._ends = threading.Event()
        self._stamps: dict[str, _Stamp] = {}
        self._worker: ModelProcess | None = None
        self._up = threading.Event()

    @property
    def up(self) -> bool:
        return self._up.is_set()

    @property
    def pid(self) -> int | None:
        return self._worker.process.pid if self._worker is not None else None

    @property
    def retry_s(self) -> int:
        """Seconds until a new process is ready, estimated from the last start."""
        return min(LONGEST_REST_S, max(2, math.ceil(self.load_seconds)))

    def _lost(self) -> EngineLost:
        words = "the model's process crashed while answering. A new process is starting"
        if self.failure:
            words = f"could not restart the model's process: {self.failure}"
        return EngineLost(words, self.retry_s)

    def start(self) -> None:
        """Start the process and wait until the model is loaded. Loading errors propagate. Raises `RunFailed`
        if the process crashed."""
        require_packages("serving on this machine")
        begun = time.monotonic()
        worker = ModelProcess("answers", self._loading, env={NO_COMPILER: "1"})
        self._worker = worker
        self._hold_back()
        models = {name: folder for name, folder in self.models.items() if name not in self.held_back}
        worker.open({**self._loading, "models": models})
        try:
            for folder in (worker.opened["folder"], *models.values()):
                if why := self._changed(folder):
                    raise RunFailed(why, fix="restart the server to verify them again")
            costs = worker.ask({"op": "costs", "id": ""})["costs"]
        except OrchestrateError:
            worker.close(0)
            raise
        self.context, self.load_seconds = worker.opened["context"], time.monotonic() - begun
        self.failure, self.costs = "", decoding.convert(costs, list[AdapterCost])
        self._up.set()
        worker.follow(self._ended)

    def _changed(self, folder: str) -> str | None:
        """Return a reason if the model's files have changed since the start, because nobody has verified the
        new ones."""
        try:
            seen = _stamp(folder, self._stamps.get(folder))
        except OSError as error:  # it is being downloaded again
            return f"could not read the model in {folder}: {error}"
        if self._stamps.setdefault(folder, seen) != seen:
            return f"the weights in {folder} have changed since this server started"
        return None

    def _hold_back(self) -> None:
        """Find the adapters whose files have changed. A full model is never held back, because its base model
        must not answer instead."""
        changed: dict[str, str] = {}
        for name, folder in self.models.items():
            if folder in self._stamps and (why := self._changed(folder)):
                changed[name] = f"{why}. Restart the server to verify them again"
        self.held_back = {} if self._loading["base_name"] in self.models else changed
        for name, why in self.held_back.items():
            _log.error("%s is not served: %s", name, why)

    def close(self) -> None:
        """Stop the inference process. Requests in progress get a short time to finish."""
        self._ends.set()
        if self._worker is not None:
            self._worker.close()

    # -- requests ------------------------------------------------------------------------------------------

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request and return its single response. Raises `EngineRefused` if the engine rejects the
        request, and `EngineLost` if its process crashes."""
        async with aclosing(self.messages(op, **fields)) as messages:
            return await anext(messages)

    async def messages(self, op: str, **fields: Any) -> AsyncGenerator[dict[str, Any]]:
        """Yield all messages in response to a request. Closing the generator cancels the request. Raises
        `EngineRefused` if the engine rejects the request, and `EngineLost` if its process crashes."""
        loop, worker = asyncio.get_running_loop(), self._worker
        arrived: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def deliver(message: dict[str, Any] | None) -> None:
            with suppress(RuntimeError):  # its loop has ended
                loop.call_soon_threadsafe(arrived.put_nowait, message)

        if worker is None or not self.up:
            raise self._lost()
        if why := self.held_back.get(str(fields.get("model"))):
            raise EngineLost(why, LONGEST_REST_S)
        try:
            key = worker.request(op, fields, deliver, once=False)
        except Ended as error:
            raise self._lost() from error
        except (UnicodeEncodeError, RecursionError, OverflowError) as error:
            surrogate = isinstance(error, UnicodeEncodeError)
            reason = "the text contains a lone surrogate" if surrogate else str(error)
            raise EngineRefused(f"could not forward the request: {reason}", "invalid_request") from error
        try:
            while True:
                message = await arrived.get()
                if message is None:
                    raise self._lost()
                if "error" in message:
                    raise EngineRefused(message["error"], message["code"])
                yield message
        finally:
            if worker.forget(key) and op == "add":
                with suppress(Ended):
                    worker.send({"op": "cancel", "id": key})

    async def load(self, name: str, folder: str) -> float:
        """Add an adapter, and return the seconds it took."""
        message = await self.ask("load", name=name, folder=folder)
        self.models[name] = folder
        self._stamps[folder] = _stamp(folder)
        self.held_back.pop(name, None)
        return float(message["seconds"])

    async def unload(self, name: str) -> None:
        if self.held_back.pop(name, None) is None:
            await self.ask("unload", name=name)
        self.models.pop(name, None)

    # -- restarting ----------------------------------------------------------------------------------------

    def _ended(self, failure: str) -> None:
        del failure
        self._up.clear()
        threading.Thread(target=self._again, daemon=True, name="engine").start()

    def _again(self) -> None:
        """Restart the process until it succeeds, because missing files may come back."""
        rest = 1
        while not self._ends.is_set():
            self.restarts += 1
            self._leave_out()
            try:
                self.start()
                break
            except OrchestrateError as error:
                self.failure = error.message
                _log.error("could not restart the model's process: %s", error)
            self._ends.wait(rest)
            rest = min(LONGEST_REST_S, 2 * rest)
        rest, worker = 1, self._worker
        while self.held_back and not self._ends.wait(rest) and self.up and self._worker is worker:
            rest = min(LONGEST_REST_S, 2 * rest)
            self._take_back()

    def _take_back(self) -> None:
        """Load the adapters whose files are as they were at the start again."""
        for name in list(self.held_back):
            folder = self.models.get(name, "")
            if folder and self._changed(folder) is None:
                with suppress(EngineLost, EngineRefused):
                    asyncio.run(self.ask("load", name=name, folder=folder))
                    if self._changed(folder) is None:
                        self.held_back.pop(name, None)
                    else:  # while it was loaded
                        asyncio.run(self.ask("unload", name=name))

    def _leave_out(self) -> None:
        """Stop serving adapters whose files are missing, and serve the others. A full model is never left
        out, because its base model must not answer instead."""
        if self._loading["base_name"] in self.models:
            return
        config = "adapter_config.json"
        for name in [n for n, folder in self.models.items() if not (Path(folder) / config).is_file()]:
            _log.error(
                "stopped serving %s because its files are missing from %s", name, self.models.pop(name)
            )


_Stamp = dict[str, "str | tuple[int, int]"]
_SMALL = (".json", ".jinja", ".model", ".txt")
"""Endings of the files beside the weights that decide the answers: settings, tokenizer and chat template."""


def _stamp(folder: str, before: _Stamp | None = None) -> _Stamp:
    """Return what reveals a change of a model's files, to be compared with the stamp `before`: the hashes of
    all files that are small or whose hash this process knows, as it does for a model that it downloaded. A
    download that replaced a damaged file is thus the same model. Other weights would take long to read, so
    their sizes and times are compared."""
    found: _Stamp = {}
    for file in Path(folder).glob("*"):
        if file.suffix not in (".safetensors", *_SMALL):
            continue
        earlier = known_sha256(file) if before is None else before.get(file.name)
        if file.suffix in _SMALL or isinstance(earlier, str):
            found[file.name] = sha256_once(file)
        else:
            found[file.name] = ((stat := file.stat()).st_size, stat.st_mtime_ns)
    return found
