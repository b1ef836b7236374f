"""The result: safetensors, and a passport that says where they come from."""

# torch, transformers and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.files import whole_folder, write_whole
from orchestrate.local.job import LocalJob
from orchestrate.local.model.loaded import Loaded
from orchestrate.local.model.models import ModelFolder
from orchestrate.local.run.rundir import RunDir, now


def result_name(job: LocalJob) -> str:
    return "full" if job.adapter.full else "adapter"


def write_weights(loaded: Loaded, tokenizer: Any, job: LocalJob, folder: Path) -> None:
    """Adapter (or whole model, in bf16) with the tokenizer and the chat template that it was trained with."""
    import torch

    if result_name(job) == "full":
        state = {
            k: v.to(torch.bfloat16) if v.is_floating_point() else v
            for k, v in loaded.inner.state_dict().items()
        }
        loaded.inner.save_pretrained(folder, state_dict=state)
        _rewrite(folder / "config.json", lambda config: {**config, "dtype": "bfloat16"})
    else:
        loaded.model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
        # peft keeps the targets in a set: the same run must write the same bytes.
        _rewrite(folder / "adapter_config.json", _sorted_targets)
    tokenizer.save_pretrained(folder)


def _sorted_targets(config: dict[str, Any]) -> dict[str, Any]:
    targets = config.get("target_modules")
    return {**config, "target_modules": sorted(targets) if isinstance(targets, list) else targets}


def _rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    config = msgspec.json.decode(path.read_bytes())
    write_whole(path, msgspec.json.format(msgspec.json.encode(change(config)), indent=2))


def passport(
    job: LocalJob,
    model: ModelFolder,
    *,
    fingerprint: str,
    progress: dict[str, Any],
    device: str,
    precision: str,
    threads: int,
) -> dict[str, Any]:
    """What someone who finds the folder in a year needs to know."""
    return {
        "ref": job.ref,
        "kind": result_name(job),
        "base_model": model.hub_id or str(model.path),
        "base_model_name": job.model_name,
        "base_model_hash": fingerprint,
        "dataset_digest": job.dataset_digest,
        "method": job.method,
        "adapter": job.adapter,
        "settings": job.hyper.to_dict(),
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


def publish(run: RunDir, name: str, fill: Any, passport_of: dict[str, Any]) -> Path:
    """Puts the finished folder in its place in one step."""
    final = run.path / name
    with whole_folder(final) as draft:
        fill(draft)
        write_whole(draft / "passport.json", msgspec.json.format(msgspec.json.encode(passport_of)))
    return final
