"""A model folder's own code is never run and its pickles are never opened, whatever the terminal answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.paths import TINY

LOAD = {
    "model": "import torch; from orchestrate.local.model.loading import load_base;"
    "load_base(folder, four_bit=False, device=torch.device('cpu'))",
    "tokenizer of a training": "from orchestrate.local.model.loading import load_tokenizer;"
    "load_tokenizer(folder)",
    "tokenizer of a count": "from orchestrate.data.tokens.hub_tokens import load; load(folder)",
    "adapter": "import torch; from orchestrate.local.model.loading import load_adapter, load_base;"
    f"base = load_base(Path({str(TINY)!r}), four_bit=False, device=torch.device('cpu'));"
    "load_adapter(base, folder)",
}
START = "import sys; from pathlib import Path; folder = Path(sys.argv[1]);"


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


@pytest.mark.parametrize("what", LOAD)
def test_nothing_of_it_is_run(hostile: Path, what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START + LOAD[what], str(hostile)], input="y\n", capture_output=True, text=True
    )
    assert not (hostile.parent / "ran").exists()
    assert "[y/N]" not in done.stdout + done.stderr, "it must not even ask"
    if what == "adapter":
        assert "pickled weights are not loaded" in done.stderr
    if what == "model":
        assert done.returncode != 0 and "trust_remote_code" in done.stderr
