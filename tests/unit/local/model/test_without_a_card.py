"""Parts of libraries that the engine needs on a GPU, as far as they can be tried without one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from scipy.stats import norm
from tests.paths import ROOT
from tests.unit.local.families import make
from tests.unit.local.model.shortcuts.test_line import chats
from tests.unit.local.sessions import make_session
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrate.local.model import SettingChoice
from orchestrate.local.model.loaded import decoder_of
from orchestrate.local.model.loader import load_base
from orchestrate.local.model.shortcuts import probes

# torch, scipy and bitsandbytes describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_the_page_names_every_module_that_calls_a_card() -> None:
    page = (ROOT / "docs" / "local.md").read_text(encoding="utf-8")
    listed = re.findall(r"`([\w/]+\.py)`", page.partition("## What only a GPU runs")[2].partition("\n## ")[0])
    calling = {
        str(file.relative_to(ROOT / "src"))
        for file in (ROOT / "src" / "orchestrate").rglob("*.py")
        if re.search(r"torch\.cuda\.|cuda:nccl", file.read_text(encoding="utf-8"))
    }
    assert len(calling) > 8
    assert not [file for file in calling if not any(file.endswith(f"/{one}") for one in listed)]


def test_each_part_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "local.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page.partition("## What only a GPU runs")[2], re.MULTILINE)
    missing: list[str] = []
    for row in rows:
        for part in re.split(r"(?=`[\w/]+\.py`)", row):
            names = re.findall(r"`([\w/.]+)[`(]", part)
            if not names or not names[0].endswith(".py"):
                continue
            base = ROOT / "src" / "orchestrate"
            file = next((f for f in (base / "local" / names[0], base / names[0]) if f.is_file()), None)
            known = "" if file is None else file.read_text(encoding="utf-8")
            if file is None or not all(name.rpartition(".")[2] in known for name in names[1:]):
                missing.append(part)
    assert len(rows) > 15 and not missing


def test_a_model_for_the_cpu_stays_there_beside_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers puts 4-bit weights onto a card that it sees, if it isn't told where."""
    folder = make("llama", tmp_path / "model")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "meta")
    base = load_base(folder, four_bit=True, device=torch.device("cpu"), dtype=torch.float32)
    assert {p.device.type for p in base.parameters()} == {"cpu"}


def normal_float() -> torch.Tensor:
    """The 16 values of NF4 (Dettmers et al. 2023, section 3 and appendix E): quantiles of a normal
    distribution, 8 above zero, 7 below, and zero itself."""
    offset = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    above = norm.ppf(torch.linspace(offset, 0.5, 9)[:-1].numpy())
    below = -norm.ppf(torch.linspace(offset, 0.5, 8)[:-1].numpy())
    found = torch.tensor([*below, 0.0, *above], dtype=torch.float64).sort().values
    return (found / found.abs().max()).float()


def test_four_bits_stand_for_what_the_paper_says() -> None:
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    blocks, code = weight.view(-1, 64), normal_float()
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / scale)[..., None].sub(code).abs().argmin(-1)
    wanted = (code[nearest] * scale).view_as(weight)
    assert torch.allclose(bnb.dequantize_4bit(packed, state), wanted, atol=2e-4)
    twice, state = bnb.quantize_4bit(weight, quant_type="nf4", blocksize=64, compress_statistics=True)
    assert torch.equal(twice, packed)
    # The scales are then held in 8 bits.
    assert torch.allclose(bnb.dequantize_4bit(twice, state), wanted, atol=0.02 * float(scale.max()))


def test_the_card_s_four_bits_have_the_shapes_of_the_cpu_s() -> None:
    weight = torch.randn(96, 128, dtype=torch.bfloat16)
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4")
    with FakeTensorMode():
        fake = torch.empty(96, 128, dtype=torch.bfloat16, device="cuda")
        held, absmax = torch.ops.bitsandbytes.quantize_4bit(fake, 64, "nf4", torch.uint8)
        back = torch.ops.bitsandbytes.dequantize_4bit(held, absmax, 64, "nf4", [96, 128], torch.bfloat16)
    assert (held.shape, held.dtype) == (packed.shape, packed.dtype) and absmax.shape == state.absmax.shape
    assert back.shape == weight.shape and back.dtype == weight.dtype and back.device.type == "cuda"


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_layers_are_captured_whole_for_torch_compile(tmp_path: Path, adapter: str) -> None:
    """`fullgraph` raises at a graph break. Nothing is compiled: usual operations run the graph."""
    session = make_session(
        tmp_path,
        chats(tmp_path / "t.jsonl", 12),
        method={"type": "sft"},
        adapter={"type": adapter},
        engine="plain",
    )
    loaded: Any = session.loaded
    ids = probes.made_up(loaded)
    with torch.no_grad():
        before = loaded.hidden(ids)
    for layer in decoder_of(loaded.inner).layers:
        layer.compile(backend="eager", fullgraph=True, dynamic=True)
    assert probes.trains(loaded) is None
    with torch.no_grad():
        assert probes.distance(loaded.hidden(ids), before) <= probes.CLOSE
        assert loaded.hidden(torch.cat([ids, ids], 1)).shape[1] == 2 * ids.shape[1]


COPY = torch.ops.aten._to_copy.default


class CopiesAlive(TorchDispatchMode):
    """Counts the bytes of the 16-bit copies of weights that are alive at each operation."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self.shapes, self.most = shapes, 0
        self.made: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is COPY and out.dtype == torch.bfloat16 and out.shape in self.shapes:
            self.made.append((StorageWeakRef(out.untyped_storage()), 2 * out.numel()))
        self.made = [(copy, size) for copy, size in self.made if not copy.expired()]
        self.most = max(self.most, sum(size for _, size in self.made))
        return out


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_counts_the_copies_of_weights_that_autocast_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """The session's own context, with the CPU's autocast instead of the card's, which keeps copies by
    the same rules."""
    session = make_session(
        tmp_path,
        chats(tmp_path / "train.jsonl", 4),
        method={"type": "sft"},
        adapter={"type": "full"},
        hyper={"gradient_checkpointing": checkpointing},
    )
    objective, loaded = session.loop.objective, session.loaded
    loaded.line_limit = 0  # the kernels for a CPU
    loaded.model.train()
    usual = torch.autocast

    def on_cpu(kind: str, lower: torch.dtype, **more: Any) -> Any:
        assert kind == "cuda"
        return usual("cpu", lower, **more)

    def precision(*, step: bool = False) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "autocast", on_cpu)
            patch.setattr(loaded, "device", torch.device("cuda"))
            patch.setattr(loaded, "precision", SettingChoice("bf16", "as on a card"))
            return type(objective).precision(objective, step=step)

    monkeypatch.setattr(objective, "precision", precision)
    named = {n: p for n, p in session.loop.parameters.items() if p.dim() == 2 and "embed_tokens" not in n}
    head = loaded.head.layer.weight
    in_layers = 2 * sum(p.numel() for p in named.values() if p is not head)
    of_head = 2 * head.numel()
    with CopiesAlive({*(p.shape for p in named.values()), head.shape}) as counted:
        objective.gradients(session.loop.train, [0, 1], 4096, 2)
    if checkpointing:
        assert 0 < counted.most <= max(of_head, in_layers / session.folder.config["num_hidden_layers"])
    else:
        assert counted.most == in_layers + of_head
