"""The examples: their rows are what their scripts write, their specs fit, and their commands give what their
pages say."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.documented import Done, commands, environment, run
from tests.paths import ROOT

FOLDER = ROOT / "examples"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/data.py"))
HELD_OUT = ("classification", "extraction", "tool-calling", "tone", "distillation")
FAR = 0.2
"""How far a score on forty rows may be from the page's on another machine."""


def result(name: str) -> str:
    return (
        (FOLDER / name / "README.md")
        .read_text(encoding="utf-8")
        .partition("## Result")[2]
        .partition("## ")[0]
    )


def test_all_are_in_the_list() -> None:
    listed = re.findall(r"\]\(([\w-]+)/README.md\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == NAMES and len(NAMES) == 10


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_are_what_the_script_writes(name: str) -> None:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / name / "data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.files()
    there = {path.name for path in (FOLDER / name).glob("*.jsonl")}
    assert set(made) == there
    for file, rows in made.items():
        lines = (FOLDER / name / file).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == rows
    if "test.jsonl" in made:
        trained = {json.dumps(row["messages"][:1]) for row in made["train.jsonl"]}
        assert not trained & {json.dumps(row["messages"][:1]) for row in made["test.jsonl"]}


def carried_out(name: str, tmp_path: Path) -> tuple[Path, dict[str, str], dict[str, Done]]:
    folder = tmp_path / name
    shutil.copytree(FOLDER / name, folder)
    env = environment(tmp_path)
    return folder, env, {line: run(line, folder, env) for line in commands(folder / "README.md")}


@pytest.mark.slow
@pytest.mark.parametrize("name", HELD_OUT)
def test_it_learns_what_its_page_says(name: str, tmp_path: Path) -> None:
    folder, env, _ = carried_out(name, tmp_path)
    [evaluation] = json.loads(run("orchestrate show last --json", folder, env).out)["evaluations"]
    said = dict(re.findall(r"^\| `(\w+)` \| [\d.]+ \| ([\d.]+) \|", result(name), re.MULTILINE))
    tuned = next(c["name"] for c in evaluation["contenders"] if c["kind"] == "tuned")
    scores = {
        m["metric"]: m["score"]["value"]
        for m in evaluation["measures"]
        if m["contender"] == tuned and not m.get("slice")
    }
    assert said.keys() == scores.keys()
    assert scores == {metric: pytest.approx(float(value), abs=FAR) for metric, value in said.items()}
    first: Any = next(d for d in evaluation["differences"] if not d.get("slice"))
    assert first["score"]["low"] > 0, "better than its base, beyond chance"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_preferences_are_learned_as_its_page_says(name: str, tmp_path: Path) -> None:
    _, _, told = carried_out(name, tmp_path)
    points = json.loads(
        next(done.out for line, done in told.items() if line.startswith("orchestrate metrics"))
    )
    [metric, first, last] = re.findall(r"`(\w+)` fell from ([\d.]+) to ([\d.]+)", result(name))[0]
    values = [point["values"][metric] for point in points if metric in point["values"]]
    assert values[0] == pytest.approx(float(first), abs=FAR)
    assert values[-1] == pytest.approx(float(last), abs=FAR)


@pytest.mark.slow
def test_a_migration_proves_parity(tmp_path: Path) -> None:
    folder, _, told = carried_out("migration", tmp_path)
    moved = next(done for line, done in told.items() if "migrate" in line)
    assert "parity holds" in (moved.out + moved.err).lower() and "parity holds" in result("migration").lower()
    assert "SANDBOX" in (folder / "report.html").read_text(encoding="utf-8")


def test_retrieve_or_tune(tmp_path: Path) -> None:
    _, _, told = carried_out("rag-or-tune", tmp_path)
    facts, manner = (done.out.splitlines() for done in told.values())
    assert any(line.startswith("retrieval") for line in facts)
    assert any(line.startswith("tune on") for line in manner)
