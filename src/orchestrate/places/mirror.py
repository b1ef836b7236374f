"""What of a run directory goes to its depot and back: a worker away reports, and whoever watches it looks.

Checkpoints and the result lie in the depot under their own names (`step-00000120`, `adapter`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import msgspec

from orchestrate.errors import HostUnavailable
from orchestrate.files import locked, opener, write_whole
from orchestrate.local.run import checkpoints
from orchestrate.local.run.rundir import RunDir, State, now
from orchestrate.places.depot import StoredRun
from orchestrate.types import Event, JobError, Record

GROWING = ("events.jsonl", "metrics.jsonl", "worker.log")
WHOLE = ("proof.json", "paces.jsonl", "status.json")
"""The status last: what it tells of is there before it."""
SEEN = ".seen.json"
"""Which parts a reader has."""


class Pulse(Record, frozen=True, kw_only=True):
    """Of the worker that reports. `ended`: it has said all that it had to say."""

    attempt: int
    number: int
    pid: int
    started: str
    machine: str
    ended: bool = False


class Cursor(Record, frozen=True, kw_only=True):
    """How much of a growing file is in the depot."""

    part: tuple[int, int] = (0, 0)
    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    """Of those bytes, to tell whether the file has only grown since."""


class Reporter:
    """At the worker: sends what is new with each `report`."""

    def __init__(self, run: RunDir, stored: StoredRun) -> None:
        self.run, self.stored = run, stored
        self._cursors: dict[str, Cursor] = {}
        self._sent: dict[str, bytes] = {}
        self._folders = {name for name in stored.folders() if stored.manifest(name) is not None}

    def report(self) -> None:
        """Raises `HostUnavailable`."""
        status = self._read("status.json")
        for name in GROWING:
            self._grow(name)
        self._send_folders(status)
        for name in WHOLE:
            data = status if name == "status.json" else self._read(name)
            if data and self._sent.get(name) != data:
                self.stored.write(name, data)
                self._sent[name] = data

    def _grow(self, name: str) -> None:
        data = self._read(name)
        cursor = self._cursors.get(name) or self._known(name)
        before = data[: cursor.bytes]
        if len(before) < cursor.bytes or hashlib.sha256(before).hexdigest() != cursor.sha256:
            cursor = Cursor(part=(cursor.part[0] + 1, 0))
        elif cursor.part == (0, 0):
            cursor = Cursor(part=(1, 0))
        new = data[cursor.bytes :]
        if name != "worker.log":
            new = new[: new.rfind(b"\n") + 1]  # whole lines
        if not new:
            return
        edition, number = cursor.part
        self.stored.add_part(name, (edition, number + 1), new)
        sent = data[: cursor.bytes + len(new)]
        digest = hashlib.sha256(sent).hexdigest()
        self._cursors[name] = Cursor(part=(edition, number + 1), bytes=len(sent), sha256=digest)

    def _known(self, name: str) -> Cursor:
        """Of what an earlier attempt sent."""
        parts = self.stored.parts(name)
        data = b"".join(self.stored.part(name, part) for part in parts)
        if not parts:
            return Cursor()
        return Cursor(part=parts[-1], bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def _send_folders(self, status: bytes) -> None:
        here = {path.name: path for path in self.run.checkpoints.glob("step-*")}
        result = State.from_json(status).result if status else None
        if result:
            here[result] = self.run.path / result
        for name, path in here.items():
            if name not in self._folders and (name == result or (path / "manifest.json").is_file()):
                self._send(name, path)
        # One to go on from is there at every moment: the newest goes only when a newer one is whole.
        steps = sorted(name for name in self._folders if name.startswith("step-"))
        for name in [name for name in steps[:-1] if name not in here]:
            self.stored.drop_folder(name)
            self._folders.discard(name)

    def _send(self, name: str, path: Path) -> None:
        """Of links to its files: sending takes longer than the engine keeps a checkpoint."""
        held = self.run.path / "outgoing" / name
        try:
            shutil.copytree(path, held, copy_function=os.link)
            # The engine may be removing it for a newer one: then it is not all there.
            if not name.startswith("step-") or checkpoints.verify(held) is not None:
                self.stored.keep_folder(name, held)
                self._folders.add(name)
        except (FileNotFoundError, shutil.Error):
            return
        finally:
            shutil.rmtree(held, ignore_errors=True)

    def _read(self, name: str) -> bytes:
        try:
            return (self.run.path / name).read_bytes()
        except OSError:
            return b""


def restore(run: RunDir, stored: StoredRun) -> None:
    """At the worker: all that an earlier attempt reported, with its checkpoints."""
    run.path.mkdir(parents=True, exist_ok=True)
    for name in GROWING:
        data = b"".join(stored.part(name, part) for part in stored.parts(name))
        if data:
            write_whole(run.path / name, data)
    for name in WHOLE:
        if data := stored.read(name):
            write_whole(run.path / name, data)
    for name in stored.folders():
        if name.startswith("step-"):
            stored.fetch_folder(name, run.checkpoints / name)


def look(run: RunDir, stored: StoredRun, earlier: int = 0) -> bool:
    """At the reader: what was reported since the last time; whether the attempt after `earlier` ones has
    reported. Of checkpoints only what says of them; `bring` fetches their weights."""
    with locked(run.path / ".look", wait_s=None):
        pulse = stored.read("pulse.json")
        status = stored.read("status.json")  # before what it tells of, so that it is never ahead
        for name in GROWING:
            _take_parts(run, stored, name)
        _take_checkpoints(run, stored)
        whole = {"proof.json": stored.read("proof.json")}
        if status and stored.decoded("status.json", status, State).terminal:
            whole["paces.jsonl"] = stored.read("paces.jsonl")
        for name, data in {**whole, "status.json": status}.items():
            if data and _differs(run.path / name, data):
                write_whole(run.path / name, data)
        told = stored.decoded("pulse.json", pulse, Pulse) if pulse else None
        if told is None or pulse is None or told.attempt <= earlier:
            return False
        _show_life(run, told, pulse)
        return True


def silent_s(run: RunDir, earlier: int = 0) -> float | None:
    """At the reader: since the worker after `earlier` attempts last reported, as far as that was looked for;
    `None` for one that never did, or has said its last."""
    mark = run.path / ".pulse"
    try:
        pulse, at = Pulse.from_json(mark.read_bytes()), mark.stat().st_mtime
    except (OSError, msgspec.MsgspecError):
        return None
    return None if pulse.ended or pulse.attempt <= earlier else max(0.0, time.time() - at)


def newest_step(stored: StoredRun) -> int:
    """Of the newest checkpoint to go on from; 0 where there is none."""
    there = [name for name in stored.folders() if name.startswith("step-") and stored.manifest(name)]
    return max((int(name.removeprefix("step-")) for name in there), default=0)


def state_of(stored: StoredRun) -> State:
    return stored.record("status.json", State) or State(status="queued", updated_at=now())


def say(stored: StoredRun, state: State, status: str, error: JobError | None) -> None:
    """How the run stands from now on, by whoever knows it where no worker can say so."""
    at = now()
    ended = None if status == "paused" else at
    state = msgspec.structs.replace(
        state, status=status, stage=None, updated_at=at, finished_at=ended, error=error
    )
    stored.write("status.json", state.to_json())


def add_event(stored: StoredRun, message: str, *, level: str, type: str) -> None:
    """By whoever starts workers, while none of them reports."""
    event = Event(id="", at=now(), level=level, message=message, type=type)
    parts = stored.parts("events.jsonl")
    edition, number = parts[-1] if parts else (1, 0)
    stored.add_part("events.jsonl", (edition, number + 1), event.to_json() + b"\n")


def bring(run: RunDir, stored: StoredRun, folder: Path) -> None:
    """At the reader: all files of the result, or of the checkpoint, in which the folder lies."""
    parts = folder.relative_to(run.path).parts
    name = parts[1] if parts[0] == run.checkpoints.name else parts[0]
    target = run.path.joinpath(*parts[: 2 if parts[0] == run.checkpoints.name else 1])
    if not stored.fetch_folder(name, target):
        told = f"{stored.depot.url} does not hold all of {name} of {run.ref}"
        raise HostUnavailable(stored.depot.url, told, fix=f"orchestrate checkpoints {run.ref}")


def _take_parts(run: RunDir, stored: StoredRun, name: str) -> None:
    seen = _seen(run)
    have = seen.get(name, (0, 0))
    parts = stored.parts(name, have)
    if not parts:
        return
    data = b"".join(stored.part(name, part) for part in parts)
    path = run.path / name
    if parts[0][0] != have[0]:
        write_whole(path, data)
    else:
        with open(path, "ab", opener=opener) as out:
            out.write(data)
    write_whole(run.path / SEEN, msgspec.json.encode(seen | {name: parts[-1]}))


def _take_checkpoints(run: RunDir, stored: StoredRun) -> None:
    there = [name for name in stored.folders() if name.startswith("step-")]
    if there:
        run.checkpoints.mkdir(exist_ok=True)
    for name in there:
        if not (run.checkpoints / name / "manifest.json").is_file():
            stored.fetch_folder(name, run.checkpoints / name, ("progress.json", "manifest.json"))
    for path in run.checkpoints.glob("step-*"):
        if path.name not in there and not (path / "adapter").is_dir() and not (path / "full").is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _show_life(run: RunDir, pulse: Pulse, data: bytes) -> None:
    """The age of a sign of life is counted from when it was first seen here: clocks differ. Its machine is
    never taken for this one, whatever it is called: process ids of a container mean nothing here."""
    path, mark = run.path / "worker.json", run.path / ".pulse"
    if not _differs(mark, data):
        return
    worker = {"pid": pulse.pid, "started": pulse.started, "machine": f"{pulse.machine} (away)"}
    write_whole(path, msgspec.json.encode(worker))
    if pulse.ended:
        os.utime(path, (0, 0))
    write_whole(mark, data)


def _seen(run: RunDir) -> dict[str, tuple[int, int]]:
    try:
        return msgspec.json.decode((run.path / SEEN).read_bytes(), type=dict[str, tuple[int, int]])
    except (OSError, msgspec.MsgspecError):
        return {}


def _differs(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() != data
    except OSError:
        return True
