"""What the adapter of a spec becomes on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrate.errors import SetupError
from orchestrate.local.job import Adapter
from orchestrate.local.model.adapters.names import no_pattern
from orchestrate.local.model.files import models
from orchestrate.local.model.files.quantised import Quantised, expanded
from orchestrate.providers.local import continuing, naming
from orchestrate.providers.settings import Rows
from orchestrate.spec.methods import LoRA, QLoRA

if TYPE_CHECKING:
    from orchestrate.spec import JobSpec

_STRUCTURE = (
    "init_lora_weights",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "exclude_modules",
    "target_parameters",
    "modules_to_save",
)
"""Of an adapter; peft's words."""
_EXPANDED = {
    "qlora": "put into 4 bits (NF4) one after the other",
    "lora": "expanded to 16 bits",
    "full": "expanded to 32 bits",
}
"""What becomes of weights that are not trained over as the files hold them."""


def adapter(rows: Rows, spec: JobSpec, model: str) -> None:
    """`model`: as `models.config_of` finds it."""
    config = {} if "model" in rows.refused else models.config_of(model) or {}
    held = Quantised.of(config)
    _kind(rows, spec, held, expanded(config))
    continuing.continue_from(rows, spec)
    if not isinstance(spec.adapter, LoRA):
        return
    asked = spec.adapter
    earlier = spec.continue_from and continuing.config_of(spec.continue_from)
    if earlier and "continue_from" not in rows.refused:
        continuing.settings(rows, asked, earlier)
    else:
        _sizes(rows, asked)
        _structure(rows, spec, asked, config, held)
        if "model" not in rows.refused:
            _names(rows, spec, model)
    if asked.loraplus_lr_ratio is not None:
        rule = "the learning rate of B is so many times that of A"
        rows.keep("adapter.loraplus_lr_ratio", "adapter.loraplus_lr_ratio", rule=rule)


def _sizes(rows: Rows, asked: LoRA) -> None:
    r = asked.r or 16
    if asked.r is None:
        rows.default("adapter.r", "adapter.r", r, send=True)
    else:
        rows.keep("adapter.r", "adapter.r")
    if asked.alpha is None:
        rows.default("adapter.alpha", "adapter.alpha", float(2 * r), "twice the rank", send=True)
    else:
        rows.keep("adapter.alpha", "adapter.alpha")
    rows.offer("adapter.dropout", "adapter.dropout", 0.0)
    rows.offer("adapter.targets", "adapter.targets", "all-linear")
    for flag in ("dora", "rslora"):
        if rows.given(f"adapter.{flag}") is not None:
            rows.keep(f"adapter.{flag}", f"adapter.{flag}")


def _kind(rows: Rows, spec: JobSpec, held: Quantised | None, packed: str | None) -> None:
    kind = spec.adapter.type
    by_default = rows.given("adapter.type") is None and "adapter" not in spec.model_fields_set
    if held is not None and kind == "full" and not by_default:
        reason = f"the model's files hold it in {held.told}; such weights are frozen: train an adapter"
        rows.refuse("adapter.type", reason, instead="qlora")
        return
    sent = "qlora" if by_default else kind
    rule = None if packed is None else f"weights that the files hold in {packed} are {_EXPANDED[sent]}"
    if held is not None:
        try:
            held.require()
        except SetupError as error:
            rows.refuse("model", f"{error.message}: {error.fix}")
        rule = f"the base stays as its files hold it, in {held.told}"
        put = rows.default if by_default else rows.map
        put("adapter.type", "adapter.type", sent, rule)
        rows.send("adapter.type", sent)
    elif by_default:
        rule = rule or "the base is held in 4 bits (NF4)"
        rows.default("adapter.type", "adapter.type", sent, rule, send=True)
    else:
        rows.keep("adapter.type", "adapter.type", kind, rule=rule)


def _structure(
    rows: Rows, spec: JobSpec, asked: LoRA, config: Mapping[str, Any], held: Quantised | None
) -> None:
    given = asked.model_dump(mode="json")
    for name in _STRUCTURE:
        value: Any = getattr(asked, name)
        if value is None:
            continue
        row = f"adapter.{name}"
        if name == "init_lora_weights" and value == "eva" and spec.method.type == "rft":
            rows.refuse(row, "it looks at the rows that are trained on, and here answers are drawn")
        elif reason := _unfit(name, asked, config, held):
            rows.refuse(row, reason)
        else:
            rows.keep(row, row, given[name], rule=_RULES.get(name))


def _names(rows: Rows, spec: JobSpec, model: str) -> None:
    """Of what names modules: refuses a setting that fits nothing, tells what of others does not."""
    given = spec.adapter.model_dump(mode="json")
    adapter = Adapter.from_dict(given)
    if wrong := no_pattern(adapter):
        field, reason = wrong
        rows.refuse(f"adapter.{field}", reason)
        return
    found, unseen = naming.looked_at(spec, model)
    for one in found:
        row = f"adapter.{one.field}"
        if row in rows.refused:
            continue
        if one.useless:
            rows.refuse(row, f"{one.told}; {one.fix}")
        else:
            rows.map(row, row, given[one.field], one.told, exact=False)
    if unseen is not None and isinstance(spec.adapter, LoRA):
        for field in naming.named(spec.adapter):
            rows.tell(f"adapter.{field}", f"names not looked at: {unseen}")


_RULES = {
    "target_parameters": "weights of experts, adapted one expert at a time",
    "modules_to_save": "trained whole, in 32 bits, and saved with the adapter",
    "exclude_modules": "taken out of the targets",
}


def _unfit(name: str, asked: LoRA, config: Mapping[str, Any], held: Quantised | None) -> str | None:
    """Why the engine cannot do this with this model."""
    if name == "init_lora_weights":
        return _unfit_start(asked, held)
    if name == "target_parameters" and (asked.dropout or asked.dora):
        return f"peft adapts such weights without {'dropout' if asked.dropout else 'DoRA'}: leave one out"
    text: Mapping[str, Any] = config.get("text_config") or config
    layers = text.get("num_hidden_layers")
    if name == "layers_to_transform" and isinstance(layers, int):
        wrong = [n for n in asked.layers_to_transform or () if n >= layers]
        if wrong:
            return f"the model has the layers 0 to {layers - 1}, not {wrong[0]}"
    if name == "layers_to_transform" and isinstance(asked.targets, str) and asked.targets != "all-linear":
        return "targets is a regular expression, which can name the layers itself"
    return None


def _unfit_start(asked: LoRA, held: Quantised | None) -> str | None:
    start, four_bit = asked.init_lora_weights, isinstance(asked, QLoRA)
    if asked.changes_base and (four_bit or held):
        return f"{start} is taken out of the base's weights, which a few bits do not hold: adapter: lora"
    if start == "loftq" and held is not None:
        return f"it makes up for what 4 bits lose, and the model's files hold nothing but {held.told}"
    if start == "loftq" and not four_bit:
        return "it makes up for what 4 bits lose, and the base is held whole: adapter: qlora"
    rank = asked.r or 16
    if start == "orthogonal" and (four_bit or held):
        return "peft makes it in the base's own precision, and a few bits are too few: adapter: lora"
    if start == "orthogonal" and (rank % 2 or any(n % 2 for n in (asked.rank_pattern or {}).values())):
        return "it needs even ranks"
    return None
