"""Settings of an adapter where the run goes on from one: they are that adapter's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from orchestrate.local.model.adapters.names import ends, matches
from orchestrate.providers.settings import Rows
from orchestrate.text import count

if TYPE_CHECKING:
    from orchestrate.spec import JobSpec
    from orchestrate.spec.methods import LoRA

PEFTS: Mapping[str, str] = {
    "r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "dora": "use_dora",
    "rslora": "use_rslora",
    "target_parameters": "target_parameters",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "layers_to_transform": "layers_to_transform",
    "exclude_modules": "exclude_modules",
    "modules_to_save": "modules_to_save",
}
"""Our words for peft's."""
OWN = "of the adapter that the run goes on from"


def continue_from(rows: Rows, spec: JobSpec) -> None:
    if spec.continue_from is None:
        return
    config = config_of(spec.continue_from)
    if config is None:
        rows.refuse("continue_from", "on this machine it is the folder of an adapter (adapter_config.json)")
    elif spec.adapter.type == "full":
        reason = "it is an adapter, and all weights are to be trained: take the merged model for the model"
        rows.refuse("continue_from", f"{reason} (orchestrate export RUN DIR --to merged)")
    elif (kind := config.get("peft_type")) != "LORA":
        rows.refuse("continue_from", f"an adapter of the kind {kind}; the engine goes on from LoRA")
    else:
        folder = str(Path(spec.continue_from).expanduser().resolve())
        rule = f"LoRA of rank {config.get('r')} on {config.get('base_model_name_or_path')}"
        rows.keep("continue_from", "continue_from", folder, rule=rule)


def config_of(folder: str) -> Mapping[str, Any] | None:
    """What the folder says of its adapter; `None` where it holds none."""
    try:
        path = Path(folder).expanduser() / "adapter_config.json"
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return None


def settings(rows: Rows, asked: LoRA, config: Mapping[str, Any]) -> None:
    """A row for each: what is asked for and differs is refused, as peft would pass over it."""
    values = asked.model_dump(mode="json")
    for ours, theirs in PEFTS.items():
        row, given, own = f"adapter.{ours}", values[ours], config.get(theirs)
        if given is None or given is False:
            if own:
                rows.default(row, row, own, OWN, send=True)
        elif _plain(given) == _plain(own):
            rows.keep(row, row, given, rule=OWN)
        else:
            rows.refuse(row, f"the adapter that the run goes on from has {_said(own)}", instead=own)
    if asked.init_lora_weights is not None:
        rows.refuse("adapter.init_lora_weights", "the adapter that the run goes on from has begun")
    _targets(rows, asked.targets, config.get("target_modules") or ())


def _targets(rows: Rows, given: str | Sequence[str] | None, own: str | Sequence[str]) -> None:
    row = "adapter.targets"
    shown = own if isinstance(own, str) else ", ".join(sorted(ends(own)))
    told = f"{OWN}: {shown}" + ("" if isinstance(own, str) else f" ({count(len(own), 'module')})")
    if given is None:
        rows.default(row, None, shown, told)
    elif isinstance(given, str):
        rows.map(row, None, shown, told, exact=given == own)
    elif isinstance(own, str) or not _the_same(given, own):
        rows.refuse(row, f"the adapter that the run goes on from has {shown}")
    else:
        rows.keep(row, None, rule=told)
    rows.send(row, own if isinstance(own, str) else list(own))


def _the_same(given: Sequence[str], own: Sequence[str]) -> bool:
    return all(matches(given, name) for name in own) and all(
        any(matches([name], one) for one in own) for name in given
    )


def _plain(value: Any) -> Any:
    """peft keeps lists as sets."""
    return sorted(cast("list[Any]", value)) if isinstance(value, list) else value or None


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[Any]", value)))
    return "none" if value in (None, False, {}) else f"{value}"
