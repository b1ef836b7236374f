"""Compute the likelihood of given rows under a model. Imports torch."""

# torch is only partially typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from orchestrate.data.rows import ChatMessage, Example, PreferenceExample, UnpairedExample
from orchestrate.local.encoding import Template, decode_row, encode, encode_answer, encode_pair
from orchestrate.local.model.loaded import halving
from orchestrate.types import Likelihood, decoding

ROWS = 8
"""Number of rows that are scored in one batch. Kept small because the logits of long rows are large."""


def likelihoods(
    model: Any,
    template: Template,
    device: torch.device,
    rows: Sequence[dict[str, Any]],
    most_tokens: int | None = None,
) -> list[Likelihood]:
    """Compute the likelihood of each row, truncated to `most_tokens`. A row contains one of:

    - `text`, with an optional `context` before it.
    - `messages` and their `answer`.
    - `example`, a canonical row. Only its trained part is scored. Set `alone` to score it without its prompt.
    """
    encoded = [_encoded(template, row, most_tokens) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i][0]))

    def compute(most: int) -> dict[int, Likelihood]:
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
) -> list[Likelihood]:
    """Score rows in one pass. The last row is the longest."""
    longest = len(part[-1][0])
    ids = torch.zeros((len(part), longest), dtype=torch.long)
    counted = torch.zeros((len(part), longest), dtype=torch.bool)
    there = torch.zeros((len(part), longest), dtype=torch.long)
    for row, (tokens, scored) in enumerate(part):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        counted[row, : len(tokens)] = torch.tensor(scored)
        there[row, : len(tokens)] = 1
    ids, counted = ids.to(device), counted.to(device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=there.to(device)).logits[:, :-1].float()
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    nats = nats * counted[:, 1:]
    likeliest = (logits.argmax(dim=-1) == ids[:, 1:]) | ~counted[:, 1:]
    counts = counted[:, 1:].sum(dim=1)
    means = nats.sum(dim=1, keepdim=True) / counts.clamp(min=1)[:, None]
    spreads = ((((nats - means) * counted[:, 1:]) ** 2).sum(dim=1) / counts.clamp(min=1)).sqrt()
    return [
        Likelihood(float(nats[n].sum()), int(counts[n]), bool(likeliest[n].all()), float(spreads[n]))
        for n in range(len(part))
    ]


def _encoded(template: Template, row: dict[str, Any], most: int | None) -> tuple[list[int], list[bool]]:
    """Return the token ids and which of them count."""
    if "text" in row:
        context = str(row.get("context", ""))
        ids: list[int] = template.tokenizer(context + row["text"])["input_ids"]
        before = len(template.tokenizer(context)["input_ids"]) if context else 0
        return ids, [i >= before for i in range(len(ids))]
    if "example" in row:
        example = decode_row(msgspec.json.encode(row["example"]))
        ids, counted = _learnt(template, example, alone=bool(row.get("alone")))
        return ids[:most], counted[:most]
    prompt = [decoding.convert(m, ChatMessage) for m in row["messages"]]
    answer = ChatMessage(role="assistant", content=row["answer"])
    example = UnpairedExample(prompt=prompt, completion=[answer], label=True, tools=row.get("tools") or None)
    encoded = encode_answer(example, template)
    return encoded.ids, [w > 0 for w in encoded.weights]


def _learnt(template: Template, example: Example, *, alone: bool) -> tuple[list[int], list[bool]]:
    """Return the trained part of a row: the preferred answer of a pair, the answer of an unpaired row."""
    match example:
        case PreferenceExample():
            encoded = encode_pair(example, template).preferred
        case UnpairedExample():
            encoded = encode_answer(example, template)
        case _:
            encoded = encode(example, template)
    counted = [n > 0 and weight > 0 for n, weight in enumerate(encoded.weights)]
    kept = [n for n, counts in enumerate(counted) if counts or not n or not alone]
    return [encoded.ids[n] for n in kept], [counted[n] for n in kept]
