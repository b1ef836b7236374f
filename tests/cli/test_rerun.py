"""A run once more: on its backend, on another one, on data that are the same or are named as changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Cli

from orchestrate import JobSpec, Orchestrator
from orchestrate.data.operations.inspect import inspect
from orchestrate.errors import AlreadySubmitted, DataError, UsageError
from orchestrate.sandbox import running
from orchestrate.settings import config
from orchestrate.types import JobStatus


def write(file: Path, rows: int) -> Path:
    said = (
        [{"role": "user", "content": f"item {n}?"}, {"role": "assistant", "content": f"answer {n}"}]
        for n in range(rows)
    )
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in said))
    return file


def test_a_run_is_made_again_here_and_on_another_host(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", 12)
    with running(train=False, speed=1000) as sandbox:
        settings = config.load(env=sandbox.env, cwd=tmp_path, home=tmp_path / "home")
        with Orchestrator(settings) as ft:
            spec = JobSpec(model="qwen3-8b", train=str(train), epochs=2)
            first = ft.submit(spec, "fireworks")
            with pytest.raises(AlreadySubmitted):
                ft.rerun(first)  # it is still on its way
            assert first.wait(poll_s=0.02).status is JobStatus.SUCCEEDED
            again = ft.rerun(first.id)
            assert again.id != first.id and again.record.spec_hash == first.record.spec_hash
            there = ft.rerun(first, "together", settings={"epochs": 3})
            bodies = [asked["body"] for asked in sandbox.requests("together", method="POST")]
            sent = [body for body in bodies if isinstance(body, dict) and "n_epochs" in body]
            assert [(job["model"], job["n_epochs"]) for job in sent][-1] == ("Qwen/Qwen3-8B", 3)
            assert there.record.dataset_digest == first.record.dataset_digest
            assert inspect(str(train)).data_digest == first.record.dataset_digest, "what both commands show"

            write(train, 13)
            jobs = len(ft.runs())
            with pytest.raises(DataError, match=f"differs from that of run {first.id}: its digest is"):
                ft.rerun(first)
            assert len(ft.runs()) == jobs
            assert ft.rerun(first, other_data=True).record.dataset_digest != first.record.dataset_digest
            with pytest.raises(UsageError, match="epoch"):
                ft.rerun(first, settings={"epoch": 3})


@pytest.mark.slow
def test_the_command_says_whether_the_data_are_the_same_and_asks_for_the_price(
    cli: Cli, tmp_path: Path
) -> None:
    train = write(tmp_path / "train.jsonl", 12)
    endless = ("--epochs", "100")  # none of them ends before it is cancelled
    first = cli(
        "submit", "--provider", "local", "--model", "tiny-chat", "--train", str(train), *endless, "--yes"
    )
    run = first.out.strip()
    assert cli("cancel", run).code == 0
    refused = cli("rerun", run, "--set", "seed=9", "--max-cost", "0", "--set", "price.usd=1")
    assert refused.code == 2 and "price" in refused.err
    write(train, 13)
    changed = cli("rerun", run, "--provider", "nowhere")
    assert changed.code == 2 and "nowhere" in changed.err
    changed = cli("rerun", run, "--set", "epochs=99", "--yes", "--json")
    assert changed.code == 0, changed.err
    assert f"warning: the data differs from that of run {run}" in changed.err
    [made] = changed.json
    assert made["spec"]["epochs"] == 99
    assert cli("cancel", made["id"]).code == 0 and cli("watch", made["id"]).code == 1
    same = cli("rerun", made["id"], "--yes")
    assert same.code == 0 and "the data is unchanged (digest" in same.err
    assert cli("cancel", "last").code == 0
    train.unlink()
    gone = cli("rerun", run)
    assert gone.code == 1 and "train.jsonl" in gone.err


def test_a_dry_run_checks_and_quotes_and_leaves_nothing_behind(cli: Cli, tmp_path: Path) -> None:
    train, held = write(tmp_path / "train.jsonl", 12), tmp_path / "held.jsonl"
    held.write_text(train.read_text().replace("item", "thing"))
    spec = ("-p", "local", "--model", "tiny-chat", "--train", str(train), "--validation", str(held))
    submit, sweep = ("submit", *spec, "--yes"), ("sweep", *spec, "--grid", "epochs=1,2", "--max-cost", "5")
    for words in (submit, sweep, ("data", "curve", *spec, "--shares", "0.25,0.5,1")):
        done = cli(*words, "--dry-run", "--json")
        assert done.code == 0, done.err
        plan = done.json
        assert (plan[0]["high_usd"] if words == submit else plan["high_usd"]) is not None
        assert cli(*words, "--dry-run").code == 0
    assert cli("runs", "--json").json == [] and cli("sweep", "--list", "--json").json == []
    assert cli(*submit, "--dry-run", "--watch").code == 2
    assert cli(*submit, "--dry-run", "--set", "epochs=0").code == 2, "a dry run says what a submit would"


@pytest.mark.slow
def test_a_rerun_is_quoted_without_being_sent(cli: Cli, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", 12)
    run = cli("submit", "-p", "local", "--model", "tiny-chat", "--train", str(train), "--yes").out.strip()
    assert cli("cancel", run).code == 0
    done = cli("rerun", run, "--set", "epochs=2", "--dry-run", "--json")
    assert done.code == 0 and [quote["provider"] for quote in done.json] == ["local"], done.err
    assert [one["id"] for one in cli("runs", "--json").json] == [run]
