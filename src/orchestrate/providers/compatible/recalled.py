"""What the API tells of a job by which it can be priced: its method, its epochs and the bytes of its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrate.providers.calls.values import number, plain, table, text, whole
from orchestrate.types import Job, Recalled, Told

METHODS: Mapping[str, Any] = {"supervised": "sft", "dpo": "dpo", "reinforcement": "rft"}


def of(job: Job, file: Callable[[str], object]) -> Recalled:
    """`file` gives the record of a file by its id; the validation file is not billed."""
    method = table(job.payload.get("method"))
    kind = text(method.get("type")) or "supervised"
    own = table(table(method.get(kind)).get("hyperparameters"))
    epochs = own.get("n_epochs", table(job.payload.get("hyperparameters")).get("n_epochs"))
    name = text(job.payload.get("training_file"))
    asked = name is not None and job.trained_tokens is None
    return Recalled(
        method=METHODS.get(kind, "sft"),
        epochs=whole(epochs),
        train_bytes=whole(plain(file(name)).get("bytes")) if asked and name else None,
    )


def told(job: Job) -> Told:
    """Settings and files of a job, whichever form it gives its hyperparameters in."""
    method = table(job.payload.get("method"))
    kind = text(method.get("type")) or "supervised"
    inside = table(method.get(kind))
    own = {**table(job.payload.get("hyperparameters")), **table(inside.get("hyperparameters"))}
    spec: dict[str, Any] = {}
    for name, ours in SETTINGS.items():
        if (value := number(own.get(name))) is not None:
            spec[ours] = int(value) if ours in ("epochs", "batch_size") else value
    if METHODS.get(kind) == "dpo":
        beta = number(own.get("beta"))
        spec["method"] = {"type": "dpo"} | ({"beta": beta} if beta is not None else {})
    elif METHODS.get(kind) == "rft":
        spec["method"] = {"type": "rft", "grader": table(inside.get("grader"))}
    if (seed := whole(job.payload.get("seed"))) is not None:
        spec["seed"] = seed
    if suffix := text(job.payload.get("user_provided_suffix")) or text(job.payload.get("suffix")):
        spec["suffix"] = suffix
    named = {"train": "training_file", "validation": "validation_file"}
    files = {split: id for split, field in named.items() if (id := text(job.payload.get(field)))}
    return Told(spec=spec, files=files)


SETTINGS: Mapping[str, str] = {
    "n_epochs": "epochs",
    "batch_size": "batch_size",
    "learning_rate_multiplier": "learning_rate_multiplier",
    "learning_rate": "learning_rate",
    "warmup_ratio": "warmup_ratio",
    "weight_decay": "weight_decay",
}
