"""The background watcher: a process that keeps watching a store after its terminal is closed.

`orchestrate watch` starts this process unless it is already running. The command itself only displays what is
in the store. The process runs in its own process session, and exits when none of the runs that it can reach
is in progress. A lock ensures that each configuration (store, hosts, keys, channels) has only one such
process. The lock, the state and the log are files in `watchers/` in the home folder.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from orchestrate.core.files import PRIVATE_UMASK, locked, opener, private_folder, write_whole
from orchestrate.errors import SetupError
from orchestrate.local.run import WorkerId, me, process_alive
from orchestrate.runs.syncing.sweep import Failure, SyncReport
from orchestrate.text import inert

if TYPE_CHECKING:
    from orchestrate.runs.watching.watcher import Watcher
    from orchestrate.settings.config import Settings

_PROCESS = "orchestrate.runs.watch"
"""Module to run as the background process. It opens the store and the backends, and watches the runs."""
_START_S = 60.0
_STOP_S = 15.0
_LOCK_S = 3.0
_HEARTBEAT_S = 30.0
_LOG_BYTES = 1_000_000
_REMEMBERED_S = 60.0
"""Seconds for which a problem stays visible after it last occurred."""
_MOST_STARTS = 5
_STARTS_S = 120.0


class WatcherState(WorkerId, frozen=True, kw_only=True):
    """The state that the background watcher reports."""

    problems: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    """Backends that could not be reached."""


class Background:
    """The background watcher of one configuration."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._base = settings.home / "watchers" / _configuration(settings)
        self.lock = self._base.with_suffix(".lock")
        self.state_file = self._base.with_suffix(".json")
        self.log = self._base.with_suffix(".log")
        self._starts: list[float] = []

    def running(self) -> bool:
        return process_alive(self.state_file)

    def state(self) -> WatcherState | None:
        try:
            return WatcherState.from_json(self.state_file.read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None

    def ensure(self) -> None:
        """Start the background watcher unless it is already running. If it does not start or exits early,
        raises `SetupError` with the last lines of its log."""
        if self.running():
            return
        self._starts = [at for at in self._starts if time.monotonic() - at < _STARTS_S]
        if len(self._starts) >= _MOST_STARTS:
            raise self._broken("the background watcher keeps crashing")
        self._starts.append(time.monotonic())
        private_folder(self._base.parent)
        with _log_file(self.log) as log:
            started = subprocess.Popen(
                [sys.executable, "-P", "-m", _PROCESS],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=PRIVATE_UMASK,
                cwd=self.settings.child_folder,
                env=self.settings.child_environment(),
            )
        # Prevents a zombie if the watcher ends before this process.
        threading.Thread(target=started.wait, daemon=True, name="reap-watcher").start()
        deadline = time.monotonic() + _START_S
        while not self.running():
            code = started.poll()
            # Exit code 0: another watcher holds the lock, or there is nothing to watch. A negative code means
            # that the watcher was killed. That is not a failed start, and the next call starts another one.
            if code is not None and code <= 0:
                return
            if code is not None or time.monotonic() > deadline:
                raise self._broken("the background watcher did not start")
            time.sleep(0.05)

    def _broken(self, what: str) -> SetupError:
        return SetupError(
            f"{what}: {_last_line(self.log)}",
            fix=f"see the log: {self.log}. To watch in this terminal: orchestrate watch --here",
        )

    def write(self, problems: Iterable[str] = (), failures: Iterable[Failure] = ()) -> None:
        state = WatcherState(**me().to_dict(), problems=tuple(problems), failures=tuple(failures))
        write_whole(self.state_file, state.to_json(), private=True)


def stop(settings: Settings) -> int:
    """Stop the background watchers of this home folder and return how many there were. Runs continue."""
    ended = 0
    for file in sorted((settings.home / "watchers").glob("*.json")):
        if not process_alive(file):
            continue
        watcher = WorkerId.from_json(file.read_bytes())
        if watcher.machine != me().machine:
            raise SetupError(
                f"a watcher for this folder is running on {watcher.machine}", fix="stop it on that machine"
            )
        with suppress(ProcessLookupError):
            os.kill(watcher.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while process_alive(file) and time.monotonic() < deadline:
            time.sleep(0.05)
        if process_alive(file):  # in the middle of a long request; what it does is safe to interrupt
            with suppress(ProcessLookupError):
                os.kill(watcher.pid, signal.SIGKILL)
        ended += 1
    return ended


def run(settings: Settings, watching: Callable[[], AbstractContextManager[Watcher]]) -> None:
    """Watch in this process until nothing is left to watch, SIGTERM arrives, or the folder is deleted.
    Returns immediately if another background watcher is running."""
    stopped = threading.Event()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda _signal, _frame: stopped.set())
    own = Background(settings)
    private_folder(own.lock.parent)
    with locked(own.lock, wait_s=_LOCK_S) as held:
        if held:
            with watching() as watcher:
                _watch(own, watcher, stopped)


def _watch(own: Background, watcher: Watcher, stopped: threading.Event) -> None:
    diary = _Diary(own, watcher, stopped)
    own.write()
    say(f"watching {watcher.store.place}")
    while True:
        watcher.run(stopped, until_idle=True, on_turn=diary.after)
        if diary.lost():
            break
        own.state_file.unlink(missing_ok=True)
        # A run may have been added just before, by a command that saw this watcher running and started none.
        if stopped.is_set() or watcher.idle():
            break
        own.write()
    say("stopped" if stopped.is_set() else "no more runs in progress")


class _Diary:
    """Log of the watcher, which views and people can read."""

    def __init__(self, own: Background, watcher: Watcher, stopped: threading.Event) -> None:
        self._own, self._watcher, self._stopped = own, watcher, stopped
        self._lock = own.lock.stat()
        self._met: dict[str, float] = {}
        self._written = 0.0
        self._written_last: tuple[list[str], list[Failure]] = ([], [])

    def after(self, reports: list[SyncReport]) -> None:
        """Log what a turn reported. Call it after each turn. Stops watching if its folder was deleted,
        because nobody could find this process anymore."""
        for report in reports:
            for name in ("adopted", "not_made", "ended", "capped"):
                for run in getattr(report, name):
                    say(f"{run} {name.replace('_', ' ')}")
            for stall in report.stalled:
                if stall.new:
                    say(f"{stall.run} stalled: {stall.message}")
            for alarm in report.alarms:
                say(f"ALARM: {alarm.message}")
        now = time.monotonic()
        self._met = {p: at for p, at in self._met.items() if now - at < _REMEMBERED_S}
        for problem in self._watcher.problems:
            if problem not in self._met:
                say(problem)
            self._met[problem] = now
        now_met = (list(self._met), list(self._watcher.failures))
        if self.lost():
            self._stopped.set()
        elif now_met != self._written_last or now - self._written > _HEARTBEAT_S:
            self._own.write(*now_met)
            self._written_last, self._written = now_met, now

    def lost(self) -> bool:
        try:
            return not os.path.samestat(self._own.lock.stat(), self._lock)
        except OSError:
            return True


def say(line: str) -> None:
    """Write a line to the background watcher's log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {inert(line)}\n")
    sys.stderr.flush()


def _configuration(settings: Settings) -> str:
    """Return a name for the hosts, keys and channels that this watcher uses. Other configurations have their
    own watcher."""
    digest = hashlib.sha256(settings.store_address.encode())
    for name, host in sorted(settings.hosts.items()):
        key = host.api_key.reveal() if host.api_key else ""
        digest.update(f"\0{name}\0{host.base_url}\0{host.account_id}\0{key}".encode())
    notify = settings.notify
    digest.update(f"\0{notify.command}\0{notify.url and notify.url.reveal()}\0{notify.desktop}".encode())
    if settings.stalled_after_s is not None:
        digest.update(f"\0{settings.stalled_after_s}".encode())
    return digest.hexdigest()[:32]


def _log_file(path: Path) -> BinaryIO:
    """Open the log. Starts a new file if the log is too long."""
    fresh = path.exists() and path.stat().st_size > _LOG_BYTES
    return open(path, "wb" if fresh else "ab", opener=opener)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "there is no log file"
    return lines[-1] if lines else "the log is empty"
