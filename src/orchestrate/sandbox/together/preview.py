"""Together's preview of how rows become tokens, and which of them carry loss.

The tokens are those of the stand-in model, in ChatML; its vocabulary is not that of the model asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from orchestrate.data.rows.examples import ChatExample, CompletionExample, Example, TextExample
from orchestrate.sandbox.host import Host, HostError
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
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(Path(host.trainer.model) / "tokenizer.json"))
    limit = limits_of(asked.model)["max_seq_length_sft"]
    examples = [example for example, _ in islice(read(path, TAKEN), asked.top_k)]
    kind = FORMATS.get(type(examples[0]))
    if kind is None:
        raise HostError(400, "only files for SFT can be previewed", param="training_file")
    rows = [_row(tokenizer, list(_pieces(example, asked.train_on_inputs)), limit) for example in examples]
    return {
        "model": asked.model,
        "dataset_format": kind,
        "max_seq_length": limit,
        "train_on_inputs": asked.train_on_inputs,
        "rows": rows,
        "sandbox": True,
    }


def _pieces(example: Example, inputs: bool) -> Iterator[tuple[str, bool]]:
    """The text of a row, and whether each piece carries loss."""
    match example:
        case ChatExample():
            for message in example.messages:
                learnt = inputs or (message.role == "assistant" and message.weight != 0)
                yield f"<|im_start|>{message.role}\n", inputs
                yield f"{message.text}<|im_end|>", learnt
                yield "\n", inputs
        case CompletionExample():
            yield example.prompt, inputs
            yield example.completion, True
        case TextExample():
            yield example.text, True
        case _:
            return


def _row(tokenizer: Any, pieces: list[tuple[str, bool]], limit: int) -> dict[str, Any]:
    ids: list[int] = []
    learnt: list[bool] = []
    for text, trained in pieces:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        ids += found
        learnt += [trained] * len(found)
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
