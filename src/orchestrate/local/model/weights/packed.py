"""Weights that a model's files hold in MXFP4 or FP8, expanded one after the other while they are read.

Each is then put into NF4 or kept in 16 bits like one of a base in 16 bits, on every machine alike.
transformers itself would expand all of them first, or keep formats over which nothing is trained.
"""

# torch, transformers and safetensors describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from orchestrate.errors import UsageError
from orchestrate.local.model.weights.architectures import model_class

_BLOCKS, _SCALES = "_blocks", "_scales"
"""Ends of the names under which a file has one weight in MXFP4."""
_FP8 = ("_scale_inv", "activation_scale")


def load(folder: Path, device: torch.device, **options: Any) -> Any:
    """Load a model whose files hold weights packed; `options` are of `from_pretrained`. Each tensor is read
    and expanded on `device` when transformers asks for it."""
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
        raise UsageError(f"{folder} has no weights for {lacking[0]}, or in a format that is not read here")
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
                raise UsageError(f"the files hold {name} in {stored.get_dtype()}, which is not read here")
            yield name, _Fp8(stored, slices[f"{name}_scale_inv"], block, device)
        elif not name.endswith((_SCALES, *_FP8)):
            yield name, stored


class _Packed:
    """One weight; as safetensors' own slices it is read when it is indexed."""

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
