"""The wheel in a bare environment, by the keyless path of the README: no step of it is a dead end."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator

import pytest
from tests.paths import ROOT

pytestmark = pytest.mark.slow

ROWS = {"train.jsonl": 60, "validation.jsonl": 20, "test.jsonl": 20}
Typed = Callable[..., str]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    """Runs a line as a newcomer types it, in a folder with the demo's files, and returns its stdout."""
    place = tmp_path_factory.mktemp("bare")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = (place / "dist").iterdir()
    assert wheel.stat().st_size < 6e6
    venv.create(place / "venv", with_pip=True)
    bin = place / "venv" / "bin"
    # What is imported is compiled then: all of torch would take longer than what follows.
    subprocess.run([bin / "pip", "install", "-q", "--no-compile", f"{wheel}[sandbox]"], check=True)
    dropped = ("_API_KEY", "_BASE_URL")
    kept = {k: v for k, v in os.environ.items() if not k.endswith(dropped) and k != "PYTHONPATH"}
    kept |= {"HOME": str(place), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env = kept | {
        "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
        "ORCHESTRATE_HOME": str(place / "home"),
        "ORCHESTRATE_KEYS": str(place / "keys.toml"),
    }

    def run(line: str, *, code: int = 0) -> str:
        done = subprocess.run(
            shlex.split(line), cwd=place, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == code, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run("orchestrate demo . --files-only")
    for name, rows in ROWS.items():
        lines = (place / name).read_text().splitlines(keepends=True)
        (place / name).write_text("".join(lines[:rows]))
    yield run


def test_every_step_after_a_submit_without_a_key(typed: Typed) -> None:
    typed("orchestrate check")
    typed("orchestrate quote")
    inside = "orchestrate sandbox run -- "
    submitted = typed(f"{inside}orchestrate submit --provider openai,fireworks --max-cost 25 --watch")
    openai, fireworks = submitted.split()
    typed(f"{inside}orchestrate eval {openai} --limit 4")
    typed(f"{inside}orchestrate chat {openai} 'Order 4711: 12 lamps for Ana Lopez in Madrid.'")
    typed(f"{inside}orchestrate sync")
    typed("orchestrate sync")
    listed = json.loads(typed("orchestrate runs --sandbox --json"))
    assert {run["id"]: run["status"] for run in listed} == {openai: "succeeded", fireworks: "succeeded"}
    # by its id a run is asked about without any prefix: its stand-ins come up by themselves
    typed(f"orchestrate show {openai}")
    typed(f"orchestrate events {fireworks}")
    typed(f"orchestrate chat {openai} 'Order 4711: 12 lamps for Ana Lopez in Madrid.'")
    typed(f"orchestrate download {fireworks}")
    typed(f"orchestrate compare {openai} {fireworks} -o report.html")
    typed("orchestrate show last", code=2)  # `last` is for real work


def test_training_here_needs_no_key_either(typed: Typed) -> None:
    [run] = typed("orchestrate submit --provider local --yes --watch").split()
    typed("orchestrate eval last --limit 4")
    typed("orchestrate chat last 'Order 4711: 12 lamps for Ana Lopez in Madrid.'")
    typed("orchestrate download last")
    typed("orchestrate compare last --format md")
    assert json.loads(typed("orchestrate runs --json"))[0]["id"] == run
