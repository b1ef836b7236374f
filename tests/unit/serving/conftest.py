"""Adapters of the tiny model that answer in ways of their own, without a training."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests import forking
from tests.paths import BUNDLED, TINY

from orchestrate.serving.server import server_process
from orchestrate.serving.server.server_process import ServerSettings, ServingApp
from orchestrate.serving.tuned import TunedModel
from orchestrate.store.store import Store
from orchestrate.types import Fingerprint

if TYPE_CHECKING:
    from tests.unit.serving.gguf import Made

ORDERS = BUNDLED / "orders" / "validation.jsonl"


@pytest.fixture(scope="module", autouse=True)
def forked(quick_python: None) -> None:
    """Models answer and train in processes that are up at once."""


@contextmanager
def serve(
    tuned: Sequence[TunedModel], home: Path, terms: ServerSettings, *, base: str | None = None
) -> Generator[ServingApp]:
    """With a store in this home."""
    with (
        Store.open(f"sqlite:///{home}/runs.sqlite3") as store,
        server_process.serve(tuned, home, store, terms, base=base) as up,
    ):
        yield up


def in_process(tasks: list[dict[str, Any]], *, module: str = "worker") -> list[dict[str, Any]]:
    """As `asking.ask_all`, without the seconds that a process takes to start."""
    from orchestrate.local.weights import worker

    assert module == "worker"
    return [worker.TASKS[task["task"]](**{k: v for k, v in task.items() if k != "task"}) for task in tasks]


def random_adapter(folder: Path, seed: int, base: Path = TINY, **more: Any) -> Path:
    """An adapter whose answers are other than the base's, and still end."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    given = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", **more}
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **given))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.3)
    peft.save_pretrained(folder)
    return folder


def in_32_bits(folder: Path) -> Path:
    """The tiny model with its very weights, in a folder that says 32 bits: what loads it as it is published
    computes in them."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(TINY, folder)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Known:
    """Two adapters of one base, and by what the first is known."""

    adapter: Path
    other: Path
    fingerprint: Fingerprint

    def exported(self, folder: Path, adapter: Path | None = None) -> Path:
        """As `export --to peft` writes it."""
        from orchestrate.local.weights import worker

        folder.mkdir()
        worker.dress(str(TINY), str(self.adapter), str(folder))
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile((adapter or self.adapter) / name, folder / name)
        return folder


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    from orchestrate.local.weights import worker

    home = tmp_path_factory.mktemp("known")
    adapter, other = random_adapter(home / "one", 1), random_adapter(home / "other", 2)
    fingerprint = Fingerprint.from_dict(
        worker.fingerprint(str(TINY), str(adapter), [str(ORDERS)], precision="fp32")
    )
    return Known(adapter, other, fingerprint)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    from tests.unit.serving.gguf import make

    with forking.quick():  # it is made before `forked`, which is of a module
        return make(tmp_path_factory.mktemp("gguf"))
