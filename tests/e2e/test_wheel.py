"""The wheel in a bare environment, by the keyless path of the README: no step of it is a dead end.

It has what the wheel asks for and nothing else, as links to what is installed for the tests: a package that
is imported and not declared is missing here.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.paths import ROOT

pytestmark = pytest.mark.slow

NAME = "orchestrate-ft"
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
    venv.create(place / "venv")
    bin = place / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(bin / "python")]
    subprocess.run([*pip, "install", "-q", "--no-index", "--no-deps", "--no-compile", wheel], check=True)
    [installed] = (place / "venv").glob("lib/*/site-packages/orchestrate_ft-*.dist-info")
    link(installed, "sandbox")
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


def link(installed: Path, extra: str) -> None:
    """Puts beside the installed wheel what it asks for with an extra, and what that asks for in turn, each in
    a version that is asked for."""
    named = {NAME: Distribution.at(installed)}
    asking, asked = [(NAME, ""), (NAME, extra)], set[tuple[str, str]]()
    while asking:
        name, extra = asking.pop()
        asked.add((name, extra))
        for text in named[name].requires or ():
            wanted = Requirement(text)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
                continue
            other = canonicalize_name(wanted.name)
            if other not in named:
                named[other] = distribution(other)
                link_files(named[other], installed.parent)
            assert wanted.specifier.contains(named[other].version, prereleases=True), text
            asking += {(other, each) for each in ("", *wanted.extras)} - asked
    assert {"torch", "transformers", "pydantic"} <= named.keys()


def link_files(found: Distribution, site: Path) -> None:
    for file in found.files or ():
        if (
            file.parts[0] != ".." and "__pycache__" not in file.parts
        ):  # neither its commands nor what is linked below
            here, there = site / file, Path(str(file.locate()))
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there)
            cached = here.with_name("__pycache__")
            if (
                file.suffix == ".py"
                and not cached.exists()
                and (compiled := there.with_name("__pycache__")).exists()
            ):
                cached.symlink_to(compiled)  # to compile all of torch once more takes a minute


def test_every_step_after_a_submit_without_a_key(typed: Typed) -> None:
    typed("orchestrate check")
    typed("orchestrate quote")
    inside = "orchestrate sandbox run -- "
    submitted = typed(f"{inside}orchestrate submit --provider openai,fireworks --max-cost 25 --watch")
    openai, fireworks = submitted.split()
    typed(f"{inside}orchestrate eval {openai} --limit 2")
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
    typed("orchestrate eval last --limit 2")
    typed("orchestrate chat last 'Order 4711: 12 lamps for Ana Lopez in Madrid.'")
    typed("orchestrate download last")
    typed("orchestrate compare last --format md")
    assert json.loads(typed("orchestrate runs --json"))[0]["id"] == run
