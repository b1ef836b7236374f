"""Measures training on this machine: `python -m orchestrate.local.bench REQUEST`, one JSON line on stdout.

Made-up rows of a short chat's lengths, half of their tokens trained; NF4 base, LoRA r=16, batches of 16.
Without a model folder a random model of a fixed shape is made, so that the figure depends on the machine
alone.
"""

# torch, transformers and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "cpu": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "num_attention_heads": 8},
    "cuda": {
        "hidden_size": 1536,
        "num_hidden_layers": 16,
        "intermediate_size": 4096,
        "num_attention_heads": 12,
    },
}
ROWS = 512
WARM_STEPS = 2


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """`request`: model (folder or null), threads, device, seconds."""
    import torch

    from orchestrate.local.loading import load, pick_device
    from orchestrate.local.models import open_folder
    from orchestrate.local.optimizers import make_optimizer
    from orchestrate.local.rows import epoch_batches, micro_batches
    from orchestrate.local.rundir import Hyper, LocalJob, now
    from orchestrate.local.stepping import Objective
    from orchestrate.local.training import DEFAULT_TOKENS

    if request.get("threads"):
        torch.set_num_threads(request["threads"])
    device = pick_device(request.get("device"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(request["model"]) if request.get("model") else _random_model(Path(folder), device.type)
        job = LocalJob(
            ref="bench",
            model=str(path),
            model_name="bench",
            train="",
            method={"type": "sft"},
            adapter={"type": "qlora", "r": 16, "alpha": 32.0},
            hyper=Hyper(),
            created_at=now(),
        )
        loaded = load(job, open_folder(path), device)
        parameters = _stored_parameters(path)
    rows = _rows(int(loaded.head.layer.weight.shape[0]))
    objective = Objective(loaded, 0)
    optimizer = make_optimizer(list(loaded.trainable.values()), "adamw", 0.0)
    loaded.model.train()
    tokens, begun, steps = 0, time.perf_counter(), 0
    for step, batch in enumerate(b for e in range(1000) for b in epoch_batches(rows.lengths, 16, 0, e)):
        if step == WARM_STEPS:
            tokens, begun = 0, time.perf_counter()
        total = objective.weight_of(rows, batch)
        for part in micro_batches(batch, rows.lengths, DEFAULT_TOKENS[device.type], 1 << 20):
            tokens += objective.run(rows, part, total, backward=True).tokens
        optimizer.step()
        optimizer.zero_grad()
        steps = step + 1
        if step > WARM_STEPS and time.perf_counter() - begun > request.get("seconds", 20):
            break
    speed = tokens / (time.perf_counter() - begun)
    cuda = device.type == "cuda"
    peak = (
        torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    )
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "model": Path(request["model"]).name
        if request.get("model")
        else f"a random model of {parameters / 1e6:.0f}M",
        "parameters": parameters,
        "tokens_per_second": speed,
        "operations_per_second": speed * 4 * parameters,
        "peak_bytes": peak,
        "measured_on": date.today().isoformat(),
        "steps": steps,
    }


def _random_model(folder: Path, device: str) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = SHAPES[device]
    config = LlamaConfig(
        **shape,
        num_key_value_heads=shape["num_attention_heads"] // 2,
        vocab_size=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def _stored_parameters(folder: Path) -> int:
    """From the headers of the weights: four bits in memory do not tell how many they are."""
    from safetensors import safe_open

    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  not a mapping
                size = 1
                for n in file.get_slice(name).get_shape():
                    size *= n
                count += size
    return count


def _rows(vocabulary: int) -> Any:
    import numpy as np

    from orchestrate.local.rows import Rows

    chance = np.random.default_rng(0)
    lengths = np.clip(chance.lognormal(4.6, 0.5, ROWS), 16, 512).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = chance.integers(3, vocabulary, offsets[-1]).astype(np.int32)
    weights = np.zeros(offsets[-1], dtype=np.float32)
    for start, end in pairwise(offsets):
        weights[(start + end) // 2 : end] = 1
    return Rows(ids, weights, offsets)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(json.loads(sys.argv[1]))) + "\n")
