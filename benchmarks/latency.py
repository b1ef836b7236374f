"""Predicted latency against measured, for three sizes of model on this machine, and what an adapter costs.

    python benchmarks/latency.py [--json FILE]

First the machine is measured: bytes a second of a matrix times a vector that is far larger than its caches,
operations a second of a matrix product of the prompt's length, and the time of a layer that has next to no
weights. From these three and the number of parameters `costing.latency` predicts the time to the first token
and of each further one. Then the engine of `orchestrate serve` answers one request at a time with random
Llamas in fp32. All on one thread and by processor time, since others may use the machine meanwhile; alone on
it that is the time that passes. Each figure is a median, and the machine is measured before and after each
model. The adapter, of rank 8, is loaded beside its base and asked as often, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from measured_on import Meter, about, write
from serving import NAME, made
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrate.costing.latency import Device, predict
from orchestrate.data.rows import ChatMessage
from orchestrate.local.answers.engine import Engine, GenerationRequest, Loading

SIZES = {
    "12M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
    "40M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6},
    "90M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8},
}
OUT, TIMES = 10, 3
PROMPT = "what does the guide say of this case and of the others? " * 12


def median_s(work: Callable[[], Any], times: int = 5) -> float:
    work()
    found: list[float] = []
    for _ in range(times):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return statistics.median(found)


@torch.inference_mode()
def machine(tokens: int) -> dict[str, float]:
    """Bytes and operations a second, and seconds of an empty layer."""
    wide, thin = torch.randn(8192, 4096), torch.randn(1, 4096)
    bytes_per_s = wide.numel() * 4 / median_s(lambda: thin @ wide.T)
    square, rows = torch.randn(1024, 2816), torch.randn(tokens, 2816)
    flops = 2 * tokens * square.numel() / median_s(lambda: rows @ square.T)
    tiny = {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 64, "num_attention_heads": 8}
    few, many = (
        LlamaForCausalLM(LlamaConfig(**tiny, num_key_value_heads=4, num_hidden_layers=n)).eval()
        for n in (4, 16)
    )
    one = torch.ones(1, 1, dtype=torch.long)
    layer_s = (median_s(lambda: many(one)) - median_s(lambda: few(one))) / 12
    return {"bytes_per_s": bytes_per_s, "flops": flops, "layer_s": max(layer_s, 0.0)}


def asked(engine: Engine, model: str) -> tuple[float, float, int]:
    """Seconds to the first token and of each further one, and the tokens of the prompt."""
    messages = [ChatMessage(role="user", content=PROMPT)]
    wish = GenerationRequest(
        id="0", model=model, messages=messages, temperature=0, max_tokens=OUT, logit_bias={"2": -100}
    )
    begun, at = time.process_time(), list[float]()
    prompt = engine.prompt(wish)
    engine.add(wish, prompt, lambda _: None)
    while not engine.batching.idle:
        engine.step(lambda _: None)
        at.append(time.process_time())
    return at[0] - begun, statistics.median(b - a for a, b in pairwise(at)), len(prompt)


def measured(folder: Path, size: dict[str, int]) -> dict[str, Any]:
    tuned = made(folder, **size)
    loading = Loading(base=tuned.base, base_name="base", threads=1, four_bit=False, precision="fp32")
    engine = Engine(loading)
    params = sum(p.numel() for p in engine.model.parameters())
    params -= engine.model.get_input_embeddings().weight.numel()  # one row of it is read
    asked(engine, "base")
    before, plain = machine(200), [asked(engine, "base") for _ in range(TIMES)]
    after, load_s = machine(200), engine.load(NAME, str(tuned.folder))
    asked(engine, NAME)
    pairs = [(asked(engine, "base"), asked(engine, NAME)) for _ in range(TIMES)]
    has = {name: statistics.mean((before[name], after[name])) for name in before}
    device = Device(
        name="cpu",
        bytes_per_s=has["bytes_per_s"],
        flops=has["flops"],
        token_overhead_s=size["num_hidden_layers"] * has["layer_s"],
    )
    told = predict(device, "random", params / 1e9, 4.0, (plain[0][2], OUT))
    first, each = (1000 * statistics.median(one[n] for one in plain) for n in (0, 1))
    over = [statistics.median((b[n] - a[n]) * 1000 for a, b in pairs) for n in (0, 1)]
    return {
        "params": params,
        "prompt_tokens": plain[0][2],
        "machine": has,
        "predicted": {"first_ms": told.first_token_ms, "token_ms": told.token_ms},
        "measured": {"first_ms": first, "token_ms": each},
        "ratio": {"first": told.first_token_ms / first, "token": told.token_ms / each},
        "adapter": {"load_ms": 1000 * load_s, "first_ms_more": over[0], "token_ms_more": over[1]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    figures, begun = about("torch", "transformers"), Meter.now()
    rows: dict[str, Any] = {}
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as scratch:
            rows[name] = one = measured(Path(scratch), size)
        ratio, adapter = one["ratio"], one["adapter"]
        print(
            f"{name}: predicted over measured {ratio['first']:.2f} (first), {ratio['token']:.2f} (each); "
            f"adapter loaded in {adapter['load_ms']:.0f} ms, then {adapter['token_ms_more']:+.2f} ms a token "
            f"of {one['measured']['token_ms']:.1f} ms",
            flush=True,
        )
    figures |= {"rows": rows, "others_cores": begun.others()}
    if options.json:
        write(options.json, figures)


if __name__ == "__main__":
    main()
