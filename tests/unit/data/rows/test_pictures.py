"""Sizes of images, read from what rows hold."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections import Counter
from pathlib import Path

from orchestrate.data import Dataset
from orchestrate.data.rows.traits import MOST_SIZES, Picture, add


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def test_each_image_is_counted_by_size_and_detail(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(640, 480))
    inline = "data:image/png;base64," + base64.b64encode(png(1024, 512)).decode()
    urls = [
        (inline, "low"),
        (inline, None),
        ("a.png", None),
        ("https://x.example/a.png", "high"),
        ("gone.png", None),
    ]
    parts = [{"type": "image_url", "image_url": {"url": u} | ({"detail": d} if d else {})} for u, d in urls]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]}
    file = tmp_path / "rows.jsonl"
    file.write_text(2 * (json.dumps(row) + "\n"))
    assert Dataset.open(file).pictures == {
        Picture(1024, 512, "low"): 2,
        Picture(1024, 512, None): 2,
        Picture(640, 480, None): 2,
        Picture(None, None, "high"): 2,
        Picture(None, None, None): 2,
    }


def test_many_sizes_are_rounded_up_and_none_is_lost() -> None:
    total: Counter[Picture] = Counter()
    add(total, {Picture(width, 100, None): 1 for width in range(1, 20_001)})
    assert total.total() == 20_000 and len(total) < MOST_SIZES + 20_000 / 32 + 1
    assert max(p.width or 0 for p in total) == 20_000
