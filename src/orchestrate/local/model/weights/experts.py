"""The experts of a mixture, all in one tensor for each weight: held in 4 bits, and with LoRA beside them.

One expert after the other: its matrix is spread out, used for the tokens that were sent to it, and forgotten;
backward spreads it out again. peft would add its product to the weights of all experts and keep the sum for
backward, and bitsandbytes would spread all of them out at once.
"""

# torch, transformers, peft and bitsandbytes describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

NAME = "orchestrate_experts"
"""Of this way among transformers' implementations of experts."""
Matrix = Callable[[int], Tensor]
"""Of one expert: [out, in]"""


class FourBits:
    """A weight [experts, ...] in NF4 with double quantisation, expert by expert."""

    def __init__(self, weight: Tensor) -> None:
        import bitsandbytes.functional as bnb

        self.shape = weight.shape
        self.held = [
            bnb.quantize_4bit(matrix.contiguous(), quant_type="nf4", compress_statistics=True)
            for matrix in weight
        ]

    def __getitem__(self, expert: int) -> Tensor:
        import bitsandbytes.functional as bnb

        return bnb.dequantize_4bit(*self.held[expert])

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All that is held."""
        for packed, state in self.held:
            yield packed
            while state is not None:
                yield from (t for t in (state.absmax, state.code, state.offset) if isinstance(t, Tensor))
                state = state.state2


class _Experts(torch.autograd.Function):
    """x: [tokens, in], sorted by expert; a: [experts, rank, in]; b: [experts, out, rank]; counts: tokens of
    each expert -> [tokens, out]. The weights are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        matrix: Matrix,
        counts: Sequence[int],
        scale: float,
    ) -> Tensor:
        outs: list[Tensor] = []
        lows: list[Tensor] = []
        for expert, part in _parts(counts):
            out = x[part] @ matrix(expert).to(x.dtype).t()
            if a is not None and b is not None:
                lows.append(x[part] @ a[expert].to(x.dtype).t())
                out.addmm_(lows[-1], b[expert].to(x.dtype).t(), alpha=scale)
            outs.append(out)
        ctx.save_for_backward(*((x, torch.cat(lows), a, b) if lows else ()))
        ctx.matrix, ctx.counts, ctx.scale, ctx.shape = matrix, counts, scale, x.shape
        return torch.cat(outs)

    @staticmethod
    def backward(
        ctx: Any, *grads: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        grad: Tensor = grads[0]
        adapted = ctx.saved_tensors
        grad_a, grad_b = (torch.zeros_like(t) for t in adapted[2:]) if adapted else (None, None)
        grad_x = grad.new_empty(ctx.shape) if ctx.needs_input_grad[0] else None
        for expert, part in _parts(ctx.counts):
            toward = None if grad_x is None else grad[part] @ ctx.matrix(expert).to(grad.dtype)
            if grad_a is not None and grad_b is not None:
                x, low, a, b = adapted
                grad_low = (grad[part] @ b[expert].to(grad.dtype)).mul_(ctx.scale)
                grad_a[expert] = grad_low.t() @ x[part]
                grad_b[expert] = (grad[part].t() @ low[part]).float().mul_(ctx.scale)
                if toward is not None:
                    toward.addmm_(grad_low, a[expert].to(grad.dtype))
            if grad_x is not None and toward is not None:
                grad_x[part] = toward
        return grad_x, grad_a, grad_b, None, None, None


def _parts(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """(expert, its tokens), of those that have any."""
    for expert, (start, end) in enumerate(pairwise(accumulate(counts, initial=0))):
        if end > start:
            yield expert, slice(start, end)


def forward(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """In transformers' interface for experts; hidden: [tokens, hidden], chosen and weights: [tokens, experts
    of each] -> [tokens, hidden]."""
    ids, order = torch.sort(chosen.reshape(-1))
    counts = torch.bincount(ids, minlength=module.num_experts).tolist()
    rows = hidden[order // chosen.shape[1]]
    out = _linear(module, "gate_up_proj" if module.has_gate else "up_proj", rows, ids, counts)
    out = module._apply_gate(out) if module.has_gate else module.act_fn(out)
    out = _linear(module, "down_proj", out, ids, counts)
    if getattr(module, "has_post_expert_norm", False):
        out = module.post_expert_norm(out)
    out = out * weights.reshape(-1)[order].unsqueeze(-1)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return out[back].view(*chosen.shape, -1).sum(1).to(hidden.dtype)


def _linear(module: Any, name: str, x: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
    held: Any = vars(module).get("four_bits", {}).get(name)
    weight = held if held is not None else getattr(module, name)
    transposed = module.is_transposed

    def matrix(expert: int) -> Tensor:
        return weight[expert].t() if transposed else weight[expert]

    a, b, scale = _factors(vars(module).get("adapters", {}).get(name), module.num_experts)
    out = _Experts.apply(x, a, b, matrix, counts, scale)
    return out + getattr(module, f"{name}_bias")[ids] if module.has_bias else out  # type: ignore[no-any-return]


def _factors(layer: Any, experts: int) -> tuple[Tensor | None, Tensor | None, float]:
    """Of a peft layer: A [experts, rank, in], B [experts, out, rank] and what scales their product."""
    if layer is None or layer.disable_adapters or layer.merged or "default" not in layer.active_adapters:
        return None, None, 0.0
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return (
        a.reshape(experts, -1, a.shape[1]),
        b.reshape(b.shape[0], -1, experts).permute(2, 0, 1),
        float(layer.scaling["default"]),
    )


def experts_of(model: Any) -> list[Any]:
    """Modules whose way of computing transformers lets us choose."""
    return [m for m in model.modules() if hasattr(m, "_apply_gate") and hasattr(m, "has_gate")]


def use(model: Any) -> bool:
    """Lets the experts of a transformers model compute this way; whether it has such."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if NAME not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(NAME, forward)
    found = experts_of(model)
    for module in found:
        vars(module).setdefault("before", module.config._experts_implementation)
    for module in found:
        # The check of transformers' own setter is for its own names.
        module.config._experts_implementation_internal = NAME
    return bool(found)


def give_back(model: Any) -> None:
    """To what computed the experts before, and to peft's own layers."""
    for module in experts_of(model):
        if "before" in vars(module):
            module.config._experts_implementation_internal = vars(module).pop("before")
        vars(module).pop("adapters", None)
    for layer in model.modules():
        if getattr(vars(layer).get("forward"), "__name__", None) == "beside":
            del layer.forward


def adapt(model: Any) -> int:
    """Lets `forward` compute the LoRA of a peft model's experts, in place of peft; of how many weights."""
    from peft.tuners.lora.layer import ParamWrapper

    count = 0
    for layer in model.modules():
        if not isinstance(layer, ParamWrapper) or list(layer.lora_A) != ["default"]:
            continue
        module = layer.get_base_layer()
        if hasattr(module, "_apply_gate") and layer.get_param().ndim == 3:
            vars(module).setdefault("adapters", {})[layer.parameter_name] = layer
            layer.forward = types.MethodType(beside, layer)  # type: ignore[method-assign]
            count += 1
    return count


def beside(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return self.base_layer(x, *args, **kwargs)


def hold(module: Any, name: str, weight: Tensor) -> torch.nn.Parameter:
    """Keeps the weight in 4 bits; what stands in its place has its shape and no content, so that peft sees
    what it adapts and a use of it would show."""
    vars(module).setdefault("four_bits", {})[name] = FourBits(weight)
    nothing = torch.full((), torch.nan, dtype=weight.dtype, device=weight.device)
    return torch.nn.Parameter(nothing.expand(weight.shape), requires_grad=False)


def held_of(model: Any) -> Iterator[FourBits]:
    for module in model.modules():
        yield from vars(module).get("four_bits", {}).values()


def spread_out(model: Any, dtype: torch.dtype) -> None:
    """Puts the values that the 4 bits stand for in their place, computed by transformers."""
    give_back(model)
    for module in experts_of(model):
        for name, held in vars(module).pop("four_bits", {}).items():
            whole = torch.stack([held[e] for e in range(held.shape[0])]).to(dtype)
            setattr(module, name, torch.nn.Parameter(whole, requires_grad=False))
