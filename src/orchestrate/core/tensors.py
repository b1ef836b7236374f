"""Headers of safetensors files: 8 bytes with the length of a JSON header, the header, then the tensors."""

from __future__ import annotations

from pathlib import Path

import msgspec

from orchestrate.types import decoding

MOST_HEADER_BYTES = 16 << 20
"""Maximum size of a header in bytes. A header of 100,000 tensors, more than any model has, has 12 million
bytes. Parsing needs ten times as much memory."""


class Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]
    """Start and end of the data, in bytes after the header."""


_entries = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_tensor = decoding.decoder(Tensor).decode


def header_bytes(path: Path) -> bytes:
    """Read the JSON header of a safetensors file. Raises `ValueError` if the file does not start with one."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MOST_HEADER_BYTES, path.stat().st_size - 8):
            raise ValueError(f"{path.name} is not a safetensors file")
        return file.read(length)


def tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name. Raises `ValueError` if this is not a safetensors file or is truncated."""
    header = header_bytes(path)
    try:
        found = {name: _tensor(raw) for name, raw in _entries(header).items() if name != "__metadata__"}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name}: cannot read its header as safetensors: {error}") from error
    end = max((tensor.data_offsets[1] for tensor in found.values()), default=0)
    if 8 + len(header) + end != path.stat().st_size:
        raise ValueError(f"{path.name} is truncated or is not a safetensors file")
    return found
