"""Talking to a tuned model: what it is told first, commands at the prompt, and answers as they come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Cli

from orchestrate import JobSpec, Orchestrator
from orchestrate.runs.chat import Talk, system_message
from orchestrate.sandbox import running
from orchestrate.settings import config
from orchestrate.types import JobStatus, Message

SYSTEM = "You answer in one word."


def rows_of(folder: Path, systems: list[str | None]) -> str:
    """Rows of which each has its system message, or none."""
    rows: list[str] = []
    for n, system in enumerate(systems):
        said = [{"role": "user", "content": f"item {n}?"}, {"role": "assistant", "content": f"answer {n}"}]
        told = [{"role": "system", "content": system}] if system else []
        rows.append(json.dumps({"messages": [*told, *said]}))
    train = folder / "train.jsonl"
    train.write_text("\n".join(rows) + "\n")
    return str(train)


@pytest.mark.slow
def test_a_conversation_at_the_prompt(cli: Cli, tmp_path: Path) -> None:
    train = rows_of(tmp_path, [SYSTEM] * 12)
    with running(train=False, speed=1000) as sandbox:
        hosts = dict(sandbox.env)
        made = ("submit", "-p", "openai", "--model", "gpt-4.1-mini", "--train", train, "--yes", "--watch")
        assert cli(*made, **hosts).code == 0
        talked = cli("chat", "last", stdin="one?\nand?\n/new\ntwo?\n/exit\nnever asked\n", **hosts)
        assert talked.code == 0, talked.err
        assert f"using the system message from the training data: {SYSTEM}" in talked.err
        asked = [r["body"]["messages"] for r in sandbox.requests("openai", path="chat/completions")]
        said = [
            [(m["role"], m["content"]) for m in messages if m["role"] != "assistant"] for messages in asked
        ]
        first = ("system", SYSTEM)
        assert said == [
            [first, ("user", "one?")],
            [first, ("user", "one?"), ("user", "and?")],
            [first, ("user", "two?")],
        ]
        sandbox.clear_requests()
        bare = cli("chat", "last", "one?", "--system", "", **hosts)
        assert bare.code == 0 and "system message" not in bare.err
        [asked] = [r["body"]["messages"] for r in sandbox.requests("openai", path="chat/completions")]
        assert [m["role"] for m in asked] == ["user"]
        streams = [r["body"].get("stream") for r in sandbox.requests("openai", path="chat/completions")]
        assert streams == [True], "what a person reads comes as it is written"
        refused = cli("chat", "last", "one?", "--on", "moon", **hosts)
        assert refused.code == 2 and "--on must be one of auto, host, here" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["together", "fireworks"])
def test_a_deployed_model_answers_as_it_writes(cli: Cli, tmp_path: Path, backend: str) -> None:
    train = rows_of(tmp_path, [None] * 12)
    with running(train=False, speed=1000) as sandbox:
        hosts = dict(sandbox.env)
        made = ("submit", "-p", backend, "--model", "qwen3-8b", "--train", train, "--yes", "--watch")
        assert cli(*made, **hosts).code == 0
        deployed = cli("deploy", "last", "--yes", "--max-hours", "1", **hosts)
        assert deployed.code == 0, deployed.err
        sandbox.clear_requests()
        talked = cli("chat", "last", "one?", **hosts)
        assert talked.code == 0, talked.err
        [sent] = [r["body"] for r in sandbox.requests(backend, path="chat/completions")]
        assert sent["stream"] is True and talked.out.strip()

        settings = config.load(
            env=hosts | {"ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")},
            cwd=tmp_path,
            home=tmp_path / "home",
        )
        pieces: list[str] = []
        with Orchestrator(settings) as ft:
            reply = Talk(ft.run("last")).ask([Message(role="user", content="one?")], pieces.append)
            assert ft.run("last").chat("one?").content == reply.content, "a text is what the user says"
        assert "".join(pieces) == reply.content == talked.out.strip()
        assert len(pieces) > 1, "piece by piece"


@pytest.mark.slow
def test_answers_come_as_they_are_written_on_this_machine(tmp_path: Path) -> None:
    train = rows_of(tmp_path, [SYSTEM] * 12)
    settings = config.load(env={}, cwd=tmp_path, home=tmp_path / "home")
    with Orchestrator(settings) as ft:
        run = ft.submit(JobSpec(model="tiny-chat", train=train, epochs=1), "local")
        assert run.wait().status is JobStatus.SUCCEEDED
        question = [Message(role="system", content=SYSTEM), Message(role="user", content="item 3?")]
        talk, pieces = Talk(run), list[str]()
        streamed = talk.ask(question, pieces.append, max_tokens=12)
        assert "".join(pieces) == streamed.content != ""
        assert streamed == talk.ask(question, max_tokens=12)
        assert Talk(run, "here").ask(question, max_tokens=12).content == streamed.content

        assert system_message(run) == SYSTEM
        rows_of(tmp_path, ["a", "b", None] * 4)
        assert system_message(run) is None  # rows do not agree on one
        (tmp_path / "train.jsonl").unlink()
        assert system_message(run) is None
