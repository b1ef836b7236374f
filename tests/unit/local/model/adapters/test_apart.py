"""Which adapters leave the base as it is: peft itself is the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.paths import TINY
from tests.unit.serving.conftest import random_adapter
from transformers import AutoModelForCausalLM

from orchestrate.local.model.adapters import changes_base, is_removable

pytestmark = pytest.mark.filterwarnings("ignore")
Weights = dict[str, torch.Tensor]


def kept(folder: Path) -> bool:
    """Whether the base is to the bit what it was, once the adapter was put on it and taken off."""
    model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    after: Weights = PeftModel.from_pretrained(model, str(folder)).unload().state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapter(tmp_path_factory.mktemp("plain") / "a", 1, target_modules=["q_proj"])


def changed(plain: Path, folder: Path, weights: Weights | None = None, **config: Any) -> Path:
    """Only the files: what peft makes of them is looked at when it loads them."""
    folder.mkdir()
    told = json.loads((plain / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**told, **config}))
    save_file(
        load_file(plain / "adapter_model.safetensors") | (weights or {}),
        folder / "adapter_model.safetensors",
        {"format": "pt"},
    )
    return folder


def test_low_rank_layers_are_taken_off_whole(plain: Path, tmp_path: Path) -> None:
    configs: list[dict[str, Any]] = [{}, {"use_rslora": True}, {"init_lora_weights": "eva"}]
    for number, config in enumerate(configs):
        folder = changed(plain, tmp_path / str(number), **config)
        assert kept(folder) and is_removable(folder), config


@pytest.mark.parametrize(
    "config",
    [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"layer_replication": [[0, 2], [1, 3]]}],
    ids=str,
)
def test_what_takes_a_part_out_of_the_base_is_not(
    plain: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = changed(plain, tmp_path / "a", **config)
    assert not kept(folder) and not is_removable(folder)


def test_nor_is_what_writes_its_own_table_over_the_base_s(plain: Path, tmp_path: Path) -> None:
    """As peft saves them with `save_embedding_layers`."""
    table = {"base_model.model.lm_head.weight": torch.ones(1280, 256)}
    folder = changed(plain, tmp_path / "a", table)
    assert not kept(folder) and not is_removable(folder)


def test_nor_is_what_is_not_known_or_does_not_read(plain: Path, tmp_path: Path) -> None:
    configs: list[dict[str, Any]] = [{"bias": "all"}, {"peft_type": "IA3"}, {"of_next_year": {"scale": 2}}]
    for number, config in enumerate(configs):
        assert not is_removable(changed(plain, tmp_path / str(number), **config)), config
    assert not is_removable(tmp_path / "nowhere")


def differs_off(folder: Path) -> bool:
    """Whether the base says something else under an adapter that peft has switched off."""
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        before = model(ids).logits
        tuned: Any = PeftModel.from_pretrained(model, str(folder)).eval()
        with tuned.disable_adapter():
            return not torch.equal(tuned(ids).logits, before)


def test_what_peft_cannot_switch_off_changes_the_base(plain: Path, tmp_path: Path) -> None:
    table = {"base_model.model.lm_head.weight": torch.ones(1280, 256)}
    more: dict[str, Any] = {"target_modules": ["q_proj"]}
    saved = {**more, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    folders = {
        "plain": plain,
        "pissa": changed(plain, tmp_path / "pissa", init_lora_weights="pissa"),
        "layers twice": changed(plain, tmp_path / "twice", layer_replication=[[0, 2], [1, 3]]),
        "a table over the base's": changed(plain, tmp_path / "over", table),
        "a table of its own": random_adapter(tmp_path / "own", 2, **saved),
        "rows of its own": random_adapter(tmp_path / "rows", 3, **more, trainable_token_indices=[5, 6]),
        "weight-decomposed": random_adapter(tmp_path / "dora", 4, **more, use_dora=True),
    }
    told = {name: changes_base(folder) for name, folder in folders.items()}
    assert told == {name: differs_off(folder) for name, folder in folders.items()}
    assert sum(told.values()) == 3
