"""The command against the three hosts of a sandbox: from submit to the tuned model's answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Cli, Result
from tests.paths import BUNDLED
from tests.workers import Nursery

from orchestrate.sandbox import running
from orchestrate.sandbox.server import Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_python")]
HOSTS = ("openai", "together", "fireworks")
HOURLY = {"together": "$5.49 per hour", "fireworks": "$8.00 per hour"}
"""Of the cheapest hardware that each sandbox has."""
ABSENT = {
    "openai": {
        "download": "OpenAI does not release weights",
        "deploy": "a tuned model needs no deployment. Use `orchestrate chat`",
        "undeploy": "a tuned model needs no deployment. Use `orchestrate chat`",
    },
    "together": {
        "pause": "cannot pause",
        "resume": "cannot resume a job. Start a new one from a checkpoint (continue_from)",
    },
    "fireworks": {
        "pause": "cannot pause",
        "checkpoints": "does not list checkpoints of managed jobs. Download the final model",
    },
}
NOT_TRAINED = "[sandbox] This model was not trained"


@pytest.fixture(scope="module")
def quick() -> Iterator[Sandbox]:
    """Jobs walk through their states; answers do not matter."""
    with running(train=False, speed=30) as hosts:
        yield hosts


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, rows in (("train", 30), ("validation", 6)):
        lines = (BUNDLED / f"orders/{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:rows]))
    (tmp_path / "finetune.yaml").write_text(
        "model: {openai: gpt-4o-mini, together: qwen3.5-9b, fireworks: qwen3-8b}\n"
        "train: train.jsonl\nvalidation: validation.jsonl\nepochs: 1\nbatch_size: 8\n"
    )
    return tmp_path


def done(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


@pytest.mark.parametrize("host", HOSTS)
def test_one_host(cli: Cli, project: Path, quick: Sandbox, host: str) -> None:
    def ask(*words: str) -> Result:
        return cli(*words, **quick.env)

    told = done(ask("submit", "--provider", host, "--watch", "--yes"))
    run = told.out.strip()
    assert "SANDBOX" in told.err and f"{host}: succeeded" in told.err
    events = [event["message"] for event in done(ask("events", run, "--json")).json]
    assert "complete" in events[-1] or "finished" in events[-1], events
    metrics = done(ask("metrics", run, "--json")).json
    assert [point["step"] for point in metrics if "train_loss" in point["values"]] == [1, 2, 3, 4]
    if "checkpoints" not in ABSENT[host]:
        found = done(ask("checkpoints", run, "--json")).json
        assert 4 in [c["step"] for c in found]
        of_a_checkpoint(ask, quick, run, host, found[-1])
    for command, reason in ABSENT[host].items():
        refused = ask(command, run)
        assert refused.code == 2 and reason in refused.err, (command, refused)
    if "download" not in ABSENT[host]:
        folder = Path(done(ask("download", run)).out.strip())
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {f.name for f in folder.iterdir()}
    if host in HOURLY:
        deployed_and_taken_down(ask, quick, run, host)
    else:
        assert done(ask("chat", run, "hello")).out.startswith(NOT_TRAINED)


def of_a_checkpoint(ask: Cli, sandbox: Sandbox, run: str, host: str, last: dict[str, Any]) -> None:
    """What is said to be possible with one is, and is said in a command that does it."""
    told = done(ask("checkpoints", run)).err
    if host == "openai":
        assert (
            f"  orchestrate eval {run}@{last['id']}\n" in told
            and "deploy serves the final model of a run, not its checkpoints" not in told
        )
        asked_of = ("--test", "validation.jsonl", "--limit", "2", "--json")
        longer = done(ask("submit", "--provider", host, "--set", "epochs=2", "--watch", "--yes")).out.strip()
        first, end = done(ask("checkpoints", longer, "--json")).json
        sandbox.clear_requests()
        scored = done(ask("eval", f"{longer}@{first['id']}", *asked_of)).json
        assert {c["checkpoint"] for c in scored["contenders"]} == {first["id"], None}
        asked = {one["body"]["model"] for one in sandbox.requests(host, method="POST")}
        assert asked == {"gpt-4o-mini-2024-07-18", first["model"]} and first["model"] != end["model"]
        refused = ask("eval", f"{run}@nothing", *asked_of)
        assert refused.code == 2 and "has no checkpoint 'nothing'" in refused.err
        return
    fetch = f"download {run} --checkpoint {last['id']}"
    assert (
        f'  orchestrate serve "$(orchestrate {fetch})"\n' in told
        and "deploy serves the final model of a run, not its checkpoints" in told
    )
    folder = Path(done(ask(*fetch.split())).out.strip())
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {f.name for f in folder.iterdir()}


def deployed_and_taken_down(ask: Cli, sandbox: Sandbox, run: str, host: str) -> None:
    early = ask("chat", run, "hello")
    assert early.code == 2 and "orchestrate deploy" in early.err and "hourly price" in early.err
    sandbox.clear_requests()
    asked = ask("deploy", run)
    assert asked.code == 2 and HOURLY[host] in asked.err and "--yes" in asked.err
    posts = [entry["path"] for entry in sandbox.requests(host, method="POST")]
    assert all(path.endswith(":match") for path in posts), f"nothing is made before the answer: {posts}"
    up = done(ask("deploy", run, "--yes", "--json")).json
    assert f"${float(up['usd_per_hour']):.2f} per hour" == HOURLY[host]
    assert up["proof"] is None, "nothing was trained, and no base is here by which it could be known"
    assert done(ask("chat", run, "hello", "--json")).json[0]["content"].startswith(NOT_TRAINED)
    asked_of = ("eval", run, "--test", "validation.jsonl", "--limit", "2", "--no-base", "--json")
    scored = done(ask(*asked_of, "--traffic", "240 req/day, 90 in, 15 out")).json
    [tuned] = scored["contenders"]
    assert float(tuned["usd_per_hour"]) == float(up["usd_per_hour"]) and float(tuned["hours"]) > 0
    assert any("per answer at 10 answers per hour, from --traffic" in n for n in scored["notes"])
    assert f"{HOURLY[host]} of play money: orchestrate deployments" in done(ask("runs")).err
    assert done(ask("show", run, "--offline", "--json")).json["deployment"]["state"] == "up"
    assert [one["run_id"] for one in done(ask("deployments", "--json")).json] == [run]
    sandbox.fault(host, "error", method="DELETE", status=400 if host == "together" else 503, count=0)
    sandbox.fault(host, "error", method="PATCH", status=400, count=0)
    if host == "together":
        still = ask("undeploy", run, "--wait", "0")
        assert still.code == 5 and f"the deployment is still billed at {HOURLY[host]}" in still.err
    sandbox.clear_faults()
    assert "down, confirmed by" in done(ask("undeploy", run)).err
    assert done(ask("deployments", "--json")).json == []
    assert ask("chat", run, "hello").code == 2


def test_all_three_in_one_command_and_really_trained(cli: Cli, project: Path, nursery: Nursery) -> None:
    with running(start=nursery.start) as sandbox:
        sandbox.clock.speed = 10

        def ask(*words: str) -> Result:
            return cli(*words, **sandbox.env)

        told = done(ask("submit", "-p", ",".join(HOSTS), "--watch", "--yes", "--json"))
        runs = {run["provider"]: run for run in told.json}
        assert tuple(runs) == HOSTS
        assert {run["status"] for run in runs.values()} == {"succeeded"}
        assert all(run["sandbox"] for run in runs.values())
        question = json.loads((project / "train.jsonl").read_text().splitlines()[0])["messages"][0]["content"]
        for host, run in runs.items():
            points = done(ask("metrics", run["id"], "--json")).json
            assert len(points) >= 4 and not any("not_trained" in name for p in points for name in p["values"])
            if host in HOURLY:
                proof = done(ask("deploy", run["id"], "--yes", "--json")).json["proof"]
                assert proof["engine"] and proof["state"] != "failed", proof
                tokens = next(stage for stage in proof["stages"] if stage["name"] == "tokens")
                assert tokens["figures"]["same count"] > 0, "the host counts as the trainer does"
            [answer] = done(ask("chat", run["id"], question, "--json")).json
            assert answer["content"] and not answer["content"].startswith(NOT_TRAINED)
            assert answer["completion_tokens"] > 0
        artifact = done(ask("download", runs["together"]["id"], "--json")).json
        weights = next(f for f in artifact["files"] if f["path"] == "adapter_model.safetensors")
        assert weights["bytes"] > 10_000, "the trained adapter, not a stand-in of a few numbers"
