"""What `training.py` trains on: loads of one kind each, made of the demo's chats, and the model for each."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "src" / "orchestrate" / "bundled"
ORDERS = BUNDLED / "orders"
TINY = BUNDLED / "tiny-chat"
SHAPES: dict[str, dict[str, Any]] = {
    "27M": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "num_attention_heads": 8},
    "62M": {
        "model_type": "qwen3",
        "hidden_size": 512,
        "num_hidden_layers": 10,
        "intermediate_size": 1792,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "8M": {"hidden_size": 320, "num_hidden_layers": 6, "intermediate_size": 896, "num_attention_heads": 5},
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Load:
    rows: int
    turns: int = 1
    """Chats that make one row, each an answer to train on."""
    varied: bool = False
    """Whether rows have from one turn to so many, half of them less than the root of that."""
    answer: int = 0
    """Other chats that are told in each answer: most of a row is trained."""
    context: int = 0
    """Other chats that are told in the question, as in long documents: nothing of them is trained."""
    system: int = 0
    """Other chats that are told in a system message, the same in all rows."""
    vocabulary: int | None = None
    """Entries of the model, of which the rows use those of the tiny tokenizer."""
    pairs: bool = False
    """Each answer beside the one to another question, for DPO."""
    shape: str | None = None
    """Of the model, where it is not the one asked for."""
    batch: int = 16
    """Rows to a step of the optimizer."""
    judged: int = 100
    """Held-out rows."""

    def train(self, rows: int | None = None) -> list[Row]:
        return self._made("train", rows or self.rows)

    def held_out(self) -> list[Row]:
        return self._made("validation", self.judged)

    def _made(self, file: str, count: int) -> list[Row]:
        chats, told = _chats(file), _told(_chats("test"))
        chance = random.Random(0)
        shared = [{"role": "system", "content": "\n".join(told[: self.system])}] if self.system else []
        made: list[Row] = []
        for i in range(count):
            turns = round(self.turns ** chance.random()) if self.varied else self.turns
            picked = [chats[(i + turn * count) % len(chats)] for turn in range(turns)]
            messages = [dict(message) for chat in picked for message in chat]
            if self.context:
                lines = "\n".join(chance.sample(told, self.context))
                messages[0]["content"] = f"{lines}\n\n{messages[0]['content']}"
            if self.answer:
                messages[-1]["content"] += "\n\n" + "\n".join(chance.sample(told, self.answer))
            row: Row = {"messages": [*shared, *messages]}
            if self.pairs:
                row["rejected"] = chats[(i + 1) % len(chats)][-1]
            made.append(row)
        return made


LOADS = {
    "short chats": Load(320),
    "6 turns": Load(32, turns=6, batch=8, judged=16),
    "long questions": Load(20, context=12, batch=4, judged=20),
    "long answers": Load(20, answer=12, batch=4, judged=20),
    "a shared system prompt": Load(40, system=6, batch=8, judged=32),
    "32,000 entries": Load(160, vocabulary=32_000),
    "151,936 entries": Load(64, vocabulary=151_936, batch=8),
    "1 to 12 turns, Qwen3 of 62M with 50,176 entries": Load(
        64, turns=12, varied=True, vocabulary=50_176, shape="62M", batch=8, judged=32
    ),
    "DPO pairs": Load(96, pairs=True, batch=8),
}
"""With their sizes all contenders take turns at all of them in about an hour on two quiet cores."""


def _chats(file: str) -> list[list[dict[str, str]]]:
    with (ORDERS / f"{file}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["messages"] for line in lines]


def _told(chats: list[list[dict[str, str]]]) -> list[str]:
    return [" ".join(message["content"] for message in chat) for chat in chats]


def sides(load: Load, rows: list[Row]) -> list[list[dict[str, str]]]:
    """The conversations that are read: of a pair both."""
    found = [row["messages"] for row in rows]
    return found + [[*row["messages"][:-1], row["rejected"]] for row in rows] if load.pairs else found


def canonical(load: Load, rows: list[Row]) -> str:
    """As the engine reads them."""
    told = rows
    if load.pairs:
        told = [
            {"prompt": r["messages"][:-1], "preferred": r["messages"][-1:], "rejected": [r["rejected"]]}
            for r in rows
        ]
    return "".join(json.dumps(row) + "\n" for row in told)


def counted(load: Load, rows: list[Row], model: Path) -> list[tuple[int, int]]:
    """(all, trained) tokens of each conversation, padding left out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    found: list[tuple[int, int]] = []
    for messages in sides(load, rows):
        out = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        found.append((len(out["input_ids"]), sum(out["assistant_masks"])))
    return found


def make_model(folder: Path, shape: str, vocabulary: int | None) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    kind: Any = AutoConfig
    config = kind.for_model(
        **{
            "model_type": "llama",
            "num_key_value_heads": SHAPES[shape]["num_attention_heads"],
            **SHAPES[shape],
            "vocab_size": vocabulary or len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        }
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
