"""Packed rows without a mask: torch's kernel runs on a GPU only, so that its place is taken here by a plain
computation which is called as the kernel's own signature has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.unit.local.model.shortcuts.test_line import chats
from tests.unit.local.sessions import make_session
from torch import Tensor

from orchestrate.local.model.loaded import Packed
from orchestrate.local.model.shortcuts import selection
from orchestrate.local.model.shortcuts.kernels import undo
from orchestrate.local.model.shortcuts.probes import distance
from orchestrate.local.objectives.base import Objective
from orchestrate.local.run.session import Session

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.slow,
]
Kernel = Callable[..., Tensor]


def row_by_row(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *_: Any, **more: Any) -> Tensor:
    found: list[Tensor] = []
    for begin, end in pairwise(starts.tolist()):
        q, k, v = (x[begin:end].transpose(0, 1)[None] for x in (query, key, value))
        one = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=more["scale"], enable_gqa=True)
        found.append(one[0].transpose(0, 1))
    return torch.cat(found)


def all_as_one(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *_: Any, **more: Any) -> Tensor:
    """A kernel that does not heed where rows begin."""
    return row_by_row(query, key, value, torch.tensor([0, len(query)]), **more)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    train = chats(tmp_path / "t.jsonl", 12)
    made = make_session(tmp_path, train, method={"type": "sft"}, adapter={"type": "lora"}, precision="bf16")
    undo(made.loaded.inner)  # the attention that a GPU gets
    made.loaded.line_limit, made.loaded.packs = 0, True
    yield made


def in_place_of(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the calls."""
    own, calls = signature(selection.varlen.varlen_attn), list[int]()

    def called(*args: Any, **kwargs: Any) -> Tensor:
        given = own.bind(*args, **kwargs).arguments
        assert given["window_size"] == (-1, 0) and given["cu_seq_q"] is given["cu_seq_k"]
        assert given["cu_seq_q"].dtype == torch.int32
        assert given["max_q"] == given["cu_seq_q"].diff().max()
        calls.append(1)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(selection.varlen, "varlen_attn", called)
    return calls


def gradients(session: Session) -> dict[str, Tensor]:
    objective, rows = Objective(session.loaded, 0, packing=True), session.loop.train
    session.loaded.model.train()
    objective.run(rows, range(8), objective.weight_of(rows, range(8)), backward=True)
    found = {n: p.grad.clone() for n, p in session.loaded.trainable.items() if p.grad is not None}
    session.loaded.model.zero_grad()
    return found


def test_packed_rows_have_the_gradients_that_they_have_behind_a_mask(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = gradients(session)
    calls = in_place_of(row_by_row, monkeypatch)
    assert selection.use_packed_attention(session.loaded) is None
    calls.clear()
    told = gradients(session)
    assert len(calls) == session.loaded.inner.config.num_hidden_layers
    assert masked.keys() == told.keys() and masked
    apart = distance(torch.cat([g.flatten() for g in told.values()]),
                     torch.cat([g.flatten() for g in masked.values()]))  # fmt: skip
    assert apart < 0.05


def test_a_kernel_that_lets_rows_see_one_another_is_not_used(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place_of(all_as_one, monkeypatch)
    reason = selection.use_packed_attention(session.loaded)
    assert reason is not None and "row" in reason
    assert not session.loaded.packed_layout
    assert session.loaded.inner.config._attn_implementation == "sdpa"


def test_a_torch_without_the_kernel_trains_behind_a_mask(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "varlen", None)
    assert "has no variable-length attention kernel" in str(selection.use_packed_attention(session.loaded))
    session.loaded.inner.config.sliding_window = 8
    assert "window" in str(selection.use_packed_attention(session.loaded))


def test_rows_begin_where_positions_do_and_padding_is_apart() -> None:
    positions = np.array([[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 0]])
    found = Packed.of(positions, torch.device("cpu"))
    assert found.starts.tolist() == [0, 3, 5, 6, 7, 13, 14] and found.longest == 6


def test_torch_s_own_kernel_takes_what_it_is_given() -> None:
    """Without a GPU its shapes alone: the kernel that would run there is flash attention."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with FakeTensorMode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        q = torch.empty(2, 8, 7, 64, device="cuda", dtype=torch.bfloat16)
        k, v = (torch.empty(2, 2, 7, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        layout = Packed(torch.empty(7, dtype=torch.int32, device="cuda"), 6)
        out, _ = selection.packed_attention(torch.nn.Module(), q, k, v, None, layout=layout, scaling=0.125)
    assert out.shape == (2, 7, 8, 64) and out.device.type == "cuda"
