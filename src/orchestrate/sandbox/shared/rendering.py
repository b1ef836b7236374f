"""How rows become tokens, and which of them carry loss, for the hosts that show it.

The tokens are those of the stand-in model, in ChatML; its vocabulary is not that of the model asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrate.data.rows.examples import ChatExample, CompletionExample, Example, TextExample
from orchestrate.sandbox.host import Host


def tokenizer_of(host: Host) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(host.trainer.model) / "tokenizer.json"))


def encoded(tokenizer: Any, example: Example, *, inputs: bool = False) -> tuple[list[int], list[bool]]:
    """The ids of a row, and whether each carries loss; with `inputs` all do."""
    ids: list[int] = []
    learnt: list[bool] = []
    for text, trained in _pieces(example, inputs):
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        ids += found
        learnt += [trained] * len(found)
    return ids, learnt


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
