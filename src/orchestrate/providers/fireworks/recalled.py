"""What Fireworks tells of a job by which it can be priced: its epochs, and the tokens of its dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrate.providers.calls.values import number, text, whole
from orchestrate.providers.fireworks.reading import id_of, settings_of
from orchestrate.types import Job, Recalled, Told

METHODS: Mapping[str | None, Any] = {"supervised": "sft", "dpo": "dpo", "reinforcement": "rft"}


def of(job: Job, dataset: Callable[[str], Mapping[str, Any] | None]) -> Recalled:
    """`dataset` gives the record of a dataset by its id; the one for evaluation is not billed."""
    name = text(job.payload.get("dataset"))
    told = (dataset(id_of(name)) if name and job.cost_usd is None else None) or {}
    return Recalled(
        method=METHODS.get(job.handle.kind, "sft"),
        epochs=whole(settings_of(job.payload).get("epochs")),
        rows=whole(told.get("exampleCount")),
        train_tokens=whole(told.get("estimatedTokenCount")) or None,
        average_turns=number(told.get("averageTurnCount")) or 1.0,
    )


def told(job: Job) -> Told:
    """Settings and datasets of a job."""
    own = settings_of(job.payload)
    spec: dict[str, Any] = {}
    if epochs := whole(own.get("epochs")):
        spec["epochs"] = epochs
    if (rate := number(own.get("learningRate"))) is not None:
        spec["learning_rate"] = rate
    if rank := whole(own.get("loraRank")):
        spec["adapter"] = {"type": "lora", "r": rank}
    if METHODS.get(job.handle.kind) == "dpo":
        spec["method"] = {"type": "dpo"}
    named = {"train": "dataset", "validation": "evaluationDataset"}
    files = {split: id_of(id) for split, field in named.items() if (id := text(job.payload.get(field)))}
    return Told(spec=spec, files=files)
