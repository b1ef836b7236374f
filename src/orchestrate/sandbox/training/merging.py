"""A LoRA adapter added into its base model, with numpy alone: for small models, all tensors in memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate.core.files import new_folder, whole, write_whole
from orchestrate.core.tensors import header_bytes, tensors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

_PREFIX = "base_model.model."


def merge(base: Path, adapter: Path, target: Path) -> Path:
    """Writes the merged model, in 32 bits, with the base's configuration and tokenizer, to `target`.

    `W + alpha / r * B @ A` for each adapted weight. Raises `KeyError` when the adapter does not fit the base.
    """
    weights = read_tensors(base / "model.safetensors")
    delta = read_tensors(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    for name, a in delta.items():
        if ".lora_A." not in name:
            continue
        key = name.removeprefix(_PREFIX).partition(".lora_A.")[0] + ".weight"
        b = delta[name.replace(".lora_A.", ".lora_B.")]
        scale = config["lora_alpha"] / (a.shape[0] ** 0.5 if config.get("use_rslora") else a.shape[0])
        weights[key] = weights[key] + scale * (b @ a)
    new_folder(target)
    for file in base.iterdir():
        if file.suffix in (".json", ".jinja"):
            write_whole(target / file.name, file.read_bytes())
    shape = json.loads((base / "config.json").read_text(encoding="utf-8"))
    shape.pop("torch_dtype", None)
    write_whole(target / "config.json", json.dumps({**shape, "dtype": "float32"}, indent=1).encode())
    write_tensors(target / "model.safetensors", weights, {"format": "pt"})
    return target


def read_tensors(path: Path) -> dict[str, Array]:
    """All tensors as 32-bit floats; F32, F16 and BF16 are read."""
    import numpy as np

    data = memoryview(path.read_bytes())[8 + len(header_bytes(path)) :]
    found: dict[str, Array] = {}
    for name, tensor in tensors(path).items():
        raw = data[slice(*tensor.data_offsets)]
        if tensor.dtype == "BF16":  # the upper half of a 32-bit float
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F32": np.float32, "F16": np.float16}[tensor.dtype])
        found[name] = values.astype(np.float32).reshape(tensor.shape)
    return found


def write_tensors(path: Path, weights: dict[str, Array], metadata: dict[str, str]) -> None:
    """A safetensors file of 32-bit floats, written in one step."""
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, values in weights.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with whole(path) as draft, draft.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for values in weights.values():
            out.write(values.tobytes())
