"""Together's preview of how rows become tokens, and which of them carry loss."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from orchestrate.data.rows.examples import ChatExample, CompletionExample, Example, TextExample
from orchestrate.sandbox.host import Host, HostError
from orchestrate.sandbox.shared.rendering import encoded, tokenizer_of
from orchestrate.sandbox.together.bodies import Preview
from orchestrate.sandbox.together.limits import TAKEN, limits_of
from orchestrate.sandbox.uploads import read

FORMATS: dict[type[Any], str] = {
    ChatExample: "conversation",
    CompletionExample: "instruction",
    TextExample: "general",
}


def preview(host: Host, asked: Preview, path: Path) -> dict[str, Any]:
    """The first `top_k` rows. Raises `HostError` 400 for rows that are not for SFT."""
    tokenizer = tokenizer_of(host)
    limit = limits_of(asked.model)["max_seq_length_sft"]
    examples = [example for example, _ in islice(read(path, TAKEN), asked.top_k)]
    kind = FORMATS.get(type(examples[0]))
    if kind is None:
        raise HostError(400, "only files for SFT can be previewed", param="training_file")
    rows = [_row(tokenizer, example, asked.train_on_inputs, limit) for example in examples]
    return {
        "model": asked.model,
        "dataset_format": kind,
        "max_seq_length": limit,
        "train_on_inputs": asked.train_on_inputs,
        "rows": rows,
        "sandbox": True,
    }


def tokenized(host: Host, path: Path) -> bytes:
    """All rows as JSON lines of ids and labels; the real archive's form is not published."""
    tokenizer = tokenizer_of(host)
    rows = (encoded(tokenizer, example) for example, _ in read(path, TAKEN))
    lines = (
        {"input_ids": ids, "labels": [id if on else -100 for id, on in zip(ids, learnt, strict=True)]}
        for ids, learnt in rows
    )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _row(tokenizer: Any, example: Example, inputs: bool, limit: int) -> dict[str, Any]:
    ids, learnt = encoded(tokenizer, example, inputs=inputs)
    truncated = len(ids) > limit
    ids, learnt = ids[:limit], learnt[:limit]
    edges = [n for n in range(1, len(learnt)) if learnt[n] != learnt[n - 1]]
    spans = [[a, b] for a, b in pairwise([0, *edges, len(learnt)]) if a < b and learnt[a]]
    return {
        "input_ids": ids,
        "labels": [id if on else -100 for id, on in zip(ids, learnt, strict=True)],
        "tokens": [str(tokenizer.id_to_token(id)) for id in ids],
        "num_tokens": len(ids),
        "num_trained_tokens": sum(learnt),
        "trained_spans": spans,
        "truncated": truncated,
    }
