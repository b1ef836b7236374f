"""The state of a session server: sessions, models, saved weights and pending results. All methods run on one
event loop."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.core.child import Ended
from orchestrate.core.files import locked, private_folder, recover_folders, write_whole
from orchestrate.errors import OrchestrateError
from orchestrate.http.wire import HostError
from orchestrate.local.answers.worker import TRAINS, ModelProcess, array_of
from orchestrate.local.run.checkpoints import SAVE_NAME
from orchestrate.local.session_server import wire
from orchestrate.local.session_server.usage import UsageBook
from orchestrate.types import Record

_log = logging.getLogger(__name__)
KEEPS_S, FETCHED_S = 3600.0, 300.0
"""Seconds to keep a result that has not been fetched, and seconds to keep it after it is fetched. Fetched
results are kept because the client may not have received the response."""
REST_S = 5.0
"""Minimum seconds between two attempts to start the training process."""
GONE_S = 900.0
"""Seconds without a heartbeat after which a caller counts as disconnected."""
GAP_S = 60.0
"""Seconds to wait for a missing request before later requests to the same model are executed."""
KEPT_SNAPSHOTS = 16
"""Number of unnamed sets of weights to store per session for sampling. Limited because a training loop may
save new weights in each step."""
LEFT_BEHIND = "left-behind"
"""Name under which the weights of a disconnected caller are saved."""
SAMPLER = re.compile(r"[0-9a-f]{16}:sample:\d{1,18}")
PATH = re.compile(r"tinker://([A-Za-z0-9:._-]{1,200})/(weights|sampler_weights)/([^/]{1,100})")


@dataclass
class Promise:
    """The pending or available result of a request."""

    id: str
    owner: str
    result: bytes | dict[str, Any] | None = None
    """Protobuf message or JSON object. `None` while the result is pending."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    at: float = 0.0
    fetched: float = 0.0
    then: Callable[[Promise], None] | None = None
    """Callback for when the result is available."""

    def keep(self, result: bytes | dict[str, Any]) -> None:
        self.result, self.at = result, time.monotonic()
        self.ready.set()
        if self.then is not None:
            self.then(self)

    def fail(self, message: str, category: str = "user") -> None:
        self.keep({"error": message, "category": category})


PromisedWork = Callable[[Promise], None]
AnswerHandler = Callable[[dict[str, Any]], None]


@dataclass
class SessionModel:
    """A model whose requests are executed in the order of their numbers."""

    id: str
    owner: str
    base: str
    lora: dict[str, Any]
    next: int = 1
    waiting: dict[int, tuple[Promise, PromisedWork]] = field(
        default_factory=dict[int, tuple[Promise, PromisedWork]]
    )


@dataclass
class Caller:
    """A caller's session."""

    id: str
    owner: str
    seen: float
    models: dict[int, tuple[str, Promise]] = field(default_factory=dict[int, tuple[str, Promise]])
    samplers: dict[int, str] = field(default_factory=dict[int, str])


class SavedSampler(Record, frozen=True, kw_only=True):
    """Weights for sampling."""

    id: str
    base: str
    folder: str = ""
    path: str | None = None


class SavedWeights(Record, frozen=True, kw_only=True):
    """The record stored next to saved weights."""

    path: str
    base: str
    lora: dict[str, Any]
    training: bool
    """True if training can continue from these weights."""
    saved_at: float
    expires_at: float | None = None
    """Expiry time set by the caller. Expired weights are not deleted, because a wrong clock could then delete
    everything."""


class SessionService:
    def __init__(
        self,
        home: Path,
        opening: Mapping[str, Any],
        names: tuple[str, ...],
        *,
        takes: Callable[[str], bool] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up the server's state. `opening` has the form of `orchestrate.local.sessions.Opening`. `names`
        are the names of the base model in requests, its own name first. `takes` returns whether another name
        is accepted too. `now` is the clock that determines when callers count as disconnected."""
        self.home, self.names, self.now = home, names, now
        self.takes = takes or names.__contains__
        self.usage = UsageBook(home / "usage.jsonl")
        self.folder, self.context, self.tied = "", None, False
        self._opening = dict(opening)
        self.callers: dict[str, Caller] = {}
        self.models: dict[str, SessionModel] = {}
        self.promises: dict[str, Promise] = {}
        self._known: dict[tuple[str, int], Promise] = {}
        """Results of earlier requests, as `{(id of the model or sampler, request number): result}`."""
        self._child: ModelProcess | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unsent: list[tuple[str, Mapping[str, Any], AnswerHandler]] | None = None
        """Requests that wait for the process to start. `None` if the process is not starting."""
        self._failed: tuple[float, str] = (-math.inf, "")
        """Time of the last failed start, and the reason."""
        self._snapshots = home / "snapshots" / secrets.token_hex(8)
        self._held = ExitStack()

    # -- training process ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Wait until the base model is loaded. Loading errors propagate."""
        child = ModelProcess("sessions", self._opening, name=TRAINS)
        child.open(self._opening)
        self._child, opened = child, child.opened
        self.folder, self.context, self.tied = opened["folder"], opened["context"], opened["tied"]

    def _clear(self) -> None:
        """Delete unnamed samplers of earlier servers, including killed ones."""
        folder = private_folder(self._snapshots.parent)
        self._held.enter_context(locked(folder / f"{self._snapshots.name}.lock"))
        for kind in self.home.glob("weights/*/*/*"):
            recover_folders(kind)
        for lock in folder.glob("*.lock"):
            with locked(lock, keep=False) as left_behind:
                if left_behind:
                    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)

    def close(self) -> None:
        self._held.close()
        shutil.rmtree(self._snapshots, ignore_errors=True)
        if self._child is not None:
            self._child.close()

    async def run(self) -> None:
        """Deliver results, end abandoned sessions and drop old results, until canceled."""
        self._loop = asyncio.get_running_loop()
        self._clear()
        if self._child is not None:
            self._listen()
        while True:
            await asyncio.sleep(10)
            self._sweep()

    def _listen(self) -> None:
        child = self._child
        assert child is not None  # noqa: S101  set before
        child.follow(partial(self._in_loop, self._lost, child))

    def _in_loop(self, call: Callable[..., None], *given: Any) -> None:
        assert self._loop is not None  # noqa: S101  set before
        with suppress(RuntimeError):  # the loop has ended before the process
            self._loop.call_soon_threadsafe(call, *given)

    def _lost(self, child: ModelProcess, error: str) -> None:
        """Handle a lost process. All unsaved weights are lost with it, and the next request starts a new
        process."""
        del error
        if child is not self._child:
            return
        self._child = None
        for model in self.models.values():
            self._end_waiting(model)
        self.models.clear()

    def _send(self, op: str, fields: Mapping[str, Any], take: AnswerHandler) -> None:
        child = self._child
        if child is None:
            self._start_again(op, fields, take)
            return

        def arrived(answer: dict[str, Any] | None) -> None:
            lost = {"error": f"{child.lost}. Load your last saved state", "kind": "RunFailed"}
            self._in_loop(take, lost if answer is None else answer)

        try:
            child.request(op, fields, arrived)
        except Ended:
            arrived(None)

    def _start_again(self, op: str, fields: Mapping[str, Any], take: AnswerHandler) -> None:
        """Restart the process outside the event loop, which answers other requests meanwhile."""
        failed, why = self._failed
        if self._unsent is not None:
            self._unsent.append((op, fields, take))
        elif time.monotonic() - failed < REST_S:
            take({"error": why, "kind": "RunFailed"})
        else:
            self._unsent = [(op, fields, take)]
            threading.Thread(target=self._starting, daemon=True, name="starting").start()

    def _starting(self) -> None:
        why = ""
        try:
            self.start()
        except Exception as error:  # noqa: BLE001  whoever asked gets it
            why = error.message if isinstance(error, OrchestrateError) else f"{type(error).__name__}: {error}"
        self._in_loop(self._started, why)

    def _started(self, why: str) -> None:
        unsent, self._unsent = self._unsent or [], None
        if why:
            self._failed = (time.monotonic(), why)
        else:
            self._listen()
        for op, fields, take in unsent:
            self._send(op, fields, take)

    def ask(
        self,
        promise: Promise,
        op: str,
        fields: Mapping[str, Any],
        write: Callable[[dict[str, Any]], bytes | dict[str, Any]],
    ) -> None:
        """Send an operation to the training process, and set the promise's result once the process responds.
        `write` converts the process's response to this result."""

        def take(answer: dict[str, Any]) -> None:
            if "error" in answer:
                kind, fix = str(answer.get("kind")), answer.get("fix")
                message = f"{answer['error']}; {fix}" if fix else str(answer["error"])
                promise.fail(message, "user" if kind == "UsageError" else "server")
                return
            try:
                promise.keep(write(answer))
            except Exception as error:  # noqa: BLE001  the caller would wait for ever
                _log.exception("the result of %s", op)
                promise.fail(f"the server could not store the result: {error}", "server")

        try:
            self._send(op, fields, take)
        except Exception as error:  # noqa: BLE001  the caller would wait for ever
            _log.exception("the request %s", op)
            promise.fail(f"the server could not send the request to the training process: {error}", "server")

    def counted(
        self,
        of: str,
        owner: str,
        base: str,
        used: Callable[[dict[str, Any]], dict[str, int]],
        write: Callable[[dict[str, Any]], bytes],
    ) -> Callable[[dict[str, Any]], bytes]:
        """Return a `write` callback for `ask` that also counts the tokens used by a model or sampler."""

        def counting(answer: dict[str, Any]) -> bytes:
            self.usage.add(of.partition(":")[0], owner, base, time.time(), used(answer))
            return write(answer)

        return counting

    # -- sessions and models -------------------------------------------------------------------------------

    def caller(self, id: str, owner: str) -> Caller:
        """Return this owner's session and mark it as active. Raises `HostError` 404 for an unknown
        session."""
        found = self.callers.get(id)
        if found is None or found.owner != owner:
            raise HostError(404, f"session {id} does not exist: it has ended, or the server was restarted")
        found.seen = self.now()
        return found

    def model(self, id: str, owner: str) -> SessionModel:
        """Return this owner's model. Raises `HostError` 404 for an unknown model."""
        found = self.models.get(id)
        if found is None or found.owner != owner:
            raise HostError(
                404,
                f"model {id} does not exist: its session has ended, or the server was "
                f"restarted. Recreate it from its last saved state "
                "(create_training_client_from_state_with_optimizer)",
            )
        return found

    def promise(self, owner: str) -> Promise:
        made = Promise(secrets.token_hex(16), owner)
        self.promises[made.id] = made
        return made

    def once(self, of: str, number: int, owner: str) -> tuple[Promise, bool]:
        """Return the result of a numbered request, and True if the request is new. Repeated requests are not
        executed again."""
        known = self._known.get((of, number))
        if known is not None:
            return known, False
        made = self._known[of, number] = self.promise(owner)
        return made, True

    def in_turn(self, model: SessionModel, number: int, promise: Promise, work: PromisedWork) -> None:
        """Execute a request after all of the model's requests with lower numbers. A number that is still
        missing after `GAP_S` is skipped. Clients number requests in order, but may send the same request
        twice."""
        if number < model.next:
            promise.fail(f"request number {number} arrived after later requests were executed")
            return
        model.waiting[number] = (promise, work)
        while (due := model.waiting.pop(model.next, None)) is not None:
            model.next += 1
            self.carry_out(*due)
        if model.waiting:
            asyncio.get_running_loop().call_later(GAP_S, self._give_up, model, model.next)

    def carry_out(self, promise: Promise, work: PromisedWork) -> None:
        try:
            work(promise)
        except HostError as error:
            promise.fail(error.message)
        except Exception as error:  # noqa: BLE001  the caller would wait for ever
            _log.exception("a request")
            promise.fail(f"the server failed: {type(error).__name__}: {error}", "server")

    def _give_up(self, model: SessionModel, missing: int) -> None:
        """Skip a missing number. Its request was rejected before it was registered."""
        if model.next == missing and model.waiting:
            model.next = min(model.waiting)
            self.in_turn(model, model.next, *model.waiting[model.next])

    @staticmethod
    def _end_waiting(model: SessionModel) -> None:
        for promise, _ in model.waiting.values():
            promise.fail("the session ended while this request was waiting for earlier requests")
        model.waiting.clear()

    # -- weights -------------------------------------------------------------------------------------------

    def place(self, owner: str, model: str, kind: str, name: str) -> Path:
        """Return the folder for the weights named `name`. Raises `HostError` 400 if the name is invalid."""
        if not SAVE_NAME.fullmatch(name):
            raise HostError(
                400,
                f"the name {name[:100]!r} may only contain letters, digits, periods, underscores and hyphens",
            )
        return self._own(owner, "weights") / model.replace(":", "@") / kind / name

    def _own(self, owner: str, what: str) -> Path:
        """Return the owner's private folder, whatever the owner's name is."""
        return self.home / what / ("".join(c if c.isalnum() else f"_{ord(c):x}_" for c in owner) or "-")

    def path_of(self, owner: str, model: str, kind: str, name: str) -> str:
        """Return the `tinker://` path of saved weights."""
        del owner
        return f"tinker://{model}/{kind}/{name}"

    def places(self, path: str, owner: str) -> list[Path]:
        """Return the folders that may contain the weights at a `tinker://` path."""
        parts = PATH.fullmatch(path)
        return [] if parts is None else [self.place(owner, *parts.groups())]

    def found(self, path: str, owner: str) -> tuple[Path, SavedWeights]:
        """Return this owner's saved weights at a `tinker://` path. Raises `HostError` 404 if they don't
        exist."""
        with suppress(HostError):
            for folder in self.places(path, owner):
                with suppress(OSError, msgspec.MsgspecError):
                    return folder, SavedWeights.from_json((folder / "saved.json").read_bytes())
        raise HostError(404, f"saved weights {path[:300]} do not exist")

    def saved(self, owner: str) -> list[tuple[Path, SavedWeights]]:
        """List all saved weights of this owner, newest first."""
        found: list[tuple[Path, SavedWeights]] = []
        for file in self._own(owner, "weights").glob("*/*/*/saved.json"):
            with suppress(OSError, msgspec.MsgspecError):
                found.append((file.parent, SavedWeights.from_json(file.read_bytes())))
        return sorted(found, key=lambda one: -one[1].saved_at)

    def save(
        self,
        model: SessionModel,
        promise: Promise,
        name: str,
        *,
        training: bool,
        overwrite: bool,
        ttl_s: int | None = None,
    ) -> None:
        """Save the model's current weights under a name."""
        kind = "weights" if training else "sampler_weights"
        folder = self.place(model.owner, model.id, kind, name)
        path, now = self.path_of(model.owner, model.id, kind, name), time.time()
        note = SavedWeights(
            path=path,
            base=model.base,
            lora=model.lora,
            training=training,
            saved_at=now,
            expires_at=now + ttl_s if ttl_s else None,
        )
        private_folder(folder.parent)
        fields = {
            "model": model.id,
            "folder": str(folder),
            "optimizer": training,
            "note": note.to_json().decode(),
            "overwrite": overwrite,
        }
        done = {"path": path, "type": "save_weights" if training else "save_weights_for_sampler"}
        self.ask(promise, "save", fields, lambda answer: done)

    def snapshot(self, model: SessionModel, promise: Promise, caller: Caller, number: int) -> None:
        """Store the current weights for sampling until the session ends."""
        id = f"{caller.id}:sample:{number}"
        folder = self._snapshots / caller.id / str(number)

        def write(answer: dict[str, Any]) -> dict[str, Any]:
            del answer
            self.put(SavedSampler(id=id, base=model.base, folder=str(folder)), model.owner)
            caller.samplers[number] = id
            numbers = sorted(int(other.name) for other in folder.parent.iterdir() if other.name.isdecimal())
            for old in numbers[:-KEPT_SNAPSHOTS]:
                shutil.rmtree(folder.parent / str(old), ignore_errors=True)
            return {"sampling_session_id": id, "path": None, "type": "save_weights_for_sampler"}

        private_folder(folder.parent)
        self.ask(
            promise,
            "save",
            {"model": model.id, "folder": str(folder), "optimizer": False, "note": None, "overwrite": True},
            write,
        )

    def _sampler_file(self, id: str, owner: str) -> Path:
        if SAMPLER.fullmatch(id) is None:
            raise HostError(404, f"sampling session {id[:200]} does not exist")
        return self._own(owner, "samplers") / f"{id.replace(':', '@')}.json"

    def put(self, sampler: SavedSampler, owner: str) -> None:
        file = self._sampler_file(sampler.id, owner)
        private_folder(file.parent)
        write_whole(file, sampler.to_json())

    def sampler(self, id: str, owner: str) -> SavedSampler:
        """Return this owner's sampling session. Raises `HostError` 404 for an unknown session."""
        with suppress(HostError, OSError, msgspec.MsgspecError):
            return SavedSampler.from_json(self._sampler_file(id, owner).read_bytes())
        raise HostError(404, f"sampling session {id[:200]} does not exist")

    # -- ending sessions -----------------------------------------------------------------------------------

    def end(self, caller: Caller, *, keeps: bool) -> None:
        """End a caller's session. With `keeps`, save the current weights first. If saving fails, the weights
        stay loaded, and saving is tried again later."""
        for id, _ in caller.models.values():
            model = self.models.get(id)
            if model is not None and keeps:
                kept = self.promise(caller.owner)
                self.save(model, kept, LEFT_BEHIND, training=True, overwrite=True)
                kept.then = partial(self._kept, model, caller)
            elif model is not None:
                self.unload(model)
        if not keeps:
            self._gone(caller)

    def _kept(self, model: SessionModel, caller: Caller, promise: Promise) -> None:
        if isinstance(promise.result, dict) and "error" in promise.result:
            _log.error("could not save the weights of %s: %s", model.id, promise.result["error"])
            caller.seen = self.now()  # another try when it was quiet as long again
            return
        self.unload(model)
        if not any(id in self.models for id, _ in caller.models.values()):
            self._gone(caller)

    def unload(self, model: SessionModel, promise: Promise | None = None) -> None:
        self.models.pop(model.id, None)
        self._end_waiting(model)
        done = {"model_id": model.id, "type": "unload_model"}
        self.ask(promise or self.promise(model.owner), "unload", {"model": model.id}, lambda answer: done)

    def _gone(self, caller: Caller) -> None:
        self.callers.pop(caller.id, None)
        shutil.rmtree(self._snapshots / caller.id, ignore_errors=True)
        for id in caller.samplers.values():
            with suppress(HostError):
                if self.sampler(id, caller.owner).folder.startswith(str(self._snapshots)):
                    self._sampler_file(id, caller.owner).unlink(missing_ok=True)

    def _sweep(self) -> None:
        seen, now = self.now(), time.monotonic()
        for caller in [c for c in self.callers.values() if seen - c.seen > GONE_S]:
            try:
                self.end(caller, keeps=True)
                caller.seen = seen
            except Exception:  # noqa: BLE001  the others go on
                _log.exception("could not end the session %s", caller.id)
        old = {
            id
            for id, p in self.promises.items()
            if p.ready.is_set() and now - (p.fetched or p.at) > (FETCHED_S if p.fetched else KEEPS_S)
        }
        if old:
            self.promises = {id: p for id, p in self.promises.items() if id not in old}
            self._known = {key: p for key, p in self._known.items() if p.id not in old}


def _data(value: Mapping[str, Any]) -> bytes:
    return base64.b64decode(value["data"])


def forward_result(answer: dict[str, Any]) -> bytes:
    return wire.forward_output([(_data(v), v["shape"]) for v in answer["logprobs"]], answer["metrics"])


def sample_result(answer: dict[str, Any]) -> bytes:
    prompt = None
    if "logprobs" in answer:
        prompt = _with_tops({"logprobs": _data(answer["logprobs"])}, answer)
    answers = [
        _with_tops({"stop": a["stop"], "tokens": a["tokens"], "logprobs": _data(a["logprobs"])}, a)
        for a in answer["answers"]
    ]
    return wire.sample_output(answers, prompt)


def _with_tops(found: dict[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    if "top_ids" in answer:
        found["tops"] = (array_of(answer["top_ids"]), array_of(answer["top_logprobs"]))
    return found
