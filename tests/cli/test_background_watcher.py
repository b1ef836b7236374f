"""Watching survives its terminal: real terminals that are closed, a background process that is killed."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from tests.cli.conftest import Cli

ORCHESTRATE = [sys.executable, "-m", "orchestrate.cli"]
ROWS = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(12)]
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Jobs stand almost still until the test skips time."""
    waits = Durations(file=0.0, validating=300.0, queued=300.0, training=300.0, finalizing=1.0)
    with running(home=tmp_path_factory.mktemp("sandbox"), train=False, waits=waits) as hosts:
        yield hosts


@pytest.fixture
def env(cli: Cli, cli_env: dict[str, str], sandbox: Any, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Notifications go through a command that appends a line to `told`."""
    code = f"import sys; open({str(tmp_path / 'told')!r}, 'a').write(sys.stdin.read() + chr(10))"
    (tmp_path / "tell.py").write_text(code)
    told = {"ORCHESTRATE_NOTIFY_COMMAND": f"{sys.executable} {tmp_path / 'tell.py'}"}
    yield cli_env | dict(sandbox.env) | told | {"TERM": "xterm"}
    cli("watch", "--stop", **sandbox.env)


@pytest.fixture
def submit(cli: Cli, tmp_path: Path, sandbox: Any) -> Callable[[], str]:
    lines = [json.dumps({"messages": row}) + "\n" for row in ROWS]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    (tmp_path / "finetune.yaml").write_text("model: gpt-4.1-mini\ntrain: train.jsonl\n")

    def submitted() -> str:
        made = cli("submit", "-p", "openai", "--yes", "--json", **sandbox.env)
        assert made.code == 0, made.err
        return made.json[0]["id"]

    return submitted


class Terminal:
    """A command in a session of its own on a terminal of its own."""

    def __init__(self, env: dict[str, str], cwd: Path, *words: str) -> None:
        self.shown = b""
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execve(sys.executable, [*ORCHESTRATE, *words], env)

    def until(self, word: bytes) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while word not in self.shown:
            assert time.monotonic() < deadline, self.shown[-2000:]
            self.shown += os.read(self.end, 65536)

    def close(self) -> int:
        """As a terminal window is closed: the kernel sends SIGHUP. Returns how the command ended."""
        os.close(self.end)
        return os.waitpid(self.pid, 0)[1]

    def finish(self) -> int:
        with contextlib.suppress(OSError):
            while more := os.read(self.end, 65536):
                self.shown += more
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.end)
        return os.waitstatus_to_exitcode(status)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.1)


def watchers(tmp_path: Path) -> list[int]:
    """Process ids of the background watchers that live."""
    found: list[int] = []
    for file in (tmp_path / "home" / "watchers").glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            pid = json.loads(file.read_text())["pid"]
            if b"orchestrate.commands.background" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def told(tmp_path: Path) -> list[str]:
    file = tmp_path / "told"
    return [json.loads(line)["run"] for line in file.read_text().splitlines()] if file.exists() else []


def status(cli: Cli, run: str) -> str:
    return next(r["status"] for r in cli("runs", "--json").json if r["id"] == run)


def test_a_closed_terminal_ends_the_view_and_not_the_watching(
    cli: Cli, env: dict[str, str], submit: Any, sandbox: Any, tmp_path: Path
) -> None:
    run = submit()
    terminal = Terminal(env, tmp_path, "watch")
    terminal.until(run.encode())
    until(lambda: watchers(tmp_path), "the background watcher")
    terminal.close()
    [pid] = watchers(tmp_path)
    assert os.getsid(pid) == pid, "it belongs to no terminal"
    sandbox.skip(1000)
    until(lambda: status(cli, run) == "succeeded", "the end of the run, which nobody looks at")
    until(lambda: told(tmp_path) == [run], "the notification")
    until(lambda: not watchers(tmp_path), "the end of a watcher with nothing to watch")
    assert told(tmp_path) == [run]
    for file in (tmp_path / "home" / "watchers").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_two_views_share_one_watcher_and_tell_once(
    cli: Cli, env: dict[str, str], submit: Any, sandbox: Any, tmp_path: Path
) -> None:
    run = submit()
    views = [Terminal(env, tmp_path, "watch", run) for _ in range(2)]
    for view in views:
        view.until(run.encode())
    until(lambda: watchers(tmp_path), "the background watcher")
    time.sleep(3)  # a second one would be up by then
    assert len(watchers(tmp_path)) == 1
    sandbox.skip(1000)
    assert [view.finish() for view in views] == [0, 0]
    assert all(b"succeeded" in view.shown for view in views)
    until(lambda: not watchers(tmp_path), "the end of the watcher")
    assert told(tmp_path) == [run]


def test_a_killed_watcher_is_started_again_by_the_view_and_by_the_next(
    cli: Cli, env: dict[str, str], submit: Any, sandbox: Any, tmp_path: Path
) -> None:
    run = submit()
    view = Terminal(env, tmp_path, "watch", run)
    view.until(run.encode())
    until(lambda: watchers(tmp_path), "the background watcher")
    [first] = watchers(tmp_path)
    os.kill(first, signal.SIGKILL)
    until(lambda: watchers(tmp_path) not in ([], [first]), "another watcher, started by the view")
    view.close()
    [second] = watchers(tmp_path)
    os.kill(second, signal.SIGKILL)
    until(lambda: not watchers(tmp_path), "its end")
    sandbox.skip(1000)
    again = Terminal(env, tmp_path, "watch", run)
    assert again.finish() == 0, again.shown
    until(lambda: told(tmp_path) == [run], "the notification")
    until(lambda: not watchers(tmp_path), "the end of the watcher")
    assert told(tmp_path) == [run]


def test_stop_ends_it_and_the_run_goes_on(
    cli: Cli, env: dict[str, str], submit: Any, sandbox: Any, tmp_path: Path
) -> None:
    run = submit()
    terminal = Terminal(env, tmp_path, "watch", run)
    terminal.until(run.encode())
    until(lambda: watchers(tmp_path), "the background watcher")
    terminal.close()
    assert cli("watch", "--stop", "--json").json == {"stopped": 1}
    assert watchers(tmp_path) == []
    assert cli("watch", "--stop", "--json").json == {"stopped": 0}
    assert cli("show", run, "--json", **sandbox.env).json["status"] not in (
        "succeeded",
        "cancelled",
        "failed",
    )


def test_a_submit_that_watches_survives_its_terminal_too(
    cli: Cli, env: dict[str, str], submit: Any, sandbox: Any, tmp_path: Path
) -> None:
    submit()
    terminal = Terminal(env, tmp_path, "submit", "-p", "openai", "--yes", "--watch")
    terminal.until(b"validating")
    until(lambda: watchers(tmp_path), "the background watcher")
    terminal.close()
    sandbox.skip(1000)
    runs = cli("runs", "--json").json
    until(lambda: sorted(told(tmp_path)) == sorted(r["id"] for r in runs), "a notification of each run")
    assert {status(cli, r["id"]) for r in runs} == {"succeeded"}


def test_without_a_terminal_nothing_is_left_behind(
    cli: Cli, env: dict[str, str], submit: Any, sandbox: Any, tmp_path: Path
) -> None:
    run = submit()
    sandbox.skip(1000)
    done = subprocess.run([*ORCHESTRATE, "watch", run, "--json"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["status"] == "succeeded"
    assert not (tmp_path / "home" / "watchers").exists()
    assert told(tmp_path) == [run], "a view that watches by itself tells too"


def test_a_watcher_whose_folder_was_removed_ends(
    cli: Cli, env: dict[str, str], submit: Any, sandbox: Any, tmp_path: Path
) -> None:
    run = submit()
    terminal = Terminal(env, tmp_path, "watch", run)
    terminal.until(run.encode())
    until(lambda: watchers(tmp_path), "the background watcher")
    terminal.close()
    [pid] = watchers(tmp_path)
    (tmp_path / "home").rename(tmp_path / "elsewhere")
    until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the watcher")
