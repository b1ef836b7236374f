"""`orchestrate ab`, and the example of docs/ab.md as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import httpx
import jsonschema
import pytest
from tests import command, loopback
from tests.cli.conftest import Cli
from tests.cli.terminals import Terminal
from tests.paths import ROOT
from tests.ports import own_port
from tests.unit.ab.models import Model, model

from orchestrate.commands.setup.schema import of

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "ab.md").read_text()


def block(name: str) -> str:
    found = re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, name
    return found[1]


USERS = [f"u{n}" for n in range(24)]


def ask(url: str, user: str, name: str = "support-bot") -> httpx.Response:
    body = {"model": name, "messages": [{"role": "user", "content": "x"}], "user": user}
    done = loopback.post(f"{url}/chat/completions", json=body)
    assert done.status_code == 200, done.text
    return done


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[Model, Model]]:
    with model("qwen3-8b") as base, model("qwen3-8b-support") as tuned:
        yield base, tuned


@pytest.fixture
def plan(models: tuple[Model, Model], tmp_path: Path) -> Path:
    text = block("support-bot.yaml")
    for port, one in zip(("8001", "8002"), models, strict=True):
        text = text.replace(f"http://127.0.0.1:{port}/v1", one.url)
    path = tmp_path / "support-bot.yaml"
    path.write_text(text)
    return path


@contextmanager
def served(env: dict[str, str], folder: Path, *arguments: str) -> Generator[tuple[str, int]]:
    """The address of the proxy, and its process."""
    streams = [folder / f"{name}-{time.monotonic_ns()}" for name in ("in", "out", "err")]
    streams[0].touch()
    process = command.start(
        command.orchestrate, ["ab", "serve", *arguments], cwd=folder, env=env, streams=streams
    )
    try:
        until = time.monotonic() + 240
        while not (streams[1].exists() and "}" in streams[1].read_text()):
            assert process.is_alive() and time.monotonic() < until, streams[2].read_text()
            time.sleep(0.05)
        shown = json.loads(streams[1].read_text())
        jsonschema.validate(shown, of("ab serve"))
        assert process.pid is not None
        yield shown["url"], process.pid
    finally:
        if process.is_alive():
            process.terminate()
        process.join(240)


def test_the_page_is_what_happens(
    cli: Cli, cli_env: dict[str, str], plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = re.search(r"orchestrate (ab size .*)\n```\n\n +(.*)\n", PAGE)
    assert asked is not None and cli(*asked[1].split()).out.strip() == asked[2]

    port = own_port()
    for name in ("ORCHESTRATE_HOME", "ORCHESTRATE_KEYS"):
        monkeypatch.setenv(name, cli_env[name])
    with served(cli_env, tmp_path, str(plan), "--port", str(port), "--auto", "--json"):
        printed = StringIO()
        with redirect_stdout(printed):
            exec(block("client").replace("8100", str(port)), {})
        assert printed.getvalue().count("says: Where is my order?") == 4

        (tmp_path / "outcomes.jsonl").write_text(block("outcomes.jsonl"))
        taken = cli("ab", "record", "support-bot", "outcomes.jsonl", "--json")
        jsonschema.validate(taken.json, of("ab record"))
        assert taken.json["recorded"] == 2
        again = cli("ab", "record", "support-bot", "outcomes.jsonl")
        assert again.out == "0 outcomes recorded, 2 already known\n"

        printed = StringIO()
        with redirect_stdout(printed):
            exec(block("library").replace("8100", str(port)), {})
        assert printed.getvalue().startswith("running {") and "each arm needs 200 users" in printed.getvalue()

        status = cli("ab", "status", "support-bot", "-o", "report.html", "--json")
        jsonschema.validate(status.json, of("ab status"))
        assert sum(status.json["users"].values()) == 4 and status.json["share"] == 0.1
        assert {e["metric"]: sum(e["users"].values()) for e in status.json["evidence"]} == {
            "resolved": 2, "escalated": 0, "failed": 4, "latency_s": 4, "stars": 1,
        }  # fmt: skip
        assert "Evidence over time" in (tmp_path / "report.html").read_text()
        shown = cli("ab", "status")
        assert "running at 10%" in shown.out and "hold" in shown.out

        stopped = cli("ab", "stop", "support-bot", "--keep", "base", "--json")
        jsonschema.validate(stopped.json, of("ab stop"))
        assert stopped.json["state"] == "stopped"
    assert cli("ab", "stop", "support-bot").code == 2


def test_a_killed_proxy_goes_on_where_it_was(
    cli: Cli, cli_env: dict[str, str], plan: Path, tmp_path: Path
) -> None:
    plan.write_text(plan.read_text().replace("[10, 25, 50, 100]", "[50, 100]"))

    def arms(url: str) -> dict[str, str]:
        return {user: ask(url, user).headers["x-orchestrate-arm"] for user in USERS}

    with served(cli_env, tmp_path, str(plan), "--port", "0", "--json") as (url, pid):
        first = arms(url)
        os.kill(pid, signal.SIGKILL)
    assert set(first.values()) == {"base", "tuned"}
    with (
        served(cli_env, tmp_path, "support-bot", "--port", "0", "--json") as (url, _),
        served(cli_env, tmp_path, str(plan), "--port", "0", "--json") as (other, _),
    ):
        assert arms(url) == arms(other) == first
    users = cli("ab", "status", "support-bot", "--json").json["users"]
    assert sum(users.values()) == len(USERS)


def test_the_rule_is_carried_out_when_it_is_asked_to(
    cli: Cli, cli_env: dict[str, str], plan: Path, tmp_path: Path
) -> None:
    """By `status --apply`, and by a proxy that looks by itself."""
    text = re.sub(r".*guardrail.*\n", "", plan.read_text()).replace("[10, 25, 50, 100]", "[50, 60, 100]")
    plan.write_text(text.replace("min_users: 200", "min_users: 1").replace("min_hours: 24", "min_hours: 0"))
    rows = [{"user": user, "metric": "resolved", "value": n % 2} for n, user in enumerate(USERS)]
    (tmp_path / "o.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with served(cli_env, tmp_path, str(plan), "--port", "0", "--json") as (url, _):
        for user in USERS:
            ask(url, user)
        assert cli("ab", "status", "--json").json["decision"]["verb"] == "hold", "no outcome yet"
        assert cli("ab", "record", "support-bot", "o.jsonl", "--json").json["recorded"] == len(USERS)
        assert cli("ab", "status", "--json").json["decision"]["verb"] == "ramp"
        ramped = cli("ab", "status", "--apply", "--json").json
        assert (ramped["applied"], ramped["share"]) == (True, 0.6)
    text = plan.read_text().replace("name: support-bot", "name: other")
    (tmp_path / "other.yaml").write_text(text.replace("[50, 60, 100]", "[50, 60, 70, 100]"))
    with served(cli_env, tmp_path, "other.yaml", "--port", "0", "--json", "--auto", "--every", "0.2") as (
        url,
        _,
    ):
        for user in USERS:
            ask(url, user, "other")
        assert cli("ab", "record", "other", "o.jsonl", "--json").json["recorded"] == len(USERS)
        until = time.monotonic() + 240
        while loopback.get(f"{url}/ab/report").json()["share"] < 0.7:
            assert time.monotonic() < until
            for user in USERS:
                ask(url, user, "other")
    listed = cli("ab", "status", "--json")
    jsonschema.validate(listed.json, of("ab status"))
    assert [(one["name"], one["share"]) for one in listed.json] == [("other", 0.7), ("support-bot", 0.6)]


def test_what_a_missing_outcome_means_is_asked_before_the_start(
    cli: Cli, cli_env: dict[str, str], plan: Path, tmp_path: Path
) -> None:
    terminal = Terminal(cli_env, tmp_path, "ab", "serve", str(plan), "--port", str(own_port()))
    terminal.until(b"record resolved for every user")
    terminal.type("n\n")
    assert terminal.finish() == 2
    assert "no experiments yet" in cli("ab", "status").err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("tuned: run-unknown", "unknown run 'run-unknown'"),
        ("base: FOLDER", "is neither a run nor a folder with safetensors weights"),
    ],
)
def test_a_plan_with_a_wrong_model_is_not_started_and_can_be_corrected(
    cli: Cli, plan: Path, wrong: str, told: str
) -> None:
    arm = wrong.partition(":")[0]
    text = re.sub(rf"(?m)^{arm}: .*$", wrong.replace("FOLDER", str(plan.parent)), plan.read_text())
    plan.write_text(text)
    refused = cli("ab", "serve", str(plan), "--port", "0")
    assert refused.code == 2 and told in refused.err
    assert "no experiments yet" in cli("ab", "status").err


def test_a_plan_with_folders_that_cannot_be_served_is_not_started(
    cli: Cli, plan: Path, tmp_path: Path
) -> None:
    text = plan.read_text()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen3-0.6B"}))
    other = shutil.copytree(adapter, tmp_path / "other")
    (other / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen3-1.7B"}))
    bare = tmp_path / "bare"  # of a base model: it has no provenance file
    bare.mkdir()
    (bare / "model.safetensors").write_bytes(b"")
    for base, tuned, word in (
        (bare, "http://127.0.0.1:9/v1=m", "does not name its base model"),
        (adapter, other, "only serve one base model"),
    ):
        plan.write_text(re.sub(r"(?m)^(base|tuned): .*$", "", text) + f"\nbase: {base}\ntuned: {tuned}\n")
        done = cli("ab", "serve", str(plan), "--port", "0")
        assert done.code == 2 and word in done.err, done.err
        assert "no experiments yet" in cli("ab", "status").err


def test_wrong_calls_say_what_to_do(cli: Cli, plan: Path, tmp_path: Path) -> None:
    assert "no experiments yet" in cli("ab", "status").err
    for arguments, word in (
        (("status", "none"), "no experiment matches"),
        (("status", "--apply"), "name the experiment"),
        (("record", "none", "x.jsonl"), "no experiment matches"),
        (("serve", "none"), "no experiment matches"),
        (("serve", "none.yaml"), "none.yaml cannot be read: No such file or directory\n  check the path"),
        (("stop", "none", "--keep", "bse"), "'--keep': 'bse' is not one of 'base', 'tuned'"),
        (("serve", str(plan), "--host", "0.0.0.0"), "needs keys"),
        (("size",), "--rate"),
        (("size", "--rate", "0.9", "--gain", "0.2"), "--rate plus --gain must be between 0 and 1"),
        (
            ("size", "--rate", "0.9", "--gain", "0"),
            "--gain and the metric's standard deviation must not be 0",
        ),
    ):
        done = cli("ab", *arguments)
        assert done.code == 2 and word in done.err, (arguments, done.err)
    sized = cli("ab", "size", "--deviation", "2", "--gain", "0.5", "--json")
    jsonschema.validate(sized.json, of("ab size"))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(plan.read_text().replace("role: primary", "role: first"))
    assert "role" in cli("ab", "serve", str(wrong)).err
