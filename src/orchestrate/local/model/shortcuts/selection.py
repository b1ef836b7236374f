"""Turn on the optimizations that a model supports, and record why others are off."""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from orchestrate.errors import RunFailed
from orchestrate.local.job import LocalJob
from orchestrate.local.model import NO_PACKING, SettingChoice, weights
from orchestrate.local.model.loaded import Loaded, OutputHead, OwnLogits
from orchestrate.local.model.shortcuts import probes
from orchestrate.local.model.shortcuts.accelerators import compile_layers, undo_compiling
from orchestrate.local.model.shortcuts.kernels import is_plain, undo, use_on_cpu, watched

# Run LoRA and its frozen linear layer as a single autograd function.


# The type annotations of torch, transformers and numpy are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


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
        # Compute `out` in its final shape. Some models modify a layer's output in place, and autograd doesn't
        # allow that for a view created in this function.
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
    """Replace the forward pass of every plain LoRA layer of a peft model with the fused one. Returns the
    number of replaced layers."""
    from peft.tuners.lora import LoraLayer

    fused = 0
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and _plain(layer):
            layer.forward = types.MethodType(_forward(layer, layer.forward), layer)  # type: ignore[method-assign]
            fused += 1
    return fused


def unfuse(model: Any) -> None:
    """Restore peft's own forward passes."""
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


# Attention over packed rows on a GPU, with torch's variable-length attention kernel, which needs no quadratic
# mask.


PACKED_NAME = "orchestrate_packed"
varlen: Any = None
with suppress(ImportError):  # older torch does not have it
    varlen = import_module("torch.nn.attention.varlen")
CAUSAL = (-1, 0)


def use_packed_attention(loaded: Loaded) -> str | None:
    """Switch the model to `packed_attention` for packed rows. Returns the reason if that is not possible,
    otherwise `None`."""
    config = loaded.inner.config.get_text_config()
    if config._attn_implementation != "sdpa":
        return "the model uses its own attention"
    if any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")):
        return "the model uses sliding-window attention"
    if loaded.inner.dtype not in (torch.bfloat16, torch.float16):
        return "only available in 16-bit precision"
    if varlen is None:
        return f"torch {torch.__version__} has no variable-length attention kernel"
    if PACKED_NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(PACKED_NAME, packed_attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    loaded.inner.set_attn_implementation(PACKED_NAME)
    loaded.packed_layout = True
    if reason := probes.packs(loaded):
        loaded.inner.set_attn_implementation("sdpa")
        loaded.packed_layout = False
    return reason


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention with transformers' attention interface: [sequences, heads, tokens, dim] ->
    [sequences, tokens, heads, dim]. Rows that are not packed use torch's usual kernels."""
    layout = kwargs.pop("layout", None)
    if layout is None:
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found, None
    # `Loaded.hidden` passes a mask with a single element. Any larger mask was created by the model.
    if not is_plain(module, dropout, kwargs) or (attention_mask is not None and attention_mask.numel() > 1):
        raise NotImplementedError(
            "attention over packed rows does not support dropout, soft cap, bias or mask"
        )
    lines, _, tokens, _ = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    out = varlen.varlen_attn(
        q,
        k,
        v,
        layout.starts,
        layout.starts,
        layout.longest,
        layout.longest,
        scale=scaling,
        window_size=CAUSAL,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.unflatten(0, (lines, tokens)), None


def turn_on(loaded: Loaded, job: LocalJob) -> None:
    """Turn on the optimizations that work with this model. Stores the reason why each of the others is off in
    `loaded.left_out`. Raises `RunFailed` if the model cannot complete a training step even without them."""
    if not probes.head_is_understood(loaded):
        loaded.head = OutputHead(OwnLogits(loaded.head.layer.weight.detach()))
        loaded.own_logits = True
    fused = loaded.choice.name in ("fused", "liger")
    if any(weights.held_of(loaded.inner)):
        weights.adapt(loaded.model)  # nothing else computes with these
    elif fused and not job.adapter.full:
        _experts(loaded)
    proved = fused and _layers(loaded, job)
    if not proved and (reason := probes.trains(loaded)):
        raise RunFailed(
            f"cannot train this model: {reason}",
            fix="use fewer modules in adapter.targets, or set engine: plain. The full message is in "
            "worker.log",
        )
    _balance(loaded, job)
    if fused:
        _rows(loaded, job)
    if job.hyper.packing:
        _attend_packed(loaded)
        reason = None if loaded.packed_layout else probes.packs(loaded)
        loaded.packs = reason is None
        if reason:
            loaded.left_out["packing"] = reason
        elif loaded.device.type == "cpu":
            loaded.left_out["packed rows"] = NO_PACKING
    if loaded.choice.name == "compile":
        compile_layers(loaded.inner)
        if reason := probes.trains(loaded):
            undo_compiling(loaded.inner)
            loaded.choice = SettingChoice("plain", f"torch.compile does not work: {reason}")
            loaded.left_out["torch.compile"] = reason


def _attend_packed(loaded: Loaded) -> None:
    """Turn on mask-free attention over packed rows, on a GPU."""
    if loaded.device.type == "cpu":
        return
    if reason := use_packed_attention(loaded):
        loaded.left_out["mask-free attention over packed rows"] = reason
    else:
        loaded.turned_on.append("mask-free attention over packed rows")


def _balance(loaded: Loaded, job: LocalJob) -> None:
    """Turn on the routers' own loss as requested. For full fine-tuning, the default is the model's
    configuration."""
    config, asked = loaded.inner.config.get_text_config(), job.hyper.router_aux_loss
    if asked is None and job.adapter.full and getattr(config, "output_router_logits", False):
        asked = float(getattr(config, "router_aux_loss_coef", 0.0))
    if not asked:
        return
    loaded.balancing = asked
    with loaded.evaluation_mode(), torch.no_grad():
        loaded.hidden(probes.made_up(loaded))
    if not loaded.routed:
        raise RunFailed(
            f"router_aux_loss needs router logits, which {config.model_type} models do not return",
            fix="remove router_aux_loss",
        )


def _layers(loaded: Loaded, job: LocalJob) -> bool:
    """Turn on optimizations of layers. Returns whether the model is then known to complete a step."""
    proved = False
    if not job.adapter.full:
        layers = fuse(loaded.model)
        if reason := probes.trains(loaded):
            unfuse(loaded.model)
            loaded.left_out["fused LoRA"] = reason
        elif layers:
            loaded.turned_on.append("fused LoRA")
        proved = reason is None
    if loaded.device.type == "cpu" and (replaced := use_on_cpu(loaded.inner)):
        with watched() as calls:
            reason = probes.trains(loaded)
        if reason:
            undo(loaded.inner)
            loaded.left_out["CPU kernels for attention and norms"] = reason
        else:
            if "attention" in replaced and not any(calls):
                replaced.remove("attention")
                loaded.left_out["CPU kernels for attention"] = "the model uses a custom attention or dropout"
            loaded.turned_on += [f"{what} for a CPU" for what in replaced]
            proved = True
    return proved


def _experts(loaded: Loaded) -> None:
    """Compute one expert at a time if experts have an adapter. Otherwise transformers' code needs no more
    memory."""
    ids = probes.made_up(loaded)
    with loaded.evaluation_mode(), torch.no_grad():
        before = loaded.hidden(ids)
    if not weights.use(loaded.inner) or not weights.adapt(loaded.model):
        weights.give_back(loaded.inner)
        return
    reason = probes.trains(loaded)
    with loaded.evaluation_mode(), torch.no_grad():
        if not reason and not probes.distance(loaded.hidden(ids), before) <= probes.CLOSE:
            reason = "it changes the model's hidden states"
    if reason:
        weights.give_back(loaded.model)
        loaded.left_out["one expert at a time"] = reason
    else:
        loaded.turned_on.append("one expert at a time")


def _rows(loaded: Loaded, job: LocalJob) -> None:
    if job.hyper.neftune_alpha:
        loaded.left_out["packing"] = "NEFTune noise depends on each row's length"
        return
    loaded.line_limit, reason = probes.line_limit(loaded)
    if reason:
        loaded.left_out["several rows packed into one sequence"] = reason
    loaded.shares = not probes.draws(loaded)
    if loaded.line_limit:
        message = f"packing up to {loaded.line_limit} tokens"
        loaded.turned_on.append(message + (", shared prefixes computed once" if loaded.shares else ""))
    if job.hyper.gradient_checkpointing or loaded.own_logits or loaded.balancing:
        # With gradient checkpointing, a recomputed layer would no longer have the positions. The model's own
        # logits and the load-balancing loss need all positions.
        return
    if probes.trained_only(loaded) is None:
        loaded.turned_on.append("last layer's MLP computed only for trained tokens")
