"""Answers a second of an evaluation on this machine, one row at a time, and against transformers' `generate`.

    python benchmarks/evaluation.py [--rows 200] [--adapter FOLDER] [--json FILE]

The rows are the demo's orders, as they are and behind five examples (`eval --shots 5`), the model the tiny
one, greedy answers of at most 64 tokens. Without --adapter the base answers alone. Each figure is the best
of --rounds by each clock, loading left out; the same precision everywhere.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measured_on import Meter, about, write
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrate.local import Generator
from orchestrate.local.model import precision
from orchestrate.local.model.loader import DTYPES
from orchestrate.types import Message

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "src" / "orchestrate" / "bundled"
TINY = BUNDLED / "tiny-chat"
TOKENS = 64
SHOTS = 5
Prompts = list[list[Message]]


def messages(file: str) -> Prompts:
    lines = (BUNDLED / f"orders/{file}.jsonl").read_text().splitlines()
    return [
        [Message(role=m["role"], content=m["content"]) for m in json.loads(line)["messages"]]
        for line in lines
    ]


def prompts(rows: int, shots: int = 0) -> Prompts:
    examples = [message for row in messages("train")[:shots] for message in row]
    return [[*examples, *row[:-1]] for row in messages("test")[:rows]]


def best(work: Callable[[], list[str]], rounds: int) -> tuple[dict[str, float], list[str]]:
    """The least that it took by each clock."""
    taken: list[dict[str, float]] = []
    answers: list[str] = []
    for _ in range(rounds):
        begun = Meter.now()
        answers = work()
        taken.append(begun.took())
    return {clock: min(one[clock] for one in taken) for clock in taken[0]}, answers


def by_transformers(asked: Prompts, adapter: Path | None, batch: int) -> Callable[[], list[str]]:
    """What one would write: batches in the order of the file, padded on the left."""
    tokenizer = AutoTokenizer.from_pretrained(TINY, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=DTYPES[precision(None, "cpu").name]).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    texts = [
        tokenizer.apply_chat_template([m.to_dict() for m in one], tokenize=False, add_generation_prompt=True)
        for one in asked
    ]

    def work() -> list[str]:
        found: list[str] = []
        for start in range(0, len(texts), batch):
            part = tokenizer(
                texts[start : start + batch], return_tensors="pt", padding=True, add_special_tokens=False
            )
            with torch.inference_mode():
                out = model.generate(**part, max_new_tokens=TOKENS, do_sample=False)
            rows = out[:, part["input_ids"].shape[1] :]
            found += [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
        return found

    return work


def compare(model: Generator, asked: Prompts, options: argparse.Namespace) -> dict[str, Any]:
    def together() -> list[str]:
        # As `eval` does: batches of like length, and in 16 bits a look at what rounding may have turned.
        order = sorted(range(len(asked)), key=lambda i: sum(len(m.content) for m in asked[i]))
        found: dict[int, str] = {}
        for start in range(0, len(order), options.batch):
            part = order[start : start + options.batch]
            replies = model.attempt([asked[i] for i in part], max_tokens=TOKENS, rounding="told")
            found |= {i: getattr(reply, "content", "") for i, reply in zip(part, replies, strict=True)}
        return [found[i] for i in range(len(asked))]

    def alone() -> list[str]:
        return [model.generate([one], max_tokens=TOKENS)[0].content for one in asked]

    ours, answers = best(together, options.rounds)
    single, one_by_one = best(alone, 1)
    theirs, _ = best(by_transformers(asked, options.adapter, options.batch), options.rounds)
    differ = sum(a != b for a, b in zip(answers, one_by_one, strict=True))
    return {"alone": single, "generate": theirs, "eval": ours, "differ": differ}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--json", type=Path, help="the figures, for docs/figures.py")
    options = parser.parse_args()
    figures = about("torch", "transformers", "peft") | {
        "rows": options.rows,
        "tokens": TOKENS,
        "batch": options.batch,
        "threads": options.threads,
        "precision": precision(None, "cpu").name,
        "adapter": options.adapter is not None,
        "cases": {},
    }
    begun = Meter.now()
    torch.set_num_threads(options.threads)
    with Generator(str(TINY), adapter=options.adapter, threads=options.threads, four_bit=False) as model:
        model.start()
        for name, shots in (("the questions", 0), (f"behind {SHOTS} examples", SHOTS)):
            figures["cases"][name] = compare(model, prompts(options.rows, shots), options)
    figures["others"] = begun.others()
    print(json.dumps(figures, indent=1))
    if options.json:
        write(options.json, figures)


if __name__ == "__main__":
    main()
