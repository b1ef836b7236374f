"""Several GPUs: each with the whole model (DDP) where it fits on one, each with a share of every weight
(FSDP) where it fits only so, refused where it does not fit either way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from orchestrate.text import size
from orchestrate.types import MemoryPlan, Outcome, Setting, Translation

NAME = "provider_options.sharded"
_ADAPTERS = {
    "dora": "DoRA reads whole weights",
    "init_lora_weights": "such a start reads whole weights",
    "modules_to_save": "it trains a copy of whole modules",
    "target_parameters": "experts are one tensor for all",
}


def settled(told: Translation, plan: Callable[[Translation], MemoryPlan | None]) -> Translation:
    """With the memory plan, and the way in which several processes share the work."""
    processes = told.body.get("hyper", {}).get("processes", 1)
    asked = next((row for row in told.settings if row.name == NAME), None)
    if told.refused or (processes == 1 and asked is None):
        return msgspec.structs.replace(told, memory=plan(told))
    if asked is not None and asked.sent is not True:
        return msgspec.structs.replace(told, memory=plan(told))
    kept = Setting(name=NAME, asked=True, outcome=Outcome.KEPT, sent=True, wire="hyper.sharded")
    in_shares = _with(told, kept)
    reason = unable(told.body)
    if asked is not None:
        if reason:
            return _with(told, _refused(reason, asked=True))
        return msgspec.structs.replace(in_shares, memory=plan(in_shares))
    whole, shared = plan(told), None if reason else plan(in_shares)
    if whole is None or whole.fits is not False or whole.available_bytes is None:
        rule = "each has the whole model (DDP)"
        if whole is not None and whole.fits:
            rule += f": it takes {size(whole.total_bytes)} of {size(whole.available_bytes or 0)}"
        row = Setting(name=NAME, outcome=Outcome.DEFAULTED, sent=False, rule=rule)
        return msgspec.structs.replace(_with(told, row), memory=whole)
    sums = f"whole on each it takes {size(whole.total_bytes)} of {size(whole.available_bytes)}"
    if shared is None or not shared.fits:
        more = reason or f"in {processes} shares {size(shared.total_bytes if shared else 0)}"
        least = shared or whole
        fix = "; or ".join(["more or larger GPUs", *least.advice])
        row = _refused(f"it fits on none of {processes} GPUs: {sums}; {more}; {fix}", asked=None)
        return msgspec.structs.replace(_with(told, row), memory=whole)
    rule = f"each has a share of every weight (FSDP): {sums}, "
    rule += f"in {processes} shares {size(shared.total_bytes)}"
    row = Setting(name=NAME, outcome=Outcome.DEFAULTED, sent=True, wire="hyper.sharded", rule=rule)
    return msgspec.structs.replace(_with(told, row), memory=shared)


def spread(body: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """The job for so many processes, each with a share of every weight."""
    return {**body, "hyper": {**body.get("hyper", {}), "processes": processes, "sharded": True}}


def unable(body: Mapping[str, Any]) -> str | None:
    """Why weights cannot be spread for this job."""
    hyper, adapter = body.get("hyper", {}), body.get("adapter", {})
    optimizer, engine = hyper.get("optimizer", "adamw"), body.get("engine", "auto")
    if hyper.get("processes", 1) < 2:
        return "there is one process: set processes to the number of GPUs"
    if optimizer != "adamw":
        return f"optimizer {optimizer} does not take weights in shares, adamw does"
    if engine not in ("auto", "plain", None):
        return f"engine {engine} does not take weights in shares, plain does"
    for name, reason in _ADAPTERS.items():
        if adapter.get(name):
            return f"adapter.{name}: {reason}"
    if body.get("added_tokens") and adapter.get("type") != "full":
        return "added_tokens: their rows of the embeddings are trained apart"
    return None


def _refused(reason: str, *, asked: bool | None) -> Setting:
    return Setting(name=NAME, asked=asked, outcome=Outcome.REFUSED, rule=reason)


def _with(told: Translation, row: Setting) -> Translation:
    rows = (*(one for one in told.settings if one.name != NAME), row)
    hyper = {**told.body.get("hyper", {}), "sharded": row.sent is True}
    return msgspec.structs.replace(told, settings=rows, body={**told.body, "hyper": hyper})
