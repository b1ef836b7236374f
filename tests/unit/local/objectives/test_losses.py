"""Losses against plain torch, the fused layer against peft's own."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrate.local.model.loaded import OutputHead
from orchestrate.local.objectives.base import Preference, token_losses


@pytest.mark.parametrize(("multiplier", "softcap"), [(1.0, None), (0.25, None), (1.0, 5.0), (2.0, 3.0)])
@pytest.mark.parametrize("block_elements", [1 << 25, 16 * 50])
def test_loss_and_gradient_equal_those_of_whole_logits(
    multiplier: float, softcap: float | None, block_elements: int
) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    head = OutputHead(layer, multiplier, softcap, block_elements)
    targets, weights = torch.randint(50, (70,)), torch.rand(70)
    gradients: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    start = torch.randn(70, 8) * 3
    for whole in (True, False):
        hidden = start.clone().requires_grad_()
        if whole:
            logits = hidden @ layer.weight.t() * multiplier
            if softcap:
                logits = torch.tanh(logits / softcap) * softcap
            loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
            right = (logits.argmax(1) == targets).sum()
        else:
            losses, right = token_losses(hidden, targets, head)
            loss = (losses * weights).sum()
        (loss * 0.5).backward()
        assert hidden.grad is not None
        gradients.append(hidden.grad)
        values += [loss.detach(), right.float()]
    torch.testing.assert_close(values[0], values[2])
    assert values[1] == values[3]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("vocabulary", "gap"), [(32_000, 17.0), (151_936, 18.0)])
def test_small_losses_of_large_vocabularies_are_exact(vocabulary: int, gap: float) -> None:
    """Confident predictions, where most of the loss is the sum of many small terms beside a large one."""
    layer = torch.nn.Linear(1, vocabulary, bias=False).requires_grad_(False)
    layer.weight.zero_()[:4, 0] = gap
    hidden, targets = torch.ones(4, 1, requires_grad=True), torch.arange(4)
    with torch.no_grad():
        layer.weight[1:4] = 0
    loss, _ = token_losses(hidden[:1], targets[:1], OutputHead(layer))
    loss.sum().backward()
    exact = math.log1p((vocabulary - 1) * math.exp(-gap))
    assert loss.item() == pytest.approx(exact, rel=1e-3)
    assert hidden.grad is not None
    assert hidden.grad[0].item() == pytest.approx(gap * math.expm1(-exact), rel=1e-3)


def test_only_one_block_of_logits_is_in_memory() -> None:
    layer = torch.nn.Linear(8, 32_000, bias=False).requires_grad_(False)
    head = OutputHead(layer, block_elements=64 * 32_000)
    hidden, targets = torch.randn(512, 8, requires_grad=True), torch.randint(32_000, (512,))
    held: list[int] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.mm.default:
                alive = (x for x in gc.get_objects() if type(x) is torch.Tensor and x.numel() > 10_000)
                held.append(len({x.untyped_storage().data_ptr() for x in alive if x.shape[-1] == 32_000}))
            return out

    with Watching():
        token_losses(hidden, targets, head)
    assert len(held) >= 8 and max(held) <= 2  # the weight, and one block


def test_a_head_that_is_trained_gets_its_gradient() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 50, bias=True)
    hidden, targets = torch.randn(40, 8, requires_grad=True), torch.randint(50, (40,))
    losses, _ = token_losses(hidden, targets, OutputHead(layer, block_elements=16 * 50))
    losses.sum().backward()
    ours = layer.weight.grad
    layer.weight.grad = None
    F.cross_entropy(layer(hidden), targets, reduction="sum").backward()
    assert ours is not None and layer.weight.grad is not None
    torch.testing.assert_close(ours, layer.weight.grad)


def test_dpo_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    policy, reference = torch.randn(8, dtype=torch.float64) * 5, torch.randn(8, dtype=torch.float64) * 5
    loss, shown = Preference(beta=0.3).loss(policy, reference, torch.ones(8))
    for i in range(4):
        margin = 0.3 * ((policy[i] - reference[i]) - (policy[i + 4] - reference[i + 4]))
        assert loss[i].item() == pytest.approx(-torch.log(1 / (1 + torch.exp(-margin))).item())
        assert shown["reward_margin"][i].item() == pytest.approx(margin.item())


def test_the_neighbours_of_dpo_are_their_papers_formulas() -> None:
    policy, reference = torch.tensor([-6.0, -9.0]), torch.tensor([-7.0, -8.0])
    lengths = torch.tensor([3.0, 2.0])
    simpo, _ = Preference(beta=2.0, simpo_gamma=0.5).loss(policy, None, lengths)
    assert simpo.item() == pytest.approx(-F.logsigmoid(torch.tensor(2.0 * (-2.0 + 4.5) - 0.5)).item())
    plain, _ = Preference(beta=0.1).loss(policy, reference, lengths)
    rpo, _ = Preference(beta=0.1, rpo_alpha=0.7).loss(policy, reference, lengths)
    assert rpo.item() == pytest.approx(plain.item() + 0.7 * 6.0 / 3)
    normal, _ = Preference(beta=1.0, normalize_by_length=True).loss(policy, reference, lengths)
    assert normal.item() == pytest.approx(-F.logsigmoid(torch.tensor((-6 + 7) / 3 - (-9 + 8) / 2)).item())
