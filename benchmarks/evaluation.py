"""Answers a second of an evaluation on this machine, against transformers' `generate`; what batches change.

python benchmarks/evaluation.py --rows 200 --adapter FOLDER

The rows are those of fixtures/datasets/orders, the model the tiny one, greedy answers of at most 64 tokens.
Without --adapter the base answers alone. Each figure is the best of three, loading left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrate.local import Generator
from orchestrate.types import Message

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "fixtures" / "models" / "tiny-chat"
TOKENS = 64


def prompts(rows: int) -> list[list[Message]]:
    lines = (ROOT / "fixtures/datasets/orders/test.jsonl").read_text().splitlines()[:rows]
    messages = [json.loads(line)["messages"][:-1] for line in lines]
    return [[Message(role=m["role"], content=m["content"]) for m in one] for one in messages]


def best(work: Callable[[], list[str]]) -> tuple[float, list[str]]:
    seconds: list[float] = []
    answers: list[str] = []
    for _ in range(3):
        started = time.perf_counter()
        answers = work()
        seconds.append(time.perf_counter() - started)
    return min(seconds), answers


def by_transformers(asked: list[list[Message]], adapter: Path | None, batch: int) -> Callable[[], list[str]]:
    """What one would write: batches in the order of the file, padded on the left."""
    tokenizer = AutoTokenizer.from_pretrained(TINY, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(TINY).eval()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--adapter", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asked = prompts(options.rows)
    with Generator(str(TINY), adapter=options.adapter, threads=options.threads, four_bit=False) as model:
        model.start()

        def together() -> list[str]:
            return [reply.content for reply in model.generate(asked, max_tokens=TOKENS)]

        def alone() -> list[str]:
            return [model.generate([one], max_tokens=TOKENS)[0].content for one in asked]

        ours, answers = best(together)
        single, one_by_one = best(alone)
    theirs, others = best(by_transformers(asked, options.adapter, options.batch))
    print(
        f"{torch.__version__}, {options.threads} thread(s), {len(asked)} rows, at most {TOKENS} tokens each"
    )
    for name, seconds, said in (
        ("an evaluation, in batches", ours, answers),
        ("an evaluation, one row at a time", single, one_by_one),
        (f"transformers' generate, batches of {options.batch}", theirs, others),
    ):
        differ = sum(a != b for a, b in zip(answers, said, strict=True))
        print(
            f"{name:<44} {len(asked) / seconds:8.1f} answers/s   {differ} answers differ from the first line"
        )
    print(f"batches are {single / ours:.1f} times as fast as one row at a time")


if __name__ == "__main__":
    main()
