"""Resume to the bit, for each kind of training: a worker that is killed at any moment ends as one that was
not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors import safe_open
from tests.faults.local.test_workers import (  # noqa: F401  fixtures
    files,
    finish,
    home,
    job,
    small,
)
from tests.unit.local.families import make
from tests.workers import Nursery

from orchestrate.data import Dataset
from orchestrate.data.dialects import target
from orchestrate.data.operations.mix import open_mix
from orchestrate.local import LocalJob, RunDir, launch, resume
from orchestrate.local.job import Method, Preferences
from orchestrate.providers.local.provider import LocalProvider
from orchestrate.settings.config import HostConfig
from orchestrate.spec import TrainFile

pytestmark = pytest.mark.slow

Change = dict[str, dict[str, Any]]

STEPS = 10
"""In two epochs."""
KINDS: dict[str, Change] = {
    "lora": {"adapter": {"type": "lora"}, "hyper": {"early_stopping_patience": 50, "deterministic": True}},
    "dora and rslora": {
        "adapter": {"dora": True, "rslora": True},
        "hyper": {"gradient_checkpointing": True, "neftune_alpha": 1.0},
    },
    "full": {"adapter": {"type": "full"}, "hyper": {"learning_rate": 3e-4}},
    # Tensors of fewer than 4096 numbers have their moments in 32 bits.
    "8-bit AdamW": {"adapter": {"r": 32}, "hyper": {"optimizer": "paged_adamw_8bit"}},
    "8-bit AdamW, full": {
        "adapter": {"type": "full"},
        "hyper": {"learning_rate": 3e-4, "optimizer": "paged_adamw_8bit"},
    },
    "lion, 8 bits": {"adapter": {"r": 32}, "hyper": {"learning_rate": 2e-4, "optimizer": "lion_8bit"}},
    "muon": {"adapter": {"type": "lora", "loraplus_lr_ratio": 4.0}, "hyper": {"optimizer": "muon"}},
    "adafactor": {"adapter": {"type": "lora"}, "hyper": {"optimizer": "adafactor"}},
    "schedule-free": {"hyper": {"optimizer": "schedule_free_adamw", "schedule": "constant"}},
    "steps, and the best": {
        "hyper": {
            "epochs": None,
            "max_steps": STEPS,
            "eval_steps": 2,
            "checkpoint_steps": 4,
            "keep_best": True,
        }
    },
    "experts in 4 bits": {
        "adapter": {"dropout": None, "target_parameters": ("experts.gate_up_proj", "experts.down_proj")},
        "hyper": {"router_aux_loss": 0.01},
        "job": {"model": "qwen3_moe"},
    },
    "added tokens": {"job": {"added_tokens": ("green", "<|note|>")}},
    "mix": {"job": {"train": "mix"}},
    "dpo": {"method": {"type": "dpo", "rpo_alpha": 0.1}},
    "orpo": {"method": {"type": "dpo", "loss": "orpo"}, "adapter": {"type": "lora"}},
}


def of_kind(base: LocalJob, change: Change, epochs: int = 3) -> LocalJob:
    method = msgspec.convert({"type": "sft", **change.get("method", {})}, Method)
    if isinstance(method, Preferences):
        for path in (base.train, str(base.validation)):
            as_pairs(Path(path))
    adapter = msgspec.structs.replace(base.adapter, **change.get("adapter", {}))
    hyper = msgspec.structs.replace(base.hyper, **{"epochs": epochs, "evals": 4, **change.get("hyper", {})})
    more = dict(change.get("job", {}))
    folder = Path(base.train).parent
    if family := more.get("model"):
        more["model"] = str(make(family, folder / family))
    if more.get("train"):
        more["train"] = str(mixed(Path(base.train), folder))
    return msgspec.structs.replace(base, method=method, adapter=adapter, hyper=hyper, **more)


def mixed(rows: Path, folder: Path) -> Path:
    """As many rows as there were, of two files with weights."""
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    for name, some in (("a", lines[:16]), ("b", lines[16:32])):
        (folder / f"{name}.jsonl").write_text("".join(some), encoding="utf-8")
    weighed = [TrainFile(path=str(folder / "a.jsonl"), weight=1.5), TrainFile(path=str(folder / "b.jsonl"))]
    mix = open_mix(weighed, folder / "mixes").mix
    assert mix is not None and mix.facts.rows == len(lines)
    provider = LocalProvider(HostConfig(name="local", options={"home": str(folder)}))
    return Dataset.of(mix).write(target(provider.name, provider.profile), folder)


def as_pairs(path: Path) -> None:
    rows = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as out:
        for prompt, answer in rows:
            rejected = {**answer, "content": prompt["content"].partition(": ")[2] + " no"}
            out.write(json.dumps({"prompt": [prompt], "preferred": [answer], "rejected": [rejected]}) + "\n")


def curve(run: RunDir) -> list[tuple[int, dict[str, float]]]:
    """All values but those of time."""
    return [(p.step, {k: v for k, v in p.values.items() if k != "tokens_per_second"}) for p in run.metrics()]


def result(run: RunDir) -> dict[str, bytes]:
    folder = run.path / (run.state().result or "none")
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "passport.json"}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(
    small: LocalJob,  # noqa: F811
    home: Path,  # noqa: F811
    nursery: Nursery,
    kind: str,
) -> None:
    trained = of_kind(small, KINDS[kind], epochs=2)
    whole = launch(trained, home, nursery.start)
    assert finish(whole) == "succeeded", whole.log.read_text()
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    # Somewhere within the next step, or while its checkpoint is written.
    at, share = chance.randint(1, STEPS - 4), chance.random()
    killed = launch(msgspec.structs.replace(trained, ref="killed"), home, nursery.mortal(at, share))
    told = f"seed {seed}: killed {share:.3f} of a step after step {at}"
    assert finish(killed) == "interrupted", told
    # Killed before its first checkpoint was written, it begins anew.
    begun = any(killed.checkpoints.glob("step-*"))
    assert begun or at == 1, told
    if begun and "8bit" in KINDS[kind].get("hyper", {}).get("optimizer", ""):
        assert quantised(killed), "no moment is in 8 bits: this case would be that of another optimizer"
    assert resume(killed, nursery.again), told
    assert finish(killed) == "succeeded", killed.log.read_text()
    resumed = [e.step for e in killed.events() if e.type == "resumed"]
    assert len(resumed) == begun and all(0 < (step or 0) < STEPS for step in resumed), told
    assert curve(killed) == curve(whole), told
    assert len(curve(whole)) == STEPS and any(n.endswith(".safetensors") for n in result(whole))
    assert result(killed) == result(whole), told
    assert killed.state().trained_tokens == whole.state().trained_tokens


def quantised(run: RunDir) -> bool:
    """Whether the newest checkpoint holds moments in bytes."""
    newest = max(run.checkpoints.glob("step-*"))
    with safe_open(newest / "state.safetensors", framework="pt") as tensors:
        return any(
            name.endswith(".state1") and tensors.get_tensor(name).element_size() == 1
            for name in tensors.keys()  # noqa: SIM118  no mapping
        )
