"""Runs that were tried in the sandbox: a scope of their own, and never a dead end."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests import forking
from tests.cli.conftest import Cli, Result

pytestmark = pytest.mark.slow


def orchestrate() -> tuple[str, ...]:
    """The words of a command within `sandbox run`."""
    return "--", forking.python(), "-m", "orchestrate.cli"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    rows = (
        [{"role": "user", "content": f"item {n}?"}, {"role": "assistant", "content": f"answer {n}"}]
        for n in range(12)
    )
    lines = [json.dumps({"messages": row}) for row in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "test.jsonl").write_text(lines[0].replace("item 0", "item 99"))
    (tmp_path / "finetune.yaml").write_text(
        "model: {openai: gpt-4o-mini, fireworks: qwen3-8b, local: tiny-chat}\n"
        "train: train.jsonl\ntest: test.jsonl\nepochs: 1\n"
    )
    return tmp_path


def tried(cli: Cli, *words: str, provider: str = "openai") -> Result:
    """A submit under `sandbox run`, as the README has it."""
    submit = ("submit", "--provider", provider, "--max-cost", "25", "--watch")
    hosts = ("sandbox", "run", "--no-train", "--speed", "100")
    done = cli(*hosts, *orchestrate(), *submit, *words)
    assert done.code == 0, done.err
    return done


def test_what_was_tried_is_there_afterwards_without_a_key(cli: Cli, project: Path) -> None:
    run = tried(cli, provider="fireworks").out.split()[-1]
    assert "1 sandbox run. To list them: orchestrate runs --sandbox" in cli("runs").err
    [shown] = cli("runs", "--sandbox", "--json").json
    assert shown["id"] == run and shown["sandbox"] is True
    for words in (("show", run, "--refresh"), ("events", run), ("download", run), ("sync",)):
        done = cli(*words)
        assert done.code == 0, (words, done.err)
    deployed = cli("deploy", run, "--yes", "--max-hours", "1")
    assert deployed.code == 0, deployed.err
    assert "[sandbox]" in cli("chat", run, "item 3?").out
    assert cli("eval", run).code == 0
    for words in (f"verify {run}", f"export {run} out --to peft", f"chat {run} hi --on here"):
        done = cli(*words.split())
        assert done.code == 2 and "was not trained" in done.err and "orchestrate rerun" in done.err, done.err
    assert cli("undeploy", run).code == 0
    taken = urlsplit(shown["host"])
    with socket.create_server((str(taken.hostname), int(taken.port or 0))):  # by another program
        assert cli("download", run, "--to", "moved").code == 0
    assert cli("events", run, "--refresh").code == 0, "nor is it lost when the port is free again"


def test_last_is_never_a_run_of_the_sandbox_for_real_work(cli: Cli, project: Path) -> None:
    run = tried(cli).out.split()[-1]
    for words in (("eval", "last"), ("show", "last"), ("download", "latest"), ("compare", "last")):
        done = cli(*words)
        assert done.code == 2 and run in done.err and "orchestrate sandbox run --" in done.err
    assert "would bill" in cli("show", run).out
    inside = cli("sandbox", "run", "--no-train", *orchestrate(), "show", "last", "--json")
    assert inside.json["id"] == run
    assert cli("submit", "--provider", "local", "--yes").code == 0
    assert cli("show", "last", "--json").json["provider"] == "local"
    assert [r["provider"] for r in cli("runs", "--json").json] == ["local"]
    assert cli("cancel", "last").code == 0


def test_a_sandbox_that_runs_is_joined_and_one_of_another_home_is_named(
    cli: Cli, project: Path, tmp_path: Path
) -> None:
    submit = ("submit", "--provider", "openai", "--yes", "--watch")
    nested = (*orchestrate(), "sandbox", "run", *orchestrate(), *submit)
    joined = cli("sandbox", "run", "--no-train", "--speed", "100", *nested)
    assert joined.code == 0, joined.err
    elsewhere = ("--sandbox-home", str(tmp_path / "elsewhere"), "--no-train", "--speed", "100")
    done = cli("sandbox", "run", *elsewhere, *orchestrate(), *submit, "--again")
    assert done.code == 0, done.err
    refused = cli("show", done.out.split()[-1], "--refresh")
    assert refused.code == 3 and "the run belongs to a sandbox at" in refused.err


@pytest.mark.process
def test_the_program_behind_a_sandbox_need_not_be_on_the_path(cli: Cli) -> None:
    done = cli("sandbox", "run", "--no-train", "--", "orchestrate", "--version", PATH=os.defpath)
    assert done.code == 0 and done.out.startswith("orchestrate "), done.err


ABOUT_A_RUN = (
    "show RUN, events RUN, metrics RUN, record RUN --yes, compare RUN, chat RUN hello, eval RUN --yes, "
    "deployments, undeploy RUN, download RUN, delete --sandbox, cancel RUN, runs --sandbox, "
    "spending --sandbox --offline, record --list, delete RUN --yes"
)
"""Commands that name a run's host, job, model or money, in an order in which each has something to name."""
ABOUT_AN_ACCOUNT = (
    "check -p openai, quote -p openai, quote -p openai --format md, stored, import openai, "
    "recover -p openai, checkpoints RUN, spending, spending --end-orphans, "
    "submit -p openai --yes --again, migrate RUN --to together --dry-run, "
    "queue add -p openai --yes --again, queue list, "
    "data generate train.jsonl --model gpt-4.1 --max-requests 1, "
    "data judge train.jsonl --model openai=gpt-4.1-mini --uncalibrated --yes, "
    "sweep -p openai --grid epochs=1 --validation test.jsonl --max-cost 9, sweep --list, sweep --show last"
)
"""Commands that name a host whose key is a sandbox's, or its prices."""


def assert_labeled(done: Result, words: str) -> None:
    assert done.code in (0, 1, 6), (words, done.err)
    if "--json" in words:
        assert '"sandbox": true' in done.out or "(sandbox)" in done.out, (words, done.out)
    else:
        assert re.search(r"SANDBOX|\(sandbox\)", done.out + done.err), (words, done.out, done.err)
        assert done.err.count("\n SANDBOX \n") + done.err.startswith(" SANDBOX \n") <= 1, (words, done.err)


def test_what_names_a_sandbox_for_its_host_says_so(cli: Cli, project: Path) -> None:
    run = tried(cli, provider="fireworks").out.split()[-1]
    deployed = cli("deploy", run, "--yes", "--max-hours", "1")
    assert_labeled(deployed, "deploy")
    for command in ABOUT_A_RUN.split(", "):
        words = command.replace("RUN", run).split()
        assert_labeled(cli(*words), command)
        if "delete RUN" not in command and "undeploy" not in command:
            assert_labeled(cli(*words, "--json"), f"{command} --json")


def test_what_is_asked_of_a_sandbox_says_so(cli: Cli, project: Path) -> None:
    run = tried(cli).out.split()[-1]
    for command in ABOUT_AN_ACCOUNT.split(", "):
        words = command.replace("RUN", run).split()
        for form in ((), () if "--format" in words else ("--json",)):
            inside = cli("sandbox", "run", "--no-train", *orchestrate(), *words, *form)
            assert_labeled(inside, " ".join((command, *form)))


def test_empty_lists_say_that_they_are_empty(cli: Cli, project: Path) -> None:
    assert cli("submit", "--provider", "local", "--yes").code == 0
    assert cli("cancel", "last").code == 0
    for words, said in (
        (("metrics", "last"), "no metrics yet"),
        (("checkpoints", "last"), "no checkpoints yet"),
        (("record", "--list"), "no recordings yet"),
    ):
        done = cli(*words)
        assert done.code == 0 and not done.out and said in done.err, (words, done)
