"""What is proposed for a spec, by the published rules it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrate import Orchestrator
from orchestrate.runs.sweep.suggestions import Suggestion
from orchestrate.settings import config
from orchestrate.spec import JobSpec


def rows(path: Path, n: int, words: int = 8) -> str:
    with path.open("w") as out:
        for i in range(n):
            answer = " ".join(f"word{i % 97}{k}" for k in range(words))
            said = [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": said}) + "\n")
    return str(path)


def suggested(tmp_path: Path, backend: str, **fields: Any) -> Suggestion:
    settings = config.load(env={"ORCHESTRATE_HOME": str(tmp_path / "home")}, cwd=tmp_path)
    values = {"train": rows(tmp_path / "t.jsonl", fields.pop("rows", 40), fields.pop("words", 8))} | fields
    with Orchestrator(settings) as ft:
        [found] = ft.suggest(JobSpec.parse(values), backend)
    return found


@pytest.mark.parametrize(
    ("model", "adapter", "rate"),
    [  # get_lr of tinker-cookbook (2026-08) by hand: 5e-5 x 10 x (2000 / hidden size) ** power of the family
        ("qwen3-8b", "lora", 4.7e-4),
        ("llama-3.1-8b", "lora", 2.9e-4),
        ("llama-3.3-70b", "lora", 1.7e-4),
        ("gemma-4-31b", "lora", 1e-4),  # not calibrated there: QLoRA's
    ],
)
def test_the_rate_is_that_of_the_published_rule(
    tmp_path: Path, model: str, adapter: str, rate: float
) -> None:
    found = suggested(tmp_path, "together", model=model, adapter=adapter)
    assert found.values["learning_rate"] == rate
    low, _, high = found.choices["learning_rate"]
    assert low < rate < high and high / low == pytest.approx(9, rel=0.05)


def test_full_tuning_gets_a_tenth(tmp_path: Path) -> None:
    lora, full = (
        suggested(tmp_path, "local", model="Qwen/Qwen3-8B", adapter=adapter) for adapter in ("lora", "full")
    )
    assert full.values["learning_rate"] == pytest.approx(lora.values["learning_rate"] / 10)
    assert not {"adapter.r", "adapter.alpha"} & full.values.keys()


@pytest.mark.slow
def test_the_rank_holds_the_trained_tokens(tmp_path: Path) -> None:
    """On a model so small that many words exceed it."""
    tiny = str(Path(__file__).parents[4] / "src" / "orchestrate" / "bundled" / "tiny-chat")
    few, many = (suggested(tmp_path, "local", model=tiny, rows=400, words=n) for n in (8, 400))
    assert few.values["adapter.r"] == 16 < many.values["adapter.r"]
    for one in (few, many):
        assert one.values["adapter.alpha"] == 2 * one.values["adapter.r"]


def test_a_small_file_gets_small_batches(tmp_path: Path) -> None:
    batches = [suggested(tmp_path, "together", model="qwen3-8b", rows=n).values for n in (50, 600)]
    assert [b["batch_size"] for b in batches] == [4, 16]
    assert [b["epochs"] for b in batches] == [3, 3]


def test_what_a_host_decides_itself_is_not_proposed(tmp_path: Path) -> None:
    found = suggested(tmp_path, "openai", model="gpt-4.1-mini")
    assert found.values.keys() == {"epochs", "batch_size"}
    assert {text.partition(":")[0] for text in found.left_out} >= {"adapter.r", "learning_rate"}
