"""Several adapters of one base made one."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.core.files import write_whole
from orchestrate.errors import UsageError
from orchestrate.local.weights import ask_all
from orchestrate.serving.export.card import card
from orchestrate.serving.export.folder import new_folder_at
from orchestrate.serving.export.forms import Work, files_of, weights_hash
from orchestrate.serving.tuned import Tuned
from orchestrate.text import among
from orchestrate.types import Merged

METHODS = ("svd", "cat", "ties", "dare_ties", "linear")
NOTES = {
    "linear": "linear adds the two factors of each adapter separately, which mixes their products. "
    "PEFT's authors call it very rough and advise against it; svd and cat are precise",
    "svd": "svd keeps the given rank and drops the rest; cat drops nothing and its rank is the sum of all",
}
ADVICE = (
    "evaluate the result and each of its parts: orchestrate eval RUN for each part, and serve this "
    "folder for the result"
)


def combine(
    parts: Sequence[Tuned],
    names: Sequence[str],
    folder: Path,
    *,
    method: str,
    weights: Sequence[float] | None,
    density: float | None,
    rank: int | None,
    work: Work = ask_all,
) -> Merged:
    """Writes `folder`, which is new or empty. Raises `UsageError`."""
    given = _require(parts, method, weights, density, rank)
    folder = folder.expanduser().resolve()
    base = parts[0]
    with new_folder_at(folder) as draft:
        told, dress = work(
            [
                {
                    "task": "combine",
                    "base": base.base,
                    "adapters": [str(p.folder) for p in parts],
                    "target": str(draft),
                    "weights": given,
                    "method": method,
                    "density": density,
                    "rank": rank,
                },
                {"task": "dress", "base": base.base, "tuned": str(base.folder), "target": str(draft)},
            ]
        )
        notes = [NOTES[method]] if method in NOTES else []
        notes.append(ADVICE)
        made_of = [
            _part(name, weight, r, p)
            for name, weight, r, p in zip(names, given, told["ranks"], parts, strict=True)
        ]
        merging = {"method": told["method"], "density": density, "error": told["error"], "parts": made_of}
        _write_passport(draft, base, dress["base_hash"], merging)
        merged = Tuned(folder.name, draft, base.base, "adapter")
        told_how = [f"orchestrate serve {shlex.quote(str(folder))}"]
        write_whole(draft / "README.md", card(merged, "peft", told_how, notes).encode())
    return Merged(
        folder=str(folder),
        files=files_of(folder),
        base_model=base.base_name,
        method=told["method"],
        parts=tuple(names),
        weights=tuple(given),
        ranks=tuple(told["ranks"]),
        rank=told["rank"],
        error=told["error"],
        notes=tuple(notes),
    )


def _write_passport(draft: Path, base: Tuned, base_hash: str, merging: dict[str, Any]) -> None:
    passport = {
        "kind": "adapter",
        "base_model": base.base,
        "base_model_hash": base_hash,
        "merged": merging,
        "created_at": datetime.now(UTC),
    }
    write_whole(draft / "passport.json", msgspec.json.format(msgspec.json.encode(passport), indent=2))


def _part(name: str, weight: float, rank: int, tuned: Tuned) -> dict[str, Any]:
    weights = weights_hash(tuned.folder)
    return {"of": name, "weight": weight, "rank": rank, "weights": weights, "passport": tuned.passport}


def _require(
    parts: Sequence[Tuned],
    method: str,
    weights: Sequence[float] | None,
    density: float | None,
    rank: int | None,
) -> list[float]:
    """The weight of each part."""
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}{among(method, METHODS)}")
    if len(parts) < 2:
        raise UsageError("merging needs at least two adapters")
    bases = {p.base_name for p in parts}
    if len(bases) > 1:
        raise UsageError(f"adapters of different bases cannot be merged: {', '.join(sorted(bases))}")
    for part in parts:
        if part.config.get("use_dora"):
            raise UsageError(f"{part.name} is a DoRA adapter: its magnitudes would be lost in a merge")
        part.require_readable()
    if weights is not None and len(weights) != len(parts):
        raise UsageError(f"{len(parts)} adapters need {len(parts)} weights, got {len(weights)}")
    if weights is not None and not (all(map(math.isfinite, weights)) and any(weights)):
        raise UsageError(f"--weights must be finite numbers, not all 0, got {list(weights)}")
    if density is not None and "ties" not in method:
        raise UsageError(
            f"{method} has no density, because it prunes nothing", fix="--method ties , or dare_ties"
        )
    if density is not None and not 0 < density <= 1:
        raise UsageError(f"--density must be above 0 and at most 1, got {density}")
    if rank is not None and method != "svd":
        raise UsageError(f"{method} has no rank setting", fix="--method svd")
    return list(weights) if weights is not None else [1 / len(parts)] * len(parts)
