"""How likely a loaded model takes given texts to be. Imports torch."""

# torch and transformers describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from orchestrate.data.rows.examples import ChatMessage, UnpairedExample
from orchestrate.local.encoding.encoding import Template, encode_answer
from orchestrate.local.model.oom import halving
from orchestrate.types import decoding

ROWS = 8
"""Answered together; logits of a whole row are large."""


def likelihoods(
    model: Any, template: Template, device: torch.device, rows: Sequence[dict[str, Any]]
) -> list[tuple[float, int, bool]]:
    """Nats and tokens of each row, and whether each token was the likeliest: of a `text`, after a `context`
    where there is one, or of an `answer` to `messages`."""
    encoded = [_encoded(template, row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i][0]))

    def compute(most: int) -> dict[int, tuple[float, int, bool]]:
        parts = (order[start : start + most] for start in range(0, len(order), most))
        return {
            i: one
            for part in parts
            for i, one in zip(part, _of_part(model, device, [encoded[i] for i in part]), strict=True)
        }

    found, _ = halving(ROWS, device, compute)
    return [found[i] for i in range(len(rows))]


def _of_part(
    model: Any, device: torch.device, part: Sequence[tuple[list[int], list[bool]]]
) -> list[tuple[float, int, bool]]:
    """Of rows in one pass, the longest of which is the last."""
    longest = len(part[-1][0])
    ids = torch.zeros((len(part), longest), dtype=torch.long)
    told = torch.zeros((len(part), longest), dtype=torch.bool)
    there = torch.zeros((len(part), longest), dtype=torch.long)
    for row, (tokens, scored) in enumerate(part):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        told[row, : len(tokens)] = torch.tensor(scored)
        there[row, : len(tokens)] = 1
    ids, told = ids.to(device), told.to(device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=there.to(device)).logits[:, :-1].float()
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    nats = nats * told[:, 1:]
    likeliest = (logits.argmax(dim=-1) == ids[:, 1:]) | ~told[:, 1:]
    return [
        (float(nats[row].sum()), int(told[row, 1:].sum()), bool(likeliest[row].all()))
        for row in range(len(part))
    ]


def _encoded(template: Template, row: dict[str, Any]) -> tuple[list[int], list[bool]]:
    """Ids, and which of them count."""
    if "text" in row:
        context = str(row.get("context", ""))
        ids: list[int] = template.tokenizer(context + row["text"])["input_ids"]
        before = len(template.tokenizer(context)["input_ids"]) if context else 0
        return ids, [i >= before for i in range(len(ids))]
    prompt = [decoding.convert(m, ChatMessage) for m in row["messages"]]
    answer = ChatMessage(role="assistant", content=row["answer"])
    example = UnpairedExample(prompt=prompt, completion=[answer], label=True, tools=row.get("tools") or None)
    encoded = encode_answer(example, template)
    return encoded.ids, [w > 0 for w in encoded.weights]
