"""orchestrate data generate and review, as commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests import command
from tests.chat_host import ChatHost, chat_host
from tests.cli.conftest import Cli
from tests.paths import BUNDLED

from orchestrate.data.operations.generate import GenerateReport
from orchestrate.data.operations.review import ExportReport
from orchestrate.sandbox import running

ORDERS = BUNDLED / "orders" / "train.jsonl"


@pytest.fixture
def host() -> Iterator[ChatHost]:
    with chat_host() as found:
        yield found


def started(arguments: list[str], folder: Path, env: dict[str, str]) -> Any:
    streams = [Path(os.devnull)] * 3
    return command.start(command.orchestrate, arguments, cwd=folder, env=env, streams=streams)


@pytest.mark.slow
def test_generate_then_review_then_check(cli: Cli, host: ChatHost, tmp_path: Path) -> None:
    arguments = (
        "data",
        "generate",
        str(ORDERS),
        "--model",
        "writer",
        "--base-url",
        host.url,
        "-o",
        "new.jsonl",
    )
    done = cli(*arguments, "--rows", "20")
    assert done.code == 0 and done.out == "new.jsonl: 20 rows, 20 new\n"
    assert "orchestrate data review new.jsonl" in done.err and host.keys == ["Bearer none"] * 2
    checked = cli("data", "check", "new.jsonl")
    assert checked.code == 0 and "unreviewed" in checked.out
    again = cli(*arguments, "--rows", "30", "--max-requests", "3", "--json")
    report = msgspec.convert(again.json, GenerateReport, strict=False)
    assert (again.code, report.rows, report.new_rows, report.requests) == (0, 30, 10, 3)
    exported = cli("data", "review", "new.jsonl", "--export", "good.jsonl", "--json")
    counts = msgspec.convert(exported.json, ExportReport).counts
    assert counts.pending == 30 and (tmp_path / "good.jsonl").read_text() == ""


@pytest.mark.slow
def test_limits_and_mistakes_have_their_exit_codes(cli: Cli, host: ChatHost) -> None:
    base = ("data", "generate", str(ORDERS), "--base-url", host.url, "-o", "new.jsonl")
    limited = cli(*base, "--model", "gpt-4.1-mini", "--max-requests", "1")
    assert limited.code == 6 and "--max-requests was reached" in limited.err and "$0.00" in limited.err
    dear = cli(*base, "--model", "gpt-4.1-mini", "--max-cost", "0.0001", "--json")
    assert dear.code == 6 and dear.json["stopped"] == "max-cost" and len(host.bodies) == 1
    unknown = cli(*base, "--model", "writer", "--max-cost", "1")
    assert unknown.code == 6 and "price" in unknown.err
    keyless = cli(*base, "--model", "writer", "--key-variable", "WRITER_KEY")
    assert keyless.code == 3 and "WRITER_KEY" in keyless.err
    plain = ("--base-url", "http://models.example/v1", "--key-variable", "WRITER_KEY")
    open_http = cli("data", "generate", str(ORDERS), "--model", "writer", *plain, WRITER_KEY="k-123456")
    assert open_http.code == 3 and "unencrypted" in open_http.err
    for wrong in ("--max-cost much", "--max-cost -1", "--base-url ftp://x", "--host openai", "--for moon"):
        assert cli(*base, "--model", "gpt-4.1-mini", *wrong.split()).code == 2
    no_host = ("data", "generate", str(ORDERS), "--model", "m", "--host", "nowhere")
    assert cli(*no_host).code == 2
    openai = cli("data", "generate", str(ORDERS), "--model", "gpt-4.1-mini")
    assert openai.code == 3 and "OPENAI_API_KEY" in openai.err
    assert len(host.bodies) == 1


def test_a_key_for_the_address_is_sent_to_it(cli: Cli, host: ChatHost) -> None:
    where = ("--base-url", host.url, "--key-variable", "WRITER_KEY", "--rows", "1", "-o", "n.jsonl")
    done = cli("data", "generate", str(ORDERS), "--model", "writer", *where, WRITER_KEY="k-secret-123")
    assert (
        done.code == 0 and host.keys == ["Bearer k-secret-123"] and "k-secret-123" not in done.out + done.err
    )


@pytest.mark.slow
def test_a_killed_run_goes_on(cli: Cli, cli_env: dict[str, str], host: ChatHost, tmp_path: Path) -> None:
    """Killed while the host thinks about the third request: no row is lost or doubled, no request
    uncounted."""
    arguments = [
        "data",
        "generate",
        str(ORDERS),
        "--model",
        "writer",
        "--base-url",
        host.url,
        "-o",
        "new.jsonl",
    ]
    arguments += ["--rows", "50", "--parallel", "1"]
    fresh = host.writes

    def slow_third(number: int, body: dict[str, object]) -> str | int:
        if number == 3:
            host.hold.clear()
            host.hold.wait(240)
        return fresh(number, body)

    host.writes = slow_third
    child = started(arguments, tmp_path, cli_env)
    deadline = time.monotonic() + 240
    while len(host.bodies) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()
    assert command.ended(child, 240) == -signal.SIGKILL
    host.hold.set()
    assert len((tmp_path / "new.jsonl").read_text().splitlines()) == 20
    done = cli(*arguments, "--json")
    lines = (tmp_path / "new.jsonl").read_text().splitlines()
    assert done.code == 0 and len(lines) == len(set(lines)) == 50
    assert done.json["requests"] == len(host.bodies) == 6


@pytest.mark.slow
def test_two_commands_do_not_write_one_file(
    cli: Cli, cli_env: dict[str, str], host: ChatHost, tmp_path: Path
) -> None:
    arguments = [
        "data",
        "generate",
        str(ORDERS),
        "--model",
        "writer",
        "--base-url",
        host.url,
        "-o",
        "new.jsonl",
    ]
    host.hold.clear()
    child = started([*arguments, "--rows", "5"], tmp_path, cli_env)
    deadline = time.monotonic() + 240
    while not host.bodies and time.monotonic() < deadline:
        time.sleep(0.05)
    second = cli(*arguments)
    assert second.code == 2 and "another command is writing" in second.err
    host.hold.set()
    assert command.ended(child, 240) == 0 and len(host.bodies) == 1


def test_an_unknown_engine_is_refused(cli: Cli) -> None:
    for option in ("--on", "--engine"):
        for name in ("inspect", "check", "convert", "split", "dedupe"):
            told = ["--to", "openai"] if name == "convert" else []
            done = cli("data", name, str(ORDERS), *told, option, "spark")
            assert done.code == 2 and "must be local or ray (got spark)" in done.err, name


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_review_serves_until_interrupted(
    cli: Cli, cli_env: dict[str, str], tmp_path: Path, end: signal.Signals
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(ORDERS.read_text().splitlines(keepends=True)[:5]))
    child = subprocess.Popen(
        [sys.executable, "-m", "orchestrate.cli", "data", "review", "rows.jsonl"],
        cwd=tmp_path,
        env=cli_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert child.stdout is not None
    url = child.stdout.readline().strip()
    body = json.dumps({"action": "accepted", "index": 2}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=240) as answer:
        assert json.load(answer)["counts"]["accepted"] == 1
    with urllib.request.urlopen(url, timeout=240) as answer:
        assert b"accept" in answer.read() and "nonce" in answer.headers["content-security-policy"]
    os.kill(child.pid, end)
    _, shown = child.communicate(timeout=240)
    assert child.returncode == 0 and "1 accepted" in shown and "Traceback" not in shown
    done = cli("data", "review", "rows.jsonl", "--export", "good.jsonl")
    assert (
        done.code == 0
        and (tmp_path / "good.jsonl").read_text()
        == (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)[2]
    )


@pytest.mark.slow
def test_generate_asks_a_configured_host(cli: Cli, tmp_path: Path) -> None:
    """Each host of the sandbox takes the question. Its tiny model writes no rows, and that is told."""
    with running(home=tmp_path / "sandbox", speed=100) as sandbox:
        for host, model in (
            ("openai", "gpt-4.1-mini-2025-04-14"),
            ("together", "Qwen/Qwen3-8B"),
            ("fireworks", "accounts/fireworks/models/qwen3-8b"),
        ):
            limits = ("--max-requests", "1", "--max-tokens", "8", "-o", f"{host}.jsonl", "--json")
            done = cli(
                "data", "generate", str(ORDERS), "--host", host, "--model", model, *limits, **sandbox.env
            )
            assert done.code == 6, done.err
            assert done.json["failed_requests"] == 0 and done.json["completion_tokens"] > 0
