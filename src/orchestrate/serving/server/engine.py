"""The process that answers, as the server sees it: requests in, messages out, and another process when it
dies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from itertools import count
from typing import IO, Any

import msgspec

from orchestrate.errors import OrchestrateError, RunFailed
from orchestrate.local import pipe
from orchestrate.local.run.launching import require_packages, worker_environment

MOST_RESTARTS = 5
"""In a row, without an answer between them."""


class EngineLost(Exception):
    """The process died while it answered; another one is being started."""


class EngineRefused(Exception):
    """What was asked cannot be answered as it is. `code` is the API's word, or the error's name."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message, self.code = message, code


class Engine:
    """Starts with `start`, ends with `close`. Requests may come from any event loop."""

    def __init__(self, loading: Mapping[str, Any]) -> None:
        """`loading`: as `orchestrate.local.answers.engine.Loading` has it."""
        self._loading = dict(loading)
        self.models: dict[str, str] = dict(loading.get("models", {}))
        """Name -> folder, also of those that were added since."""
        self.context: int | None = None
        self.load_seconds = 0.0
        self.restarts = 0
        self._failures = 0
        self._worker: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._numbers = count(1)
        self._waiting: dict[str, Callable[[dict[str, Any] | None], None]] = {}
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closing = False
        self._up = threading.Event()

    @property
    def up(self) -> bool:
        return self._up.is_set()

    @property
    def pid(self) -> int | None:
        return self._worker.pid if self._worker is not None else None

    def start(self) -> None:
        """Returns when the model is loaded. Raises what loading raised, `RunFailed` when the process died."""
        require_packages("serving on this machine")
        threads = self._loading.get("threads")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrate.local.answers.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=worker_environment(threads if isinstance(threads, int) else None),
            start_new_session=True,  # Ctrl-C is for the server, which lets answers end
        )
        self._worker = worker
        self._write({**self._loading, "models": self.models})
        assert worker.stdout is not None  # noqa: S101  opened as a pipe
        line = worker.stdout.readline()
        told: dict[str, Any] = msgspec.json.decode(line) if line.endswith(b"\n") else {}
        if not told.get("ready"):
            worker.kill()
            worker.wait()
            raise self._error(told)
        self.context, self.load_seconds = told["context"], told["seconds"]
        self._up.set()
        self._reader = threading.Thread(target=self._read, args=(worker,), daemon=True, name="engine")
        self._reader.start()

    def _error(self, told: Mapping[str, Any]) -> OrchestrateError:
        if told:
            return pipe.raised(told)
        return RunFailed(f"the process that answers did not start:\n{self._tail()}", fix="orchestrate doctor")

    def _tail(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace").strip()

    def close(self) -> None:
        """Lets what is under way end for a moment."""
        self._closing = True
        worker = self._worker
        if worker is not None:
            pipe.end(worker)
        if self._reader is not None:
            self._reader.join(5)
        if self._log is not None:
            self._log.close()

    # -- asking --------------------------------------------------------------------------------------------

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """One message back. Raises `EngineRefused`, `EngineLost`."""
        async with aclosing(self.messages(op, **fields)) as messages:
            return await anext(messages)

    async def messages(self, op: str, **fields: Any) -> AsyncGenerator[dict[str, Any]]:
        """All messages about what is asked; who stops listening cancels it. Raises `EngineRefused`,
        `EngineLost`."""
        key, loop = f"r{next(self._numbers)}", asyncio.get_running_loop()
        arrived: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def deliver(message: dict[str, Any] | None) -> None:
            with suppress(RuntimeError):  # its loop has ended
                loop.call_soon_threadsafe(arrived.put_nowait, message)

        with self._lock:
            if not self.up:
                raise EngineLost
            self._waiting[key] = deliver
        try:
            self._write({"op": op, "id": key, **fields})
            while True:
                message = await arrived.get()
                if message is None:
                    raise EngineLost
                if "error" in message:
                    raise EngineRefused(message["error"], message["code"])
                yield message
        finally:
            with self._lock:
                listening = self._waiting.pop(key, None) is not None
            if listening and op == "add" and self.up:
                self._write({"op": "cancel", "id": key})

    async def load(self, name: str, folder: str) -> float:
        """Adds an adapter; the seconds that it took."""
        message = await self.ask("load", name=name, folder=folder)
        self.models[name] = folder
        return float(message["seconds"])

    async def unload(self, name: str) -> None:
        await self.ask("unload", name=name)
        self.models.pop(name, None)

    # -- the wire ------------------------------------------------------------------------------------------

    def _write(self, message: Mapping[str, Any]) -> None:
        worker = self._worker
        assert worker is not None and worker.stdin is not None  # noqa: S101  started before
        with suppress(OSError):  # it has died: the thread that reads sees that too
            worker.stdin.write(msgspec.json.encode(message) + b"\n")
            worker.stdin.flush()

    def _read(self, worker: subprocess.Popen[bytes]) -> None:
        assert worker.stdout is not None  # noqa: S101  opened as a pipe
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        for line in worker.stdout:
            if line.endswith(b"\n"):
                message = decode(line)
                self._failures = 0
                with self._lock:
                    deliver = self._waiting.get(str(message.pop("id", None)))
                if deliver is not None:
                    deliver(message)
        worker.wait()
        worker.stdout.close()
        with self._lock:
            self._up.clear()
            lost, self._waiting = self._waiting, {}
        for deliver in lost.values():
            deliver(None)
        self._again()

    def _again(self) -> None:
        while not self._closing and self._failures < MOST_RESTARTS:
            self._failures += 1
            self.restarts += 1
            with suppress(OrchestrateError):
                self.start()
                return
