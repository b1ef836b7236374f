"""Tuned models of this machine, each answered by a process that holds its base: adapters of one base share
it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from orchestrate.handles import tuned as models
from orchestrate.handles.tracked import TrackedRun
from orchestrate.serving.server.answers import Answering
from orchestrate.serving.server.engine import Engine
from orchestrate.serving.server.load import Load
from orchestrate.serving.server.refusals import asking
from orchestrate.serving.server.running import Terms, loading_of
from orchestrate.serving.tuned import Tuned
from orchestrate.types import Run
from orchestrate.wire.bodies import HostError

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

MOST_BASES = 4
"""In memory at once."""


@dataclass
class _Held:
    engine: Engine
    load: Load
    loading: asyncio.Lock


class Engines:
    """Safe to use from several requests of one event loop; ends with `close`."""

    def __init__(self, ft: Workspace, terms: Terms | None = None) -> None:
        self._ft, self._terms = ft, terms or Terms()
        self._held: dict[tuple[object, ...], _Held] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        for held in self._held.values():
            held.engine.close()
        self._held.clear()

    async def answering(self, run: Run, step: int | None) -> Answering:
        """What answers for a model, which the engine knows by `name_of`: clients may call it by several
        names, and one name may come to mean another. Loads what is not loaded yet. Raises `HostError`, and
        what `RunHandle.download` does."""
        name = name_of(run, step)
        tuned = await run_in_threadpool(self._tuned, name, run, step)
        held = await run_in_threadpool(self._ready, tuned)
        async with held.loading:
            if name not in held.engine.models:
                with asking():
                    await held.engine.load(name, str(tuned.folder))
        return Answering(held.engine, held.load)

    def _tuned(self, name: str, run: Run, step: int | None) -> Tuned:
        handle = TrackedRun(self._ft, run)
        if step is None:
            return replace(models.of(self._ft, handle), name=name)
        known = [point for point in handle.checkpoints() if point.step == step]
        if not known:
            raise HostError(404, f"there is no checkpoint of step {step}", code="model_not_found")
        artifact = handle.download(checkpoint=known[0].id)
        return replace(Tuned.of(run, artifact, ()), name=name)

    def _ready(self, tuned: Tuned) -> _Held:
        loading, _ = loading_of([tuned], self._terms, None)
        key = (loading["base"], loading["four_bit"]) if tuned.adapter else (tuned.name,)
        with self._lock:
            if key in self._held:
                self._held[key] = held = self._held.pop(key)  # the last one used is the last to go
                return held
            self._make_room()
            engine = Engine(loading)
            engine.start()
            load = Load(self._terms.most_at_once, self._terms.most_waiting)
            self._held[key] = _Held(engine, load, asyncio.Lock())
            return self._held[key]

    def _make_room(self) -> None:
        while len(self._held) >= MOST_BASES:
            key = next((key for key, held in self._held.items() if not held.load.inside), None)
            if key is None:
                told = f"{MOST_BASES} base models are answering already"
                headers = {"retry-after": "10"}
                raise HostError(503, told, type="server_error", code="engine_full", headers=headers)
            self._held.pop(key).engine.close()


def name_of(run: Run, step: int | None) -> str:
    return run.id if step is None else f"{run.id}:{step}"
