"""Merge an adapter into its base model in 16 bits, several adapters into one, or several models into one.
Imports torch. PEFT merges adapters, and mergekit merges full models. Adapters are never merged into 4-bit
weights, because rounding the weights to NF4 again would undo most of the changes made in training."""

# torch, transformers and numpy are only partly typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors import SafetensorError

from orchestrate.core import needed
from orchestrate.errors import SetupError, UsageError
from orchestrate.local.model.files import PACKAGES, ModelFolder, Quantised
from orchestrate.local.model.loader import add_adapter, load_adapter, load_base

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
COMBINED = "merged"


def merge(base: ModelFolder, adapter: Path, target: Path, dtype: str) -> dict[str, Any]:
    """Merge an adapter into its base and write the full model to `target`. Raises `UsageError` if the adapter
    does not fit the base, or if the base's files are quantized, because quantizing the result again would
    undo most of the changes made in training."""
    held = Quantised.of(base.config)
    if held is not None and held.method in PACKAGES:  # others transformers reads into 16 bits
        raise UsageError(
            f"the base is quantized ({held.description}), and merging into quantized weights is "
            "not supported",
            fix="run  orchestrate export --to peft  and serve the base with the adapter, or train on the "
            "16-bit base",
        )
    model = load_base(base.path, four_bit=False, device=torch.device("cpu"), dtype=DTYPES[dtype])
    untied = _untie(model, adapter)
    merged = _fitted(model, adapter).merge_and_unload(safe_merge=True)
    merged.config.use_cache = True
    _saved(lambda: merged.save_pretrained(target), target)
    (target / "README.md").unlink(missing_ok=True)
    return {"dtype": dtype, "untied": untied, "parameters": sum(p.numel() for p in merged.parameters())}


def _saved(save: Callable[[], object], target: Path) -> None:
    """Save tensors. Raises `SetupError` if the disk is full, which safetensors reports as an error of its own
    without an errno."""
    try:
        save()
    except SafetensorError as error:
        raise SetupError(
            f"could not write the weights to {target.parent}: {error}",
            fix="free up some disk space, then run the same command again",
        ) from error


def _fitted(model: Any, adapter: Path) -> Any:
    try:
        return load_adapter(model, adapter)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the adapter in {adapter} does not fit its base model: {str(error)[:500]}"
        ) from error


def _untie(model: Any, adapter: Path) -> bool:
    """Untie the embeddings if the adapter targets one of them, because an adapter of the output layer must
    not change the shared weights. Returns whether they were untied."""
    config: dict[str, Any] = msgspec.json.decode((adapter / "adapter_config.json").read_bytes())
    targets = config.get("target_modules") or []
    head = model.get_output_embeddings()
    ends = {
        n.rpartition(".")[2] for n, m in model.named_modules() if m in (head, model.get_input_embeddings())
    }
    if head is None or head.weight is not model.get_input_embeddings().weight:
        return False
    if not isinstance(targets, list) or not ends & {t.rpartition(".")[2] for t in targets}:
        return False
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.get_text_config().tie_word_embeddings = False
    return True


def combine(
    base: ModelFolder,
    adapters: Sequence[Path],
    target: Path,
    *,
    weights: Sequence[float],
    method: str,
    density: float | None = None,
    rank: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Merge `adapters` into one adapter, and write it to `target`. Each adapter is scaled by its value in
    `weights`. Returns {method, ranks, rank, error}. `error` is the relative difference between the merged
    adapter and the exact weighted sum, over all adapted matrices."""
    torch.manual_seed(seed)
    model = load_base(base.path, four_bit=False, device=torch.device("cpu"), dtype=torch.float32)
    peft = _fitted(model, adapters[0])
    names = ["default", *(f"part{n}" for n in range(1, len(adapters)))]
    for name, folder in zip(names[1:], adapters[1:], strict=True):
        add_adapter(peft, folder, name)
    ranks = [peft.peft_config[name].r for name in names]
    # Methods that add the factors themselves need equal ranks. Their `_svd` variants do not.
    used = f"{method}_svd" if method in ("ties", "dare_ties") and len(set(ranks)) > 1 else method
    more: dict[str, Any] = {"density": 0.5 if density is None else density} if "ties" in used else {}
    if "svd" in used and rank is not None:
        more["svd_rank"] = rank
    try:
        peft.add_weighted_adapter(names, list(weights), COMBINED, combination_type=used, **more)
    except (ValueError, NotImplementedError, KeyError) as error:
        raise UsageError(f"cannot merge these adapters with method {method}: {error}") from error
    made = peft.peft_config[COMBINED].r
    error = _error(peft, names, weights)
    _saved(
        lambda: peft.save_pretrained(target, selected_adapters=[COMBINED], save_embedding_layers=False),
        target,
    )
    for file in (target / COMBINED).iterdir():  # peft gives each adapter but the default one a folder
        file.rename(target / file.name)
    (target / COMBINED).rmdir()
    (target / "README.md").unlink(missing_ok=True)
    return {"method": used, "ranks": ranks, "rank": made, "error": error}


def combine_models(
    models: Sequence[Path],
    target: Path,
    *,
    base: Path,
    weights: Sequence[float],
    method: str,
    density: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Merge full models of the same architecture with mergekit, and write the result to `target`. The method
    `ties` merges the differences from `base`. The method `slerp` needs exactly two models."""
    with needed("merge", "merging full models", "mergekit"):
        common, config, kit, options = (
            cast("Any", import_module(f"mergekit.{name}"))
            for name in ("common", "config", "merge", "options")
        )

    def named(path: Path) -> Any:  # as an object: in a text, mergekit reads "+" and "@" as its own signs
        return common.ModelReference(model=common.ModelPath(path=str(path)))

    shared: dict[str, Any] = {"density": 0.5 if density is None else density} if method == "ties" else {}
    parts: list[dict[str, Any]] = [{"model": named(path)} for path in models]
    if method == "slerp":
        asked = {"base_model": named(models[0]), "parameters": {"t": weights[1] / sum(weights)}}
    else:
        asked = {"base_model": named(base)} if method == "ties" else {}
        for part, weight in zip(parts, weights, strict=True):
            part["parameters"] = {"weight": weight, **shared}
    first: dict[str, Any] = msgspec.json.decode((models[0] / "config.json").read_bytes())
    dtype = str(first.get("dtype") or first.get("torch_dtype") or "bfloat16")
    given = config.MergeConfiguration.model_validate(
        {"merge_method": method, "dtype": dtype, "models": parts, **asked}
    )
    how = options.MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=seed)
    try:
        _saved(lambda: kit.run_merge(given, str(target), how), target)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UsageError(f"cannot merge these models with method {method}: {error}") from error
    return {"dtype": dtype}


def _error(peft: Any, names: Sequence[str], weights: Sequence[float]) -> float:
    apart = whole = 0.0
    for layer in peft.modules():
        if COMBINED not in getattr(layer, "lora_A", {}):
            continue
        there = [(n, w) for n, w in zip(names, weights, strict=True) if n in layer.lora_A]
        wanted = sum(w * layer.get_delta_weight(n).float() for n, w in there)
        apart += float((layer.get_delta_weight(COMBINED).float() - wanted).square().sum())
        whole += float(torch.as_tensor(wanted).square().sum())
    return (apart / whole) ** 0.5 if whole else 0.0
