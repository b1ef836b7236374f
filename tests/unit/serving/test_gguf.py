"""GGUF files, written by llama.cpp's scripts and read by its library: the same tokens, the same answers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.paths import ROOT, TINY
from tests.unit.serving.conftest import random_adapter
from tests.unit.serving.test_ollama import rendered_by_go

from orchestrate.errors import UsageError
from orchestrate.local.weights.asking import ask_all
from orchestrate.serving.export.forms import Options, base_gguf, export
from orchestrate.serving.export.llama_cpp import quantise, scripts
from orchestrate.serving.proof.folder import FolderPlace
from orchestrate.serving.proof.verify import verify
from orchestrate.serving.tuned import Tuned
from orchestrate.types import Export, Sheet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
QUESTION = (
    "Tell me in some more words, as {n} people would, what number {m} is good for, and who was it "
    "that first said so?"
)


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
    own.train_from_iterator((ROOT / "docs" / "safety.md").read_text().splitlines(), trainer)
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
    tuned: Tuned
    sheet: Sheet
    whole: Export
    adapter: Export
    ollama: Export
    base_gguf: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("gguf")
    base = own_base(home / "base")
    tuned = Tuned("tuned", random_adapter(home / "adapter", 1, base), str(base), "adapter")
    given = {"base": str(base), "tuned": str(tuned.folder)}
    [sheet] = ask_all([{"task": "sheet", "precision": "fp32", **given}])
    plain = base_gguf(tuned, home / "base.gguf", Options(dtype="fp32"))
    return Made(
        base,
        tuned,
        Sheet.from_dict(sheet),
        export(tuned, "gguf", home / "whole", Options(dtype="fp32", quantise="F32")),
        export(tuned, "gguf-lora", home / "lora", Options(dtype="fp32")),
        export(tuned, "ollama", home / "ollama", Options(dtype="fp32", quantise="F32")),
        plain,
    )


def file_of(made: Export) -> str:
    [file] = [f.path for f in made.files if f.path.endswith(".gguf")]
    return str(Path(made.folder) / file)


def test_fifty_prompts_get_the_same_greedy_ids_from_every_form(made: Made, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": QUESTION.format(n=n, m=7 * n)}], "max_tokens": 12}
        for n in range(50)
    ]
    [wanted] = ask_all([{"task": "read", "folder": str(_peft(made)), "base": str(made.base), "rows": rows}])
    whole, laid = (
        ask_all([{"task": "read", "rows": rows, **files}], module="conversion")[0]
        for files in (
            {"file": file_of(made.whole)},
            {"file": str(made.base_gguf), "adapter": file_of(made.adapter)},
        )
    )
    assert len({tuple(a["answer"]) for a in wanted["answers"]}) > 10
    found = [whole, laid]
    if shutil.which("go") is not None:
        found.append(as_ollama(made.ollama, rows, tmp_path))
    for there in found:
        for seen, known in zip(there["answers"], wanted["answers"], strict=True):
            assert len(known["ids"]) > 30 and seen["ids"] == known["ids"]
            assert seen["answer"] == known["answer"]


def as_ollama(made: Export, rows: list[dict[str, Any]], scratch: Path) -> dict[str, Any]:
    """As Ollama answers from the folder: prompts by the Modelfile's TEMPLATE in Go, read by llama.cpp, cut
    at its stop words."""
    written = (Path(made.folder) / "Modelfile").read_text()
    template = written.partition('TEMPLATE """')[2].partition('"""')[0]
    texts = rendered_by_go(template, [row["messages"] for row in rows], scratch)
    asked = [{"text": text, "max_tokens": row["max_tokens"]} for text, row in zip(texts, rows, strict=True)]
    return ask_all([{"task": "read", "rows": asked, "file": file_of(made)}], module="conversion")[0]


def _peft(made: Made) -> Path:
    folder = Path(made.whole.folder).parent / "peft"
    if not folder.exists():
        export(made.tuned, "peft", folder)
    return folder


def test_both_forms_are_proved(made: Made) -> None:
    for folder, laid_on in ((made.whole.folder, None), (made.adapter.folder, made.base_gguf)):
        place = FolderPlace(Path(folder), made.sheet, str(made.base), model="tuned", base_gguf=laid_on)
        proof = verify(made.sheet, place, run_id="r")
        states = {s.name: s.state for s in proof.stages}
        assert (states["tokens"], states["answers"], states["distance"]) == ("passed",) * 3, proof
        assert proof.engine == "llama.cpp"
    assert proof.stages[2].figures["nats a token"] < 0.01  # laid on its base, whose floor is known


def test_a_quantised_file_is_judged_by_agreement_with_an_interval(made: Made, tmp_path: Path) -> None:
    quantise(Path(file_of(made.whole)), tmp_path / "q.gguf", "Q8_0", scripts(None))
    assert (tmp_path / "q.gguf").stat().st_size < Path(file_of(made.whole)).stat().st_size / 2
    place = FolderPlace(tmp_path / "q.gguf", made.sheet, str(made.base), model="tuned")
    stages = {s.name: s for s in verify(made.sheet, place, run_id="r").stages}
    assert stages["tokens"].state == "passed"
    figures = stages["distance"].figures
    assert 0 <= figures["low"] <= figures["agree"] / figures["of"] <= figures["high"] <= 1


def test_a_vocabulary_that_llama_cpp_cuts_otherwise_is_refused(tmp_path: Path) -> None:
    adapter = random_adapter(tmp_path / "a", 1)
    tuned = Tuned("t", adapter, str(TINY), "adapter")
    with pytest.raises(UsageError, match="does not know how this model's tokenizer cuts text"):
        export(tuned, "gguf", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_unknown_quantisation_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known: Q4_0"):
        quantise(Path(file_of(made.whole)), tmp_path / "q.gguf", "Q9", scripts(None))
