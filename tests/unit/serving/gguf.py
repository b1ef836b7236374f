"""A model whose tokenizer llama.cpp knows, and its forms as GGUF files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests import command
from tests.paths import TINY
from tests.unit.serving.conftest import random_adapter

from orchestrate.local.weights import ask_all
from orchestrate.serving.export.forms import WeightOptions, base_gguf, export
from orchestrate.serving.tuned import TunedModel
from orchestrate.types import Export, Fingerprint

QUESTION = (
    "Tell me in some more words, as {n} people would, what number {m} is good for, and who was it "
    "that first said so?"
)


LEARNT = """\
A run is one fine-tuning job on one backend, from the intent to send it until its result is known.
The runs of a team are kept in one database; each has a state that only goes forward, and a price.
Nothing is uploaded before it was shown what it costs; a price that is not known is said to be unknown.
A key is read from the environment or from a file that only its owner can read; it is never printed.
Training rows stay on this machine unless the backend that was asked for is another one.
Weights are loaded from safetensors alone, as pickled ones can run code on the machine that reads them.
训练数据留在这台机器上，除非选择了其他后端。模型的回答会与基础模型比较。
モデルは微調整の前と後で比べられます。価格は送信の前に表示されます。
हर उत्तर की तुलना आधार मॉडल से होती है। مرحبا بالعالم
Done 🎉, failed 💥, waiting ⏳, paid 💸, and a family of four 👨‍👩‍👧‍👦 in one letter.
"""
"""Where the vocabulary comes from. Letters of several bytes are cut by it: a server that tells whole letters
joins the tokens of one."""


def own_base(folder: Path) -> Path:
    """A random model with a tokenizer that cuts text as GPT-2's does, which llama.cpp knows."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    own.decoder = decoders.ByteLevel()
    marks = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=marks, initial_alphabet=alphabet)
    own.train_from_iterator(LEARNT.splitlines(), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, pad_token=marks[0], eos_token=marks[2])
    tokenizer.chat_template = (TINY / "chat_template.jinja").read_text()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # the likeliest token is then far from the next
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Made:
    base: Path
    tuned: TunedModel
    fingerprint: Fingerprint
    whole: Export
    adapter: Export
    base_gguf: Path


def make(home: Path) -> Made:
    """The GGUF adapter by the command, as its users make it; the rest by what is below it."""
    base = own_base(home / "base")
    tuned = TunedModel("tuned", random_adapter(home / "adapter", 8, base), str(base), "adapter")
    given = {"base": str(base), "tuned": str(tuned.folder)}
    [fingerprint] = ask_all([{"task": "fingerprint", "precision": "fp32", **given}])
    plain = base_gguf(tuned, home / "base.gguf", WeightOptions(dtype="fp32"))
    return Made(
        base,
        tuned,
        Fingerprint.from_dict(fingerprint),
        export(tuned, "gguf", home / "whole", WeightOptions(dtype="fp32", quantise="F32")),
        exported(tuned.folder, home),
        plain,
    )


def exported(adapter: Path, home: Path) -> Export:
    given = ["export", str(adapter), "lora", "--to", "gguf-lora", "--dtype", "fp32", "--no-prove", "--json"]
    done = command.run(given, cwd=home, env={**os.environ, "ORCHESTRATE_HOME": str(home / "home")})
    assert done.code == 0, done.err.decode()
    return Export.from_json(done.out)


def file_of(made: Export) -> str:
    [file] = [f.path for f in made.files if f.path.endswith(".gguf")]
    return str(Path(made.folder) / file)


def peft_of(made: Made) -> Path:
    folder = Path(made.whole.folder).parent / "peft"
    if not folder.exists():
        export(made.tuned, "peft", folder)
    return folder


def ollama_of(made: Made) -> Export:
    options = WeightOptions(dtype="fp32", quantise="F32")
    return export(made.tuned, "ollama", Path(made.whole.folder).parent / "ollama", options)
