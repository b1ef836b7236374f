"""Run directories in a storage folder: S3, GCS, a bucket of the Hugging Face Hub, or a shared disk.

    blobs/<sha256>                      files uploaded once for all runs: data, models, our own code
    runs/<ref>/order.json               the job, with the blobs that it needs
    runs/<ref>/control                  `pause` or `cancel`
    runs/<ref>/attempts/00000001.json   the attempt's worker, and the time used so far
    runs/<ref>/pulse.json               the worker's heartbeat, replaced with every report
    runs/<ref>/status.json  proof.json  as in a run directory
    runs/<ref>/events/0001-00000001     a growing file, in numbered parts
    runs/<ref>/folders/<name>/<sha256>  files of a checkpoint or of the result
    runs/<ref>/folders/<name>/manifest  list of the folder's files, written last

These stores can't rename or append to files. Each file is written by one request, so a reader sees either the
old or the new content. A folder exists once its manifest does."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from orchestrate.core.files import locked, new_folder, opener, sha256, whole, write_whole
from orchestrate.errors import ArtifactRefused, HostUnavailable, MissingExtra, OrchestrateError
from orchestrate.local.run import JobState, RunDir, checkpoints, now
from orchestrate.types import ArtifactFile, Event, JobError, Record, decoding

R = TypeVar("R", bound=Record)


NO_KEY = "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...   or  aws configure"


class RunStorage:
    """A storage folder. `url` is an fsspec URL.

    Raises `MissingExtra` if the package for the file system is not installed, and `HostUnavailable` if the
    storage fails.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            import fsspec.core  # pyright: ignore[reportMissingTypeStubs]
        except ImportError as error:
            raise MissingExtra("data", f"runs stored at {url}", "fsspec") from error
        try:
            open_at: Any = fsspec.core.url_to_fs  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            found = open_at(self.url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            raise MissingExtra("s3", f"runs stored at {url}", str(error.name or error)) from error
        except ValueError as error:
            raise HostUnavailable(self.url, f"{url} cannot store runs: {error}") from error
        self._system, self._root = found
        protocols = self._system.protocol
        self._disk = "file" in ((protocols,) if isinstance(protocols, str) else protocols)

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages that the file system needs in addition to fsspec."""
        module = type(self._system).__module__.partition(".")[0]
        return () if module == "fsspec" else (module,)

    # -- files ---------------------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically: readers see either the old content or the new."""
        with self._converted_errors(f"write {name}"):
            if self._disk:
                path = Path(self._at(name))
                write_whole(new_folder(path.parent) / path.name, data)
            else:
                self._system.pipe_file(self._at(name), data)

    def read(self, name: str) -> bytes | None:
        """Read a file, or return `None` if it does not exist."""
        with self._converted_errors(f"read {name}"), suppress(FileNotFoundError):
            return self._system.cat_file(self._at(name))
        return None

    def names(self, folder: str) -> list[str]:
        """List the names of the files and folders directly in a folder, sorted. Leaves out files that are
        still being written. Returns an empty list if the folder does not exist."""
        with self._converted_errors(f"list {folder}"), suppress(FileNotFoundError):
            self._system.invalidate_cache()
            found: list[Any] = self._system.ls(self._at(folder), detail=False)
            names = {str(one).rstrip("/").rpartition("/")[2] for one in found} - {""}
            return sorted(name for name in names if not name.startswith("."))
        return []

    def size(self, name: str) -> int | None:
        with self._converted_errors(f"check {name}"), suppress(FileNotFoundError):
            self._system.invalidate_cache()
            return int(self._system.info(self._at(name))["size"])
        return None

    def remove(self, folder: str) -> None:
        with self._converted_errors(f"remove {folder}"), suppress(FileNotFoundError):
            self._system.invalidate_cache()
            self._system.rm(self._at(folder), recursive=True)

    # -- files stored under their hash ---------------------------------------------------------------------

    def keep(self, path: Path, under: str = "blobs") -> ArtifactFile:
        """Store a file under its hash, unless it is already stored."""
        file = ArtifactFile(path=path.name, bytes=path.stat().st_size, sha256=sha256(path))
        name = f"{under}/{file.sha256}"
        if self.size(name) != file.bytes:
            with self._converted_errors(f"write {name}"):
                if self._disk:
                    target = Path(self._at(name))
                    with whole(new_folder(target.parent) / target.name) as draft:
                        self._system.put_file(str(path), str(draft))
                else:
                    self._system.put_file(str(path), self._at(name))
        return file

    def keep_bytes(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if self.size(f"blobs/{digest}") != len(data):
            self.write(f"blobs/{digest}", data)
        return digest

    def fetch(self, file: ArtifactFile, target: Path, under: str = "blobs") -> None:
        """Download a file by its hash. Raises `ArtifactRefused` if the downloaded content has a different
        hash."""
        if target.is_file() and target.stat().st_size == file.bytes and sha256(target) == file.sha256:
            return
        new_folder(target.parent)
        with whole(target) as draft:
            with self._converted_errors(f"read {under}/{file.sha256}"):
                self._system.get_file(self._at(f"{under}/{file.sha256}"), str(draft))
            if sha256(draft) != file.sha256:
                raise ArtifactRefused(f"the copy of {file.path} in {self.url} differs from the uploaded file")

    def keep_folder(self, folder: Path, under: str = "blobs") -> tuple[ArtifactFile, ...]:
        """Store all files in a folder and its subfolders, with their relative paths."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return tuple(
            msgspec.structs.replace(self.keep(path, under), path=path.relative_to(folder).as_posix())
            for path in paths
        )

    def fetch_folder(self, files: Iterable[ArtifactFile], target: Path, under: str = "blobs") -> None:
        for file in files:
            self.fetch(file, target / safe(file.path), under)

    # -- shared --------------------------------------------------------------------------------------------

    def run(self, ref: str) -> StoredRun:
        return StoredRun(self, ref)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _converted_errors(self, what: str) -> Generator[None]:
        """Convert the errors of the file system's library."""
        try:
            yield
        except (FileNotFoundError, OrchestrateError):
            raise
        except Exception as error:
            message = f"{self.url} failed to {what}: {type(error).__name__}: {error}"
            failure = HostUnavailable(self.url, message, fix="try again. Uploaded files are reused")
            if type(error).__name__ == "NoCredentialsError":
                failure.fix, failure.retryable = NO_KEY, False
            raise failure from error


class StoredRun:
    """The part of the storage that belongs to one run."""

    def __init__(self, run_storage: RunStorage, ref: str) -> None:
        self.run_storage, self.ref = run_storage, ref
        self.folder = f"runs/{ref}"

    def write(self, name: str, data: bytes) -> None:
        self.run_storage.write(f"{self.folder}/{name}", data)

    def read(self, name: str) -> bytes | None:
        return self.run_storage.read(f"{self.folder}/{name}")

    def record(self, name: str, kind: type[R]) -> R | None:
        """Read a JSON record, or return `None` if the file does not exist or is empty. Raises
        `HostUnavailable` if the record cannot be parsed, for example because the disk was full or another
        version of Orchestrate wrote it."""
        data = self.read(name)
        return self.decoded(name, data, kind) if data else None

    def decoded(self, name: str, data: bytes, kind: type[R]) -> R:
        try:
            return kind.from_json(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            message = (
                f"{name} of run {self.ref} in {self.run_storage.url} is damaged, or another version of "
                f"Orchestrate wrote it: {error}"
            )
            raise HostUnavailable(self.run_storage.url, message) from error

    def remove(self) -> None:
        self.run_storage.remove(self.folder)

    # -- growing files -------------------------------------------------------------------------------------

    def parts(self, name: str, after: tuple[int, int] = (0, 0)) -> list[tuple[int, int]]:
        """List the file's parts that follow `after`, as `[(edition, number)]`. Uses the newest edition whose
        first part exists, and stops at its first missing part.

        A new edition starts when lines are removed from the file. Its first part contains all remaining
        lines.
        """
        found = sorted(
            (int(edition), int(number))
            for edition, _, number in (
                one.partition("-") for one in self.run_storage.names(f"{self.folder}/{name}")
            )
            if edition.isdigit() and number.isdigit()
        )
        begun = [edition for edition, number in found if number == 1]
        if not begun:
            return []
        newest = [part for part in found if part[0] == begun[-1]]
        unbroken = [part for place, part in enumerate(newest, 1) if part[1] == place]
        return [part for part in unbroken if part > after]

    def part(self, name: str, part: tuple[int, int]) -> bytes:
        return self.read(f"{name}/{_part(part)}") or b""

    def add_part(self, name: str, part: tuple[int, int], data: bytes) -> None:
        self.write(f"{name}/{_part(part)}", data)

    # -- folders -------------------------------------------------------------------------------------------

    def keep_folder(self, name: str, folder: Path) -> None:
        """Store a folder atomically: its manifest is written last, and readers ignore a folder without
        one."""
        place = f"{self.folder}/folders/{name}"
        files = self.run_storage.keep_folder(folder, place)
        self.run_storage.write(f"{place}/manifest", msgspec.json.encode(files))

    def manifest(self, name: str) -> tuple[ArtifactFile, ...] | None:
        """Return the manifest of a folder, or `None` if the folder is incomplete."""
        data = self.read(f"folders/{name}/manifest")
        return None if data is None else decoding.decode(data, type=tuple[ArtifactFile, ...])

    def folders(self) -> list[str]:
        """List the names of the stored folders, including incomplete ones."""
        return self.run_storage.names(f"{self.folder}/folders")

    def fetch_folder(self, name: str, target: Path, only: Iterable[str] = ()) -> bool:
        """Download a folder, or only the files at the paths in `only`. Returns False if the stored folder is
        incomplete."""
        wanted = set(only)
        if (files := self.manifest(name)) is None:
            return False
        some = [file for file in files if not wanted or file.path in wanted]
        try:
            self.run_storage.fetch_folder(some, target, f"{self.folder}/folders/{name}")
        except FileNotFoundError:  # removed since for a newer one
            return False
        return True

    def drop_folder(self, name: str) -> None:
        self.run_storage.remove(f"{self.folder}/folders/{name}/manifest")
        self.run_storage.remove(f"{self.folder}/folders/{name}")


def safe(path: str) -> str:
    """Return the path, or raise `ArtifactRefused` if it leads outside its folder."""
    if not path or path.startswith(("/", "\\")) or ".." in Path(path).parts or ":" in path:
        raise ArtifactRefused(f"{path!r} in the storage folder is a path outside of the run's own folder")
    return path


def _part(part: tuple[int, int]) -> str:
    return f"{part[0]:04d}-{part[1]:08d}"


# Synchronization of run directories: a remote worker uploads its changes with `Reporter`, and machines that
# watch the run download them with `look`. Checkpoints and the result keep their own names in the storage
# (`step-00000120`, `adapter`).

GROWING = ("events.jsonl", "metrics.jsonl", "worker.log")
WHOLE = ("proof.json", "paces.jsonl", "status.json")
"""Files that are replaced rather than extended. The status is last, so that everything it refers to is stored
before it."""
SEEN = ".seen.json"
"""File that records which parts a reader already has."""


class Pulse(Record, frozen=True, kw_only=True):
    """A worker's heartbeat. `ended` marks its last report."""

    attempt: int
    number: int
    pid: int
    started: str
    machine: str
    ended: bool = False


class Cursor(Record, frozen=True, kw_only=True):
    """Position up to which a growing file has been stored."""

    part: tuple[int, int] = (0, 0)
    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    """Hash of the bytes stored so far, to check that the file was only appended to."""


class Reporter:
    """Sends what has changed in a run directory since the last report. Runs on the worker's machine."""

    def __init__(self, run: RunDir, stored: StoredRun) -> None:
        self.run, self.stored = run, stored
        self._cursors: dict[str, Cursor] = {}
        self._sent: dict[str, bytes] = {}
        self._folders = {name for name in stored.folders() if stored.manifest(name) is not None}

    def report(self) -> None:
        """Upload the run's current state to the storage. Raises `HostUnavailable` if the upload fails."""
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
        # Until the storage answers, the part may or may not be there. If it is, readers may have it already.
        self._cursors.pop(name, None)
        self.stored.add_part(name, (edition, number + 1), new)
        sent = data[: cursor.bytes + len(new)]
        digest = hashlib.sha256(sent).hexdigest()
        self._cursors[name] = Cursor(part=(edition, number + 1), bytes=len(sent), sha256=digest)

    def _known(self, name: str) -> Cursor:
        """Return the position up to which an earlier attempt sent the file."""
        parts = self.stored.parts(name)
        data = b"".join(self.stored.part(name, part) for part in parts)
        if not parts:
            return Cursor()
        return Cursor(part=parts[-1], bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def _send_folders(self, status: bytes) -> None:
        here = {path.name: path for path in self.run.checkpoints.glob("step-*")}
        result = JobState.from_json(status).result if status else None
        if result:
            here[result] = self.run.path / result
        for name, path in here.items():
            if name not in self._folders and (name == result or (path / "manifest.json").is_file()):
                self._send(name, path)
        # Always keep a checkpoint to resume from: delete one only after a newer one is complete.
        steps = sorted(name for name in self._folders if name.startswith("step-"))
        for name in [name for name in steps[:-1] if name not in here]:
            self.stored.drop_folder(name)
            self._folders.discard(name)

    def _send(self, name: str, path: Path) -> None:
        """Send hard links to its files, because sending takes longer than the engine keeps a checkpoint."""
        held = self.run.path / "outgoing" / name
        try:
            shutil.copytree(path, held, copy_function=os.link)
            # The engine may be deleting this checkpoint in favor of a newer one, so check that it is
            # complete.
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
    """Download everything that earlier attempts reported, including checkpoints. Runs on the worker's
    machine."""
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
    """Download everything that was reported since the last call, except checkpoint weights, which `bring`
    downloads. Returns True if the latest report is from an attempt with a number above `earlier`. Runs on the
    reader's machine."""
    with locked(run.path / ".look", wait_s=None):
        pulse = stored.read("pulse.json")
        status = stored.read("status.json")  # before what it tells of, so that it is never ahead
        for name in GROWING:
            _take_parts(run, stored, name)
        _take_checkpoints(run, stored)
        replaced = {"proof.json": stored.read("proof.json")}
        state = stored.decoded("status.json", status, JobState) if status else None
        if state is not None and state.result is not None:
            safe(state.result)
        if state is not None and state.terminal:
            replaced["paces.jsonl"] = stored.read("paces.jsonl")
        for name, data in {**replaced, "status.json": status}.items():
            if data and _differs(run.path / name, data):
                write_whole(run.path / name, data)
        report = stored.decoded("pulse.json", pulse, Pulse) if pulse else None
        if report is None or pulse is None or report.attempt <= earlier:
            return False
        _show_life(run, report, pulse)
        return True


def silent_s(run: RunDir, earlier: int = 0) -> float | None:
    """Return the seconds since the current worker last reported, using only what the last `look` downloaded.
    Returns `None` if the worker has not reported yet or has sent its last report. Reports from attempts up to
    number `earlier` are ignored. Runs on the reader's machine."""
    mark = run.path / ".pulse"
    try:
        pulse, at = Pulse.from_json(mark.read_bytes()), mark.stat().st_mtime
    except (OSError, msgspec.MsgspecError):
        return None
    return None if pulse.ended or pulse.attempt <= earlier else max(0.0, time.time() - at)


def newest_step(stored: StoredRun) -> int:
    """Return the step of the newest complete checkpoint, or 0 if there is none."""
    there = [name for name in stored.folders() if name.startswith("step-") and stored.manifest(name)]
    return max((int(name.removeprefix("step-")) for name in there), default=0)


def state_of(stored: StoredRun) -> JobState:
    return stored.record("status.json", JobState) or JobState(status="queued", updated_at=now())


def say(stored: StoredRun, state: JobState, status: str, error: JobError | None) -> None:
    """Store the run's new status and error on behalf of a worker that can no longer report them."""
    at = now()
    ended = None if status == "paused" else at
    state = msgspec.structs.replace(
        state, status=status, stage=None, updated_at=at, finished_at=ended, error=error
    )
    stored.write("status.json", state.to_json())


def add_event(stored: StoredRun, message: str, *, level: str, type: str) -> None:
    """Add an event on behalf of the process that starts workers. Only used while no worker reports."""
    event = Event(id="", at=now(), level=level, message=message, type=type)
    parts = stored.parts("events.jsonl")
    edition, number = parts[-1] if parts else (1, 0)
    stored.add_part("events.jsonl", (edition, number + 1), event.to_json() + b"\n")


def bring(run: RunDir, stored: StoredRun, folder: Path) -> None:
    """Download all files of the result or checkpoint that contains `folder`. Runs on the reader's machine."""
    parts = folder.relative_to(run.path).parts
    name = parts[1] if parts[0] == run.checkpoints.name else parts[0]
    target = run.path.joinpath(*parts[: 2 if parts[0] == run.checkpoints.name else 1])
    if not stored.fetch_folder(name, target):
        message = f"{name} of run {run.ref} is incomplete in the storage folder {stored.run_storage.url}"
        raise HostUnavailable(stored.run_storage.url, message, fix=f"orchestrate checkpoints {run.ref}")


def _take_parts(run: RunDir, stored: StoredRun, name: str) -> None:
    seen, path = _seen(run), run.path / name
    *have, size = seen.get(name, (0, 0, 0))
    if size > (path.stat().st_size if path.exists() else 0):  # lost with the machine's power
        have, size = [0, 0], 0
    parts = stored.parts(name, (have[0], have[1]))
    if not parts:
        return
    data = b"".join(stored.part(name, part) for part in parts)
    if parts[0][0] != have[0]:
        write_whole(path, data)
        size = 0
    else:
        with open(path, "ab", opener=opener) as out:
            out.truncate(size)  # cut off what a killed reader appended without noting it
            out.write(data)
    write_whole(run.path / SEEN, msgspec.json.encode(seen | {name: (*parts[-1], size + len(data))}))


def _take_checkpoints(run: RunDir, stored: StoredRun) -> None:
    there = [name for name in stored.folders() if name.startswith("step-")]
    if there:
        run.checkpoints.mkdir(exist_ok=True)
    described = ("progress.json", "manifest.json")
    for name in there:
        if not all((run.checkpoints / name / one).is_file() for one in described):
            stored.fetch_folder(name, run.checkpoints / name, described)
    for path in run.checkpoints.glob("step-*"):
        if path.name not in there and not (path / "adapter").is_dir() and not (path / "full").is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _show_life(run: RunDir, pulse: Pulse, data: bytes) -> None:
    """Note a heartbeat. Its age is counted from when it was first seen here, because clocks differ. Its
    machine is never taken for this one, whatever its name: process ids of a container mean nothing here."""
    path, mark = run.path / "worker.json", run.path / ".pulse"
    if not _differs(mark, data):
        return
    worker = {"pid": pulse.pid, "started": pulse.started, "machine": f"{pulse.machine} (away)"}
    write_whole(path, msgspec.json.encode(worker))
    if pulse.ended:
        os.utime(path, (0, 0))
    write_whole(mark, data)


def _seen(run: RunDir) -> dict[str, tuple[int, int, int]]:
    """Return the last part of each growing file that is here, and the file's size with it. Without a record,
    or with one of a version that kept no sizes, files are read from their start again."""
    try:
        return msgspec.json.decode((run.path / SEEN).read_bytes(), type=dict[str, tuple[int, int, int]])
    except (OSError, msgspec.MsgspecError):
        return {}


def _differs(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() != data
    except OSError:
        return True
