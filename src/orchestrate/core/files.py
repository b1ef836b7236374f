"""Atomic writes of files and folders, locks between processes, and hashes.

Durability: content is on disk before the file gets its name, and the name is on disk before the call returns.
Readers see the old or the new content, even after a power failure.

Privacy: `private_folder` creates a folder that only its owner can access. In such a folder, `whole`,
`whole_folder`, `new_folder` and `opener` create files and folders that only their owner can access,
regardless of the umask.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import socket
import stat
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Generic, TypeVar

import msgspec

from orchestrate.errors import DataError, UsageError
from orchestrate.types import decoding

E = TypeVar("E")
Mark = tuple[int, ...]
"""Fingerprint of a file on disk. It changes whenever the file is written to."""

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""Error codes for a full disk or an exhausted quota."""
_MARKS = (".git", "orchestrate.toml")
PRIVATE_UMASK = 0o077
"""Umask of processes that only write below the home folder."""


def private_folder(path: Path) -> Path:
    """Create a folder and its missing parents so that only their owner can access them. Existing folders are
    not changed. Raises `OSError` if a folder cannot be created."""
    for folder in (*reversed(path.parents), path):
        folder.mkdir(mode=0o700, exist_ok=True)
    return path


def own_folder(path: Path) -> Path:
    """Create a private folder inside a folder that others can write to. Raises `PermissionError` if the path
    already exists and another user owns it. This includes symbolic links, because another user's link could
    point anywhere."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if sys.platform != "win32":
            if {path.lstat().st_uid, path.stat().st_uid} != {os.geteuid()}:
                raise PermissionError(
                    errno.EPERM, "it belongs to another user of this machine", str(path)
                ) from None
            path.chmod(0o700)
    return path


def is_private(folder: Path) -> bool:
    """Return whether only the folder's owner can access it. On systems without file modes, no folder is
    private."""
    return sys.platform != "win32" and not stat.S_IMODE(folder.stat().st_mode) & PRIVATE_UMASK


def inside(path: Path) -> Path:
    """Return `path` if it is safe to write to. Raises `UsageError` if `path` is a symbolic link inside a
    project (a repository, or a folder with an `orchestrate.toml`) that points outside the project. Writing to
    such a link in a cloned repository could overwrite one of the user's files. The folders above `path` may
    be links, for example to a larger disk."""
    if not path.is_symlink():
        return path
    named, real = Path(os.path.abspath(path)), os.path.realpath(path)  # noqa: PTH100  `..` and links apart
    root = next((up for up in named.parents if any(os.path.lexists(up / mark) for mark in _MARKS)), None)
    if root is not None and not Path(real).is_relative_to(os.path.realpath(root)):
        raise UsageError(
            f"{path} was not written: it is a link to {real}, outside {root}",
            fix="pass the link's target, or remove the link",
        )
    return path


def new_folder(path: Path) -> Path:
    """Create a folder and its missing parents. They are private if their existing parent is private."""
    if not path.is_dir():
        parent = new_folder(path.parent)
        path.mkdir(mode=0o700 if is_private(parent) else 0o777, exist_ok=True)
    return path


def opener(path: str, flags: int) -> int:
    """Open a file for `open(..., opener=opener)`. A new file in a private folder is accessible to its owner
    only."""
    return os.open(path, flags, 0o600 if is_private(Path(path).parent) else 0o666)


@contextmanager
def whole(path: Path, *, private: bool = False) -> Generator[Path]:
    """Yield a path to write to. At the end of the block, the written file replaces `path` atomically. After
    an error, nothing changes.

    If `path` is a link that `inside` allows, the link's target is replaced and the link is kept. If `private`
    is set or the folder is private, only the owner can read the file."""
    target = Path(os.path.realpath(inside(path)))
    draft = _draft(target)
    try:
        if private or is_private(target.parent):
            os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield draft
        move_into_place(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace a file's contents atomically."""
    with whole(path, private=private) as draft:
        draft.write_bytes(data)


def move_into_place(draft: Path, path: Path) -> None:
    """Move a finished file to its final path, replacing an existing file."""
    sync(draft)
    draft.replace(path)
    sync(path.parent)


@contextmanager
def whole_folder(path: Path, *, replace: bool = True) -> Generator[Path]:
    """Yield an empty folder, and move it to `path` at the end of the block. If the block raises an error, the
    new folder is removed. Without `replace`, raises `OSError` if `path` exists and is not empty.

    An existing folder is first renamed, and deleted only after the new one is in place. If the process is
    killed in between, the next `whole_folder` on the same path, or `recover_folders` on its parent, restores
    the folder.
    """
    draft = _draft(path)
    recover_folders(path.parent, path.name)
    aside = draft.with_name(draft.name + _ASIDE)
    try:
        private = is_private(new_folder(draft).parent)
        yield draft
        for entry in (*draft.rglob("*"), draft):
            if private and not entry.is_symlink():
                entry.chmod(0o700 if entry.is_dir() else 0o600)
            sync(entry)
        if replace and path.exists():
            _replacing.add(aside.name)
            path.rename(aside)
        draft.rename(path)
        sync(path.parent)
    finally:
        if aside.exists() and not path.exists():
            aside.rename(path)
        for left in (draft, aside):
            shutil.rmtree(left, ignore_errors=True)
        _replacing.discard(aside.name)


_ASIDE = ".before"
_replacing: set[str] = set()
"""Folders that this process has temporarily renamed. The process id in their names is not enough to identify
them, because process ids repeat after a container restarts."""
_LONG_S = 60.0
"""Seconds after which a renamed folder no longer counts as being replaced. No replacement takes this long, so
the process id in the folder's name must have been reused by an unrelated process."""


def recover_folders(parent: Path, name: str = "*") -> None:
    """Clean up in `parent` after processes that were killed during `whole_folder`. Restores folders that were
    renamed but not yet replaced, and deletes the old copies of folders that were replaced."""
    pattern = f".{name if name == '*' else escape(name)}.*{_ASIDE}"
    for aside in parent.glob(pattern):
        named, pid, _ = aside.name.removesuffix(_ASIDE).rsplit(".", 2)
        with suppress(OSError):  # another process was faster
            if not pid.isdecimal() or _is_replacing(aside, int(pid)):
                continue
            path = parent / named.removeprefix(".")
            if path.exists():
                shutil.rmtree(aside)
            else:
                aside.rename(path)


def _is_replacing(aside: Path, pid: int) -> bool:
    if pid == os.getpid():
        return aside.name in _replacing
    return _alive(pid) and time.time() - aside.stat().st_ctime < _LONG_S


def scratch_folder(prefix: str) -> TemporaryDirectory[str]:
    """Create a temporary folder that is deleted when this process exits. First removes folders with this
    prefix that were left behind by killed processes on this machine."""
    host = socket.gethostname()
    for left in Path(gettempdir()).glob(f"{prefix}-{escape(host)}-*-*"):
        pid = left.name.rsplit("-", 2)[1]
        if pid.isdecimal() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return TemporaryDirectory(prefix=f"{prefix}-{host}-{os.getpid()}-")


def _alive(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # nothing there asks without acting
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk. Does nothing for a folder if the file system
    can't flush folders."""
    folder = path.is_dir()
    if folder and sys.platform == "win32":
        return
    with suppress(*([OSError] if folder else [])):
        descriptor = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(path: Path, *, wait_s: float | None = 0.0, keep: bool = True) -> Generator[bool]:
    """Hold a lock on the file at `path` that excludes other processes. Yields `False` if another process
    still holds the lock after `wait_s` seconds (`None` waits without a limit). The kernel releases the lock
    when the process ends.

    Locking truncates the file, so use a file without content. If `keep` is false, the file is deleted at the
    end of the block. On Windows, it is kept while another process has it open.
    """
    from filelock import FileLock, Timeout  # 40 ms that most commands need not spend

    # Not thread-local, because a different thread than the one that acquired the lock may release it.
    lock = FileLock(
        path,
        timeout=-1 if wait_s is None else wait_s,
        mode=0o600,
        poll_interval=0.02,
        thread_local=False,
    )
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        if not keep:
            with suppress(OSError):  # Windows removes no open file
                path.unlink()
        lock.release()


class Journal(Generic[E]):
    """An append-only file of JSON lines that stays valid if its writer is killed at any moment.

    `entries` lists the entries in the file, followed by the appended ones. Readers ignore an unfinished line
    of a killed writer, and the next writer removes it. Each entry is on disk before `append` returns."""

    def __init__(self, path: Path, entry: Any) -> None:
        """Open the journal. `entry` is the type of the lines: a struct, or a union of tagged structs. The
        file need not exist. Raises `DataError` if a complete line is not such an entry."""
        self.path = path
        self.entries: list[E] = []
        decoder = decoding.decoder(entry)
        data = path.read_bytes() if path.exists() else b""
        self._whole = data.rfind(b"\n") + 1
        self._torn = self._whole < len(data)
        for number, line in enumerate(data[: self._whole].splitlines(), start=1):
            try:
                self.entries.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DataError(
                    f"{path}: line {number}: {error}", fix="restore the file, or move it to start over"
                ) from error

    def append(self, entry: E) -> None:
        """Append an entry. Raises `OSError` if it cannot be written completely. The next call then removes
        the incomplete line."""
        line = msgspec.json.encode(entry) + b"\n"
        with open(self.path, "ab", buffering=0, opener=opener) as file:
            if self._torn:
                file.truncate(self._whole)
            self._torn, self._whole = True, file.seek(0, os.SEEK_END)
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(file.fileno())
            self._torn = False
        self.entries.append(entry)


LAST_BYTES = 1 << 16
"""Number of bytes at the end of a journal to search for its last line."""


def last_line(path: Path) -> bytes | None:
    """Return the last complete line of a file, or `None` if the file has none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            data = file.read()
    except OSError:
        return None
    whole = data[: data.rfind(b"\n") + 1].splitlines()
    return whole[-1] if whole else None


def sha256(path: Path) -> str:
    """Return the SHA-256 hash of a file's content as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mark(path: str | Path) -> Mark | None:
    """Return a file's fingerprint (device, inode, size and times), which changes whenever the file changes.
    Returns `None` unless the path is a regular file on this machine."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    # Programs can set mtime back after a write, but they can't set ctime.
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


_TICK_NS = 10**8
"""A second write this soon after the first may leave the times of a file unchanged."""
_hashes: dict[Mark, str] = {}
_hashing: dict[Mark | None, threading.Lock] = {}


def sha256_once(path: Path) -> str:
    """Return what `sha256` returns, but read the file only if it changed since this process last hashed
    it."""
    before = mark(path)  # first, so that a write during the reading is a change
    with _hashing.setdefault(before, threading.Lock()):
        digest = None if before is None else _hashes.get(before)
        if digest is None:
            asked, digest = time.time_ns(), sha256(path)
            if before is not None and asked - before[-1] > _TICK_NS:
                _hashes[before] = digest
        return digest


def known_sha256(path: Path) -> str | None:
    """Return a file's hash without reading the file, or `None` if this process has not hashed it since it
    last changed."""
    now = mark(path)
    return None if now is None else _hashes.get(now)


def remember_sha256(path: Path, digest: str) -> None:
    """Record the hash of a file that was verified before it was moved to this path."""
    if (now := mark(path)) is not None:
        _hashes[now] = digest


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
