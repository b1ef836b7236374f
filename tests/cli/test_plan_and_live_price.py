"""`plan --strict`, `submit --strict`, and the host's own price between the upload and the create."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import Cli

from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.sandbox.server import Sandbox

CREATE = "/v1/fine-tunes"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(train=False, speed=30, waits=Durations(file=0.0)) as hosts:
        yield hosts


@pytest.fixture
def project(tmp_path: Path) -> Path:
    rows = (
        [{"role": "user", "content": f"item {n}?"}, {"role": "assistant", "content": f"{tmp_path.name} {n}"}]
        for n in range(12)
    )
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    (tmp_path / "finetune.yaml").write_text(
        "model: {openai: gpt-4o-mini, together: qwen3.5-9b, fireworks: qwen3-8b, local: tiny-chat}\n"
        "train: train.jsonl\nepochs: 2\n"
    )
    return tmp_path


def creates(sandbox: Sandbox) -> int:
    return sum(sent["path"] == CREATE for sent in sandbox.requests("together", method="POST"))


def test_a_plan_shows_each_outcome_with_its_rule(cli: Cli, project: Path) -> None:
    asked = ("--set", "schedule=cosine", "--set", "batch_size=max")
    shown = cli("plan", "--provider", "openai", *asked, COLUMNS="200")
    assert shown.code == 2
    lines = shown.out.splitlines()

    def row(name: str) -> str:
        return next(line for line in lines if line.startswith(f"{name} "))

    assert row("batch_size").split() == ["batch_size", "max", "~", "auto"]
    assert row("schedule").split() == ["schedule", "cosine", "refused"]
    assert "applied unchanged on all backends: train, epochs" in shown.err
    assert "schedule on openai: refused; OpenAI sets the learning rate schedule automatically" in lines
    assert "batch_size on openai: OpenAI has no setting for the largest batch" in shown.out
    assert lines[-1] == "1 refused: schedule on openai"
    every = cli("plan", "--provider", "openai", *asked, "--all", COLUMNS="200").out
    assert "(its own)" in next(line for line in every.splitlines() if line.startswith("seed "))
    assert "epochs on openai: sent as method.supervised.hyperparameters.n_epochs" in every


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_plan_of_all_backends_fits_a_screen(cli: Cli, project: Path, width: int) -> None:
    """No name of a setting is broken, no number cut, no line wider than the terminal."""
    settings = ("adapter.r=16", "learning_rate=0.00012345", "schedule=cosine", "suffix=orders-of-lamps")
    asked = [word for setting in settings for word in ("--set", setting)]
    shown = cli("plan", *asked, COLUMNS=str(width))
    lines = shown.out.splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= width
    table = lines[lines.index("") + 1 :]
    rate = next(line for line in table if line.startswith("learning_rate "))
    assert rate.count("0.00012345") >= 3
    assert lines[-1].endswith("schedule on openai") or "refused: " in "".join(lines[-3:])


@pytest.mark.parametrize(
    ("backend", "setting", "code"),
    [
        ("openai", "adapter.type=lora", 2),
        ("together", "adapter.type=qlora", 2),
        ("fireworks", "adapter.type=qlora", 2),
        ("local", "adapter.type=qlora", 0),
        ("openai", "batch_size=max", 2),  # OpenAI chooses by file size
        ("together", "schedule=constant", 0),  # mapped, and it means the same
        ("fireworks", "provider_options.fireworks.unheard_of=1", 2),  # nothing that is published names it
        ("fireworks", "provider_options.fireworks.region=US_IOWA_1", 0),
    ],
)
def test_strict_refuses_what_is_mapped_but_not_exactly(
    cli: Cli, project: Path, backend: str, setting: str, code: int
) -> None:
    asked = ("plan", "--provider", backend, "--set", setting)
    assert cli(*asked).code == 0
    assert cli(*asked, "--strict").code == code


@pytest.mark.slow
def test_a_strict_submit_sends_nothing(cli: Cli, project: Path, sandbox: Sandbox) -> None:
    sandbox.clear_requests()
    asked = ("submit", "--provider", "together", "--yes", "--set", "adapter.type=qlora")
    refused = cli(*asked, "--strict", **sandbox.env)
    assert refused.code == 2 and "adapter.type" in refused.err
    assert (sandbox.count(), cli("runs", "--sandbox", "--json").json) == (0, [])
    rows = [json.loads(line) for line in (project / "train.jsonl").read_text().splitlines()]
    beside = [row | {"article": f"What the answer {n} is about"} for n, row in enumerate(rows)]
    (project / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in beside))
    done = cli(*asked, **sandbox.env)
    assert done.code == 0 and creates(sandbox) == 1
    # Whoever did not check first is told before the rows are sent.
    told, _, after = done.err.partition("together: run ")
    assert "column article is not used" in told and "orchestrate check" in told and after


def test_an_account_that_may_not_spend_so_much_creates_nothing(
    cli: Cli, project: Path, sandbox: Sandbox
) -> None:
    sandbox.clear_requests()
    sandbox.set_credit(3)
    refused = cli("submit", "--provider", "together", "--yes", **sandbox.env)
    assert refused.code == 4 and "$4.00, more than the account may spend ($3.00)" in refused.err
    [run] = cli("runs", "--sandbox", "--json").json
    assert (run["phase"], creates(sandbox)) == ("refused", 0)
    sandbox.set_credit(1000)
    assert cli("submit", "--provider", "together", "--yes", **sandbox.env).code == 0
    assert creates(sandbox) == 1


def test_a_host_that_asks_more_than_the_limit_creates_nothing(
    cli: Cli, project: Path, sandbox: Sandbox
) -> None:
    """The user's rates say $1, so that the quote is under the limit; the host says $4."""
    (project / "home").mkdir()
    (project / "home" / "rates.yaml").write_text(
        "provider: together\nrates:\n"
        "  - {method: minimum, usd_per_job: 1, start: 2026-01-01, confidence: quoted, source: a hope}\n"
    )
    sandbox.clear_requests()
    refused = cli("submit", "--provider", "together", "--max-cost", "2", **sandbox.env)
    assert refused.code == 6 and "the host's own estimate ($4.00) exceeds --max-cost ($2.00)" in refused.err
    assert creates(sandbox) == 0
    taken = cli("submit", "--provider", "together", "--max-cost", "5", "--json", **sandbox.env)
    assert taken.code == 0, taken.err
    told = cli("events", taken.json[0]["id"], "--offline", "--json").json
    assert [event["data"] for event in told if event["type"] == "live_price"] == [{"usd": "4.0"}]


LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@pytest.mark.slow
def test_a_machine_that_is_not_here_can_be_planned_for(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(LLAMA_8B))
    (tmp_path / "finetune.yaml").write_text("model: ./base\ntrain: train.jsonl\nmax_seq_length: 4096\n")
    plan = ("plan", "-p", "local")
    small = json.loads(cli(*plan, "--gpu-memory", "24", "--json").out)[0]["memory"]
    large = json.loads(cli(*plan, "--gpu-memory", "80", "--json").out)[0]["memory"]
    assert small["total_bytes"] == sum(small["parts"].values())
    assert (small["device"], small["available_bytes"]) == ("cuda", 24 << 30)
    assert (small["rows"], small["fits"], large["fits"]) == (1, False, True)
    assert large["rows"] > 1
    shown = cli(*plan, "--gpu-memory", "24")
    assert "does not fit in the available 24" in shown.out
    assert "gradient_checkpointing=true" in " ".join(shown.err.split())
    (tmp_path / "orchestrate.toml").write_text("[local]\ngpu_memory_gib = 24\n")
    assert json.loads(cli(*plan, "--json").out)[0]["memory"] == small
    for size, gib in (("24GiB", 24), ("24 g", 24), ("80GB", 80e9 / 2**30)):
        named = cli(*plan, "--gpu-memory", size, "--json").json[0]["memory"]
        assert named["available_bytes"] == int(gib * 2**30)
    assert "must be a size, got" in cli(*plan, "--gpu-memory", "24 apples").err
    # The rows are shorter than the spec's longest: that is what is planned for.
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "word " * 300}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    rows = cli(*plan, "--gpu-memory", "24", "--json").json[0]["memory"]
    assert 300 <= rows["longest"] < 1000 < small["longest"]
    refused = cli(*plan, "--gpu-memory", "0")
    assert refused.code == 3 and "gpu_memory_gib" in refused.err


@pytest.mark.slow
def test_a_backend_that_asks_too_much_does_not_hide_the_runs_made_before_it(
    cli: Cli, project: Path, sandbox: Sandbox
) -> None:
    """Nobody would know of their jobs, submit again, and pay twice."""
    (project / "home").mkdir()
    (project / "home" / "rates.yaml").write_text(
        "provider: together\nrates:\n"
        "  - {method: minimum, usd_per_job: 1, start: 2026-01-01, confidence: quoted, source: a hope}\n"
    )
    asked = ("submit", "--provider", "openai,together", "--max-cost", "2")
    done = cli(*asked, "--json", "--watch", **sandbox.env)
    assert done.code == 6, done.err
    assert [(run["provider"], run["status"]) for run in done.json] == [("openai", "succeeded")]
    [told] = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    assert told["error"] == "OverBudget" and told["message"].startswith("together: ")
    again = cli(*asked, "--again", **sandbox.env)
    assert again.code == 6 and len(again.out.split()) == 1


def test_a_budget_that_holds_for_each_backend_but_not_for_all_sends_nothing(cli: Cli, project: Path) -> None:
    (project / "orchestrate.toml").write_text("[hosts.box]\ntype = 'local'\n")
    assert cli("keys", "trust", "--project").code == 0
    high_usd = float(cli("quote", "--provider", "box", "--model", "tiny-chat", "--json").json[0]["high_usd"])
    asked = ("submit", "--provider", "local,box", "--model", "tiny-chat", "--yes", "--json")
    done = cli(*asked, ORCHESTRATE_BUDGET_USD=f"{1.5 * high_usd:.9f}")
    assert done.code == 6 and done.out == "", done.err
    told = json.loads(done.err.splitlines()[-1])["message"]
    shown = [float(amount) for amount in re.findall(r"\$(\d+\.\d+)", told)]
    assert told.startswith("box: ") and shown[0] > shown[1] > 0, told
    assert cli("runs", "--sandbox", "--json").json == []


@pytest.mark.parametrize("backend", ["together", "fireworks", "local"])
def test_of_a_model_that_a_backend_lacks_nothing_else_is_refused(
    cli: Cli, project: Path, backend: str
) -> None:
    asked = ("--provider", backend, "--model", "gpt-4.1-mini", "--json")
    [refused] = [p for p in cli("check", *asked).json["problems"] if p["severity"] == "error"]
    assert refused["field"] == "model" and "model = 'gpt-4.1-mini'" in refused["message"]
    [told] = cli("plan", *asked).json
    assert [s["name"] for s in told["settings"] if s["outcome"] == "refused"] == ["model"]


def test_a_second_machine_is_checked_by_this_one_s_rules_under_its_own_name(cli: Cli, project: Path) -> None:
    (project / "orchestrate.toml").write_text("[hosts.box]\ntype = 'local'\n")
    assert cli("keys", "trust", "--project").code == 0
    asked = ("--provider", "box", "--model", "tiny-chat", "--json")
    assert cli("check", *asked).code == 0
    assert cli("check", "--model", "tiny-chat").code == 1  # the hosts lack the model; box does not fail it
    options = ("--set", "provider_options.box.threads=1", "--set", "provider_options.local.nan_policy=skip")
    [told] = cli("plan", *asked, *options).json
    assert told["provider"] == "box"
    assert (told["body"]["threads"], told["body"]["hyper"]["nan_policy"]) == (1, "skip")
    (project / "train.jsonl").write_text('{"messages": [{"role": "user", "content": "alone"}]}\n')
    found = cli("check", *asked)
    assert found.code == 1 and {tuple(p.get("providers", ())) for p in found.json["problems"]} == {
        ("box",),
        (),
    }


@pytest.mark.slow
def test_a_refusal_prints_the_lines_that_let_the_spec_run_and_fix_writes_them(
    cli: Cli, project: Path, sandbox: Sandbox
) -> None:
    spec = project / "finetune.yaml"
    spec.write_text(
        spec.read_text() + "# mine\nadapter: {type: lora, r: 16}\nschedule: cosine  # half a wave\n"
    )
    before = spec.read_text()
    refused = cli("submit", "--provider", "openai", "--yes", **sandbox.env)
    lines = ["overrides:", "  openai:", "    schedule: null", "    adapter: {r: null}"]
    assert refused.code == 2 and all(line in refused.err for line in lines)
    assert cli("plan", "--provider", "openai").code == 2
    assert cli("plan", "--provider", "openai", "--fix", "--set", "seed=1").code == 2
    assert spec.read_text() == before
    assert cli("plan", "--provider", "openai", "--fix").code == 0
    assert spec.read_text() == before + "\n".join(lines) + "\n"
    assert cli("submit", "--provider", "openai", "--yes", **sandbox.env).code == 0
    assert cli("plan", "--provider", "together", "--json").json[0]["overrides"] is None
