"""Tokens a second of `orchestrate serve`, against transformers' `generate` and llama.cpp's server.

    python benchmarks/serving.py [--requests 32] [--threads 1] [--rounds 4] [--llama-python PYTHON]

Random Llamas of `SIZES`, each with an adapter of rank 8, whose tokenizer llama.cpp knows; all weights in
fp32, greedy. The small one stays in the caches, the other doesn't. Every request asks for its own number of
tokens, 16 to 96, none of which ends it, and only tokens that were asked for count. No prompt is asked twice:
llama.cpp keeps what it has read. `generate` gets one row at a time, and batches of 16 in the file's order,
which it pads as a script would. llama.cpp gets the merged weights as a GGUF file in F32; its server is
`llama-server` where it is on the PATH, else that of xllamacpp, whose wheel suits processors of any age. Each
figure is the best of all rounds by each clock, loading left out, in which all take turns; processor time is
that of the server, of what it started and of the client that asks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from measured_on import Meter, about, write
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

from orchestrate.http.web import free_port
from orchestrate.serving import engines
from orchestrate.serving.export.forms import WeightOptions, export
from orchestrate.serving.server.server_process import ServerSettings, serve
from orchestrate.serving.tuned import TunedModel
from orchestrate.store.store import Store

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "src" / "orchestrate" / "bundled"
CLIENTS = (1, 16)
BATCH = 16
NAME = "tuned"
SIZES: dict[str, dict[str, int]] = {
    "10M": {},
    "90M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8},
}


def made(folder: Path, **size: int) -> TunedModel:
    """`size`: in place of that of about 10M parameters."""
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
    usual = {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6}
    shape = LlamaConfig(
        **usual | size,
        vocab_size=len(tokenizer),
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
    return TunedModel(NAME, folder / NAME, str(folder / "base"), "adapter")


Asked = list[tuple[list[dict[str, str]], int]]
"""Prompts, and how many tokens each wants."""


def asked(requests: int, turn: int) -> Asked:
    """Those of one turn, which no other turn has."""
    found: Asked = []
    for n in range(requests):
        text = f"Case {turn * requests + n}: " + "what does the guide say of this? " * (1 + n % 5)
        found.append(([{"role": "user", "content": text}], 16 + (37 * n) % 81))
    return found


def compared(
    ways: dict[str, Callable[[Asked, int], int]], requests: int, rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Tokens for a second of each clock, by the number of clients: the best of all rounds. The ways take
    turns, so that a slow minute of the machine is none of one way alone."""
    found: dict[str, list[dict[str, float]]] = {name: [{} for _ in CLIENTS] for name in ways}
    for turn in range(rounds):
        for place, clients in enumerate(CLIENTS):
            rows = asked(requests, turn * len(CLIENTS) + place)
            for name, way in ways.items():
                begun = Meter.now()
                tokens = way(rows, clients)
                for clock, seconds in begun.took().items():
                    known = found[name][place]
                    known[clock] = max(known.get(clock, 0.0), tokens / seconds)
    return found


def over_http(url: str, rows: Asked, clients: int, more: dict[str, Any]) -> int:
    """`clients` at a time, each of which asks for the next when its answer is there."""

    async def run() -> int:
        waiting, counted = iter(rows), 0
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


def by_generate(tuned: TunedModel) -> Callable[[Asked, int], int]:
    tokenizer = AutoTokenizer.from_pretrained(tuned.base, padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(tuned.base)
    model = PeftModel.from_pretrained(base, tuned.folder).eval()

    def run(rows: Asked, batch: int) -> int:
        counted = 0
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
    tuned: TunedModel, home: Path, python: Path | None, threads: int
) -> Iterator[tuple[str, str] | None]:
    """Its URL and whose server it is; `None` where it is not here."""
    made = export(tuned, "gguf", home / "gguf", WeightOptions(dtype="fp32", quantise="F32"))
    [file] = Path(made.folder).glob("*.gguf")
    port = free_port("127.0.0.1")
    command = engines.llama_server(tuned, file, host="127.0.0.1", port=port, parallel=BATCH, python=python)
    if not engines.found(command):
        yield None
        return
    flags = ["--threads", str(threads), "--ctx-size", str(512 * BATCH)]
    with engines.started(command.with_more(flags)) as url:
        yield url, whose(python)


def whose(python: Path | None) -> str:
    if python is not None:
        return "a Python package of another environment"
    with suppress(PackageNotFoundError):
        if shutil.which("llama-server") is None:
            return f"xllamacpp {version('xllamacpp')}"
    return "llama-server"


def measured(
    size: dict[str, int], options: argparse.Namespace, figures: dict[str, Any]
) -> dict[str, list[dict[str, float]]]:
    """`compared` for models of one size."""
    no_end: dict[str, Any] = {"logit_bias": {"2": -100}}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        tuned = made(home, **size)
        terms = ServerSettings(port=0, threads=options.threads, four_bit=False, precision="fp32")
        generate = by_generate(tuned)
        with ExitStack() as stack:
            store = stack.enter_context(Store.open(f"sqlite:///{home}/runs.sqlite3"))
            ours = stack.enter_context(serve([tuned], home / "home", store, terms)).url
            ways = {
                "serve": lambda rows, n: over_http(ours, rows, n, no_end),
                "generate": generate,
            }
            there = None
            if not options.no_llama:
                there = stack.enter_context(llama_cpp(tuned, home, options.llama_python, options.threads))
            if there is not None:
                theirs, figures["llama.cpp"] = there
                ways["llama.cpp"] = lambda rows, n: over_http(theirs, rows, n, no_end)
            return compared(ways, options.requests, options.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--llama-python", type=Path)
    parser.add_argument("--no-llama", action="store_true")
    parser.add_argument("--json", type=Path, help="the figures, for docs/figures.py")
    options = parser.parse_args()
    figures = about("torch", "transformers") | {
        "requests": options.requests,
        "threads": options.threads,
        "rounds": options.rounds,
    }
    begun = Meter.now()
    torch.set_num_threads(options.threads)
    figures["rows"] = {name: measured(size, options, figures) for name, size in SIZES.items()}
    figures["others"] = begun.others()
    print(json.dumps(figures, indent=1))
    if options.json:
        write(options.json, figures)


if __name__ == "__main__":
    main()
