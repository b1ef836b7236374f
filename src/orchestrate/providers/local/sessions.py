"""Training sessions on this machine. One process holds a base model and the adapters of all sessions that use
it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from orchestrate import costing
from orchestrate.core.child import Ended, raised
from orchestrate.costing import RateBook
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.local import machine
from orchestrate.local.answers.worker import TRAINS, ModelProcess, array_of
from orchestrate.local.model.files import source
from orchestrate.local.run import RunDir, launcher
from orchestrate.providers import rundirs
from orchestrate.providers.base import Sessions, prices_of
from orchestrate.providers.local.provider import LocalProvider
from orchestrate.providers.sessions import Row, SessionBackend, SessionOrder, SessionPrice, then
from orchestrate.settings.config import HostConfig
from orchestrate.types import JobHandle

_OPTIONS = frozenset({"threads", "device", "precision", "four_bit"})


class SharedWorker(ModelProcess):
    """The process that runs all sessions of this program with the same base model and options."""

    def __init__(self, opening: Mapping[str, Any]) -> None:
        super().__init__("sessions", opening, name=TRAINS)
        self.open(opening)
        self.sessions, self.models = 0, count(1)
        self.follow(lambda event: None)

    def submit(self, op: str, **fields: Any) -> Future[dict[str, Any]]:
        """Send a request and return a future for its result."""
        future: Future[dict[str, Any]] = Future()
        future.set_running_or_notify_cancel()

        def take(answer: dict[str, Any] | None) -> None:
            if answer is None:
                future.set_exception(Ended(self.lost, None))
            elif "error" in answer and "kind" in answer:
                future.set_exception(raised(answer))
            else:
                future.set_result(answer)

        try:
            self.request(op, fields, take)
        except OrchestrateError as error:
            future.set_exception(error)
        return future


class LocalSession(SessionBackend):
    def __init__(self, shared: SharedWorker, id: str, release: Callable[[], None]) -> None:
        self._shared, self._id, self._release = shared, id, release
        self._open = True

    weights_here = True

    @property
    def tokenizer(self) -> str:
        return str(self._shared.opened["folder"])

    def forward(
        self, rows: Sequence[Row], loss: str, config: Mapping[str, Any], *, backward: bool
    ) -> Future[dict[str, Any]]:
        fields = {"data": rows, "loss": loss, "config": config, "backward": backward}
        return then(self._shared.submit("forward", model=self._id, **fields), _with_arrays)

    def step(self, adam: Mapping[str, float]) -> Future[dict[str, Any]]:
        return self._shared.submit("step", model=self._id, adam=adam)

    def sample(self, request: Mapping[str, Any]) -> Future[dict[str, Any]]:
        return then(self._shared.submit("sample", model=self._id, **request), _sampled)

    def save(self, folder: Path, *, optimizer: bool) -> Future[str]:
        fields = {"folder": str(folder), "optimizer": optimizer, "note": None, "overwrite": True}
        return then(self._shared.submit("save", model=self._id, **fields), lambda _: str(folder))

    def load(self, saved: str, *, optimizer: bool) -> Future[None]:
        loading = self._shared.submit("load", model=self._id, folder=saved, optimizer=optimizer)
        return then(loading, lambda _: None)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._shared.submit("unload", model=self._id)
            self._release()


def _with_arrays(answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "logprobs": [array_of(value) for value in answer["logprobs"]]}


def _sampled(answer: dict[str, Any]) -> dict[str, Any]:
    answers = [{**one, "logprobs": array_of(one["logprobs"]).tolist()} for one in answer["answers"]]
    return {**answer, "answers": answers}


class StepwiseProvider(LocalProvider, Sessions):
    """Local backend that also supports training sessions."""

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        self._shared: dict[str, SharedWorker] = {}
        self._sharing = threading.Lock()

    def session_dir(self, order: SessionOrder) -> RunDir:
        requested, mine = dict(order.options), self.config.options
        return rundirs.of_session(
            self._runs,
            order,
            self.name,
            adapter="qlora" if requested.get("four_bit") else "lora",
            threads=requested.get("threads", mine.get("threads")),
            device=requested.get("device", mine.get("device")),
            precision=requested.get("precision"),
        )

    def session_price(self, order: SessionOrder, rates: RateBook) -> SessionPrice:
        """Return the hourly price that the user set for this machine, or a price of zero if there is none."""
        gpus = machine.gpus() if order.options.get("device") != "cpu" else ()
        device = gpus[0].name if gpus else "cpu"
        hourly = costing.local_rate(prices_of(self), device, 1, book=rates)
        return SessionPrice(hourly=hourly if hourly.own else None, source=hourly.source)

    def open_session(self, order: SessionOrder) -> SessionBackend:
        launcher.require_packages("a training session on this machine")
        if unknown := sorted(order.options.keys() - _OPTIONS):
            known = ", ".join(sorted(_OPTIONS))
            raise UsageError(
                f"local sessions have no option called {unknown[0]!r}", fix=f"use one of {known}"
            )
        given = {name: value for name, value in self.config.options.items() if name in _OPTIONS}
        opening = {"base": source(order.model), **given, **order.options}
        key = msgspec.json.encode(opening, order="sorted").decode()
        with self._sharing:
            shared = self._shared.get(key)
            if shared is None or shared.lost:
                shared = self._shared[key] = SharedWorker(opening)
            shared.sessions += 1
            model = f"{order.ref}/{next(shared.models)}"
        release = partial(self._release, key, shared)
        try:
            shared.submit("create", model=model, shape=order.lora).result()
        except BaseException:
            release()
            raise
        return LocalSession(shared, model, release)

    def _release(self, key: str, shared: SharedWorker) -> None:
        """The process ends with its last session."""
        with self._sharing:
            shared.sessions -= 1
            if shared.sessions:
                return
            if self._shared.get(key) is shared:
                del self._shared[key]
        shared.close()

    def close(self) -> None:
        with self._sharing:
            left, self._shared = list(self._shared.values()), {}
        for shared in left:
            shared.close()
        super().close()

    def resume(self, job: JobHandle) -> None:
        run = self._run(job)
        if run.job().session is not None:
            raise UsageError(
                f"{run.ref} is a training session, so only your own training loop can continue it",
                fix=f'use: with ft.session(resume="{run.ref}") as s: ...',
            )
        super().resume(job)
