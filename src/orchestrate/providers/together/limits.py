"""A model's limits as Together tells them (`/v1/fine-tunes/models/limits`), held against a request's body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrate.errors import TranslationRefused
from orchestrate.providers.calls.values import number, table, whole
from orchestrate.types import Outcome, Setting

if TYPE_CHECKING:
    from orchestrate.data import TrainingData

FALLBACK_RANK = 8
"""Where the host tells no default rank; the smallest in common use."""


def default_rank(limits: Mapping[str, Any]) -> int:
    return whole(table(limits.get("lora_training")).get("default_rank")) or FALLBACK_RANK


def require(body: Mapping[str, Any], limits: Mapping[str, Any], data: TrainingData) -> None:
    """Raises `TranslationRefused` with every setting that is outside the model's limits."""
    broken = [*_numbers(body, limits), *_adapter(body, limits), *_content(limits, data)]
    if broken:
        raise TranslationRefused("together", broken)


def _numbers(body: Mapping[str, Any], limits: Mapping[str, Any]) -> list[Setting]:
    method = str(table(body.get("training_method")).get("method"))
    bounds = [
        ("epochs", "n_epochs", None, "max_num_epochs"),
        ("evals", "n_evals", None, "max_num_evals"),
        ("checkpoints", "n_checkpoints", None, "max_num_checkpoints"),
        ("learning_rate", "learning_rate", "min_learning_rate", "max_learning_rate"),
        ("max_seq_length", "max_seq_length", "min_max_seq_length", f"max_seq_length_{method}"),
    ]
    found: list[Setting] = []
    for name, wire, low, high in bounds:
        found += _outside(name, body.get(wire), limits.get(low) if low else None, limits.get(high))
    return found


def _adapter(body: Mapping[str, Any], limits: Mapping[str, Any]) -> list[Setting]:
    chosen = table(body.get("training_type"))
    full = chosen.get("type") == "Full"
    if full and limits.get("supports_full_training") is False:
        return [_refused("adapter.type", "full", "this model is trained with LoRA only")]
    bounds = table(limits.get("full_training" if full else "lora_training"))
    dpo = table(body.get("training_method")).get("method") == "dpo"
    most = bounds.get("max_batch_size_dpo" if dpo else "max_batch_size")
    batch = body.get("batch_size")
    found = [] if batch == "max" else _outside("batch_size", batch, bounds.get("min_batch_size"), most)
    return found + _outside("adapter.r", chosen.get("lora_r"), None, bounds.get("max_rank"))


def _content(limits: Mapping[str, Any], data: TrainingData) -> list[Setting]:
    content = data.train.content
    needs = [
        ("images", content.images, "supports_vision"),
        ("tools", content.tools, "supports_tools"),
        ("reasoning", content.reasoning, "supports_reasoning"),
    ]
    return [
        _refused("train", data.train.path, f"the data has {what}, which this model does not take")
        for what, present, field in needs
        if present and limits.get(field) is False
    ]


def _outside(name: str, asked: Any, low: Any, high: Any) -> list[Setting]:
    value, least, most = number(asked), number(low), number(high)
    if value is None:
        return []
    if least is not None and value < least:
        return [_refused(name, asked, f"at least {least:g} for this model")]
    if most is not None and value > most:
        return [_refused(name, asked, f"at most {most:g} for this model")]
    return []


def _refused(name: str, asked: Any, rule: str) -> Setting:
    return Setting(name=name, asked=asked, outcome=Outcome.REFUSED, rule=f"Together: {rule}")
