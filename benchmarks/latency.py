"""Predicted latency against measured, for three sizes of model on this machine, and what an adapter costs.

    python benchmarks/latency.py [--json FILE]

Three things are measured without the model: bytes a second of matrices of its layers' shape times a vector,
far more of them than caches hold; operations a second of the same matrices times a prompt, both by the
engine's own product; and what the engine of `orchestrate serve` takes for everything that is not weights. For
that a twin is asked that has the same layers and the same attention, but next to no weights: 16 MiB are read
before each of its layers, not counted, so that it finds the caches as weights leave them. From these and the
number of parameters `costing.latency` predicts the time to the first token and of each further one. Then the
same engine answers one request at a time with random Llamas in fp32.

All on one thread and by processor time, since others may use the machine meanwhile; alone on it that is the
time that passes. Everything is measured in turns and the least of several counts: other work can only add to
a time. The adapter, of rank 8, is loaded beside its base and asked as often, in turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from measured_on import Meter, about, write
from serving import NAME, made
from serving import SIZES as SERVED

from orchestrate.costing.latency import Device, predict
from orchestrate.data.rows import ChatMessage
from orchestrate.local.answers.engine import Engine, GenerationRequest, Loading
from orchestrate.local.model.sampling.quick_pass import product

SIZES = {
    "12M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
    "40M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6},
    "90M": SERVED["90M"],
}
HEADS = 8
OUT, TIMES = 10, 6
PROMPT = "what does the guide say of this case and of the others? " * 12


def least_s(work: Callable[[], Any], times: int = 3) -> float:
    work()
    found: list[float] = []
    for _ in range(times):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


@torch.inference_mode()
def machine(size: dict[str, int], tokens: int) -> dict[str, float]:
    """Bytes and operations a second."""
    wide, inner = size["hidden_size"], size["intermediate_size"]
    shapes = [(wide, wide), (inner, wide), (inner, wide), (wide, inner)]
    layer = sum(a * b for a, b in shapes)
    matrices = [torch.randn(shape) for shape in shapes * (1 + (32 << 20) // layer)]
    numbers = sum(one.numel() for one in matrices)
    one, few = ({n: torch.randn(rows, n) for n in (wide, inner)} for rows in (1, tokens))
    prompted = matrices[: 4 * (1 + (4 << 20) // layer)]
    return {
        "bytes_per_s": 4 * numbers / least_s(lambda: [product(one[m.shape[1]], m) for m in matrices]),
        "flops": 2
        * tokens
        * sum(m.numel() for m in prompted)
        / least_s(lambda: [product(few[m.shape[1]], m) for m in prompted]),
    }


def twin(folder: Path, size: dict[str, int]) -> tuple[Engine, Callable[[], float]]:
    """The engine of a twin without weights, and its processor time, less that of filling the caches."""
    narrow = {"hidden_size": 32, "intermediate_size": 32, "head_dim": size["hidden_size"] // HEADS}
    engine = loaded(made(folder, **narrow, num_hidden_layers=size["num_hidden_layers"]).base)
    others, row, spent = torch.randn(1024, 4096), torch.randn(1, 4096), [0.0]

    def read(*_: Any) -> None:
        begun = time.process_time()
        product(row, others)
        spent[0] += time.process_time() - begun

    for layer in engine.model.model.layers:
        layer.register_forward_pre_hook(read)
    return engine, lambda: time.process_time() - spent[0]


def loaded(base: str) -> Engine:
    return Engine(Loading(base=base, base_name="base", threads=1, four_bit=False, precision="fp32"))


def asked(
    engine: Engine, model: str = "base", clock: Callable[[], float] = time.process_time
) -> tuple[float, float, int]:
    """Seconds to the first token and of each further one, and the tokens of the prompt."""
    messages = [ChatMessage(role="user", content=PROMPT)]
    wish = GenerationRequest(
        id="0", model=model, messages=messages, temperature=0, max_tokens=OUT, logit_bias={"2": -100}
    )
    begun, at = clock(), list[float]()
    prompt = engine.prompt(wish)
    engine.add(wish, prompt, lambda _: None)
    while not engine.batching.idle:
        engine.step(lambda _: None)
        at.append(clock())
    return at[0] - begun, min(b - a for a, b in pairwise(at)), len(prompt)


def measured(folder: Path, size: dict[str, int]) -> dict[str, Any]:
    tuned = made(folder / "model", **size)
    engine = loaded(tuned.base)
    params = sum(p.numel() for p in engine.model.parameters())
    params -= engine.model.get_input_embeddings().weight.numel()  # one row of it is read
    empty, clock = twin(folder / "twin", size)
    [*_, tokens] = asked(engine)
    machines, plain, bare = list[dict[str, float]](), list[Any](), list[Any]()
    for _ in range(TIMES):
        machines.append(machine(size, tokens))
        plain.append(asked(engine))
        bare.append(asked(empty, clock=clock))
    load_s = engine.load(NAME, str(tuned.folder))
    asked(engine, NAME)
    pairs = [(asked(engine), asked(engine, NAME)) for _ in range(TIMES)]
    first_s, each_s = (min(one[n] for one in bare) for n in (0, 1))
    has = {name: max(one[name] for one in machines) for name in machines[0]}
    has |= {"token_overhead_s": each_s, "prompt_overhead_s": max(0.0, first_s - each_s)}
    told = predict(Device(name="cpu", **has), "random", params / 1e9, 4.0, (tokens, OUT))
    first, each = (1000 * min(one[n] for one in plain) for n in (0, 1))
    over = [1000 * (min(b[n] for _, b in pairs) - min(a[n] for a, _ in pairs)) for n in (0, 1)]
    return {
        "params": params,
        "prompt_tokens": tokens,
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
