"""What jobs that are not trained show: values from a formula, and an adapter that changes nothing.

All of it says that it is made up: the job's events and fields do, the metrics carry `sandbox_not_trained`,
and so does the metadata of the weights.
"""

from __future__ import annotations

import json
import math
import struct
from datetime import UTC, datetime
from pathlib import Path

from orchestrate.core.files import new_folder, write_whole
from orchestrate.sandbox.jobs import Job
from orchestrate.types import MetricPoint

NOT_TRAINED = "sandbox_not_trained"
ANSWER = "[sandbox] This model was not trained and does not answer; start the sandbox with training on."
_MOST_POINTS = 200
_HIDDEN = 8


def made_up_metrics(job: Job, now: float) -> list[MetricPoint]:
    """A falling curve up to the step reached, at most 200 points; the same for the same job."""
    total, done = job.total_steps, job.step(now)
    start = job.started_at or now
    span = (job.trained_at or now) - start
    every = max(1, total // _MOST_POINTS)
    points: list[MetricPoint] = []
    for step in range(every, done + 1, every):
        share = step / total
        loss = 0.4 + 2.1 * math.exp(-4 * share) + 0.05 * math.sin(step * 1.7 + job.seed % 7)
        values = {
            "train_loss": round(loss, 5),
            "train_accuracy": round(min(1.0, 1.1 - loss / 3), 5),
            "learning_rate": job.learning_rate * (1 - share),
            "grad_norm": round(0.5 + share, 5),
            "tokens": float(int(job.tokens * job.epochs * share)),
            NOT_TRAINED: 1.0,
        }
        if job.validation_file and (step == done or step % max(1, total // 4) < every):
            values |= {
                "valid_loss": round(loss + 0.1, 5),
                "valid_accuracy": round(min(1.0, 1.05 - loss / 3), 5),
            }
        at = datetime.fromtimestamp(start + span * share, UTC)
        points.append(MetricPoint(step=step, values=values, at=at, epoch=job.epochs * share))
    return points


def placeholder_adapter(folder: Path, job: Job) -> Path:
    """A LoRA adapter in PEFT's layout whose weights are all zero; made once."""
    if (folder / "adapter_config.json").exists():
        return folder
    new_folder(folder)
    rank = job.lora_rank
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    shapes = {name.format("A"): [rank, _HIDDEN], name.format("B"): [_HIDDEN, rank]}
    header: dict[str, object] = {"__metadata__": {"format": "pt", NOT_TRAINED: "true", "job": job.id}}
    at = 0
    for tensor, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    write_whole(folder / "adapter_model.safetensors", struct.pack("<Q", len(text)) + text + bytes(at))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": job.base,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj"],
        NOT_TRAINED: True,
    }
    write_whole(folder / "adapter_config.json", json.dumps(config, indent=1).encode())
    return folder
