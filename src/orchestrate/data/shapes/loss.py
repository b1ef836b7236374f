"""Which part of a message carries loss, as other trainers write it: swift's `loss`, Axolotl's `train` and
`train_detail`, LLaMA-Factory's `loss_weight`, Axolotl's segments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from orchestrate.data.rows.problems import problem
from orchestrate.types import Problem

FLAGS = ("loss", "train")
"""True or false for a whole message."""

Spans = list[tuple[int, int]]
"""Characters from the first up to the second number of each pair carry loss."""


@dataclass
class Loss:
    """What a message says of its loss; `used` are the names of the fields that were read."""

    weight: int | float | None = None
    spans: Spans | None = None
    used: set[str] = field(default_factory=set[str])
    strays: dict[str, Any] = field(default_factory=dict[str, Any])
    """What else was said there, which is not read."""
    found: list[Problem] = field(default_factory=list[Problem])


def loss_of(item: dict[str, Any], role: Any, text: str, place: str) -> Loss:
    """`text` is the message's own. Only answers are trained: a field that wants another message trained is an
    error, and one that takes it out says what holds anyway."""
    read = Loss()
    flags = {name: item[name] for name in FLAGS if isinstance(item.get(name), bool)}
    weight: Any = item.get("loss_weight")
    if weight is not None:
        read.used.add("loss_weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            read.found.append(
                problem("bad-weight", "loss_weight is not a number", field=f"{place}.loss_weight")
            )
            weight = None
    read.used |= flags.keys()
    spans = _detailed(item, text, place, read)
    if role != "assistant":
        wanted = [name for name, value in flags.items() if value] + ["loss_weight"] * bool(weight)
        wanted += ["train_detail"] * bool(spans)
        if wanted:
            said = f"{wanted[0]} asks to train a message of {str(role)[:20]}; only answers are trained"
            read.found.append(problem("lost-meaning", said, field=f"{place}.{wanted[0]}"))
        return read
    read.weight = 0 if False in flags.values() else weight
    if spans is not None and read.weight != 0:
        read.weight, read.spans = (0, None) if not spans else (read.weight, spans)
    if read.spans == [(0, len(text))]:
        read.spans = None
    return read


_DETAIL = frozenset({"begin_offset", "end_offset", "train"})


def _detailed(item: dict[str, Any], text: str, place: str, read: Loss) -> Spans | None:
    """Axolotl's offsets, of which the last character belongs to the span."""
    details: Any = item.get("train_detail")
    if details is None:
        return None
    read.used.add("train_detail")
    spans: Spans = []
    for detail in cast("list[Any]", details) if isinstance(details, list) else [None]:
        part = cast("dict[str, Any]", detail) if isinstance(detail, dict) else {}
        read.strays |= {f"train_detail.{name}": part[name] for name in part.keys() - _DETAIL}
        begin, end, trained = (part.get(name) for name in ("begin_offset", "end_offset", "train"))
        if not (isinstance(begin, int) and isinstance(end, int) and isinstance(trained, bool)):
            message = "train_detail holds {begin_offset, end_offset, train}"
            read.found.append(problem("bad-weight", message, field=f"{place}.train_detail"))
            return None
        if not 0 <= begin <= end < max(1, len(text)):
            message = f"train_detail goes from {begin} to {end}, the text has {len(text)} characters"
            read.found.append(problem("bad-weight", message, field=f"{place}.train_detail"))
            return None
        if trained:
            spans.append((begin, end + 1))
    return joined(spans)


def joined(spans: Iterable[tuple[int, int]]) -> Spans:
    """In order, those that touch made one."""
    made: Spans = []
    for begin, end in sorted(spans):
        if begin >= end:
            continue
        if made and begin <= made[-1][1]:
            made[-1] = (made[-1][0], max(end, made[-1][1]))
        else:
            made.append((begin, end))
    return made


def spans_of(pieces: Iterable[tuple[str, bool]]) -> tuple[str, Spans]:
    """The text that pieces make, and where those lie in it that are trained."""
    text, spans = "", Spans()
    for piece, trained in pieces:
        if trained:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text, joined(spans)
