"""A search of settings that really trains, from the command line to the spec that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.cli.conftest import Cli

pytestmark = pytest.mark.slow

COLOURS = ("red", "blue", "green", "black")


def rows(path: Path, count: int, question: str) -> str:
    messages = [
        [
            {"role": "user", "content": question.format(n % 4)},
            {"role": "assistant", "content": COLOURS[n % 4]},
        ]
        for n in range(count)
    ]
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages))
    return str(path)


def test_the_rate_that_learns_wins_and_is_written_as_a_spec(tmp_path: Path, cli: Cli) -> None:
    train = rows(tmp_path / "train.jsonl", 40, "colour of item {}?")
    valid = rows(tmp_path / "valid.jsonl", 8, "the colour of item {}?")
    words = ["sweep", "-p", "local", "--model", "tiny-chat", "--train", train, "--validation", valid]
    words += ["--epochs", "2", "--grid", "learning_rate=1e-6,2e-3", "--yes", "-o", "best.yaml"]
    done = cli(*words, "--json")
    assert done.code == 0, done.err
    scores = {trial["settings"]["learning_rate"]: trial["score"] for trial in done.json}
    assert scores[2e-3] < scores[1e-6]
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["learning_rate"] == 2e-3
    again = cli(*words)
    assert again.code == 0, again.err
    assert len(cli("runs", "--json").json) == 2, "the same sweep again trains nothing"
    assert cli("check", "best.yaml", "-p", "local").code == 0
