"""What a run leaves behind."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.local.families import make
from tests.unit.local.model.shortcuts.test_line import chats
from tests.unit.local.sessions import make_session

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_whole_model_is_kept_in_its_bases_precision(tmp_path: Path, dtype: str) -> None:
    base = make("llama", tmp_path / "base", dtype=dtype)
    odd = "model.norm.weight"
    if dtype == "bfloat16":  # a tensor that its maker kept in 32 bits stays so
        weights = load_file(base / "model.safetensors")
        weights[odd] = weights[odd].float()
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    session = make_session(
        tmp_path,
        chats(tmp_path / "t.jsonl", 8),
        method={"type": "sft"},
        adapter={"type": "full"},
        model=str(base),
        hyper={"epochs": 1, "learning_rate": 1e-3},
    )
    session.loop.run()
    folder = session.publish()
    before, after = (load_file(f / "model.safetensors") for f in (base, folder))
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert any(not torch.equal(before[n], after[n]) for n in before)
    assert msgspec.json.decode((folder / "config.json").read_bytes())["dtype"] == dtype
