"""What Together tells of a job by which it can be priced: its settings, the bytes and rows of its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrate.providers.calls.values import number, table, text, whole
from orchestrate.types import Job, Recalled, Told


def of(job: Job, file: Callable[[str], Mapping[str, Any]]) -> Recalled:
    """`file` gives the record of a file by its id."""
    told = job.payload
    full = text(table(told.get("training_type")).get("type")) == "Full"
    method = text(table(told.get("training_method")).get("method"))
    asked = job.cost_usd is None
    train = _file(told.get("training_file"), file, asked)
    evals = whole(told.get("n_evals")) or 0
    validation = _file(told.get("validation_file"), file, asked and evals > 0)
    return Recalled(
        method="dpo" if method == "dpo" else "sft",
        adapter="full" if full else "lora",
        epochs=whole(told.get("n_epochs")),
        evals=evals if validation else 0,
        packing=told.get("packing") is not False,
        max_length=whole(told.get("max_seq_length")),
        rows=whole(table(train.get("validation_report")).get("nlines")),
        train_bytes=whole(train.get("bytes")),
        validation_bytes=whole(validation.get("bytes")),
    )


def _file(name: Any, file: Callable[[str], Mapping[str, Any]], asked: bool) -> Mapping[str, Any]:
    return file(name) if asked and isinstance(name, str) and name else {}


def told(job: Job) -> Told:
    """Settings and files of a job."""
    raw = job.payload
    kind, method = table(raw.get("training_type")), table(raw.get("training_method"))
    spec: dict[str, Any] = {}
    for name, ours in (("n_epochs", "epochs"), ("batch_size", "batch_size"), ("n_evals", "evals")):
        if value := whole(raw.get(name)):
            spec[ours] = value
    if (rate := number(raw.get("learning_rate"))) is not None:
        spec["learning_rate"] = rate
    if text(method.get("method")) == "dpo":
        beta = number(method.get("dpo_beta"))
        spec["method"] = {"type": "dpo"} | ({"beta": beta} if beta is not None else {})
    if text(kind.get("type")) == "Full":
        spec["adapter"] = {"type": "full"}
    elif rank := whole(kind.get("lora_r")):
        alpha = number(kind.get("lora_alpha"))
        spec["adapter"] = {"type": "lora", "r": rank} | ({"alpha": alpha} if alpha else {})
    named = {"train": "training_file", "validation": "validation_file"}
    files = {split: id for split, field in named.items() if (id := text(raw.get(field)))}
    if "validation" not in files:
        spec.pop("evals", None)
    return Told(spec=spec, files=files)
