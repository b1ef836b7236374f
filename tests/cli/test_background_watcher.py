"""Watching survives its terminal: real terminals that are closed, a background process that is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Cli
from tests.cli.terminals import PATIENCE_S, Terminal, started, told, until, watchers

from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations

pytestmark = pytest.mark.slow

ROWS = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(12)]


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
        made = cli("submit", "-p", "openai", "--yes", "--again", "--json", **sandbox.env)
        assert made.code == 0, made.err
        return made.json[0]["id"]

    return submitted


def statuses(cli: Cli) -> dict[str, str]:
    return {run["id"]: run["status"] for run in cli("runs", "--sandbox", "--json").json}


def test_a_closed_terminal_ends_the_view_and_not_the_watching(
    cli: Cli, env: dict[str, str], submit: Any, sandbox: Any, tmp_path: Path
) -> None:
    run = submit()
    env["OMP_NUM_THREADS"] = "2"  # no fork (`tests/forking.py`), which has a session of its own anyway
    terminal = Terminal(env, tmp_path, "watch")
    terminal.until(run.encode())
    until(lambda: watchers(tmp_path), "the background watcher")
    terminal.close()
    [pid] = watchers(tmp_path)
    assert os.getsid(pid) == pid, "it belongs to no terminal"
    sandbox.skip(1000)
    until(lambda: told(tmp_path) == [run], "the notification of the end of the run, which nobody looks at")
    assert statuses(cli) == {run: "succeeded"}
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
    until(lambda: len(started(tmp_path)) == 1, "the end of one that found it at the lock")
    assert len(watchers(tmp_path)) == 1
    sandbox.skip(1000)
    assert [view.finish() for view in views] == [0, 0]
    assert all(b"succeeded" in view.shown for view in views)
    until(lambda: not watchers(tmp_path), "the end of the watcher")
    assert told(tmp_path) == [run]
    [log] = (tmp_path / "home" / "watchers").glob("*.log")
    assert log.read_text().count(f" watching {tmp_path}") == 1, log.read_text()


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


def test_a_watcher_that_is_killed_as_soon_as_it_is_up_is_no_failed_start(
    env: dict[str, str], submit: Any, tmp_path: Path
) -> None:
    view = Terminal(env, tmp_path, "watch", submit())
    deadline = time.monotonic() + PATIENCE_S
    while not (found := watchers(tmp_path)):  # without a pause: before the view has seen it
        assert time.monotonic() < deadline
    os.kill(found[0], signal.SIGKILL)
    until(lambda: watchers(tmp_path) not in ([], found), "another watcher, started by the view")
    view.close()


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
    terminal = Terminal(env, tmp_path, "submit", "-p", "openai", "--yes", "--again", "--watch")
    terminal.until(b"validating")
    assert b"submitting to openai" in terminal.shown.splitlines()[0], "before anything is read"
    until(lambda: watchers(tmp_path), "the background watcher")
    terminal.close()
    sandbox.skip(1000)
    runs = sorted(statuses(cli))
    until(lambda: sorted(told(tmp_path)) == runs, "a notification of each run")
    assert set(statuses(cli).values()) == {"succeeded"}


def test_without_a_terminal_nothing_is_left_behind(
    cli: Cli, env: dict[str, str], submit: Any, sandbox: Any, tmp_path: Path
) -> None:
    run = submit()
    sandbox.skip(1000)
    done = cli("watch", run, "--json", **env)
    assert done.code == 0, done.err
    assert done.json[0]["status"] == "succeeded"
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
