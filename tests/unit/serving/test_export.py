"""Folders for other engines, judged by transformers and peft."""

from __future__ import annotations

import ast
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from tests import command
from tests.paths import TINY
from tests.unit.serving.conftest import Known, in_32_bits, in_process, random_adapter
from tests.unit.serving.gguf import QUESTION
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrate.errors import UsageError
from orchestrate.serving.export.forms import FORMS, WeightOptions, export
from orchestrate.serving.tuned import TunedModel
from orchestrate.types import Export

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
IDS = torch.tensor([[1, 300, 301, 302, 17, 2, 40]])


def written(adapter: Path, form: str, folder: Path, **options: Any) -> Export:
    tuned = TunedModel("my tune", adapter, str(TINY), "adapter")
    return export(tuned, form, folder, WeightOptions(**options), work=in_process)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("form", ["peft", "vllm", "hub"])
def test_an_adapter_is_dressed_with_all_that_it_needs(form: str, known: Known, tmp_path: Path) -> None:
    made = written(known.adapter, form, tmp_path / "x")
    folder = Path(made.folder)
    names = {f.path for f in made.files}
    assert names >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "README.md",
        "passport.json",
    }
    assert (folder / "chat_template.jinja").read_bytes() == (TINY / "chat_template.jinja").read_bytes()
    assert json.loads((folder / "generation_config.json").read_bytes())["eos_token_id"] == [2]
    provenance = json.loads((folder / "passport.json").read_bytes())
    assert (
        provenance["export"]["weights"]
        and provenance["export"]["chat_template_hash"] == known.fingerprint.template_hash
    )
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert front["base_model"] == str(TINY) and front["library_name"] in ("peft", "transformers")
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    there = logits(PeftModel.from_pretrained(base, folder))
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    assert torch.equal(there, logits(PeftModel.from_pretrained(base, known.adapter)))


def test_no_prompt_of_the_training_data_is_exported(known: Known, tmp_path: Path) -> None:
    folder = Path(written(known.adapter, "peft", tmp_path / "x").folder)
    texts = [m["content"] for c in known.fingerprint.canaries for m in c.messages]
    assert texts
    for path in folder.iterdir():
        assert not any(text.encode() in path.read_bytes() for text in texts if len(text) > 20), path


def test_merged_weights_answer_as_the_adapter_on_its_base(known: Known, tmp_path: Path) -> None:
    made = written(known.adapter, "merged", tmp_path / "x", dtype="fp32")
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    wanted = logits(PeftModel.from_pretrained(base, known.adapter))
    there = AutoModelForCausalLM.from_pretrained(made.folder, dtype="auto")
    assert there.dtype == torch.float32
    torch.testing.assert_close(logits(there), wanted, atol=1e-4, rtol=1e-4)
    half = written(known.adapter, "merged", tmp_path / "y")
    assert AutoModelForCausalLM.from_pretrained(half.folder, dtype="auto").dtype == torch.bfloat16
    assert (
        AutoTokenizer.from_pretrained(half.folder).chat_template
        == AutoTokenizer.from_pretrained(TINY).chat_template
    )


@pytest.mark.slow
def test_fifty_prompts_get_the_adapters_greedy_ids_from_the_merged_folder(
    known: Known, tmp_path: Path
) -> None:
    """By transformers alone, in 32 bits."""
    rows = [
        {"messages": [{"role": "user", "content": QUESTION.format(n=n, m=7 * n)}], "max_tokens": 12}
        for n in range(50)
    ]
    base = in_32_bits(tmp_path / "base")
    tuned = TunedModel("one", known.adapter, str(base), "adapter")
    laid, merged = (
        export(tuned, form, tmp_path / form, WeightOptions(dtype="fp32"), work=in_process)
        for form in ("peft", "merged")
    )
    wanted, there = in_process(
        [
            {"task": "read", "folder": laid.folder, "base": str(base), "rows": rows},
            {"task": "read", "folder": merged.folder, "rows": rows},
        ]
    )
    assert there["precision"] == wanted["precision"] == "float32"
    assert len({tuple(a["answer"]) for a in wanted["answers"]}) > 10
    for seen, ours in zip(there["answers"], wanted["answers"], strict=True):
        assert len(ours["ids"]) > 30 and (seen["ids"], seen["answer"]) == (ours["ids"], ours["answer"])


@pytest.mark.filterwarnings("ignore::UserWarning")  # of peft, about shared weights
def test_an_adapter_of_the_output_layer_leaves_the_embeddings_that_share_its_weights(tmp_path: Path) -> None:
    adapter = random_adapter(tmp_path / "a", 3, target_modules=["lm_head", "q_proj"])
    made = written(adapter, "merged", tmp_path / "x", dtype="fp32")
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    wanted = logits(PeftModel.from_pretrained(base, adapter))
    there = AutoModelForCausalLM.from_pretrained(made.folder, dtype="auto")
    torch.testing.assert_close(logits(there), wanted, atol=1e-4, rtol=1e-4)


def test_the_command_for_vllm_names_a_rank_that_it_takes(tmp_path: Path) -> None:
    adapter = random_adapter(tmp_path / "a", 3, r=9)
    [command] = written(adapter, "vllm", tmp_path / "x").commands
    assert f"--max-lora-rank 16 --lora-modules my-tune={tmp_path / 'x'}" in command
    assert f"--chat-template {tmp_path / 'x'}/chat_template.jinja" in command


@pytest.mark.parametrize("form", ["peft", "merged", "vllm", "hub"])
def test_commands_name_the_folder_as_a_shell_takes_it(form: str, known: Known, tmp_path: Path) -> None:
    folder = tmp_path / "it's $HOME; x"
    for line in written(known.adapter, form, folder).commands:
        if line.startswith("from "):
            assert ast.literal_eval(line.rpartition("(")[2].rstrip(")")) == str(folder)
        else:
            assert any(word.endswith(str(folder)) for word in shlex.split(line)), line


@pytest.mark.parametrize(
    ("form", "said"), [("vllm", "DoRA"), ("gguf-lora", "DoRA"), ("onnx", "known: peft, merged")]
)
def test_what_a_form_cannot_hold_is_refused_before_any_work(form: str, said: str, tmp_path: Path) -> None:
    adapter = random_adapter(tmp_path / "a", 3, use_dora=True)
    with pytest.raises(UsageError, match=said):
        written(adapter, form, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_an_adapter_whose_configuration_is_broken_is_refused_with_its_folder(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(text, errors="surrogateescape")
    (tmp_path / "adapter_model.safetensors").touch()
    for form in ("peft", "vllm"):
        with pytest.raises(UsageError, match=str(tmp_path)):
            written(tmp_path, form, tmp_path / "x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("peft", b"the disk is full"),
        pytest.param("merged", b"could not write the weights", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_leaves_nothing_and_is_told_as_one(
    form: str, said: bytes, known: Known, tmp_path: Path
) -> None:
    """The files of one command may not be larger than 200 KB, as on a disk that has no more."""
    ended = command.run(
        [str(known.adapter), str(tmp_path / "x"), "--to", form],
        cwd=tmp_path,
        env=os.environ,
        program=on_a_full_disk,
    )
    assert ended.code == 3, ended.err
    assert said in ended.err and b"free up some" in ended.err
    assert not list(tmp_path.iterdir())


def on_a_full_disk(arguments: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.environ["ORCHESTRATE_HOME"] = tempfile.mkdtemp()
    command.orchestrate(["export", *arguments, "--no-prove"])


def test_a_folder_that_holds_something_is_left_alone(known: Known, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").touch()
    with pytest.raises(UsageError, match="already exists"):
        written(known.adapter, "peft", tmp_path / "x")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["mine"]
    assert set(FORMS) == {"peft", "merged", "gguf", "gguf-lora", "ollama", "vllm", "hub"}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["peft", "merged"])
def test_the_commands_of_the_card_run(form: str, known: Known, tmp_path: Path) -> None:
    made = written(known.adapter, form, tmp_path / 'it\'s "x" here')
    asked = "ids = tokenizer('Hi', return_tensors='pt').input_ids"
    code = f"{made.commands[-1]}\n{asked}\nprint(model.generate(ids).shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, " in done.stdout
