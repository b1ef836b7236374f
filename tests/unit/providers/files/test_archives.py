"""Only safe, whole, safetensors models come out of an archive."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from orchestrate.core.zstd import zstd
from orchestrate.errors import ArtifactRefused, UsageError
from orchestrate.providers.files import DownloadLimits, kind_of, unpack, wanted


def weights(values: bytes = b"\x00" * 16) -> bytes:
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [len(values) // 4], "data_offsets": [0, len(values)]}}
    )
    return struct.pack("<Q", len(header)) + header.encode() + values


ADAPTER = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": weights()}


def tar_of(members: dict[str, bytes] | list[tarfile.TarInfo | tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    items = list(members.items()) if isinstance(members, dict) else members
    with tarfile.open(fileobj=out, mode="w") as tar:
        for item in items:
            if isinstance(item, tarfile.TarInfo):
                tar.addfile(item)
            else:
                info = tarfile.TarInfo(item[0])
                info.size = len(item[1])
                tar.addfile(info, io.BytesIO(item[1]))
    return out.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def saved(tmp_path: Path, data: bytes, name: str = "model.tar.zst") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("pack", [zstd.compress, gzip.compress, bytes], ids=["zst", "gz", "tar"])
def test_an_adapter_comes_out_whole_whatever_the_packing(tmp_path: Path, pack) -> None:
    files = unpack(saved(tmp_path, pack(tar_of(ADAPTER))), tmp_path / "out")
    assert [f.path for f in files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == ADAPTER
    assert kind_of(files) == "adapter"
    import hashlib

    assert files[1].sha256 == hashlib.sha256(ADAPTER["adapter_model.safetensors"]).hexdigest()


def test_a_single_folder_around_the_model_is_taken_off(tmp_path: Path) -> None:
    inside = {f"job/step-1/{name}": data for name, data in ADAPTER.items()}
    files = unpack(saved(tmp_path, tar_of(inside)), tmp_path / "out")
    assert [f.path for f in files] == ["adapter_config.json", "adapter_model.safetensors"]


def test_files_that_no_model_needs_are_left_in_the_archive(tmp_path: Path) -> None:
    extra = {**ADAPTER, "optimizer.pt": b"pickle", "run.sh": b"#!/bin/sh", "sub/training_args.bin": b"x"}
    files = unpack(saved(tmp_path, tar_of(extra)), tmp_path / "out")
    assert {f.path for f in files} == set(ADAPTER)
    assert not list((tmp_path / "out").rglob("*.sh"))


HOSTILE = {
    "parent": [("../escaped.json", b"{}"), *ADAPTER.items()],
    "absolute": [("/tmp/escaped.json", b"{}"), *ADAPTER.items()],
    "hidden parent": [("a/../../escaped.json", b"{}"), *ADAPTER.items()],
    "symlink": [*ADAPTER.items(), link("config.json", "/etc/passwd")],
    "symlinked folder": [link("sub", "/tmp"), ("sub/x.json", b"{}"), *ADAPTER.items()],
    "hard link": [*ADAPTER.items(), link("config.json", "adapter_config.json", tarfile.LNKTYPE)],
    "device": [*ADAPTER.items(), link("config.json", "", tarfile.CHRTYPE)],
    "fifo": [*ADAPTER.items(), link("config.json", "", tarfile.FIFOTYPE)],
    "twice": [*ADAPTER.items(), ("adapter_config.json", b"{}")],
    "twice in another case": [*ADAPTER.items(), ("ADAPTER_CONFIG.JSON", b"{}")],
    "control characters": [*ADAPTER.items(), ("a\x1b[31m.json", b"{}")],
    "backslash": [*ADAPTER.items(), ("..\\escaped.json", b"{}")],
    "deep": [*ADAPTER.items(), ("/".join("abcdefgh") + "/x.json", b"{}")],
    "only a pickle": [("adapter_model.bin", b"\x80\x04"), ("adapter_config.json", b"{}")],
    "a pickle named safetensors": [("adapter_model.safetensors", b"\x80\x04K\x01." + b"\x00" * 64)],
    "cut safetensors": [("adapter_model.safetensors", weights(b"\x00" * 64)[:-8])],
    "header claims everything": [("model.safetensors", struct.pack("<Q", 2**62) + b"{}")],
    "header above its limit": [
        ("model.safetensors", struct.pack("<Q", (16 << 20) + 2) + b"{}" + b" " * (16 << 20))
    ],
    "header nested without end": [
        ("model.safetensors", struct.pack("<Q", 100_000) + b"[" * 100_000),
    ],
    "empty": [],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_or_damaged_archive_leaves_nothing_behind(tmp_path: Path, members) -> None:
    work = tmp_path / "work"
    work.mkdir()
    archive = saved(tmp_path, zstd.compress(tar_of(members)))
    with pytest.raises(ArtifactRefused):
        unpack(archive, work / "out")
    assert list(work.iterdir()) == []
    assert {p.name for p in tmp_path.iterdir()} == {"work", "model.tar.zst"}


def test_what_unpacks_to_more_than_the_user_allows_is_refused(tmp_path: Path) -> None:
    archive = saved(tmp_path, zstd.compress(tar_of({"config.json": b"0" * 4_000_000})))
    with pytest.raises(ArtifactRefused, match="exceeds 3,000,000 bytes") as refused:
        unpack(archive, tmp_path / "out", limits=DownloadLimits(total_bytes=3_000_000))
    assert "ORCHESTRATE_MAX_DOWNLOAD_GB" in (refused.value.fix or "")
    assert not (tmp_path / "out").exists()


def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path) -> None:
    bomb = zstd.compress(tar_of({"config.json": b"0" * 4_000_000}))
    assert len(bomb) < 4_000
    with pytest.raises(ArtifactRefused, match="unpacks to more than"):
        unpack(saved(tmp_path, bomb), tmp_path / "out", limits=DownloadLimits(grace_bytes=100_000))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_bomb_in_a_header_is_refused_before_it_is_in_memory(tmp_path: Path, kind: bytes) -> None:
    bomb = tarfile.TarInfo("x")
    bomb.type, bomb.size = kind, 300_000_000
    head = bytearray(bomb.tobuf(tarfile.GNU_FORMAT if kind != tarfile.XHDTYPE else tarfile.USTAR_FORMAT))
    if kind == tarfile.GNUTYPE_SPARSE:  # "is extended" in the header and in each block after it, without end
        head[482] = 1
        head[148:156] = b"%06o\0 " % (sum(head[:148]) + sum(head[156:512]) + 8 * 32)
    block = bytearray(b"0" * 504 + b"\x01" + b"0" * 7)
    archive = saved(tmp_path, zstd.compress(tar_of(ADAPTER)[:-10240] + bytes(head) + bytes(block) * 40_000))
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactRefused, match="too long for a file name"):
            unpack(archive, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "out").exists()


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    many = {f"{n}.json": b"{}" for n in range(12)}
    with pytest.raises(ArtifactRefused, match="more than 10 entries"):
        unpack(saved(tmp_path, tar_of(many)), tmp_path / "out", limits=DownloadLimits(files=10))


@pytest.mark.parametrize("cut", [0.3, 0.9])
@pytest.mark.parametrize("pack", [zstd.compress, gzip.compress, bytes], ids=["zst", "gz", "tar"])
def test_a_cut_archive_is_refused(tmp_path: Path, pack, cut: float) -> None:
    import random

    noise = random.Random(1).randbytes(200_000)
    data = pack(tar_of({"model.safetensors": weights(noise)}))
    with pytest.raises(ArtifactRefused):
        unpack(saved(tmp_path, data[: int(len(data) * cut * 0.9)]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_web_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactRefused):
        unpack(saved(tmp_path, b"<html>" + b"login " * 200), tmp_path / "out")


def test_a_folder_in_use_is_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        unpack(saved(tmp_path, tar_of(ADAPTER)), out)
    assert (out / "mine.txt").read_text() == "keep"


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert len(unpack(saved(tmp_path, tar_of(ADAPTER)), tmp_path / "out")) == 2


def test_names_decide_what_belongs_to_a_model() -> None:
    assert wanted("model-00001-of-00002.safetensors") and wanted("tokenizer.model") and wanted("LICENSE")
    assert not wanted("adapter_model.bin") and not wanted("setup.py") and not wanted("a/run.sh")
    with pytest.raises(ArtifactRefused):
        wanted("../config.json")
