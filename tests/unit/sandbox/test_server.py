"""Starting, stopping, being killed, and the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests import command, loopback

from orchestrate.errors import SetupError, UsageError
from orchestrate.sandbox import running

Write = Callable[..., Path]
Until = Callable[[Callable[[], Any]], Any]
MODEL = "gpt-4o-mini-2024-07-18"


def start(home: Path, *options: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "orchestrate.cli",
            "sandbox",
            "--sandbox-home",
            str(home),
            "--port",
            "0",
            "--json",
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1] != "}\n":
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read() if process.stderr else ""
    return process, json.loads("".join(lines))


def end(process: subprocess.Popen[str], how: signal.Signals) -> int:
    process.send_signal(how)
    code = process.wait(240)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    return code


def test_a_database_that_is_none_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "sandbox.sqlite3").write_bytes(b"not a database" * 99)
    with pytest.raises(SetupError, match=r"sandbox\.sqlite3") as told, running(home=tmp_path, train=False):
        pass
    assert "--sandbox-home" in str(told.value.fix)


@pytest.mark.slow
def test_a_killed_sandbox_keeps_its_jobs(
    tmp_path: Path, write: Write, until: Until, clients: dict[str, Any]
) -> None:
    process, told = start(tmp_path / "home", "--no-train", "--speed", "20")
    assert told["sandbox"] is True
    with clients["openai"](told["env"]) as client:
        file = client.files.create(file=write(12), purpose="fine-tune")
        until(lambda: client.files.retrieve(file.id).status == "processed")
        job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id)
    with pytest.raises(SetupError, match="another sandbox"), running(home=tmp_path / "home", train=False):
        pass
    assert end(process, signal.SIGKILL) == -signal.SIGKILL

    process, again = start(tmp_path / "home", "--no-train", "--speed", "20")
    assert again["env"]["OPENAI_API_KEY"] == told["env"]["OPENAI_API_KEY"]
    with clients["openai"](again["env"]) as client:
        until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "succeeded")
        assert client.files.content(file.id).read() == write(12).read_bytes()
    assert end(process, signal.SIGTERM) == 0


def test_run_gives_a_command_the_environment_and_keeps_its_exit_code(tmp_path: Path) -> None:
    script = (
        "import os, urllib.request as u; "
        "page = u.urlopen(os.environ['TOGETHER_BASE_URL']); print(page.headers['x-orchestrate-sandbox']); "
        "print(os.environ['FIREWORKS_ACCOUNT_ID']); raise SystemExit(7)"
    )
    words = ["sandbox", "run", "--no-train", "--"]
    done = command.run([*words, sys.executable, "-c", script], cwd=tmp_path, env=os.environ)
    assert (done.code, done.out.split()) == (7, [b"1", b"sandbox"]), done.err
    lost = command.run([*words, "no-such-program"], cwd=tmp_path, env=os.environ)
    assert lost.code == 2
    assert b"cannot run no-such-program" in lost.err


def test_ports_that_are_taken_are_said(tmp_path: Path) -> None:
    with running(train=False, home=tmp_path / "a") as first:
        port = int(first.urls["openai"].rsplit(":", 1)[1])
        words = ["sandbox", "--no-train", "--port", str(port), "--sandbox-home", str(tmp_path / "b")]
        done = command.run(words, cwd=tmp_path, env=os.environ)
    assert done.code == 3
    assert str(port).encode() in done.err and b"--port 0" in done.err


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"), running(model=str(tmp_path)):
        pass


def test_a_temporary_home_is_gone_afterwards() -> None:
    with running(train=False) as sandbox:
        home = sandbox.home
        assert home.is_dir()
        url = sandbox.urls["together"]
    assert not home.exists()
    with pytest.raises(httpx.TransportError):
        loopback.get(url)


def test_several_sandboxes_at_once_do_not_meet(write: Write, clients: dict[str, Any]) -> None:
    with running(train=False) as one, running(train=False) as two:
        with clients["openai"](one.env) as client:
            client.files.create(file=write(12), purpose="fine-tune")
            assert len(client.files.list().data) == 1
        with clients["openai"](two.env) as client:
            assert client.files.list().data == []


@pytest.mark.slow
def test_the_default_home_is_below_that_of_orchestrate(tmp_path: Path) -> None:
    env = {**os.environ, "ORCHESTRATE_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrate.cli", "sandbox", "--no-train", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("export OPENAI_BASE_URL=http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(240) == 0
    assert (tmp_path / "sandbox" / "sandbox.sqlite3").exists()


@pytest.mark.slow
def test_many_jobs_are_listed_in_few_requests(
    tmp_path: Path, write: Write, until: Until, clients: dict[str, Any]
) -> None:
    """Three thousand where all come in one answer; elsewhere as many as fill ten pages."""
    with running(home=tmp_path, train=False, speed=100) as sandbox:
        with clients["openai"](sandbox.env) as openai:
            file = openai.files.create(file=write(12), purpose="fine-tune")
            until(lambda: openai.files.retrieve(file.id).status == "processed")
            sandbox.create_jobs("openai", [{"model": MODEL, "training_file": file.id}] * 300)
            assert len({job.id for job in openai.fine_tuning.jobs.list(limit=30)}) == 300
        assert sandbox.count("openai", method="GET", path="/fine_tuning/jobs") == 10
        with clients["together"](sandbox.env) as together:
            known = together.files.upload(write(12), purpose="fine-tune", check=False).id
            until(lambda: together.files.retrieve(known).processing_status == "COMPLETED")
            sandbox.create_jobs("together", [{"model": "Qwen/Qwen3.5-9B", "training_file": known}] * 3_000)
            assert len({job.id for job in together.fine_tuning.list().data}) == 3_000
        assert sandbox.count("together", method="GET", path="/fine-tunes") == 1
        with clients["fireworks"](sandbox.env) as fireworks:
            fireworks.datasets.create(dataset_id="many", dataset={"user_uploaded": {}})
            fireworks.datasets.upload("many", file=("t.jsonl", write(12).read_bytes()))
            until(lambda: fireworks.datasets.get("many").state == "READY")
            body = {"dataset": "many", "baseModel": "accounts/fireworks/models/qwen3-8b"}
            sandbox.create_jobs("fireworks", [{**body, "id": f"j{n}"} for n in range(400)])
            listed = fireworks.supervised_fine_tuning_jobs.list(page_size=40)
            assert len({job.name for job in listed}) == 400
        assert sandbox.count("fireworks", method="GET", path="supervisedFineTuningJobs") == 10
