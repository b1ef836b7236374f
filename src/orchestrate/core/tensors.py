"""Read the headers of safetensors files. A file consists of 8 bytes with the header's length, the header in
JSON, and the tensors."""

from __future__ import annotations

from pathlib import Path

import msgspec

from orchestrate.types import decoding

MOST_HEADER_BYTES = 16 << 20
"""Maximum size of a header in bytes. A header for 100,000 tensors, more than any model has, takes 12 MB.
Parsing it takes ten times as much memory."""


class Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]
    """Start and end of the tensor's data, in bytes after the header."""


_entries = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_tensor = decoding.decoder(Tensor).decode


def header_bytes(path: Path) -> bytes:
    """Read the JSON header of a safetensors file. Raises `ValueError` if the file has none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MOST_HEADER_BYTES, path.stat().st_size - 8):
            raise ValueError(f"{path.name} is not a safetensors file")
        return file.read(length)


def tensors(path: Path) -> dict[str, Tensor]:
    """Return the header entries of all tensors, as `{name: entry}`. Raises `ValueError` if the file is
    truncated or is not in safetensors format."""
    header = header_bytes(path)
    try:
        found = {name: _tensor(raw) for name, raw in _entries(header).items() if name != "__metadata__"}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name}: could not parse the safetensors header: {error}") from error
    end = max((tensor.data_offsets[1] for tensor in found.values()), default=0)
    if 8 + len(header) + end != path.stat().st_size:
        raise ValueError(f"{path.name} is truncated or is not a safetensors file")
    return found
