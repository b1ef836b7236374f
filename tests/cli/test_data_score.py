"""orchestrate data score and data select: losses of a model on this machine, and a judge's points."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.chat_host import chat_host
from tests.cli.conftest import Cli
from tests.cli.test_data_judge import RUBRIC, judges, row
from tests.paths import BUNDLED, TINY

pytestmark = pytest.mark.slow


def test_losses_are_those_of_transformers(cli: Cli, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = (BUNDLED / "orders" / "train.jsonl").read_text().splitlines()[:6]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    first = cli("data", "score", "rows.jsonl", "--json")
    assert first.code == 0 and "loss" not in first.json["signals"], first.err
    done = cli("data", "score", "rows.jsonl", "--model", "tiny-chat", "--json")
    assert done.code == 0 and done.json["signals"]["loss"] == 6, done.err
    head, *told = [json.loads(line) for line in (tmp_path / "rows.scores.jsonl").read_text().splitlines()]
    assert head["model"] == "tiny-chat" and [one["row"] for one in told] == list(range(1, 7))
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    for line, found in zip(rows, told, strict=True):
        messages = json.loads(line)["messages"]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        prompt = tokenizer.apply_chat_template(
            messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        ids = ids[: len(prompt) + found["tokens"]]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, :-1].float()
        nats = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        learnt = nats[len(prompt) - 1 :]
        assert len(learnt) == found["tokens"] > 0
        assert found["loss"] == pytest.approx(float(learnt.mean()), rel=1e-2)
        assert found["spread"] == pytest.approx(float(learnt.std(unbiased=False)), rel=1e-2)
        alone = torch.tensor([[ids[0], *ids[len(prompt) :]]])
        with torch.inference_mode():
            logits = model(alone).logits[0, :-1].float()
        without = torch.nn.functional.cross_entropy(logits, alone[0, 1:])
        assert found["prompt"] == pytest.approx(float(learnt.mean() / without), rel=1e-2)
    kept = cli("data", "select", "rows.jsonl", "--by", "loss", "--keep", "0.5")
    assert kept.code == 0, kept.err
    best = sorted(range(6), key=lambda n: told[n]["loss"])[:3]
    assert (tmp_path / "rows.selected.jsonl").read_text().splitlines() == [rows[n] for n in sorted(best)]
    assert cli("data", "select", "rows.jsonl", "--by", "loss").code == 2  # nothing is overwritten


def test_a_judge_is_priced_first_and_paid_once(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    lines = [row(f"q{n}", "x" * (1 + n % 5)) for n in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:5], "{broken", "", *lines[5:]]) + "\n")
    with chat_host() as host:
        host.writes = judges
        asked = [
            "data",
            "score",
            "rows.jsonl",
            "--judge",
            f"{host.url}=gpt-4.1-mini",
            "--rubric",
            "rubric.yaml",
        ]
        unknown = cli(*asked, "--yes")
        assert unknown.code == 2 and "not been calibrated against" in unknown.err and not host.bodies
        unasked = cli(*asked, "--uncalibrated")
        assert unasked.code == 2 and not host.bodies, unasked.err  # nobody agreed to the price
        done = cli(*asked, "--uncalibrated", "--yes", "--json")
        assert done.code == 0 and len(host.bodies) == 10, done.err
        assert "10 requests to send; about $" in done.err.replace("11 rows: ", "")
        again = cli(*asked, "--uncalibrated", "--yes")
        assert again.code == 0 and len(host.bodies) == 10
    _, *told = [json.loads(line) for line in (tmp_path / "rows.scores.jsonl").read_text().splitlines()]
    assert {one["row"]: one["judge"] for one in told} == {
        n: (length % 5) / 4 for length, n in enumerate([1, 2, 3, 4, 5, 8, 9, 10, 11, 12])
    }
    kept = cli("data", "select", "rows.jsonl", "--by", "judge", "--keep", "0.4", "--json")
    assert kept.code == 0 and kept.json["kept"] == 4 and kept.json["errors"] == 2, kept.err
    assert (tmp_path / "rows.selected.jsonl").read_text().splitlines() == [lines[n] for n in (3, 4, 8, 9)]
