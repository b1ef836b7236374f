"""Parsing of rendered samples: the host's own token ids and loss masks for rows of an SFT job.

Source: docs.fireworks.ai, "Debug SFT tokenization". The samples are JSON lines with
`source_jsonl_line_number`, `token_ids`, `decoded_tokens` and `token_weights`, which are 0 for context. A row
may be split into several sequences (`split_index`), each one turn longer than the previous."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from orchestrate.data.operations.preview import RowTokens, Token
from orchestrate.providers.calls import number, table, text, whole


def rendered_of(lines: Iterable[str]) -> list[RowTokens]:
    """Parse rendered rows in order. Skips lines that are not samples."""
    found = [row for line in lines for row in _row(line)]
    return sorted(found, key=lambda row: row.row)


def _row(line: str) -> Iterator[RowTokens]:
    try:
        sample = table(json.loads(line))
    except ValueError:
        return
    ids, decoded, weights = (_list(sample, n) for n in ("token_ids", "decoded_tokens", "token_weights"))
    row = whole(sample.get("source_jsonl_line_number"))
    if row is None or not ids or not len(ids) == len(decoded) == len(weights):
        return
    tokens = tuple(
        Token(id=whole(i) or 0, text=str(t), weight=number(w) or 0.0)
        for i, t, w in zip(ids, decoded, weights, strict=True)
    )
    told = f"renderer {text(sample.get('renderer'))}, trained on {text(sample.get('train_on_what'))}"
    split = whole(sample.get("split_index"))
    part = (f"part {split + 1} of this row",) if split else ()
    trained = sum(token.weight > 0 for token in tokens)
    yield RowTokens(row=row, tokens=tokens, trained=trained, truncated=0, notes=(told, *part))


def _list(sample: dict[str, Any], name: str) -> list[Any]:
    value = sample.get(name)
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]
