"""Load a model's weights and convert them to the formats used in training."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
)

from orchestrate.errors import UsageError

# Mixture-of-experts layers that store all experts in one tensor per weight, with 4-bit weights and LoRA.


# The type annotations of torch, transformers, peft and bitsandbytes are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


NAME = "orchestrate_experts"
"""Name of this implementation in transformers' registry of expert implementations."""
Matrix = Callable[[int], Tensor]
"""Function that returns the weight of expert i, as [out, in]."""


class FourBits:
    """A weight [experts, ...] in NF4 with double quantization. Each expert is quantized separately."""

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
        """The tensors that store the weight."""
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
    """Yield (expert, its tokens) for experts that have any."""
    for expert, (start, end) in enumerate(pairwise(accumulate(counts, initial=0))):
        if end > start:
            yield expert, slice(start, end)


def forward(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Compute the output of the experts. Implements transformers' expert interface. `hidden`: [tokens,
    hidden]. `chosen` and `weights`: [tokens, experts per token]. Returns [tokens, hidden]."""
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
    """Return the factors of a peft layer: A [experts, rank, in], B [experts, out, rank] and the scale of
    their product."""
    if layer is None or layer.disable_adapters or layer.merged or "default" not in layer.active_adapters:
        return None, None, 0.0
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return (
        a.reshape(experts, -1, a.shape[1]),
        b.reshape(b.shape[0], -1, experts).permute(2, 0, 1),
        float(layer.scaling["default"]),
    )


def experts_of(model: Any) -> list[Any]:
    """List the expert modules for which transformers supports a choice of implementation."""
    return [m for m in model.modules() if hasattr(m, "_apply_gate") and hasattr(m, "has_gate")]


def use(model: Any) -> bool:
    """Switch the experts of a transformers model to this implementation. Returns whether the model has
    experts."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if NAME not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(NAME, forward)
    found = experts_of(model)
    for module in found:
        vars(module).setdefault("before", module.config._experts_implementation)
    for module in found:
        # transformers' setter accepts only its own names.
        module.config._experts_implementation_internal = NAME
    return bool(found)


def give_back(model: Any) -> None:
    """Restore the experts' previous implementation and peft's own forward passes."""
    for module in experts_of(model):
        if "before" in vars(module):
            module.config._experts_implementation_internal = vars(module).pop("before")
        vars(module).pop("adapters", None)
    for layer in model.modules():
        if getattr(vars(layer).get("forward"), "__name__", None) == "beside":
            del layer.forward


def adapt(model: Any) -> int:
    """Compute the experts' LoRA in this module's `forward` instead of in peft. Returns the number of weights
    with an adapter."""
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
    """Store the weight in 4 bits and return a placeholder parameter. The placeholder has the weight's shape,
    which peft needs, but is filled with NaN, so that accidental use is noticed."""
    vars(module).setdefault("four_bits", {})[name] = FourBits(weight)
    nothing = torch.full((), torch.nan, dtype=weight.dtype, device=weight.device)
    return torch.nn.Parameter(nothing.expand(weight.shape), requires_grad=False)


def held_of(model: Any) -> Iterator[FourBits]:
    for module in model.modules():
        yield from vars(module).get("four_bits", {}).values()


def spread_out(model: Any, dtype: torch.dtype) -> None:
    """Replace the experts' 4-bit weights with their dequantized values, and let transformers compute the
    experts."""
    give_back(model)
    for module in experts_of(model):
        for name, held in vars(module).pop("four_bits", {}).items():
            whole = torch.stack([held[e] for e in range(held.shape[0])]).to(dtype)
            setattr(module, name, torch.nn.Parameter(whole, requires_grad=False))


# Choose the transformers class of a text-generating model from its configuration. Imports transformers.


# The type annotations of torch and transformers are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


def auto_class(folder: Path) -> Any:
    """Return the transformers auto class for the model in a folder: a language model, or a vision-language
    model that is used with text only."""
    return _auto_class(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


def hollow(config: Mapping[str, Any]) -> Any:
    """Build a model without weights from its config.json, on the meta device. Raises `UsageError` if
    transformers does not support it, or if the configuration is incomplete."""
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise UsageError(f"transformers does not support model_type {kind}")
    given = {k: v for k, v in config.items() if k not in ("model_type", "quantization_config")}
    try:
        made = CONFIG_MAPPING[kind].from_dict(given)
        with torch.device("meta"):
            return _auto_class(made).from_config(made, trust_remote_code=False)
    except Exception as error:  # the classes of some hundred families check in as many ways
        raise UsageError(f"cannot build a {kind} model from its configuration: {error}") from error


def model_class(config: Any) -> Any:
    """Return the transformers model class for a configuration."""
    seen = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if _sees(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    return seen[type(config)]


def _auto_class(config: Any) -> Any:
    return AutoModelForImageTextToText if _sees(config) else AutoModelForCausalLM


def _sees(config: Any) -> bool:
    kind = type(config)
    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING


# Expand MXFP4 or FP8 weights one tensor at a time while the files are read.


# The type annotations of torch, transformers and safetensors are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


_BLOCKS, _SCALES = "_blocks", "_scales"
"""Name suffixes of the two tensors that store one MXFP4 weight."""
_FP8 = ("_scale_inv", "activation_scale")


def load(folder: Path, device: torch.device, **options: Any) -> Any:
    """Load a model with MXFP4 or FP8 weights and expand them. `options` are passed to `from_pretrained`. Each
    tensor is expanded on `device` when transformers reads it."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    held: dict[str, Any] = {}
    for one in (config.get_text_config(), config):
        held = getattr(one, "quantization_config", None) or held
        if hasattr(one, "quantization_config"):
            delattr(one, "quantization_config")
    slices: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        file: Any = safe_open(str(path), framework="pt")
        names: list[str] = file.keys()
        slices |= {name: file.get_slice(name) for name in names}
    tensors = dict(_expanded(slices, held.get("weight_block_size"), device))
    model, found = model_class(config).from_pretrained(
        None, config=config, state_dict=tensors, output_loading_info=True, **options
    )
    if lacking := sorted(found["missing_keys"]):  # transformers fills them with chance
        raise UsageError(f"{folder} has no weights for {lacking[0]}, or stores them in an unsupported format")
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _expanded(
    slices: Mapping[str, Any], block: Sequence[int] | None, device: torch.device
) -> Iterator[tuple[str, Any]]:
    for name, stored in slices.items():
        if name.endswith(_BLOCKS) and (scales := name.removesuffix(_BLOCKS) + _SCALES) in slices:
            yield name.removesuffix(_BLOCKS), _Mxfp4(stored, slices[scales], device)
        elif f"{name}_scale_inv" in slices:
            if not stored.get_dtype().startswith("F8"):
                raise UsageError(f"the files store {name} as {stored.get_dtype()}, which is not supported")
            yield name, _Fp8(stored, slices[f"{name}_scale_inv"], block, device)
        elif not name.endswith((_SCALES, *_FP8)):
            yield name, stored


class _Packed:
    """One weight, read when it is indexed, like safetensors' own slices."""

    def __init__(self, stored: Any, scales: Any, device: torch.device) -> None:
        self.stored, self.scales, self.device = stored, scales, device

    def _read(self) -> tuple[Tensor, Tensor]:
        return self.stored[...].to(self.device), self.scales[...].to(self.device)

    def get_dtype(self) -> str:
        return "BF16"


class _Mxfp4(_Packed):
    """[experts, out, groups, 16] bytes of two numbers each, and a power of two for each group of 32."""

    def get_shape(self) -> list[int]:
        experts, out, groups, _ = self.stored.get_shape()
        return [experts, 32 * groups, out]

    def __getitem__(self, _: Any) -> Tensor:
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        return convert_moe_packed_tensors(*self._read(), dtype=torch.bfloat16)


class _Fp8(_Packed):
    """A matrix in 8 bits, and the factor of each block of it, or of all of it."""

    def __init__(self, stored: Any, scales: Any, block: Sequence[int] | None, device: torch.device) -> None:
        super().__init__(stored, scales, device)
        self.block = block

    def get_shape(self) -> list[int]:
        shape: list[int] = self.stored.get_shape()
        return shape

    def __getitem__(self, _: Any) -> Tensor:
        weight, scales = self._read()
        scales = (scales.float() - 127).exp2() if scales.dtype is torch.uint8 else scales.float()
        if scales.numel() > 1:
            fitting = [-(-whole // parts) for whole, parts in zip(weight.shape, scales.shape, strict=True)]
            for side, each in enumerate(self.block or fitting):
                scales = scales.repeat_interleave(each, side).narrow(side, 0, weight.shape[side])
        return (weight.float() * scales).bfloat16()
