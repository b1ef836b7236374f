"""Benchmark training on this machine: `python -m orchestrate.local.speed.bench REQUEST` prints one JSON line.
The benchmark trains LoRA r=16 on an NF4 base in batches of 16 synthetic rows. Rows have the length of short
chats, and half of their tokens are trained. Without a model folder, the base is a random model of a fixed
shape, so that the result depends only on the machine."""

# torch, transformers and numpy have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import gc
import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate.errors import OrchestrateError
from orchestrate.local import model as engines
from orchestrate.local.plan import ModelShape
from orchestrate.local.plan.memory import Setup, plan

if TYPE_CHECKING:
    import torch

    from orchestrate.local.encoding.encoded import EncodedRows
    from orchestrate.local.model.loaded import Loaded
    from orchestrate.local.objectives.base import Objective

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


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Measure training speed and memory. `request` contains `model` (folder or null), `threads`, `device` and
    `seconds`."""
    import torch

    from orchestrate.local.model.files import open_folder
    from orchestrate.local.model.loader import pick_device

    if request.get("threads"):
        torch.set_num_threads(request["threads"])
    device = pick_device(request.get("device"))
    with tempfile.TemporaryDirectory() as folder:
        if request.get("model"):
            path = Path(request["model"])
        else:
            shape = SHAPES[device.type]
            heads = shape["num_attention_heads"]
            path = random_model(
                {**shape, "num_key_value_heads": heads // 2, "vocab_size": 8192, "tie_word_embeddings": True},
                Path(folder),
            )
        opened = open_folder(path)
        parameters, config = _stored_parameters(path), opened.config
        loaded = load_random(path, Setup(precision=engines.precision(None, device.type).name), device)
    found, setup = _train(loaded, request.get("seconds", 20), device)
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "model": path.name if request.get("model") else f"random {parameters / 1e6:.0f}M",
        "parameters": parameters,
        "operations_per_second": found["tokens_per_second"] * 4 * parameters,
        "measured_on": date.today().isoformat(),
        **found,
        **_planned(config, setup, device),
    }


def _train(loaded: Loaded, seconds: float, device: torch.device) -> tuple[dict[str, Any], Setup]:
    """Measure the speed over `seconds` of steps, then the memory of the largest forward pass among them, and
    the plan's inputs for that pass."""
    from orchestrate.local.encoding.encoded import epoch_batches, micro_batches
    from orchestrate.local.job import Hyper
    from orchestrate.local.objectives.base import Objective
    from orchestrate.local.run.loop import DEFAULT_TOKENS
    from orchestrate.local.run.optimizers import make_optimizer
    from orchestrate.local.speed.peaks import held_bytes, peak_bytes

    rows = chat_rows(int(loaded.head.layer.weight.shape[0]))
    objective = Objective(loaded, 0)
    optimizer = make_optimizer(loaded.trainable, Hyper())
    loaded.model.train()
    tokens, begun, largest = 0, time.perf_counter(), [0]
    for step, batch in enumerate(b for e in range(1000) for b in epoch_batches(rows.lengths, 16, 0, e)):
        if step == WARM_STEPS:
            tokens, begun = 0, time.perf_counter()
        total = objective.weight_of(rows, batch)
        for part in micro_batches(batch, rows.lengths, DEFAULT_TOKENS[device.type], 1 << 20):
            tokens += objective.run(rows, part, total, backward=True).tokens
            largest = max(largest, part, key=lambda p: len(p) * max(int(rows.lengths[i]) for i in p))
        optimizer.step()
        optimizer.zero_grad()
        if step > WARM_STEPS and time.perf_counter() - begun > seconds:
            break
    speed = tokens / (time.perf_counter() - begun)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # the profiler below adds to it
    peak = peak_bytes(lambda: objective.run(rows, largest, 1.0, backward=True), device)
    trainable = sum(p.numel() for p in loaded.trainable.values())
    found = {
        "tokens_per_second": speed,
        "peak_bytes": held_bytes(loaded.model) + 8 * trainable + peak,
        "resident_bytes": resident,
    }
    longest = max(int(rows.lengths[i]) for i in largest)
    return found, Setup(
        precision=loaded.precision.name,
        rows=len(largest),
        longest=longest,
        trained=0.5,
        accumulates=False,
    )


def _planned(config: Mapping[str, Any], setup: Setup, device: torch.device) -> dict[str, int]:
    """Return the plan's prediction for the same pass, without the libraries' memory. Empty if the plan does
    not support the model."""
    try:
        parts = plan(ModelShape.of(config), setup, device=device.type).parts
    except KeyError:
        return {}
    return {"planned_bytes": sum(size for name, size in parts.items() if name != "overhead")}


def memory(
    config: Mapping[str, Any],
    setup: Setup,
    device: torch.device,
    *,
    own_kernels: bool = True,
    model: Path | None = None,
) -> dict[str, int]:
    """Measure the memory that training steps use, with this setup and a random model of this configuration.
    `model` is the folder of one that was made before. Returns sizes in bytes for `weights`, `adapter`,
    `gradients` and `optimizer`. `in_work` is the additional peak during a forward and backward pass. If
    `own_kernels` is False, uses the same norms and attention as training on a GPU, even on a CPU."""
    from orchestrate.local.job import Hyper
    from orchestrate.local.model.shortcuts.kernels import undo
    from orchestrate.local.run.optimizers import make_optimizer, state_tensors
    from orchestrate.local.speed.peaks import held_bytes, peak_bytes

    with tempfile.TemporaryDirectory() as folder:
        loaded = load_random(model or random_model(config, Path(folder)), setup, device)
    if not own_kernels:
        undo(loaded.inner)
    rows = _full_rows(int(config["vocab_size"]), setup)
    objective = _objective(loaded, setup)
    optimizer = make_optimizer(loaded.trainable, Hyper(optimizer=setup.optimizer))
    loaded.model.train()
    examples = list(range(rows.examples))

    def one() -> None:
        objective.run(rows, examples, 1.0, backward=True)

    one()
    optimizer.step()
    gc.collect()
    if not setup.accumulates:
        optimizer.zero_grad()
    trained = list(loaded.trainable.values())
    gradients = 4 * sum(p.numel() for p in trained)
    adapter = 0 if setup.adapter == "full" else gradients
    return {
        "weights": held_bytes(loaded.model) - adapter,
        "adapter": adapter,
        "optimizer": sum(t.nbytes for t in state_tensors(optimizer, loaded.trainable).values()),
        "gradients": gradients if setup.accumulates else 0,
        "in_work": peak_bytes(one, device),
    }


def _objective(loaded: Loaded, setup: Setup) -> Objective:
    from orchestrate.local.objectives.base import Desirability, Objective, Preference
    from orchestrate.local.objectives.dpo import Mismatch, PairObjective, UnpairedObjective

    if setup.pairs:
        return PairObjective(loaded, 0, Preference(simpo_gamma=0.5))
    if setup.judged:
        return UnpairedObjective(loaded, 0, Desirability(), Mismatch(setup.rows, seed=0))
    return Objective(loaded, 0, packing=setup.packing)


def random_model(config: Mapping[str, Any], folder: Path) -> Path:
    """Write a model with this configuration and random bf16 weights to `folder`. The architecture is Llama
    unless `model_type` is set."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind: Any = AutoConfig
    made = kind.for_model(**{"model_type": "llama", **config})
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(made)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def load_random(path: Path, setup: Setup, device: torch.device, engine: str | None = None) -> Loaded:
    """Load the model in `path` with a new adapter, as a run with this setup would."""
    from orchestrate.local.job import AdapterSettings, Hyper, LocalJob, Supervised
    from orchestrate.local.model.files import open_folder
    from orchestrate.local.model.loader import load
    from orchestrate.local.run import now

    adapter = AdapterSettings(
        type=setup.adapter,
        r=setup.rank,
        alpha=2.0 * setup.rank,
        dropout=0.1 if setup.dropout else None,
        dora=setup.dora,
    )
    job = LocalJob(
        ref="bench",
        model=str(path),
        model_name="bench",
        train="",
        method=Supervised(),
        precision=None if setup.adapter == "full" else setup.precision,
        engine=engine,
        adapter=adapter,
        hyper=Hyper(gradient_checkpointing=setup.gradient_checkpointing, packing=setup.packing),
        created_at=now(),
    )
    return load(job, open_folder(path), device)


def _stored_parameters(folder: Path) -> int:
    """Count parameters from the headers of the weights, because 4-bit weights in memory do not show their
    number."""
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


def chat_rows(vocabulary: int) -> EncodedRows:
    """Generate synthetic rows with the length of short chats. The second half of each row is trained."""
    import numpy as np

    from orchestrate.local.encoding.encoded import EncodedRows

    chance = np.random.default_rng(0)
    lengths = np.clip(chance.lognormal(4.6, 0.5, ROWS), 16, 512).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = chance.integers(3, vocabulary, offsets[-1]).astype(np.int32)
    weights = np.zeros(offsets[-1], dtype=np.float32)
    for start, end in pairwise(offsets):
        weights[(start + end) // 2 : end] = 1
    return EncodedRows(ids, weights, offsets)


def _full_rows(vocabulary: int, setup: Setup) -> EncodedRows:
    """Build as many rows of full length as the setup has. If packed, two rows fill a sequence."""
    import numpy as np

    from orchestrate.local.encoding.encoded import EncodedRows

    count, length = (2 * setup.rows, setup.longest // 2) if setup.packing else (setup.rows, setup.longest)
    ids = np.random.default_rng(0).integers(3, vocabulary, count * length).astype(np.int32)
    weights = np.zeros((count, length), dtype=np.float32)
    weights[:, length - round(length * setup.trained) :] = 1
    offsets = np.arange(count + 1, dtype=np.int64) * length
    labels = np.arange(count) % 2 == 0 if setup.judged else None
    reference = np.zeros(count, dtype=np.float32) if setup.judged else None
    return EncodedRows(
        ids, weights.reshape(-1), offsets, pairs=setup.pairs, labels=labels, reference=reference
    )


def main(request: str) -> int:
    """Run the benchmark and print the result as a JSON line. Errors that the user can fix are printed as a
    JSON line too."""
    try:
        found = measure(json.loads(request))
    except OrchestrateError as error:
        found = {"error": error.message, "fix": error.fix}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
