"""Tokens a second of `orchestrate serve`, against transformers' `generate` and llama.cpp's server.

python benchmarks/serving.py --requests 48 --threads 1 [--llama-python ENV/bin/python] [--by cpu]

A random Llama of about 10M parameters with an adapter of rank 8, whose tokenizer llama.cpp knows; all
weights in fp32, greedy. Every request asks for its own number of tokens, 16 to 96, none of which ends it,
and only tokens that were asked for count. `generate` gets batches of 16 of the file's order and pads them,
as a script would. llama.cpp gets the merged weights as a GGUF file in F32; its server is `llama-server`
where it is on the PATH, else that of xllamacpp, whose wheel suits processors of any age. Each figure is
the best of two, loading left out."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from openai import AsyncOpenAI
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from orchestrate.serving import engines
from orchestrate.serving.export.forms import Options, export
from orchestrate.serving.server.running import Terms, serve
from orchestrate.serving.tuned import Tuned
from orchestrate.web.server import free_port

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "src" / "orchestrate" / "bundled"
CLIENTS = (1, 16)
BATCH = 16
NAME = "tuned"


def made(folder: Path) -> Tuned:
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    own.decoder = decoders.ByteLevel()
    marks = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=marks, initial_alphabet=alphabet)
    own.train_from_iterator((file.read_text() for file in sorted((ROOT / "docs").glob("*.md"))), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, pad_token=marks[0], eos_token=marks[2])
    tokenizer.chat_template = (BUNDLED / "tiny-chat/chat_template.jinja").read_text()
    tokenizer.save_pretrained(str(folder / "base"))
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=320,
        intermediate_size=864,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(shape)
    model.save_pretrained(folder / "base")
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder / NAME)
    return Tuned(NAME, folder / NAME, str(folder / "base"), "adapter")


def asked(requests: int) -> list[tuple[list[dict[str, str]], int]]:
    """Prompts, and how many tokens each wants."""
    found: list[tuple[list[dict[str, str]], int]] = []
    for n in range(requests):
        text = f"Case {n}: " + "what does the guide say of this? " * (1 + n % 5)
        found.append(([{"role": "user", "content": text}], 16 + (37 * n) % 81))
    return found


def best(work: Callable[[], int], by: str) -> float:
    """Tokens a second."""
    clock = {"wall": time.perf_counter, "cpu": cpu_seconds}[by]
    found: list[float] = []
    for _ in range(2):
        begun = clock()
        tokens = work()
        found.append(tokens / (clock() - begun))
    return max(found)


def cpu_seconds() -> float:
    """Of this process and of all that it has started and that still run."""
    here = psutil.Process()
    times = [one.cpu_times() for one in (here, *here.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def over_http(url: str, requests: int, clients: int, more: dict[str, Any]) -> int:
    """`clients` at a time, each of which asks for the next when its answer is there."""

    async def run() -> int:
        waiting, counted = iter(asked(requests)), 0
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="a-key-of-a-benchmark", timeout=600) as client:

            async def one() -> None:
                nonlocal counted
                for messages, wanted in waiting:
                    done = await client.chat.completions.create(
                        model=NAME,
                        messages=messages,
                        temperature=0,
                        max_tokens=wanted,
                        **more,  # type: ignore[arg-type, call-overload]
                    )
                    counted += done.usage.completion_tokens

            await asyncio.gather(*(one() for _ in range(clients)))
        return counted

    return asyncio.run(run())


def by_generate(tuned: Tuned) -> Callable[[int, int], int]:
    tokenizer = AutoTokenizer.from_pretrained(tuned.base, padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(tuned.base)
    model = PeftModel.from_pretrained(base, tuned.folder).eval()

    def run(requests: int, batch: int) -> int:
        rows, counted = asked(requests), 0
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            texts = [
                tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m, _ in part
            ]
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            most = max(wanted for _, wanted in part)
            with torch.inference_mode():
                model.generate(**inputs, max_new_tokens=most, min_new_tokens=most, do_sample=False)
            counted += sum(wanted for _, wanted in part)
        return counted

    return run


@contextmanager
def llama_cpp(
    tuned: Tuned, home: Path, python: Path | None, threads: int
) -> Iterator[tuple[str, str] | None]:
    """Its URL and what it is; `None` where it is not here."""
    made = export(tuned, "gguf", home / "gguf", Options(dtype="fp32", quantise="F32"))
    [file] = Path(made.folder).glob("*.gguf")
    port = free_port("127.0.0.1")
    command = engines.llama_server(tuned, file, host="127.0.0.1", port=port, parallel=BATCH, python=python)
    if not engines.found(command):
        yield None
        return
    flags = ["--threads", str(threads), "--ctx-size", str(512 * BATCH)]
    with engines.started(command.with_more(flags)) as url:
        yield url, "llama.cpp's server" if python is None else f"llama.cpp's server of {python}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--by", choices=("wall", "cpu"), default="wall", help="cpu: neighbours do not count")
    parser.add_argument("--llama-python", type=Path)
    parser.add_argument("--no-llama", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    no_end: dict[str, Any] = {"logit_bias": {"2": -100}}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        tuned = made(home)
        rows: list[tuple[str, list[float]]] = []
        with serve([tuned], home / "home", Terms(port=0, threads=options.threads, four_bit=False)) as up:
            figures = [
                best(lambda n=n: over_http(up.url, options.requests, n, no_end), options.by) for n in CLIENTS
            ]
            rows.append(("`orchestrate serve`, transformers engine", figures))
        generate = by_generate(tuned)
        figures = [best(lambda b=b: generate(options.requests, b), options.by) for b in (1, BATCH)]
        rows.append(("transformers' `generate`, one row and batches of 16", figures))
        if not options.no_llama:
            with llama_cpp(tuned, home, options.llama_python, options.threads) as there:
                if there is not None:
                    url, name = there
                    figures = [
                        best(lambda n=n: over_http(url, options.requests, n, no_end), options.by)
                        for n in CLIENTS
                    ]
                    rows.append((f"{name}, F32", figures))
        show(rows, options)


def show(rows: list[tuple[str, list[float]]], options: argparse.Namespace) -> None:
    """The table of docs/benchmarks.md."""
    print(f"{cpu()}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()};")
    print(f"{options.requests} requests, {options.threads} thread(s).\n")
    what = "second" if options.by == "wall" else "second of CPU"
    print(f"| tokens a {what} | 1 client | 16 clients | times |\n|---|---:|---:|---:|")
    for name, (one, many) in rows:
        print(f"| {name} | {one:,.0f} | {many:,.0f} | {many / one:.1f} |")


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


if __name__ == "__main__":
    main()
