"""Write a run's result: safetensors and a provenance record."""

# torch, transformers and numpy have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.core.files import whole_folder, write_whole
from orchestrate.local.job import LocalJob
from orchestrate.local.model.adapters.starts import as_plain_lora
from orchestrate.local.model.files import ModelFolder
from orchestrate.local.model.loaded import Loaded
from orchestrate.local.run import RunDir, now


def result_name(job: LocalJob) -> str:
    return "full" if job.adapter.full else "adapter"


def write_weights(
    loaded: Loaded,
    tokenizer: Any,
    job: LocalJob,
    folder: Path,
    base: ModelFolder,
    weights: dict[str, Any] | None = None,
) -> None:
    """Write the adapter, or the full model in the base model's precision, with the tokenizer and the chat
    template used in training. `weights` are the complete trained weights if the model holds only a shard of
    them."""
    if result_name(job) == "full":
        usual, state = _as_stored(weights or loaded.inner.state_dict(), base.precisions())
        loaded.inner.save_pretrained(folder, state_dict=state)
        _rewrite(folder / "config.json", lambda config: {**config, "dtype": usual})
    else:
        loaded.model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
        if loaded.taken_out is not None:
            as_plain_lora(folder, loaded.taken_out)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
        sort_targets(folder)
    tokenizer.save_pretrained(folder)


def _as_stored(state: dict[str, Any], stored: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Return (the precision of most weights, all weights in the precision of the base). 32-bit weights are
    the trained ones. If the base has fewer than 16 bits, they get 16."""
    import torch

    known = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    counts = Counter(known[dtype] for dtype in stored.values() if dtype in known)
    usual = counts.most_common(1)[0][0] if counts else "bfloat16"
    return usual, {
        name: value.to(getattr(torch, known.get(stored.get(name, ""), usual)))
        if value.is_floating_point()
        else value
        for name, value in state.items()
    }


def sort_targets(folder: Path) -> None:
    """Sort the targets in an adapter's configuration, so that equal runs write equal bytes. peft stores
    targets in a set."""
    _rewrite(folder / "adapter_config.json", _sorted_targets)


def _sorted_targets(config: dict[str, Any]) -> dict[str, Any]:
    lists = {name: config.get(name) for name in ("target_modules", "target_parameters", "modules_to_save")}
    return {**config, **{name: sorted(found) for name, found in lists.items() if isinstance(found, list)}}


def _rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    config = msgspec.json.decode(path.read_bytes())
    write_whole(path, msgspec.json.format(msgspec.json.encode(change(config)), indent=2))


def provenance(
    job: LocalJob,
    model: ModelFolder,
    *,
    fingerprint: str,
    progress: dict[str, Any],
    device: str,
    precision: str,
    threads: int,
) -> dict[str, Any]:
    """Build the provenance record of a result."""
    return {
        "ref": job.ref,
        "kind": result_name(job),
        "base_model": model.hub_id or str(model.path),
        "base_model_name": job.model_name,
        "base_model_hash": fingerprint,
        "dataset_digest": job.dataset_digest,
        "method": job.method,
        "adapter": job.adapter,
        "added_tokens": job.added_tokens,
        "settings": job.hyper.to_dict(),
        "chat_template_given": job.chat_template is not None,
        "chat_template_kwargs": job.chat_template_kwargs,
        "seed": job.seed,
        "spec": job.spec,
        "trained": progress,
        "machine": {
            "device": device,
            "precision": precision,
            "threads": threads,
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": versions(),
        "created_at": job.created_at,
        "finished_at": now(),
    }


def versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in ("orchestrate-ft", "torch", "transformers", "peft", "bitsandbytes", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def publish(run: RunDir, name: str, fill: Any, provenance: dict[str, Any]) -> Path:
    """Write the result and its provenance record to a draft folder, and atomically rename the folder to
    `name`."""
    final = run.path / name
    with whole_folder(final) as draft:
        fill(draft)
        write_whole(draft / "passport.json", msgspec.json.format(msgspec.json.encode(provenance)))
    return final
