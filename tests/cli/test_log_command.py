"""Runs of a sandbox into a tracker by the command: while they train, once more, all of them, and wrongly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.cli.conftest import Cli

from orchestrate.commands.setup.schema import of
from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations


@pytest.fixture
def host(tmp_path: Path) -> Iterator[dict[str, str]]:
    with running(home=tmp_path / "sandbox", train=False, speed=1000, waits=Durations(file=0.0)) as sandbox:
        yield dict(sandbox.env)


def test_a_run_is_logged_while_it_trains_and_found_again(
    cli: Cli, tmp_path: Path, host: dict[str, str]
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]}
        for n in range(12)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", "gpt-4.1-mini", "--train", "t.jsonl", "-p", "openai", "--yes", "--json"]
    [made] = cli("submit", *words, cwd=tmp_path, **host).json
    tracker = ["--to", "tensorboard", "--at", str(tmp_path / "logs")]
    followed = cli("log", "last", *tracker, "--watch", "--json", **host)
    assert followed.code == 0, followed.err
    jsonschema.validate(followed.json, of("log"))
    [told] = followed.json
    kept = EventAccumulator(told["where"])
    kept.Reload()
    points = cli("metrics", "last", "--json", **host).json
    assert points and [e.step for e in kept.Scalars("train_loss")] == [p["step"] for p in points]
    assert told["values"] == sum(len(kept.Scalars(tag)) for tag in kept.Tags()["scalars"])

    again = cli("log", "--all", *tracker, **host)
    assert again.code == 0 and f"{made['id']}  0 new values" in again.out, again.err
    assert cli("log", *tracker, **host).code == 2
    assert cli("log", "last", "--all", *tracker, **host).code == 2
    wrong = cli("log", "last", "--to", "comet", **host)
    assert wrong.code == 2 and "mlflow, wandb, tensorboard" in wrong.err
