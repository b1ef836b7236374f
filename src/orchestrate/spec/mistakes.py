"""What is wrong with a spec, in the words of someone who writes YAML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from orchestrate.spec.methods import (
    DPO,
    RFT,
    SFT,
    EarlyStopping,
    Full,
    LoRA,
    Optimizer,
    QLoRA,
    TrainFile,
    WandB,
)
from orchestrate.text import meant

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


def spec_errors(
    error: ValidationError,
    spec: type[BaseModel],
    lines: dict[tuple[str, ...], int] | None = None,
    under: tuple[str, ...] = (),
) -> list[str]:
    """One line per mistake in what was to be a `spec`: place, reason, allowed values.

    `lines` maps a field's path to its 1-based line in the YAML file, when there is one; `under` is the path
    of the part that was validated.
    """
    found: dict[str, None] = {}
    for details in error.errors():
        item: dict[str, Any] = {**details}
        loc = tuple(str(p) for p in item["loc"])
        if item["type"] == "too_short" and item["input"]:
            continue  # what is missing was refused itself
        if loc and (expected := _UNIONS.get(loc[0])):
            # Of each kind that a field may have, pydantic tells why it was not that one.
            if isinstance(item["input"], dict):
                continue
            item = {**item, "type": "union", "msg": f"must be {expected}, got {_shown(item['input'])}"}
            loc = (loc[0], *loc[2:])
        found[_describe(item, loc, spec, lines or {}, under)] = None
    return list(found)


_UNIONS = {
    "model": "a name, or a mapping with a name for each backend",
    "batch_size": "a whole number, or max",
}
_EXPECTED = {
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a name, or a mapping with a type",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "decimal_type": "an amount in US dollars",
    "decimal_parsing": "an amount in US dollars",
    "finite_number": "a finite number",
}
"""Pydantic's kinds of mistakes in the words of someone who writes YAML."""
_BOUNDS = frozenset(
    {
        "greater_than",
        "greater_than_equal",
        "less_than",
        "less_than_equal",
        "literal_error",
        "string_too_long",
        "string_pattern_mismatch",
    }
)
"""Those whose reason tells what is allowed, and not what was given."""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _describe(
    item: dict[str, Any],
    loc: tuple[str, ...],
    spec: type[BaseModel],
    lines: dict[tuple[str, ...], int],
    under: tuple[str, ...],
) -> str:
    # pydantic puts the tag of the union into the path of an error inside it; people do not write it.
    tag = loc[1] if loc[:1] in (("method",), ("adapter",)) and len(loc) > 1 else None
    of_union = tag or loc[:2] in (("train", "one"), ("train", "several"))
    own = tuple(p for i, p in enumerate(loc) if p != "[key]" and not (of_union and i == 1))
    path = (*under, *own)
    reason = item["msg"].removeprefix("Value error, ")
    # A rule that joins several fields has no place of its own; its message begins with the field.
    named = path or tuple(reason.split()[0].rstrip(":").split("."))
    line = next((lines[named[:n]] for n in range(len(named), 0, -1) if named[:n] in lines), None)
    place = f"line {line}: " if line else ""
    if not path:
        return f"  {place}{reason}"
    field = ".".join(path)
    kind = "model_attributes_type" if path == ("optimizer",) else item["type"]  # also accepted as a word
    if item["type"] in _EXPECTED:
        reason = f"must be {_EXPECTED[kind]}, got {_shown(item['input'])}"
        if item["type"] == "string_type" and isinstance(item["input"], int | float | date):
            reason += "; put it in quotes"
    elif item["type"] == "too_short":
        reason = "must not be empty"
    elif item["type"] == "extra_forbidden":
        reason = _unknown(own, tag, spec)
    elif item["type"] == "missing":
        reason = "required"
    elif item["type"] == "union_tag_invalid":
        tag, tags = str(item["ctx"]["tag"]), str(item["ctx"]["expected_tags"])
        guess = meant(tag, re.findall("'(.*?)'", tags))
        reason = f"{tag!r} is not known{guess}; allowed: {tags}"
    elif item["type"] in _BOUNDS:
        reason += f", got {_shown(item['input'])}"
    return f"  {place}{field}: {reason}"


def _unknown(path: Sequence[str], tag: str | None, spec: type[BaseModel]) -> str:
    *parents, name = path
    known = sorted(_PARTS[tag or parents[0]].model_fields if parents else spec.model_fields)
    owners = [t for t, part in _TAGS.items() if tag and name in part.model_fields]
    if owners:
        return f"is a setting of {', '.join(owners)}, not of {tag}"
    return f"unknown field{meant(name, known)}; allowed: {', '.join(known)}"


_TAGS: dict[str, type[BaseModel]] = {
    "sft": SFT,
    "dpo": DPO,
    "rft": RFT,
    "lora": LoRA,
    "qlora": QLoRA,
    "full": Full,
}
_PARTS: dict[str, type[BaseModel]] = {
    **_TAGS,
    "early_stopping": EarlyStopping,
    "optimizer": Optimizer,
    "train": TrainFile,
    "wandb": WandB,
}
