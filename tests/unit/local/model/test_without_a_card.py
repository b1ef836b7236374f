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
from tests.unit.local.model.shortcuts.test_line import chats
from tests.unit.local.sessions import make_session
from torch._subclasses.fake_tensor import FakeTensorMode

from orchestrate.local.model.loaded import decoder_of
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
