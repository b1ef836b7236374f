"""LoRA and its frozen linear layer in one step of autograd.

peft composes the same arithmetic from a dozen operations and keeps an intermediate of each. Here the backward
pass keeps the input and the rank-r product only, the frozen weight is dequantised where it is used, and the
adapter's weights stay in 32 bits while the products run in the input's precision. Layers with dropout, DoRA
or several adapters keep peft's own forward.
"""

# torch, transformers and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        weight: Callable[[], Tensor],
        bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a, b = a.to(x.dtype), b.to(x.dtype)
        # In the shape in which it is given back: some models write into a layer's result, and autograd allows
        # that of no view that was made in here.
        out = F.linear(rows.view(x.shape), weight().to(x.dtype), bias)
        low = rows @ a.t()
        out.view(-1, out.shape[-1]).addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(rows, low, a, b)
        ctx.weight, ctx.scale, ctx.shape = weight, scale, x.shape
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor, Tensor, None, None, None]:
        rows, low, a, b = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_low = (grad @ b).mul_(ctx.scale)
        grad_b = (grad.t() @ low).float().mul_(ctx.scale)
        grad_a = (grad_low.t() @ rows).float()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ ctx.weight().to(grad.dtype)
            grad_x.addmm_(grad_low, a)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, grad_a, grad_b, None, None, None


def fuse(model: Any) -> int:
    """Gives every plain LoRA layer of a peft model the fused forward; returns how many got it."""
    from peft.tuners.lora import LoraLayer

    fused = 0
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and _plain(layer):
            layer.forward = types.MethodType(_forward(layer, layer.forward), layer)  # type: ignore[method-assign]
            fused += 1
    return fused


def unfuse(model: Any) -> None:
    """Back to peft's own."""
    for layer in model.modules():
        if getattr(vars(layer).get("forward"), "__name__", None) == "fused_forward":
            del layer.forward


def _plain(layer: Any) -> bool:
    if list(layer.lora_A) != ["default"] or layer.lora_variant or layer.merged:
        return False
    if not isinstance(layer.lora_dropout["default"], torch.nn.Identity) or getattr(
        layer, "fan_in_fan_out", False
    ):
        return False
    base = layer.get_base_layer()
    if layer.lora_A["default"].bias is not None or layer.lora_B["default"].bias is not None:
        return False
    return type(base) is torch.nn.Linear or type(base).__name__ == "Linear4bit"


def _forward(layer: Any, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    base = layer.get_base_layer()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    scale = float(layer.scaling["default"])
    if type(base) is torch.nn.Linear:

        def weight() -> Tensor:
            return base.weight
    else:
        import bitsandbytes.functional as bnb

        def weight() -> Tensor:
            return bnb.dequantize_4bit(base.weight.data, base.weight.quant_state)

    def fused_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or args or kwargs:
            return original(x, *args, **kwargs)
        return _LoraLinear.apply(x, a, b, weight, base.bias, scale)  # type: ignore[no-any-return]

    return fused_forward
