"""Whatever the umask and the mode of the home folder: what lies below it is its owner's alone."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import Cli
from tests.cli.terminals import Terminal, until, watchers
from tests.paths import TINY

from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations

ROWS = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(12)]
RUN_ALL = """
import json, sys
from orchestrate import cli
for words in json.loads(sys.argv.pop()):
    sys.argv = ["orchestrate", *words]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{words} ended with {ended.code}")
"""
HOSTED = [
    ["keys", "set", "openai"],
    ["submit", "-p", "openai", "--yes", "--watch"],
    ["eval", "last", "--test", "test.jsonl"],
    ["submit", "-p", "together", "--yes", "--watch"],
    ["download", "last"],
    ["submit", "-p", "fireworks", "--yes", "--watch"],
    ["download", "last"],
    ["sync"],
]
LOCAL = [
    ["submit", "-p", "local", "--yes", "--watch"],
    ["eval", "last", "--test", "test.jsonl"],
    ["download", "last"],
]


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> dict[str, str]:
    """What is below a folder and its owner's, but not its owner's alone, with its mode."""
    found = {p: p.stat().st_mode for p in folder.rglob("*") if not p.is_symlink()}
    return {
        str(path.relative_to(folder)): oct(stat.S_IMODE(mode))
        for path, mode in found.items()
        if stat.S_IMODE(mode) != (0o700 if stat.S_ISDIR(mode) else 0o600)
    }


@pytest.mark.slow
@pytest.mark.usefixtures("no_umask")
@pytest.mark.parametrize(
    ("life", "folders"),
    [
        (HOSTED, {"config", "counts", "data", "evaluations", "models", "sandbox"}),
        pytest.param(LOCAL, {"evaluations", "local", "models"}, marks=pytest.mark.slow),
    ],
    ids=["hosted", "local"],
)
def test_a_whole_life_leaves_nothing_to_others(
    tmp_path: Path, cli_env: dict[str, str], life: list[list[str]], folders: set[str]
) -> None:
    home = tmp_path / "home"
    for made in (home, home / "data"):
        made.mkdir(0o755)
    rows = "".join(json.dumps({"messages": row}) + "\n" for row in ROWS)
    (tmp_path / "train.jsonl").write_text(rows)
    (tmp_path / "test.jsonl").write_text(rows[: rows.index("\n") + 1])
    models = {"openai": "gpt-4.1-mini", "together": "qwen3-8b", "fireworks": "qwen3-8b", "local": str(TINY)}
    (tmp_path / "finetune.yaml").write_text(
        json.dumps({"model": models, "train": "train.jsonl", "epochs": 1})
    )
    with running(home=home / "sandbox", train=False, speed=1000, waits=Durations(file=0.0)) as hosts:
        done = subprocess.run(
            [sys.executable, "-c", RUN_ALL, json.dumps(life)],
            cwd=tmp_path,
            env=cli_env | dict(hosts.env) | {"ORCHESTRATE_KEYS": str(home / "config" / "keys.toml")},
            input="sandbox-a-key-of-nobody\n",
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert {entry.name for entry in home.iterdir()} >= folders | {"runs.sqlite3"}
        assert open_to_others(home) == {}
    assert stat.S_IMODE(home.stat().st_mode) == 0o755, (
        "the mode of a home that was there is its owner's choice"
    )


@pytest.mark.usefixtures("no_umask")
def test_what_a_background_watcher_leaves_is_its_owners(
    tmp_path: Path, cli: Cli, cli_env: dict[str, str]
) -> None:
    home = tmp_path / "home"
    home.mkdir(0o755)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in ROWS))
    waits = Durations(file=0.0, validating=300.0, queued=300.0, training=300.0, finalizing=1.0)
    with running(home=tmp_path / "sandbox", train=False, waits=waits) as hosts:
        words = ["submit", "-p", "openai", "--yes", "--model", "gpt-4.1-mini", "--train", "train.jsonl"]
        assert cli(*words, **hosts.env).code == 0
        terminal = Terminal(cli_env | dict(hosts.env) | {"TERM": "xterm"}, tmp_path, "watch", "last")
        until(lambda: watchers(tmp_path), "the background watcher")
        terminal.close()
        left = {str(path.relative_to(home)) for path in home.rglob("*")}
        try:
            assert any(name.startswith("watchers/") for name in left)
            assert "runs.sqlite3" in left
            assert {name: mode for name, mode in open_to_others(home).items() if name in left} == {}
        finally:
            assert cli("watch", "--stop", **hosts.env).code == 0
    assert open_to_others(home) == {}
