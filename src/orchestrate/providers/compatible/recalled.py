"""What the API tells of a job by which it can be priced: its method, its epochs and the bytes of its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrate.providers.values import plain, table, text, whole
from orchestrate.types import Job, Recalled

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
