"""Background watchers of two machines on one Postgres: two homes, two locks, one store."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Cli
from tests.cli.terminals import Terminal, told, until, watchers
from tests.postgres_server import Postgres

from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.store.store import Store

pytestmark = pytest.mark.slow

HOMES = ("one", "two")
RUNS = 3


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Jobs stand almost still until the test skips time."""
    waits = Durations(
        file=0.0, validating=300.0, queued=300.0, training=300.0, finalizing=1.0, cancelling=100.0
    )
    with running(home=tmp_path_factory.mktemp("sandbox"), train=False, waits=waits) as hosts:
        yield hosts


@pytest.fixture
def machines(
    cli: Cli, cli_env: dict[str, str], sandbox: Any, tmp_path: Path, postgres: Postgres
) -> Iterator[dict[str, dict[str, str]]]:
    """What each machine's commands have in their environment; both tell by the same command."""
    code = f"import sys; open({str(tmp_path / 'told')!r}, 'a').write(sys.stdin.read() + chr(10))"
    (tmp_path / "tell.py").write_text(code)
    shared = {
        "ORCHESTRATE_STORE": postgres.store(),
        "ORCHESTRATE_NOTIFY_COMMAND": f"{sys.executable} {tmp_path / 'tell.py'}",
        "TERM": "xterm",
    }
    envs = {
        home: cli_env | dict(sandbox.env) | shared | {"ORCHESTRATE_HOME": str(tmp_path / home)}
        for home in HOMES
    }
    yield envs
    for env in envs.values():
        cli("watch", "--stop", **env)


@pytest.fixture
def runs(cli: Cli, machines: dict[str, dict[str, str]], tmp_path: Path) -> list[str]:
    rows = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(12)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    (tmp_path / "finetune.yaml").write_text("model: gpt-4.1-mini\ntrain: train.jsonl\n")
    made: list[str] = []
    for number in range(RUNS):
        done = cli("submit", "-p", "openai", "--yes", "--again", "--json", **machines[HOMES[number % 2]])
        assert done.code == 0, done.err
        made.append(done.json[0]["id"])
    return made


@pytest.fixture
def start(machines: dict[str, dict[str, str]], tmp_path: Path) -> Callable[[str], int]:
    """Watches on a terminal of that machine, closes it, and gives the process that goes on."""

    def started(home: str) -> int:
        terminal = Terminal(machines[home], tmp_path, "watch")
        until(lambda: watchers(tmp_path, home), f"the background watcher of {home}")
        terminal.until(b"gpt-4.1-mini")
        terminal.close()
        [pid] = watchers(tmp_path, home)
        return pid

    return started


def statuses(store: Store) -> set[str]:
    return {run.status.value for run in store.runs.matching()}


def gone(tmp_path: Path) -> bool:
    return not any(watchers(tmp_path, home) for home in HOMES)


def test_watchers_of_two_machines_tell_each_end_once(
    machines: Any, runs: list[str], start: Any, sandbox: Any, tmp_path: Path, postgres: Postgres
) -> None:
    first, second = (start(home) for home in HOMES)
    assert first != second and os.getsid(first) == first and os.getsid(second) == second
    postgres.stop()  # they wait for it
    postgres.start()
    sandbox.skip(1000)
    with Store.open(machines["one"]["ORCHESTRATE_STORE"]) as store:
        until(lambda: statuses(store) == {"succeeded"}, "the end of the runs, which nobody looks at")
        until(lambda: sorted(told(tmp_path)) == sorted(runs), "a notification of each")
        until(lambda: gone(tmp_path), "the end of the watchers, with nothing to watch")
    assert sorted(told(tmp_path)) == sorted(runs)
    log = "".join(file.read_text() for home in HOMES for file in (tmp_path / home / "watchers").glob("*.log"))
    assert "no more runs in progress" in log and "Traceback" not in log


def test_watchers_of_two_machines_cancel_once(
    machines: Any, runs: list[str], start: Any, sandbox: Any, tmp_path: Path
) -> None:
    """Of wishes to cancel that never reached the host, as when their command was killed."""
    for home in HOMES:
        start(home)
    sandbox.clear_requests()
    with Store.open(machines["one"]["ORCHESTRATE_STORE"]) as store:
        for run in runs:
            store.runs.request_cancel(run)
        until(lambda: statuses(store) <= {"cancelling", "cancelled"}, "the cancel of each")
        sandbox.skip(1000)
        until(lambda: statuses(store) == {"cancelled"}, "the end of each")
        until(lambda: gone(tmp_path), "the end of the watchers")
    cancels = [entry["path"] for entry in sandbox.requests("openai", method="POST", path="/cancel")]
    assert len(cancels) == len(set(cancels)) == RUNS, cancels
    assert sorted(told(tmp_path)) == sorted(runs)


def test_a_killed_watcher_is_replaced_by_its_own_machines_next_view(
    cli: Cli, machines: Any, runs: list[str], start: Any, sandbox: Any, tmp_path: Path
) -> None:
    view = Terminal(machines["one"], tmp_path, "watch")
    until(lambda: watchers(tmp_path, "one"), "the background watcher")
    [first] = watchers(tmp_path, "one")
    os.kill(first, signal.SIGKILL)
    until(lambda: watchers(tmp_path, "one") not in ([], [first]), "another watcher, started by the view")
    view.close()
    [second] = watchers(tmp_path, "one")
    other = start("two")
    os.kill(second, signal.SIGKILL)
    os.kill(other, signal.SIGKILL)
    until(lambda: gone(tmp_path), "their end")
    sandbox.skip(1000)
    again = Terminal(machines["two"], tmp_path, "watch", *runs)
    assert again.finish() == 0, again.shown
    until(lambda: sorted(told(tmp_path)) == sorted(runs), "a notification of each run")
    until(lambda: gone(tmp_path), "the end of the watcher")
    assert sorted(told(tmp_path)) == sorted(runs)
    assert {run["status"] for run in cli("runs", "--json", **machines["one"]).json} == {"succeeded"}
