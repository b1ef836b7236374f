"""What a job needs of a machine: the plan beside measured peaks, and how much the engine takes at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrate.local import model as engines
from orchestrate.local.encoding.encoded import epoch_batches, micro_batches
from orchestrate.local.job import AdapterSettings, Hyper, Preferences
from orchestrate.local.plan import ModelShape, memory_fit
from orchestrate.local.plan.memory import Setup, kv_cache_bytes, plan

SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "intermediate_size": 704,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
}
QWEN3 = {**SMALL, "model_type": "qwen3", "head_dim": 64, "pad_token_id": 0}
MIXTRAL = {**SMALL, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
BODY: dict[str, Any] = {"method": {"type": "sft"}, "adapter": {"type": "qlora", "r": 16}}
lengths = st.lists(st.integers(2, 3000), min_size=1, max_size=60)


HERE = engines.precision(None, "cpu").name
"""Measured in 16 bits where the CPU is made for them, and a few in 32 there; all in 32 bits elsewhere, where
16 take minutes."""
CASES = [
    (SMALL, Setup(rows=4, longest=128)),
    (SMALL, Setup(adapter="full", rows=2, longest=128, optimizer="paged_adamw_8bit")),
    (SMALL, Setup(longest=600, gradient_checkpointing=True)),
    (SMALL, Setup(rows=2, longest=256, packing=True)),
    (SMALL, Setup(rows=4, longest=128, dora=True)),
    (SMALL, Setup(adapter="lora", rows=4, longest=128, pairs=True)),
    (SMALL, Setup(rows=4, longest=128, judged=True)),
    (SMALL, Setup(adapter="lora", rows=2, longest=128, dropout=True)),
    ({**SMALL, "tie_word_embeddings": False}, Setup(adapter="full", longest=256)),
    (QWEN3, Setup(rows=2, longest=256)),
    (MIXTRAL, Setup(rows=2, longest=256)),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "setup", "precision"),
    [(*case, HERE) for case in CASES] + [(*case, "fp32") for case in CASES[:3] if HERE != "fp32"],
)
def test_the_plan_is_within_a_tenth_of_the_measured_peak(
    config: dict[str, Any], setup: Setup, precision: str
) -> None:
    import torch

    from orchestrate.local.speed.bench import memory

    setup = msgspec.structs.replace(setup, precision=precision)
    found = memory(config, setup, torch.device("cpu"))
    parts = plan(ModelShape.of(config), setup, device="cpu", available_bytes=1).parts
    assert parts["weights"] == pytest.approx(found["weights"], rel=0.02)
    assert sum(parts.values()) - parts["overhead"] == pytest.approx(sum(found.values()), rel=0.1)


def test_thirty_billion_in_a_mixture_fit_a_card_of_24_gb() -> None:
    """Qwen3-30B-A3B's published configuration."""
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    }
    shape = ModelShape.of(config)
    assert (round(shape.parameters / 1e9, 1), round(shape.active_parameters / 1e9, 1)) == (30.5, 3.4)
    card = 24 * 10**9

    def fits(**setup: Any) -> bool | None:
        asked = Setup(longest=2048, gradient_checkpointing=True, **setup)
        return plan(shape, asked, device="cuda", available_bytes=card).fits

    assert fits() and not fits(adapter="lora")
    few = AdapterSettings(type="qlora", r=4, target_parameters=("mlp.experts.down_proj",))
    assert fits(lora=few) and not fits(lora=msgspec.structs.replace(few, r=64))


def test_a_cache_of_keys_and_values_is_what_transformers_holds() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SMALL)
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        cache: Any = model(input_ids=torch.zeros(3, 40, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_bytes(ModelShape.of(SMALL), 3, 40) == held


def test_answers_that_are_drawn_are_planned_for() -> None:
    """Many long answers at once can need more than the training of a few."""
    shape = ModelShape.of(SMALL)
    learns = plan(shape, Setup(longest=2000), device="cuda", available_bytes=1)
    draws = plan(shape, Setup(longest=2000, drawn=256), device="cuda", available_bytes=1)
    assert learns.peak != "sampling answers"
    assert draws.peak == "sampling answers" and draws.total_bytes > learns.total_bytes


@given(lengths, st.integers(1, 20), st.integers(1, 8))
def test_no_pass_of_an_epoch_is_larger_than_the_planned_one(
    rows: list[int], batch: int, micro_batch: int
) -> None:
    most_rows = min(batch, micro_batch)
    tokens, found = memory_fit.fit(
        ModelShape.of(SMALL), Setup(), rows, most_rows=most_rows, device="cpu", available_bytes=1 << 40
    )
    array = np.array(rows)
    passes = [
        p for b in epoch_batches(array, batch, 0, 0) for p in micro_batches(b, array, tokens, most_rows)
    ]
    assert max(len(p) * max(rows[i] for i in p) for p in passes) <= max(tokens, max(rows))
    assert found.rows * found.longest <= max(tokens, max(rows))
    assert found.fits


@pytest.mark.parametrize("others", [{1365: 64}, {10: 5000, 1300: 1}, {300: 64, 2048: 2}])
def test_rows_beside_longer_or_more_ones_need_what_they_need_alone(others: dict[int, int]) -> None:
    """On a CPU rows of 1,000 tokens keep more for each token than longer and shorter ones."""
    shape, mine = ModelShape.like(1e9), {1000: 64}
    alone, beside = (
        memory_fit.fit(shape, Setup(), rows, most_rows=4096, device="cpu", available_bytes=1 << 40)[1]
        for rows in (mine, mine | others)
    )
    assert (beside.rows, beside.longest) == (4, 1000)
    assert beside.total_bytes == alone.total_bytes


@given(lengths, st.integers(20, 34))
def test_less_goes_at_once_until_it_fits(rows: list[int], bits: int) -> None:
    shape, room = ModelShape.like(1e9), 1 << bits
    tokens, found = memory_fit.fit(shape, Setup(), rows, most_rows=16, device="cuda", available_bytes=room)
    assert found.fits == (found.total_bytes <= room)
    assert found.fits or found.rows == 1 or tokens == max(rows)


def test_pairs_count_twice() -> None:
    shape = ModelShape.of(SMALL)
    found = [
        memory_fit.fit(shape, Setup(pairs=p), [100] * 8, most_rows=8, device="cpu", available_bytes=1 << 40)[
            1
        ]
        for p in (False, True)
    ]
    assert [f.rows for f in found] == [8, 16]


def test_a_job_is_planned_from_a_configuration_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    found = memory_fit.of_job(str(tmp_path), BODY, gpu_bytes=24 << 30)
    assert found is not None and found.fits and found.device == "cuda"
    assert found.longest == memory_fit.LONGEST and any(
        "tokens. To count them: orchestrate check" in n for n in found.notes
    )
    told = memory_fit.of_job(str(tmp_path), {**BODY, "hyper": {"max_seq_length": 700}}, longest=90)
    assert told is not None and told.longest == 90 and told.notes == ()
    (tmp_path / "config.json").write_text("{}")
    assert memory_fit.of_job(str(tmp_path), BODY) is None
    assert memory_fit.of_job("nobody/has-this", BODY) is None
    sized = memory_fit.of_job("nobody/has-this-8B", BODY, billions=8.0, gpu_bytes=24 << 30)
    assert sized is not None and any("a typical 8.0B architecture" in n for n in sized.notes)


def test_the_engine_s_settings_reach_the_plan() -> None:
    shape = ModelShape.of(SMALL)
    hyper = Hyper(early_stopping_patience=2, gradient_checkpointing=True, optimizer="paged_adamw_8bit")
    adapter = AdapterSettings(type="lora", r=4, dora=True, dropout=0.1)
    setup = memory_fit.setup_of(Preferences(), adapter, hyper, precision="fp32", threads=3)
    assert setup == Setup(
        adapter="lora",
        precision="fp32",
        rank=4,
        dora=True,
        dropout=True,
        threads=3,
        pairs=True,
        optimizer="paged_adamw_8bit",
        gradient_checkpointing=True,
        copies=1,
    )
    without = msgspec.structs.replace(setup, copies=0)
    adapters = [plan(shape, s, device="cpu", available_bytes=1).parts["adapter"] for s in (setup, without)]
    assert adapters[0] == 2 * adapters[1]


def test_a_method_that_draws_answers_is_planned_with_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    method = {"type": "rft", "samples_per_prompt": 4}
    hyper = {"max_new_tokens": 400, "batch_size": 8}

    def planned(**more: Any) -> Any:
        found = memory_fit.of_job(str(tmp_path), {**BODY, **more}, longest=200, gpu_bytes=24 << 30)
        assert found is not None
        return found

    sft, rft = planned(hyper=hyper), planned(method=method, hyper=hyper)
    assert (sft.longest, sft.rows) == (200, 8)
    assert (rft.longest, rft.rows) == (600, memory_fit.DEFAULT_TOKENS["cuda"] // 600)
    assert rft.total_bytes > sft.total_bytes
    assert planned(method=method, hyper={**hyper, "max_seq_length": 500}).longest == 500
    with_start = planned(method={**method, "kl_beta": 0.1}, hyper=hyper)
    assert with_start.parts["adapter"] == 2 * rft.parts["adapter"]


def test_unpaired_answers_are_single_rows_whose_output_layer_keeps_as_much_as_that_of_pairs() -> None:
    setup = memory_fit.setup_of(
        Preferences(loss="kto"), AdapterSettings(type="lora", r=8), Hyper(), precision="bf16"
    )
    assert (setup.pairs, setup.judged) == (False, True)
    shape = ModelShape.like(1e9)
    both = [
        plan(shape, msgspec.structs.replace(setup, rows=8, longest=512, pairs=p, judged=not p), device="cpu")
        for p in (False, True)
    ]
    assert both[0].total_bytes == both[1].total_bytes
