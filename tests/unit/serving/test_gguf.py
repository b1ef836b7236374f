"""GGUF files, written by llama.cpp's scripts and read by its library: the same tokens, the same answers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.paths import TINY
from tests.unit.serving.conftest import random_adapter
from tests.unit.serving.gguf import QUESTION, Made, file_of, ollama_of, peft_of
from tests.unit.serving.test_ollama import rendered_by_go

from orchestrate.errors import SetupError, UsageError
from orchestrate.local.weights import ask_all
from orchestrate.serving.export.forms import export, quantise, scripts_in
from orchestrate.serving.proof.folder import FolderPlace
from orchestrate.serving.proof.verify import verify
from orchestrate.serving.tuned import TunedModel
from orchestrate.types import Export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_fifty_prompts_get_the_same_greedy_ids_from_every_form(made: Made, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": QUESTION.format(n=n, m=7 * n)}], "max_tokens": 12}
        for n in range(50)
    ]
    [wanted] = ask_all([{"task": "read", "folder": str(peft_of(made)), "base": str(made.base), "rows": rows}])
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
        found.append(as_ollama(ollama_of(made), rows, tmp_path))
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


def test_both_forms_are_proved(made: Made) -> None:
    for folder, laid_on in ((made.whole.folder, None), (made.adapter.folder, made.base_gguf)):
        place = FolderPlace(Path(folder), made.fingerprint, str(made.base), model="tuned", base_gguf=laid_on)
        proof = verify(made.fingerprint, place, run_id="r")
        states = {s.name: s.state for s in proof.stages}
        assert (states["tokens"], states["answers"], states["distance"]) == ("passed",) * 3, proof
        assert proof.engine == "llama.cpp"
    assert proof.stages[2].figures["nats a token"] < 0.01  # laid on its base, whose floor is known


def test_a_quantised_file_is_judged_by_agreement_with_an_interval(made: Made, tmp_path: Path) -> None:
    quantise(Path(file_of(made.whole)), tmp_path / "q.gguf", "Q8_0", scripts_in(None))
    assert (tmp_path / "q.gguf").stat().st_size < Path(file_of(made.whole)).stat().st_size / 2
    place = FolderPlace(tmp_path / "q.gguf", made.fingerprint, str(made.base), model="tuned")
    stages = {s.name: s for s in verify(made.fingerprint, place, run_id="r").stages}
    assert stages["tokens"].state == "passed"
    assert stages["distance"].state == "unknown", "long answers of an adapter of noise have many near-ties"
    old = [replace(c, tuned=replace(c.tuned, margins=())) for c in made.fingerprint.canaries]
    fingerprint = replace(made.fingerprint, canaries=tuple(old))
    stages = {s.name: s for s in verify(fingerprint, place, run_id="r").stages}
    figures = stages["distance"].figures
    assert 0 <= figures["low"] <= figures["agree"] / figures["of"] <= figures["high"] <= 1


def test_a_vocabulary_that_llama_cpp_cuts_otherwise_is_refused(tmp_path: Path) -> None:
    adapter = random_adapter(tmp_path / "a", 1)
    tuned = TunedModel("t", adapter, str(TINY), "adapter")
    with pytest.raises(
        UsageError,
        match="does not support this model's pre-tokenizer",
    ):
        export(tuned, "gguf", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_package_that_the_scripts_need_is_named_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "convert_hf_to_gguf.py").write_text("import a_package_of_nobody.parts\n")
    asked = {"model": str(TINY), "target": str(tmp_path / "x.gguf"), "outtype": "f16"}
    with pytest.raises(SetupError) as told:
        ask_all([{"task": "convert", "llama_cpp": str(tmp_path), **asked}], module="conversion")
    assert told.value.fix == "pip install a_package_of_nobody"


def test_an_unknown_quantisation_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="known: Q4_0"):
        quantise(Path(file_of(made.whole)), tmp_path / "q.gguf", "Q9", scripts_in(None))
