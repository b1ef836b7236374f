"""Merge several adapters of the same base model, or several full models with the same architecture."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from orchestrate.core.files import write_whole
from orchestrate.core.tensors import tensors
from orchestrate.errors import UsageError
from orchestrate.local.weights import ask_all
from orchestrate.serving.export.card import card
from orchestrate.serving.export.folder import new_folder_at
from orchestrate.serving.export.forms import TaskRunner, files_of, weights_hash
from orchestrate.serving.tuned import TunedModel
from orchestrate.text import among
from orchestrate.types import Merged

METHODS = ("svd", "cat", "ties", "dare_ties", "linear")
MODEL_METHODS = ("linear", "slerp", "ties")
"""Merge methods for full models. The first is the default."""
NOTES = {
    "linear": "linear combines the A and B matrices separately, which only approximates the sum. PEFT's "
    "authors advise against it. svd and cat are more accurate",
    "svd": "svd truncates the result to the given rank. cat is exact, and its rank is the sum of all ranks",
}
ADVICE = (
    "evaluate each part with orchestrate eval RUN. To evaluate the result, serve this folder and compare "
    "its scores"
)


def combine(
    parts: Sequence[TunedModel],
    names: Sequence[str],
    folder: Path,
    *,
    method: str | None,
    weights: Sequence[float] | None,
    density: float | None,
    rank: int | None,
    work: TaskRunner = ask_all,
) -> Merged:
    """Merge adapters or models into `folder`, which must be new or empty. Raises `UsageError` if they cannot
    be merged with these options."""
    models = not any(p.adapter for p in parts)
    used = method or (MODEL_METHODS if models else METHODS)[0]
    given = _require(parts, used, weights, density, rank)
    folder = folder.expanduser().resolve()
    base = parts[0]
    task: dict[str, Any] = {"base": base.base, "weights": given, "method": used, "density": density}
    files = [str(p.folder) for p in parts]
    if models:
        task |= {"task": "combine_models", "models": files}
    else:
        task |= {"task": "combine", "adapters": files, "rank": rank}
    with new_folder_at(folder) as draft:
        merged_weights, dress = work(
            [
                {**task, "target": str(draft)},
                {"task": "dress", "base": base.base, "tuned": str(base.folder), "target": str(draft)},
            ]
        )
        notes = [NOTES[used]] if used in NOTES and not models else []
        notes.append(ADVICE)
        ranks: tuple[int, ...] = tuple(merged_weights.get("ranks", ()))
        made = Merged(
            folder=str(folder),
            files=(),
            base_model=base.base_name,
            method=merged_weights.get("method", used),
            parts=tuple(names),
            weights=tuple(given),
            ranks=ranks,
            rank=merged_weights.get("rank"),
            error=merged_weights.get("error"),
            notes=tuple(notes),
        )
        made_of = [
            _part(name, weight, p) | ({} if models else {"rank": ranks[n]})
            for n, (name, weight, p) in enumerate(zip(names, given, parts, strict=True))
        ]
        merging = {"method": made.method, "density": density, "error": made.error, "parts": made_of}
        kind = "full" if models else "adapter"
        _write_provenance(draft, kind, base, dress["base_hash"], merging)
        merged = TunedModel(folder.name, draft, base.base, kind)
        commands = [f"orchestrate serve {shlex.quote(str(folder))}"]
        form = "merged" if models else "peft"
        write_whole(draft / "README.md", card(merged, form, commands, notes).encode())
    return replace(made, files=files_of(folder))


def _write_provenance(
    draft: Path, kind: str, base: TunedModel, base_hash: str, merging: dict[str, Any]
) -> None:
    provenance = {
        "kind": kind,
        "base_model": base.base,
        "base_model_hash": base_hash,
        "merged": merging,
        "created_at": datetime.now(UTC),
    }
    write_whole(draft / "passport.json", msgspec.json.format(msgspec.json.encode(provenance), indent=2))


def _part(name: str, weight: float, tuned: TunedModel) -> dict[str, Any]:
    weights = weights_hash(tuned.folder)
    return {"of": name, "weight": weight, "weights": weights, "passport": tuned.provenance}


def _require(
    parts: Sequence[TunedModel],
    method: str,
    weights: Sequence[float] | None,
    density: float | None,
    rank: int | None,
) -> list[float]:
    """Validate the options, and return the weight of each part."""
    models = [p for p in parts if not p.adapter]
    if models and len(models) < len(parts):
        raise UsageError(
            f"{models[0].name} is a full model, so it cannot be merged with adapters",
            fix="merge each adapter into its base model with: orchestrate export RUN DIR --to merged",
        )
    methods, what = (MODEL_METHODS, "models") if models else (METHODS, "adapters")
    if method not in methods:
        raise UsageError(f"{what} cannot be merged with method {method!r}{among(method, methods)}")
    if len(parts) < 2:
        raise UsageError(f"merging needs at least two {what}")
    if weights is not None and len(weights) != len(parts):
        raise UsageError(f"{len(parts)} {what} need {len(parts)} weights, got {len(weights)}")
    if weights is not None and not (all(map(math.isfinite, weights)) and any(weights)):
        raise UsageError(
            f"--weights must be finite numbers, and at least one must be nonzero (got {list(weights)})"
        )
    bases = {p.base_name for p in parts}
    if len(bases) > 1 and (not models or method == "ties"):
        raise UsageError(f"{method} cannot merge models with different bases: {', '.join(sorted(bases))}")
    if models:
        _require_alike(models, method, weights)
    else:
        for part in parts:
            if part.config.get("use_dora"):
                raise UsageError(f"{part.name} is a DoRA adapter, and merging would lose its magnitudes")
            part.require_readable()
    if density is not None and "ties" not in method:
        raise UsageError(
            f"{method} has no density setting, because it does not prune weights",
            fix="use --method ties or dare_ties",
        )
    if density is not None and not 0 < density <= 1:
        raise UsageError(f"--density must be above 0 and at most 1, got {density}")
    if rank is not None and method != "svd":
        raise UsageError(f"{method} has no rank setting", fix="--method svd")
    return list(weights) if weights is not None else [1 / len(parts)] * len(parts)


def _require_alike(models: Sequence[TunedModel], method: str, weights: Sequence[float] | None) -> None:
    """Raise `UsageError` for models whose tensors or vocabularies differ, because averaging them makes no
    sense."""
    if method == "slerp" and len(models) != 2:
        raise UsageError(f"slerp merges exactly two models, got {len(models)}", fix="--method linear")
    if weights is not None and (min(weights) < 0 or sum(weights) <= 0):
        raise UsageError(
            "when merging full models, the merge weights must not be negative and at least one must be "
            f"above 0 (got {list(weights)})"
        )
    first, *others = models
    shapes, vocabulary = _shapes(first), _vocabulary(first)
    for other in others:
        theirs = _shapes(other)
        for name in sorted(shapes.keys() | theirs.keys()):
            if (mine := shapes.get(name)) != (its := theirs.get(name)):
                raise UsageError(
                    f"{first.name} and {other.name} have different architectures: "
                    f"{name} is {mine} in the first and {its} in the second"
                )
        if vocabulary != _vocabulary(other):
            raise UsageError(f"{first.name} and {other.name} have different vocabularies")


def _shapes(model: TunedModel) -> dict[str, list[int]]:
    try:
        each = [tensors(file) for file in sorted(model.folder.glob("*.safetensors"))]
    except (OSError, ValueError) as error:
        raise UsageError(
            f"could not read the model in {model.folder}: {error}", fix="download or export the model again"
        ) from error
    return {name: tensor.shape for part in each for name, tensor in part.items()}


def _vocabulary(model: TunedModel) -> Any:
    """Return the tokens of a model's tokenizer by id, as far as its folder contains them."""
    try:
        tokenizer: Any = msgspec.json.decode((model.folder / "tokenizer.json").read_bytes())
        return tokenizer["model"]["vocab"], tokenizer.get("added_tokens")
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return None
