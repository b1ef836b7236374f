"""Rows in one line, with and without a shared beginning, against each row alone: states, losses, slopes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.local.sessions import make_session, pairs

from orchestrate.local import machine
from orchestrate.local.model.loaded import Loaded
from orchestrate.local.model.shortcuts import kernels
from orchestrate.local.model.shortcuts.kernels import attend, attention, even, line_up
from orchestrate.local.model.shortcuts.probes import line_limit
from orchestrate.local.objectives import base
from orchestrate.local.objectives.base import Line, collate
from orchestrate.local.run.session import Session

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SYSTEM = "You answer in one word and never explain yourself, whatever is asked."


def chats(path: Path, count: int, system: str | None = SYSTEM) -> Path:
    with path.open("w", encoding="utf-8") as out:
        for i in range(count):
            messages = [
                {"role": "user", "content": f"Is {i} even?" + " Think well." * (i % 3)},
                {"role": "assistant", "content": "yes" if i % 2 == 0 else "no, odd"},
            ]
            first = [{"role": "system", "content": system}] if system else []
            out.write(json.dumps({"messages": [*first, *messages]}) + "\n")
    return path


def gradients(session: Session, examples: list[int]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step, in 32 bits."""
    session.loop.optimizer.zero_grad()
    sums = session.loop.objective.gradients(session.loop.train, examples, 4096, 1 << 20)
    found = {n: p.grad.clone() for n, p in session.loop.parameters.items() if p.grad is not None}
    return sums.loss / sums.weight, found


def exact(session: Session) -> Session:
    """In 32 bits, with a B that lets A have a gradient."""
    session.loaded.model.float()
    with torch.no_grad():
        for name, parameter in session.loop.parameters.items():
            if "lora_B" in name:
                parameter.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(len(name)))
    return session


@pytest.mark.parametrize("method", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_a_line_of_rows_gives_the_step_of_rows_side_by_side(tmp_path: Path, method: str) -> None:
    data = chats(tmp_path / "t.jsonl", 24) if method == "sft" else pairs(tmp_path / "t.jsonl", 24)
    session = exact(make_session(tmp_path, data, method={"type": method}, adapter={"type": "lora"}))
    batch = list(range(12))
    seen: list[int] = []
    loaded, collated = session.loaded, session.loop.objective.collate

    def watch(*args: Any) -> Any:
        made = collated(*args)
        seen.append(made.ids.numel())
        return made

    session.loop.objective.collate = watch  # type: ignore[method-assign]
    assert loaded.line_limit > 0 and loaded.shares and loaded.trained_only is not None
    ours, our_gradients = gradients(session, batch)
    loaded.shares = False
    unshared, unshared_gradients = gradients(session, batch)
    loaded.line_limit, loaded.trained_only = 0, None
    padded, padded_gradients = gradients(session, batch)
    assert seen[0] < 0.75 * seen[1] < seen[1] < seen[2]
    assert ours == pytest.approx(padded, rel=1e-5)
    assert unshared == pytest.approx(padded, rel=1e-5)
    assert padded_gradients
    for name, wanted in padded_gradients.items():
        torch.testing.assert_close(our_gradients[name], wanted, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(unshared_gradients[name], wanted, rtol=1e-3, atol=1e-6)


def test_rows_that_are_trained_from_the_start_share_nothing(tmp_path: Path) -> None:
    """Where each token carries loss, a shared token would be counted once instead of in each row."""
    method = {"type": "sft", "train_on_inputs": True}
    session = make_session(tmp_path, chats(tmp_path / "t.jsonl", 12), method=method)
    rows = session.loop.train
    batch = collate(rows, range(12), 0, session.device, line=Line(share=True))
    read = rows.tokens - rows.examples  # each but its last token
    assert batch.ids.numel() == even(read) and batch.real.sum() == read
    assert len(batch.places) == read and len(batch.computed) == batch.ids.numel()


def test_sizes_take_few_values_and_grow_little() -> None:
    sizes = range(1, 5000)
    assert all(0 <= even(n) - n <= max(15, n / 16) for n in sizes)
    assert len({even(n) for n in range(1025, 2049)}) == 16
    assert all(even(even(n)) == even(n) for n in sizes)


def test_steps_of_other_lengths_use_the_kernels_of_earlier_ones(tmp_path: Path) -> None:
    """Each row of the second step is another, and the shapes of the matrices are the same."""
    session = make_session(tmp_path, chats(tmp_path / "t.jsonl", 24), method={"type": "sft"})
    objective, rows = session.loop.objective, session.loop.train
    first = objective.collate(rows, range(12))
    others = [objective.collate(rows, range(n, n + 12)) for n in range(1, 12)]
    assert len({batch.tokens for batch in others}) > 5
    assert {batch.ids.shape for batch in others} <= {first.ids.shape, (1, first.ids.shape[1] + 16)}
    for batch in [first, *others]:
        assert set(batch.places.tolist()) <= set(batch.computed.tolist())
        assert len(batch.computed) == len(set(batch.computed.tolist())) == even(len(batch.places))


@pytest.mark.parametrize("noise", [None, pytest.param(5.0, marks=pytest.mark.slow)])
def test_the_event_tells_what_the_work_shows(tmp_path: Path, noise: float | None) -> None:
    """Counted are the tokens that pass through the layers in one step."""
    hyper = {"neftune_alpha": noise, "batch_size": 12}
    session = make_session(tmp_path, chats(tmp_path / "t.jsonl", 12), method={"type": "sft"}, hyper=hyper)
    rows, passed = session.loop.train, list[int]()
    count = session.loaded.inner.get_input_embeddings().register_forward_hook(
        lambda _module, _args, out: passed.append(out.shape[0] * out.shape[1])
    )
    gradients(session, list(range(12)))
    count.remove()
    places = [np.flatnonzero(rows.row(i)[1]) for i in range(12)]
    read = [int(trained[-1]) for trained in places]  # nothing is predicted behind the last trained token
    alike = min(int(trained[0]) - 1 for trained in places)
    while len({tuple(rows.row(i)[0][:alike]) for i in range(12)}) > 1:
        alike -= 1
    (event,) = (e for e in session.run.events() if e.type == "engine")
    told = "packing up to 1024 tokens, shared prefixes computed once"
    if noise is None:
        assert told in event.data["in_use"] and told in event.message
        assert alike > 10 and passed == [even(sum(read) - 11 * alike)]
    else:
        assert "packing" not in event.message
        assert passed == [12 * max(read)]


@pytest.mark.parametrize("job", [{"adapter": {"dropout": 0.1}}, {"hyper": {"neftune_alpha": 5.0}}])
def test_dropout_and_noise_are_each_rows_own(tmp_path: Path, job: dict[str, Any]) -> None:
    session = make_session(tmp_path, chats(tmp_path / "t.jsonl", 12), method={"type": "sft"}, **job)
    assert not session.loaded.shares
    assert session.loop.objective.collate(session.loop.train, range(6)).ids.numel() > 6 * 15


@pytest.mark.slow
def test_a_model_whose_rows_would_mix_gets_no_line(tmp_path: Path) -> None:
    """As in a layer with a state that runs on: a position sees the token before it, whosever it is."""
    session = make_session(tmp_path, chats(tmp_path / "t.jsonl", 12), method={"type": "sft"})
    loaded = Loaded(session.loaded.model, session.loaded.inner, session.loaded.head, session.device)
    assert line_limit(loaded) == (1024, None)
    mlp = loaded.inner.get_decoder().layers[0].mlp
    original = mlp.forward
    mlp.forward = lambda x: original(x) + 0.5 * torch.roll(x, 1, 1)
    assert line_limit(loaded) == (0, "packed rows get different hidden states than unpacked rows")


@pytest.mark.slow
def test_rounding_by_shape_leaves_the_line_and_a_little_of_another_row_does_not(tmp_path: Path) -> None:
    """A CPU with AMX rounds sums of another shape otherwise. What one row's states take of another's without
    a gradient is found however small it is."""
    session = make_session(tmp_path, chats(tmp_path / "t.jsonl", 12), method={"type": "sft"})
    loaded = Loaded(session.loaded.model, session.loaded.inner, session.loaded.head, session.device)
    mlp = loaded.inner.get_decoder().layers[0].mlp
    original = mlp.forward
    mlp.forward = lambda x: original(x) * (1 + 0.002 * (x.shape[1] % 5))
    assert line_limit(loaded) == (1024, None)
    loaded.model.float()
    mlp.forward = lambda x: original(x) + 4e-3 * torch.roll(x, 1, 1).detach()
    assert line_limit(loaded) == (0, "a packed row's hidden states depend on the other rows")


@pytest.mark.slow
def test_a_window_limits_the_rows_of_a_line(tmp_path: Path) -> None:
    session = make_session(tmp_path, chats(tmp_path / "t.jsonl", 12), method={"type": "sft"})
    session.loaded.inner.config.sliding_window = 40
    assert line_limit(session.loaded) == (40, None)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    shared=st.integers(0, 6),
    kv_heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
    block=st.sampled_from([1, 3, 4, 128]),
    at_once=st.sampled_from([1, 60, 1 << 20]),
)
def test_attention_over_a_line_is_attention_over_each_row(
    lengths: list[int], shared: int, kv_heads: int, seed: int, block: int, at_once: int
) -> None:
    """Whatever is computed at once, by torch's own attention over each row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BLOCK", block)
        patch.setattr(kernels, "AT_ONCE", at_once)
        compare(lengths, shared, kv_heads, seed)


def test_attention_over_a_line_of_long_rows() -> None:
    """Of more than one block as it is."""
    compare([140, 300, 7], 133, 2, 0)


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_attention_over_long_rows_that_share_nothing_is_torchs_with_amx(
    kv_heads: int, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_has_amx", lambda: amx)
    calls: list[int] = []
    monkeypatch.setattr(kernels, "attend", lambda *args: calls.append(1) or attend(*args))
    compare([520, 9, 600], 0, kv_heads, 0)
    assert bool(calls) is not amx


@pytest.mark.parametrize("lengths", [[9, 9, 1000, 1000], [900, 9, 9], [1000] * 3, [8] * 40, [600, 600, 80]])
def test_a_comparison_with_a_reference_has_one_kernel_whatever_is_beside_it(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_has_amx", lambda: True)
    rows = [np.arange(3, 3 + n) for n in lengths]
    layouts = [line_up(rows, [range(len(rows))], [0], steady=steady).layout for steady in (True, False)]
    assert [layout.long_rows for layout in layouts] == [False, max(lengths) > 512]
    assert layouts[0].sizes == lengths


@pytest.mark.parametrize("lengths", [[1] * 2000, [17] * 300, [50] * 90, [129, 3, 5], [2000]])
def test_no_more_scores_are_computed_at_once_than_allowed(lengths: list[int]) -> None:
    line = line_up([np.arange(3, 3 + n) for n in lengths], [range(len(lengths))], [0])
    for group in line.layout.groups:
        each = len(group.queries) // group.pieces
        assert group.pieces == 1 or len(group.queries) * (group.before + each) <= kernels.AT_ONCE


def test_a_line_is_filled_with_a_token_that_has_an_embedding(tmp_path: Path) -> None:
    """The pad id of a tokenizer to which it was added may lie behind them."""
    session = make_session(tmp_path, chats(tmp_path / "t.jsonl", 12), method={"type": "sft"})
    session.loop.objective.pad = 1 << 20
    sums = session.loop.objective.run(session.loop.train, range(6), 1.0, backward=True)
    assert np.isfinite(sums.loss)


def test_a_beginning_too_short_to_be_worth_it_is_not_shared(tmp_path: Path) -> None:
    session = exact(make_session(tmp_path, chats(tmp_path / "t.jsonl", 12), method={"type": "sft"}))
    rows, found = session.loop.train, dict[int, float]()
    for least in (1, 64, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "LEAST_SHARED", least)
            batch = collate(rows, range(12), 0, session.device, line=Line(share=True))
            found[least] = float(batch.real.max())
    assert found == {1: 1.0, 64: 12.0, 1 << 20: 12.0}


def compare(lengths: list[int], shared: int, kv_heads: int, seed: int) -> None:
    rows = [list(range(shared)) + [100 * (r + 1) + t for t in range(n)] for r, n in enumerate(lengths)]
    line = line_up([np.array(r) for r in rows], [range(len(rows))], [shared])
    assert len(line.ids) == shared + sum(lengths)
    torch.manual_seed(seed)
    places = [
        [*range(shared), *range(start, start + n)] for start, n in zip(line.starts, lengths, strict=True)
    ]
    for row, at in zip(rows, places, strict=True):
        assert line.ids[at].tolist() == row
        assert line.positions[at].tolist() == list(range(len(row)))
    q, k, v = (
        torch.randn(1, h, len(line.ids), 8, dtype=torch.float32, requires_grad=True)
        for h in (4, kv_heads, kv_heads)
    )
    toward = [torch.randn(1, len(at), 4, 8) for at in places]
    module = SimpleNamespace(is_causal=True, training=True)
    results: list[list[torch.Tensor]] = []
    for ours in (True, False):
        q.grad = k.grad = v.grad = None
        if ours:
            whole, _ = attention(module, q, k, v, None, layout=line.layout)
            outs = [whole[:, at] for at in places]
        else:
            outs = [
                F.scaled_dot_product_attention(
                    q[:, :, at], k[:, :, at], v[:, :, at], is_causal=True, enable_gqa=True
                ).transpose(1, 2)
                for at in places
            ]
        sum((o * t).sum() for o, t in zip(outs, toward, strict=True)).backward()  # type: ignore[union-attr]
        assert q.grad is not None and k.grad is not None and v.grad is not None
        results.append([torch.cat([o.detach() for o in outs], 1), q.grad, k.grad, v.grad])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
