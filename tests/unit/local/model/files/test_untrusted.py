"""A model folder's own code is never run and its pickles are never opened, whatever the terminal answers."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.paths import TINY

from orchestrate.data.tokens import hub_tokens
from orchestrate.local.model import loader

CPU = torch.device("cpu")
LOAD: dict[str, Callable[[Path], object]] = {
    "model": lambda folder: loader.load_base(folder, four_bit=False, device=CPU),
    "tokenizer of a training": loader.load_tokenizer,
    "tokenizer of a count": hub_tokens.load,
    "adapter": lambda folder: loader.load_adapter(loader.load_base(TINY, four_bit=False, device=CPU), folder),
}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A model of an unknown kind that brings its classes along; loading them leaves a file behind."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    ran = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (folder / "evil.py").write_text(
        ran + "from transformers import PretrainedConfig as Config, PreTrainedModel as Model\n"
        "from transformers import PreTrainedTokenizerFast as Tokenizer\n"
    )
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    named = json.loads((folder / "tokenizer_config.json").read_text()) | {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["q_proj"], "r": 4}')
    pickle = f"import pickle\nclass P:\n def __reduce__(self): return (exec, ({ran!r},))\n"
    pickle += f"pickle.dump(P(), open({str(folder / 'adapter_model.bin')!r}, 'wb'))"
    subprocess.run([sys.executable, "-c", pickle], check=True)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", LOAD)
def test_nothing_of_it_is_run(
    hostile: Path, what: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answers = io.StringIO("y\n")
    monkeypatch.setattr(sys, "stdin", answers)
    told = ""
    try:
        LOAD[what](hostile)
    except Exception as error:
        told = "".join(traceback.format_exception(error))
    assert not (hostile.parent / "ran").exists()
    assert answers.read() == "y\n" and "[y/N]" not in "".join(capfd.readouterr()), "it must not even ask"
    if what == "adapter":
        assert "Pickled weights are not loaded" in told
    if what == "model":
        assert "trust_remote_code" in told
