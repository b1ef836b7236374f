"""migrate and record as their users run them, against a sandbox that does not train."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from tests.cli.conftest import Cli
from tests.unit.migration.conftest import chat_rows

from orchestrate.commands.setup.schema import of
from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.sandbox.server import Sandbox

pytestmark = pytest.mark.slow

ASKED = ("--max-tokens", "8", "--probes", "none", "--margin", "0.2")


@pytest.fixture
def sandbox(tmp_path: Path, cli_env: dict[str, str]) -> Iterator[Sandbox]:
    with running(
        home=tmp_path / "hosts", train=False, speed=50, waits=Durations(file=0, training=1)
    ) as found:
        cli_env |= found.env
        yield found


@pytest.fixture
def run(cli: Cli, sandbox: Sandbox, tmp_path: Path) -> str:
    train, test = chat_rows(tmp_path / "train.jsonl", 0, 12), chat_rows(tmp_path / "test.jsonl", 50, 80)
    (tmp_path / "finetune.yaml").write_text(f"model: gpt-4o-mini\ntrain: {train}\ntest: {test}\nepochs: 2\n")
    done = cli("submit", "-p", "openai", "--max-cost", "5", "--watch", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)[0]["id"]


def fits(command: str, out: str) -> None:
    jsonschema.validate(json.loads(out), of(command))


def test_a_model_is_recorded_and_moved(cli: Cli, run: str, sandbox: Sandbox, tmp_path: Path) -> None:
    due = cli("record", "--calendar", "--json")
    fits("record", due.out)
    assert due.json[0]["command"] == f"orchestrate record {run}"
    refused = cli("record", run, "--max-tokens", "8")
    assert refused.code == 2 and "about $" in refused.err and "--max-cost" in refused.err
    recorded = cli("record", run, "--max-tokens", "8", "--max-cost", "1", "--json")
    fits("record", recorded.out)
    kept = recorded.json["id"]
    assert f"30 in {kept}" in cli("record", "--calendar").out and kept in cli("record", "--list").out
    terms = cli("data", "from-record", kept, "-o", "own.jsonl")
    assert terms.code == 2 and "compete" in terms.err and not (tmp_path / "own.jsonl").exists()
    rows = cli("data", "from-record", kept, "-o", "own.jsonl", "--accept-terms", "--json")
    fits("data from-record", rows.out)

    where = ("--to", "openai,fireworks", "--model", "openai=gpt-4.1-mini")
    dry = cli("migrate", run, *where, "--dry-run", "--json")
    fits("migrate", dry.out)
    assert [t["model"] for t in dry.json["targets"]] == ["gpt-4.1-mini", "qwen3.5-9b"]
    told = cli("migrate", run, *where, "--dry-run")
    assert "AGAINST" not in told.out.split("chat template")[0] and "shut down after 2027-01-14" in told.out
    assert cli("migrate", run, *where, "--dry-run", "-o", "report.md").code == 2, "there is none"
    nobody = cli("migrate", run, *where)
    assert nobody.code == 2 and "the price was not confirmed" in nobody.err
    sandbox.clear_requests()
    alone = ("--to", "openai", "--model", "gpt-4.1-mini", "--max-cost", "5", *ASKED)
    moved = cli("migrate", run, *alone, "-o", "report.html", "--gate", "--json")
    assert moved.code == 0, moved.err
    fits("migrate", moved.out)
    assert moved.json["moved"][0]["parts"][0]["parity"] == "holds"
    assert "✓ holds" in (tmp_path / "report.html").read_text()
    asked = [e for e in sandbox.requests("openai") if e["path"].endswith("/chat/completions")]
    assert len(asked) == 30, "the recorded answers of the old model are not paid again"
    again = cli("migrate", run, *alone)
    assert again.code == 0 and "parity holds on all prompts" in again.out
    posts = [e for e in sandbox.requests("openai") if (e["method"], e["path"][-5:]) == ("POST", "/jobs")]
    assert len(posts) == 1


def test_a_whole_account_moves_by_a_plan(cli: Cli, run: str, tmp_path: Path) -> None:
    wrong = cli("migrate", "--all", "--to", "openai")
    assert wrong.code == 2 and "--plan" in wrong.err
    everything = ("migrate", "--all", "--plan", "plan.yaml", "--to", "openai,fireworks")
    unused = cli(*everything, "--rate", "fireworks:dpo=1")
    assert unused.code == 2 and not (tmp_path / "plan.yaml").exists(), "a rate that changes no price"
    written = cli(*everything, "--model", "openai=gpt-4.1-mini")
    assert written.code == 0 and "1 run, 1 of which can be migrated" in written.err, written.err
    assert cli(*everything).code == 2, "what a person may have edited is not overwritten"
    plan = (tmp_path / "plan.yaml").read_text()
    assert "gpt-4.1-mini" in plan and f"run: {run}" in plan and "# fireworks: qwen3.5-9b" in plan
    moved = plan.replace("to: fireworks", "to: openai").replace("model: qwen3.5-9b", "model: gpt-4.1-mini")
    (tmp_path / "plan.yaml").write_text(moved)
    assert cli("migrate", "--plan", "plan.yaml", "--dry-run", "--rate", "openai:dpo=1").code == 2
    dry = cli("migrate", "--plan", "plan.yaml", "--dry-run", "--rate", "openai:sft=1")
    assert dry.code == 0 and "at most $" in dry.err and run in dry.out and run not in dry.err
    dry = cli("migrate", "--plan", "plan.yaml", "--dry-run", "--json")
    fits("migrate", dry.out)
    assert [(one["run_id"], one["proposal"]["targets"][0]["provider"]) for one in dry.json] == [
        (run, "openai")
    ]
    done = cli("migrate", "--plan", "plan.yaml", "--yes", "--json", *ASKED)
    assert done.code == 0, done.err
    fits("migrate", done.out)
    [one] = done.json
    assert one["parity"] and Path(tmp_path / one["report"]).is_file()
