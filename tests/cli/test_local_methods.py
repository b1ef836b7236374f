"""Preferences and rewards on this machine, by the command: check, plan, quote, submit, and what it then
shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Cli
from tests.paths import BUNDLED
from tests.unit.local.sessions import EXACT, answers, pairs, prompts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def write(folder: Path, method: dict[str, Any], **more: Any) -> None:
    """YAML is a superset of JSON."""
    options = {"threads": 1, **more.pop("options", {})}
    spec = {
        "model": {"local": str(BUNDLED / "tiny-chat")},
        "train": "train.jsonl",
        "method": method,
        "adapter": "qlora",
        "batch_size": 8,
        "learning_rate": 3e-3,
        "provider_options": {"local": options},
    }
    (folder / "finetune.yaml").write_text(json.dumps(spec | more))


def test_reinforcement_from_check_to_metrics(cli: Cli, tmp_path: Path) -> None:
    prompts(tmp_path / "train.jsonl", range(10, 42))
    prompts(tmp_path / "valid.jsonl", range(60, 68))
    source = "def grade(sample, item): return sample['output_text'].strip() == item['answer']"
    method = {
        "type": "rft",
        "grader": {
            "type": "multi",
            "graders": {"exact": EXACT, "code": {"type": "python", "source": source}},
            "calculate_output": "0.5 * exact + 0.5 * code",
        },
        "samples_per_prompt": 4,
        "kl_beta": 0.01,
    }
    given: dict[str, Any] = {"epochs": 3, "validation": "valid.jsonl", "schedule": "constant"}
    write(tmp_path, method, **given)
    refused = cli("check", "--provider", "local")
    assert refused.code == 1 and "--allow-grader-code" in refused.out.replace("\n", " ")
    assert cli("submit", "--provider", "local", "--yes").code != 0
    assert not list(tmp_path.rglob("job.json"))

    write(tmp_path, method, options={"max_new_tokens": 8}, **given)
    checked = cli("--allow-grader-code", "check", "--provider", "local")
    assert checked.code == 0, checked.out
    assert "method.kl_beta" in cli("plan", "--provider", "local", "--all").out
    allowed = {"ORCHESTRATE_ALLOW_GRADER_CODE": "1"}
    assert "tokens are sampled per prompt and epoch" in " ".join(
        cli("quote", "--provider", "local", **allowed).out.split()
    )
    done = cli("--allow-grader-code", "submit", "--provider", "local", "--yes", "--watch")
    assert done.code == 0, done.err
    assert "the grader's code is" in " ".join(cli("events", "last").out.split())
    assert "validation reward" in done.err
    points = cli("metrics", "last", "--json").json
    rewards = [p["values"]["train_reward"] for p in points]
    assert len(rewards) == 12 and sum(rewards[-4:]) / 4 > sum(rewards[:2]) / 2 + 0.2, rewards
    compared = cli("compare", "last", "--format", "json").json["runs"][0]
    assert compared["reward"] == points[-1]["values"]["valid_reward"]
    shown = cli("metrics", "last").out
    for name in ("train_reward", "valid_reward", "train_kl"):
        assert name in shown


def test_the_losses_of_preferences(cli: Cli, tmp_path: Path) -> None:
    train = pairs(tmp_path / "train.jsonl", 24)
    train.write_text(train.read_text().replace('"preferred"', '"chosen"'))
    for method in (
        {"type": "dpo", "rpo_alpha": 0.5},
        {"type": "dpo", "simpo_gamma": 0.5, "beta": 2.0},
        {"type": "dpo", "loss": "orpo", "beta": 0.2},
    ):
        write(tmp_path, method, epochs=2)
        done = cli("submit", "--provider", "local", "--yes", "--watch")
        assert done.code == 0, done.err
        points = cli("metrics", "last", "--json").json
        margin = [p["values"]["train_reward_margin"] for p in points]
        assert len(margin) == 6 and margin[-1] > margin[0], (method, margin)


def test_kto_from_pairs_to_an_evaluation(cli: Cli, tmp_path: Path) -> None:
    both = pairs(tmp_path / "both.jsonl", 24)
    both.write_text(both.read_text().replace('"preferred"', '"chosen"'))
    for name, above in (("valid", 100), ("test", 200)):
        answers(tmp_path / f"{name}.jsonl", 9, above)
    kto = {"type": "dpo", "loss": "kto", "desirable_weight": 1.2}
    write(tmp_path, kto, epochs=3, train="both.jsonl", validation="valid.jsonl", test="test.jsonl")
    refused = cli("check", "--provider", "local")
    assert refused.code == 1 and "--to unpaired" in " ".join(refused.out.split())

    made = cli("data", "convert", "both.jsonl", "--to", "unpaired", "-o", "train.jsonl", "--json").json
    assert (made["rows"], made["written"], made["left_out"]) == (24, 48, 0)
    shown = cli("data", "inspect", "train.jsonl", "--json").json
    assert shown["labels"] == {"desirable": 24, "undesirable": 24}
    tiny = str(BUNDLED / "tiny-chat")
    sides = cli("data", "preview", "train.jsonl", "--model", tiny, "--rows", "2", "--json").json["rows"]
    assert [row["side"] for row in sides[:2]] == ["desirable", "undesirable"]
    assert all(row["trained"] > 0 for row in sides)

    models = {"openai": "gpt-4.1-mini", "together": "qwen3.5-9b", "fireworks": "qwen3.5-9b", "local": tiny}
    write(tmp_path, kto, epochs=3, validation="valid.jsonl", test="test.jsonl", model=models)
    plan = cli("plan", "--provider", "openai,together,fireworks,local", "--json").out
    advice = "The closest option is DPO on preference pairs (loss: dpo). Local training supports KTO"
    assert plan.count(advice) == 3
    quoted = " ".join(cli("quote", "--provider", "local").out.split())
    assert "to estimate the divergence" in quoted
    done = cli("submit", "--provider", "local", "--yes", "--watch")
    assert done.code == 0, done.err
    points = cli("metrics", "last", "--json").json
    margins = [p["values"]["train_reward_margin"] for p in points if "train_reward_margin" in p["values"]]
    assert margins[-1] > margins[0]
    assert {"train_kl", "valid_kl", "valid_loss"} <= points[-1]["values"].keys()
    scored = cli("eval", "last", "--json")
    assert scored.code == 0, scored.err
    assert scored.json["measures"][0]["score"]["n"] == 6, "the desirable rows"
    assert cli("compare", "last", "--format", "md").code == 0
