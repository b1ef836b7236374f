"""The test file is opened by evaluation and, to compare rows, by the leakage check; never to train."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests import command
from tests.cli.conftest import Cli


def watched(arguments: list[str]) -> None:
    """The command, which tells at its end what it has opened of that name."""
    opened: list[str] = []
    sys.addaudithook(
        lambda event, a: (
            event == "open" and Path(str(a[0])).name == "held-out.jsonl" and opened.append(str(a[0]))
        )
    )
    try:
        command.orchestrate(arguments)
    finally:
        print(f"OPENED {opened}", file=sys.stderr)


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


@pytest.mark.parametrize("word", ["plan", "quote"])
def test_what_only_reckons_never_opens_it(word: str, spec: Path, cli_env: dict[str, str]) -> None:
    words = [word, "-p", "together"]
    done = command.run(words, cwd=spec, env=cli_env, program=watched)
    assert done.code == 0 and b"OPENED []" in done.err, done.err
    (spec / "held-out.jsonl").unlink()
    done = command.run(words, cwd=spec, env=cli_env)
    assert done.code == 0, done.err


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
