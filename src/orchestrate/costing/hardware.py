"""Power draw, memory and bandwidth of GPUs and CPUs, from `hardware.yaml`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

import msgspec

from orchestrate.types import decoding


class Hardware(msgspec.Struct, frozen=True):
    host_watts: int
    watts: dict[str, int]
    unknown_gpu: int
    gpus: dict[str, tuple[float, float]]
    """Memory and memory bandwidth of each GPU, as `{GPU: (GB, TB/s)}`."""
    capacity_gib: dict[str, float]
    """Memory in GiB that CUDA gives to processes, for the GPUs for which it is known."""
    tflops: dict[str, float]
    """Dense 16-bit TFLOPS per GPU."""
    eight_bit: tuple[str, ...]
    """GPUs that compute twice as fast with 8-bit numbers."""


@cache
def table() -> Hardware:
    import yaml

    text = files("orchestrate.costing").joinpath("hardware.yaml").read_text(encoding="utf-8")
    return decoding.convert(yaml.safe_load(text), Hardware)


def gpu_memory_bytes(gpu: str) -> int | None:
    """Return the memory of a GPU that processes can use, in bytes, or its size according to the data sheet if
    that is not known. Returns `None` if the table does not list the GPU."""
    name = closest(gpu, table().gpus)
    if name is None:
        return None
    capacity = table().capacity_gib.get(name)
    return int(table().gpus[name][0] * 1e9 if capacity is None else capacity * 2**30)


def closest(device: str, names: Iterable[str]) -> str | None:
    """Return the entry of `names` that best matches a device, or `None` if no entry matches. An entry matches
    if all of its words occur in the device's name. If several match, the one with the most words wins."""
    words = set(device.upper().replace("NVIDIA", "").replace("-", " ").split())
    fits = [(len(name.split()), name) for name in names if set(name.upper().split()) <= words]
    return max(fits)[1] if fits else None
