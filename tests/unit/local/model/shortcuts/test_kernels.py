"""Our attention and norm against torch's, values and gradients."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from orchestrate.local.model.shortcuts.kernels import SHORT_ROW, attention, line_up, use_on_cpu, watched


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [33, 300, SHORT_ROW + 8])
def test_attention_is_torchs(heads: int, kv_heads: int, masked: bool, length: int) -> None:
    torch.manual_seed(0)
    start = [torch.randn(2, n, length, 8) for n in (heads, kv_heads, kv_heads)]
    mask = None
    if masked:  # two packed rows: block-diagonal and causal
        block = torch.arange(length) < length // 3
        mask = ((block[:, None] == block[None]) & torch.ones(length, length).tril().bool())[
            None, None
        ].repeat(2, 1, 1, 1)
    module = SimpleNamespace(num_key_value_groups=heads // kv_heads, is_causal=True, training=True)
    toward = torch.randn(2, heads, length, 8)
    results: list[list[torch.Tensor]] = []
    for ours in (True, False):
        q, k, v = (t.clone().requires_grad_() for t in start)
        if ours:
            out = attention(module, q, k, v, mask, scaling=0.3)[0].transpose(1, 2)
        else:
            each = heads // kv_heads
            kk, vv = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
            out = F.scaled_dot_product_attention(q, kk, vv, attn_mask=mask, is_causal=mask is None, scale=0.3)
        out.backward(toward)
        assert q.grad is not None and k.grad is not None and v.grad is not None
        results.append([out.detach(), q.grad, k.grad, v.grad])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["s_aux", "indices", "position_bias", "softcap", "mask"])
def test_what_changes_attention_is_not_passed_over(what: str) -> None:
    """Sinks, chosen keys, biases, caps and masks of a model's own: not in a line, where nothing else does it,
    nor in rows."""
    q = torch.randn(1, 2, 6, 8)
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True, training=True)
    layout = line_up([np.arange(2), np.arange(4)], [[0, 1]], [0]).layout
    odd = {"softcap": 5.0}.get(what, torch.zeros(1, 2, 6, 6))
    mask, more = (odd, {}) if what == "mask" else (None, {what: odd})
    with pytest.raises(NotImplementedError, match="does not support"):
        attention(module, q, q, q, mask, layout=layout, **more)
    with watched() as calls, suppress(ValueError):  # which transformers' own raises for a cap
        attention(module, q, q, q, mask, **more)
    assert calls == [False]


def llama(**more: object) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=99,
        **more,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if "norm" in name:
            parameter.uniform_(0.5, 2)
    return model


def test_a_whole_model_gives_the_same_states_and_gradients() -> None:
    ids = torch.randint(99, (3, 21))
    states: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    for ours in (False, True):
        model = llama()
        if ours:
            assert use_on_cpu(model) == ["attention", "5 norms"]
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()  # type: ignore[operator]
        out = model.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state  # type: ignore[operator]
        out.square().sum().backward()
        states.append(out.detach())
        gradients.append(embedded.grad)
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def test_a_norm_that_means_something_else_keeps_its_own() -> None:
    model = llama()

    class OffsetRMSNorm(type(model.model.norm)):  # type: ignore[misc, name-defined]
        """Gemma's: the weight is an offset from one."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x / x.square().mean(-1, keepdim=True).sqrt()

    model.model.norm.__class__ = OffsetRMSNorm  # type: ignore[union-attr]
    assert use_on_cpu(model) == ["attention", "4 norms"]
