"""Puts the weights of a model's folder into MXFP4 or FP8, as published checkpoints hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def in_mxfp4(folder: Path) -> Path:
    """The experts, as gpt-oss has them."""

    def packed(name: str, weight: Tensor) -> dict[str, Tensor]:
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return {name: weight}
        groups = weight.float().transpose(1, 2).unflatten(-1, (-1, 32))
        power = (groups.abs().amax(-1).clamp_min(1e-20) / 6).log2().ceil()
        near = (groups / power.exp2()[..., None])[..., None].sub(_FP4).abs().argmin(-1).to(torch.uint8)
        blocks = near[..., 0::2] | near[..., 1::2] << 4
        return {f"{name}_blocks": blocks.contiguous(), f"{name}_scales": (power + 127).to(torch.uint8)}

    return _rewritten(folder, packed, {"quant_method": "mxfp4"})


def in_fp8(folder: Path, block: tuple[int, int] | None = (128, 128)) -> Path:
    """The linear layers, with a factor for each block, or one for all of a matrix."""

    def packed(name: str, weight: Tensor) -> dict[str, Tensor]:
        if not name.endswith("_proj.weight"):
            return {name: weight}
        rows, columns = weight.shape
        high, wide = block or (rows, columns)
        scales = torch.zeros(-(-rows // high), -(-columns // wide))
        whole = torch.zeros(rows, columns)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                part = slice(high * i, high * (i + 1)), slice(wide * j, wide * (j + 1))
                scales[i, j] = weight[part].abs().max().float() / 448
                whole[part] = weight[part].float() / scales[i, j]
        kept = scales if block else scales.reshape(())
        return {name: whole.to(torch.float8_e4m3fn), f"{name}_scale_inv": kept}

    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    return _rewritten(folder, packed, said)


def _rewritten(
    folder: Path, packed: Callable[[str, Tensor], dict[str, Tensor]], said: dict[str, Any]
) -> Path:
    file = folder / "model.safetensors"
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(file).items():
        tensors |= packed(name, weight)
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    return folder
