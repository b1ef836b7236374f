"""The memory plan beside measured peaks, and beside published ones.

    python benchmarks/memory.py              # measures on this CPU, a few minutes on one core
    python benchmarks/memory.py --device cuda
    python benchmarks/memory.py --published  # no torch, at once
    ... --json FILE                          # the figures, for docs/figures.py

Each case trains a random model of the shape for two steps with the engine's own code. Weights, adapter,
gradients and optimizer are counted tensor by tensor; "in work" (activations and logits) is the most that the
allocator held beside them in one forward and backward pass. What the libraries take besides (the plan's
"overhead") is not compared. "Torch's kernels": with the norms and the attention that a GPU gets, on this
CPU, beside the plan for a GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from measured_on import about, write
from msgspec.structs import replace

from orchestrate.local import model
from orchestrate.local.plan import ModelShape
from orchestrate.local.plan.memory import MOST_AT_ONCE, Setup, kv_cache_bytes, plan


class Case(NamedTuple):
    name: str
    config: dict[str, Any]
    setup: Setup
    own_kernels: bool = True


def llama(
    hidden: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": hidden * 11 // 4,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        **more,
    }


SMALL, MIDDLE, WIDE = llama(256, 4, 4, 2, 8192), llama(512, 4, 8, 4, 8192), llama(1024, 4, 16, 4, 8192)
DEEP = llama(512, 8, 8, 8, 8192)
UNTIED = {"tie_word_embeddings": False}
QWEN3 = llama(512, 4, 8, 4, 8192, model_type="qwen3", head_dim=64, pad_token_id=0)
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
QWEN3_MOE = llama(256, 4, 4, 2, 8192, model_type="qwen3_moe", head_dim=64, pad_token_id=0, **MOE)
MIXTRAL = llama(256, 4, 4, 2, 8192, model_type="mixtral", num_local_experts=4, num_experts_per_tok=2)
THRIFTY, EIGHT_BIT = {"gradient_checkpointing": True}, {"optimizer": "paged_adamw_8bit"}
CASES = (
    Case("QLoRA, short rows", MIDDLE, Setup(rows=8, longest=128)),
    Case("QLoRA, 512 tokens", MIDDLE, Setup(rows=2, longest=512)),
    Case("QLoRA, 1024 tokens", SMALL, Setup(rows=2, longest=1024)),
    Case("QLoRA, 8 layers", DEEP, Setup(rows=4, longest=256)),
    Case("QLoRA, checkpointing", DEEP, Setup(rows=4, longest=256, **THRIFTY)),
    Case("QLoRA, checkpointing, long", MIDDLE, Setup(longest=1024, **THRIFTY)),
    Case("QLoRA, hidden 1024", WIDE, Setup(longest=512, rank=64)),
    Case("QLoRA, vocabulary 65536", llama(256, 4, 4, 4, 65536), Setup(rows=8, longest=128)),
    Case("QLoRA, vocabulary 32768", llama(512, 2, 8, 8, 32768), Setup(rows=2, longest=256)),
    Case("QLoRA, a quarter trained", MIDDLE, Setup(rows=4, longest=256, trained=0.25)),
    Case("QLoRA, packed", MIDDLE, Setup(rows=4, longest=256, packing=True)),
    Case("QLoRA, 8-bit AdamW", WIDE, Setup(longest=512, rank=64, **EIGHT_BIT)),
    Case("QLoRA, DoRA", MIDDLE, Setup(rows=4, longest=256, dora=True)),
    Case("QLoRA, DoRA, checkpointing", WIDE, Setup(longest=256, dora=True, **THRIFTY)),
    Case("QLoRA, Qwen3", QWEN3, Setup(rows=4, longest=256)),
    Case("QLoRA, Qwen3 MoE", QWEN3_MOE, Setup(rows=4, longest=128)),
    Case("QLoRA, Mixtral", MIXTRAL, Setup(rows=4, longest=256)),
    Case("LoRA", WIDE, Setup(adapter="lora", longest=640)),
    Case("LoRA, untied", llama(512, 4, 8, 4, 8192, **UNTIED), Setup(adapter="lora", rows=2, longest=256)),
    Case("LoRA, dropout", MIDDLE, Setup(adapter="lora", dropout=True, rows=4, longest=128)),
    Case("LoRA, pairs", MIDDLE, Setup(adapter="lora", pairs=True, rows=4, longest=256)),
    Case(
        "LoRA, pairs, vocabulary 65536",
        llama(256, 2, 4, 4, 65536),
        Setup(adapter="lora", pairs=True, rows=4, longest=256),
    ),
    Case("QLoRA, unpaired", MIDDLE, Setup(judged=True, rows=4, longest=256)),
    Case("full, unpaired", MIDDLE, Setup(adapter="full", judged=True, rows=2, longest=512)),
    Case("full", MIDDLE, Setup(adapter="full", rows=2, longest=512)),
    Case("full, one pass to the step", MIDDLE, Setup(adapter="full", rows=2, longest=512, accumulates=False)),
    Case(
        "full, checkpointing",
        llama(512, 8, 8, 4, 8192),
        Setup(adapter="full", rows=2, longest=512, **THRIFTY),
    ),
    Case("full, few tokens", llama(512, 2, 8, 4, 32768), Setup(adapter="full", longest=128, **THRIFTY)),
    Case("full, untied", llama(512, 2, 8, 4, 16384, **UNTIED), Setup(adapter="full", longest=256)),
    Case("full, 8-bit AdamW", MIDDLE, Setup(adapter="full", rows=2, longest=256, **EIGHT_BIT)),
    Case("full, Qwen3", QWEN3, Setup(adapter="full", rows=2, longest=256)),
    Case("QLoRA, torch's kernels", MIDDLE, Setup(rows=2, longest=512), own_kernels=False),
    Case("QLoRA, checkpointing, torch's", MIDDLE, Setup(longest=1024, **THRIFTY), own_kernels=False),
    Case("LoRA, Qwen3, torch's", QWEN3, Setup(adapter="lora", rows=2, longest=512), own_kernels=False),
)

LLAMA2_7B = llama(4096, 32, 32, 32, 32000, intermediate_size=11008, **UNTIED)
LLAMA2_70B = llama(8192, 80, 64, 8, 32000, intermediate_size=28672, **UNTIED)
LLAMA3_8B = llama(4096, 32, 32, 8, 128256, intermediate_size=14336, **UNTIED)
LLAMA3_70B = llama(8192, 80, 64, 8, 128256, intermediate_size=28672, **UNTIED)

HF_BLOG = "Hugging Face blog, Llama 3.1, 2024-07-23"
LITGPT = "LitGPT resource tables, 2023-10-20, measured on an A100"
FACTORY = "LLaMA-Factory wiki, Performance comparison, 2024-04-15, measured on an A100, whole GB"
UNSLOTH = "Unsloth README, longest contexts, read 2026-11-25"
UNSLOTH_LEAST = 'Unsloth docs, requirements, read 2026-11-25: "the absolute minimum"'
TORCHTUNE = "torchtune README, 2024-09-25, measured on a 4090"
GUIDE = "the rule of thumb: 70B at 4 bits takes about 40 GB and fits one 80 GB card"


class Published(NamedTuple):
    what: str
    gb: float
    """10^9 bytes."""
    config: dict[str, Any]
    setup: Setup
    source: str
    remark: str = ""
    """What makes it another thing than the plan's."""


WEIGHTS = (
    Published("8B in 16 bits", 16, LLAMA3_8B, Setup(adapter="lora"), HF_BLOG),
    Published("70B in 16 bits", 140, LLAMA3_70B, Setup(adapter="lora"), HF_BLOG),
    Published(
        "Llama 2 7B in 16 bits", 13.52, LLAMA2_7B, Setup(adapter="lora"), LITGPT, "answering, with its cache"
    ),
    Published("Llama 2 7B in NF4", 4.26, LLAMA2_7B, Setup(), LITGPT, "answering, with its cache"),
    Published("Llama 2 70B in NF4", 37.21, LLAMA2_70B, Setup(), LITGPT, "answering, with its cache"),
    Published("70B in 4 bits", 40, LLAMA3_70B, Setup(), GUIDE),
    Published(
        "8B in 4 bits", 4, LLAMA3_8B, Setup(), HF_BLOG, "all weights at half a byte; embeddings here at two"
    ),
    Published(
        "70B in 4 bits",
        35,
        LLAMA3_70B,
        Setup(),
        HF_BLOG,
        "all weights at half a byte; embeddings here at two",
    ),
)
CACHES = (
    *(
        (f"8B, {name} tokens", gb, LLAMA3_8B, n)
        for name, gb, n in (("1k", 0.125, 1024), ("128k", 15.62, 128000))
    ),
    *(
        (f"70B, {name} tokens", gb, LLAMA3_70B, n)
        for name, gb, n in (("1k", 0.313, 1024), ("128k", 39.06, 128000))
    ),
)
FULL_LOGITS = "logits of all tokens in 32 bits besides"
TRAINING = (
    *(
        Published(
            f"7B QLoRA r=8, {n} tokens",
            gb,
            LLAMA2_7B,
            Setup(rank=8, longest=n, **THRIFTY),
            FACTORY,
            FULL_LOGITS,
        )
        for n, gb in ((1024, 6), (2048, 7), (4096, 9), (8192, 12))
    ),
    *(
        Published(
            f"7B QLoRA r=8, {n} tokens, Unsloth",
            gb,
            LLAMA2_7B,
            Setup(rank=8, longest=n, **THRIFTY),
            FACTORY,
            "keeps checkpoints in main memory",
        )
        for n, gb in ((1024, 5), (2048, 6), (4096, 7), (8192, 8))
    ),
    Published(
        "7B LoRA r=8, 1304 tokens",
        21.30,
        LLAMA2_7B,
        Setup(adapter="lora", rank=8, longest=1304),
        LITGPT,
        "adapter on 2 of 7 layers",
    ),
    Published(
        "7B QLoRA r=8, 1304 tokens",
        13.84,
        LLAMA2_7B,
        Setup(rank=8, longest=1304),
        LITGPT,
        "adapter on 2 of 7 layers",
    ),
    Published(
        "8B QLoRA r=8, 2 x 2048 tokens",
        7.95,
        LLAMA3_8B,
        Setup(rank=8, rows=2, longest=2048, **THRIFTY),
        TORCHTUNE,
        "compiled, NF4 of its own",
    ),
    Published(
        "8B LoRA r=8, 2 x 2048 tokens",
        17.39,
        LLAMA3_8B,
        Setup(adapter="lora", rank=8, rows=2, longest=2048, **THRIFTY),
        TORCHTUNE,
        "compiled",
    ),
    Published(
        "8B QLoRA",
        6,
        LLAMA3_8B,
        Setup(longest=256, **THRIFTY),
        UNSLOTH_LEAST,
        "settings not told; 256 tokens here",
    ),
    Published(
        "70B QLoRA",
        41,
        LLAMA3_70B,
        Setup(longest=256, **THRIFTY),
        UNSLOTH_LEAST,
        "settings not told; 256 tokens here",
    ),
    Published(
        "70B QLoRA", 48, LLAMA3_70B, Setup(longest=2048, **THRIFTY), HF_BLOG, "an estimate, settings not told"
    ),
    Published(
        "70B LoRA",
        160,
        LLAMA3_70B,
        Setup(adapter="lora", longest=2048, **THRIFTY),
        HF_BLOG,
        "an estimate, settings not told",
    ),
    Published(
        "70B QLoRA r=32, 6916 tokens",
        80,
        LLAMA3_70B,
        Setup(rank=32, longest=6916, **THRIFTY),
        UNSLOTH,
        "what just fits with HF and FA2; " + FULL_LOGITS,
    ),
)


def planned(case: Case, device: str) -> dict[str, int]:
    """By the names that the measurement has."""
    device = device if case.own_kernels else "cuda"
    parts = dict(plan(ModelShape.of(case.config), case.setup, device=device, available_bytes=1).parts)
    parts["in_work"] = parts.pop("activations") + parts.pop("logits")
    del parts["overhead"]
    return parts


def measure(device: str, precision: str, only: str) -> dict[str, dict[str, dict[str, int]]]:
    """What was planned and what was measured, in bytes, for each case."""
    import torch

    from orchestrate.local.speed.bench import memory

    print(f"{'MB: planned / measured':<31}{'weights':>17}{'gradients':>15}{'optimizer':>15}{'in work':>17}"
          f"{'total':>18}{'error':>8}")  # fmt: skip
    told: dict[str, dict[str, dict[str, int]]] = {}
    for case in (c for c in CASES if only in c.name):
        case = case._replace(setup=replace(case.setup, precision=precision))
        plans = planned(case, device)
        # A GPU processes as many logits at once as this many threads do.
        torch.set_num_threads(1 if case.own_kernels else MOST_AT_ONCE)
        found = memory(case.config, case.setup, torch.device(device), own_kernels=case.own_kernels)
        totals = sum(plans.values()), sum(found.values())
        error = totals[0] / totals[1] - 1
        told[case.name] = {"planned": plans, "measured": found}
        cells = [
            f"{plans[part] / 1e6:.1f} / {found[part] / 1e6:.1f}"
            for part in ("weights", "gradients", "optimizer", "in_work")
        ]
        print(
            f"{case.name:<31}{cells[0]:>17}{cells[1]:>15}{cells[2]:>15}{cells[3]:>17}"
            f"{f'{totals[0] / 1e6:.1f} / {totals[1] / 1e6:.1f}':>18}{error:>+8.1%}",
            flush=True,
        )
    return told


def published() -> dict[str, list[dict[str, Any]]]:
    """On a GPU, in GB of 10^9 bytes."""
    told: dict[str, list[dict[str, Any]]] = {}
    sections = (("Weights alone", WEIGHTS, ("weights",)), ("Training, the whole peak", TRAINING, ()))
    for title, rows, names in sections:
        told[title] = []
        for row in rows:
            parts = plan(ModelShape.of(row.config), row.setup, device="cuda", available_bytes=1).parts
            gb = sum(parts[n] for n in names or parts) / 1e9
            told[title].append(_line(row.what, row.gb, gb, row.source, row.remark))
    told["Keys and values of an answer"] = [
        # The page counts in GiB and writes GB.
        _line(what, gb, kv_cache_bytes(ModelShape.of(config), 1, tokens) / 2**30, HF_BLOG, "GiB")
        for what, gb, config, tokens in CACHES
    ]
    return told


def _line(what: str, published: float, planned: float, source: str, remark: str) -> dict[str, Any]:
    print(f"{what:<36}{published:>10.2f}{planned:>8.2f}{planned / published - 1:>+7.0%}  {source}; {remark}")
    return {"what": what, "published": published, "planned": planned, "source": source, "remark": remark}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision", choices=model.PRECISIONS, default="auto", help="default: what the device is good at"
    )
    parser.add_argument("--published", action="store_true", help="compare with published figures instead")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.published:
        figures = about() | {"sections": published()}
    else:
        precision = model.precision(asked.precision, asked.device).name
        figures = about("torch", "transformers", "peft") | {"device": asked.device, "precision": precision}
        figures["cases"] = measure(asked.device, precision, asked.only)
    if asked.json:
        write(asked.json, figures)


if __name__ == "__main__":
    main()
