"""The test file is opened by evaluation and, to compare rows, by the leakage check; never to train."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Cli

WATCHED = """
import sys
opened = []
sys.addaudithook(lambda event, a: event == "open" and "held-out" in str(a[0]) and opened.append(str(a[0])))
from orchestrate.cli import main
try:
    main()
finally:
    print(f"OPENED {len(opened)}", file=sys.stderr)
"""


def _rows(words: str, count: int) -> str:
    rows = [
        [{"role": "user", "content": f"{words} {i}"}, {"role": "assistant", "content": str(i)}]
        for i in range(count)
    ]
    return "".join(json.dumps({"messages": row}) + "\n" for row in rows)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(_rows("Count to", 30))
    (tmp_path / "held-out.jsonl").write_text(_rows("Please count to", 9) + _rows("Count to", 1))
    (tmp_path / "finetune.yaml").write_text(
        "model: {together: qwen3.5-9b}\ntrain: train.jsonl\ntest: held-out.jsonl\n"
    )
    return tmp_path


@pytest.mark.parametrize("command", ["plan", "quote"])
def test_what_only_reckons_never_opens_it(command: str, spec: Path, cli_env: dict[str, str]) -> None:
    words = [sys.executable, "-c", WATCHED, command, "-p", "together"]
    done = subprocess.run(words, cwd=spec, env=cli_env, capture_output=True, text=True)
    assert done.returncode == 0 and "OPENED 0" in done.stderr, done.stderr
    (spec / "held-out.jsonl").unlink()
    done = subprocess.run(words, cwd=spec, env=cli_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_check_opens_it_for_leakage_and_keeps_nothing_of_it(spec: Path, cli: Cli) -> None:
    told = cli("check", "-p", "together", "--json")
    assert told.code == 1 and "leakage" in told.out
    home = spec / "home"
    kept = [p.read_bytes() for p in home.rglob("*") if p.is_file()] if home.exists() else []
    assert not any(b"Please count" in content for content in kept)


def test_a_split_keeps_its_test_rows_out_of_the_others(spec: Path, cli: Cli) -> None:
    (spec / "all.jsonl").write_text(_rows("Tell me the number", 300) + _rows("What is this number:", 300))
    assert cli("data", "split", "all.jsonl", "-o", "s").code == 0
    sides = {p.stem: set(p.read_text().splitlines()) for p in (spec / "s").glob("*.jsonl")}
    assert set(sides) == {"train", "validation", "test"} and all(sides.values())
    assert len(set.union(*sides.values())) == sum(map(len, sides.values())) == 600
    arguments = ("--validation", "s/validation.jsonl", "--test", "s/test.jsonl", "--for", "local", "--json")
    told = cli("data", "check", "s/train.jsonl", *arguments)
    assert told.code == 0 and not [p for p in told.json["report"]["problems"] if "leakage" in p["code"]]
