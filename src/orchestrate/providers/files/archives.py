"""Turning what a host sent into a folder that is safe to load.

An archive is untrusted: only regular files whose names are on a list are written, into a new folder that is
renamed into place when it is whole. Weights must be safetensors; pickles are never written: loading one runs
code.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import tarfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, cast

from orchestrate.core.files import sha256, whole_folder
from orchestrate.core.tensors import tensors
from orchestrate.errors import ArtifactRefused, UsageError
from orchestrate.types import ArtifactFile

WANTED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.md",
    "*.model",
    "*.tiktoken",
    "license*",
    "notice*",
)
"""Names (lower case) that a model folder has; anything else is left in the archive."""
_CHUNK = 1 << 20
_HEADERS = 64 << 10
"""Bytes of all headers before one file, and what is read ahead."""
_PART = re.compile(r"^[^\x00-\x1f\\:]+$")
_MAGIC = {b"\x28\xb5\x2f\xfd": "zst", b"\x1f\x8b": "gz"}


@dataclass(frozen=True)
class Limits:
    """Above any real model; a bomb runs into one of them before it fills the disk."""

    total_bytes: int = 2 << 40
    files: int = 5_000
    ratio: float = 40.0
    """Bytes written for each byte of the archive, looked at once `grace_bytes` were written."""
    grace_bytes: int = 64 << 20
    depth: int = 6


def unpack(archive: Path, dest: Path, *, limits: Limits | None = None) -> tuple[ArtifactFile, ...]:
    """Unpacks a `.tar`, `.tar.gz` or `.tar.zst` (told by its first bytes) into `dest` and returns its files.

    Raises `ArtifactRefused` when the archive is hostile, damaged or has no safetensors weights (`dest` is not
    made then), and `UsageError` when `dest` exists and is not empty.
    """
    with staged(dest) as folder:
        try:
            _extract(archive, folder, limits or Limits())
        except (tarfile.TarError, EOFError, OSError, *_decoder_errors()) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # a full disk says nothing about the archive
            raise ArtifactRefused(
                f"{archive.name} is damaged: {error}", fix="remove it and download again"
            ) from error
        _lift(folder)
        return inspect(folder)


def too_large(limit: int) -> ArtifactRefused:
    return ArtifactRefused(
        f"the host sends more than {max(0, limit):,} bytes, more than this model should need; "
        "nothing was kept",
        fix="if the model is that large, allow more, here 500 GB:  export ORCHESTRATE_MAX_DOWNLOAD_GB=500",
    )


@contextmanager
def staged(dest: Path) -> Generator[Path]:
    """A new folder beside `dest` that becomes `dest` when the block ends well, and is removed otherwise.

    Raises `UsageError` when `dest` exists and is not empty.
    """
    require_empty(dest)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(dest, replace=False) as folder:
        yield folder
        require_empty(dest)


def require_empty(dest: Path) -> None:
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} exists and is not empty", fix="name another folder, or remove this one")


def wanted(name: str) -> bool:
    """Whether a file of this name belongs to a model. Raises `ArtifactRefused` when the name is not a safe
    relative path."""
    path = _safe(name, Limits().depth)
    return any(fnmatch(path.name.lower(), pattern) for pattern in WANTED)


def inspect(folder: Path) -> tuple[ArtifactFile, ...]:
    """The files of a model folder with their sizes and hashes.

    Raises `ArtifactRefused` when there are no safetensors weights or one of them is not a safetensors file.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    weights = [p for p in paths if p.suffix == ".safetensors"]
    if not weights:
        raise ArtifactRefused(
            "the artefact has no safetensors weights; other formats are not taken, because loading a pickle "
            "runs code",
            fix="ask the host for another checkpoint type (orchestrate checkpoints RUN)",
        )
    for path in weights:
        try:
            tensors(path)
        except ValueError as error:
            raise ArtifactRefused(str(error)) from error
    return tuple(
        ArtifactFile(path=p.relative_to(folder).as_posix(), bytes=p.stat().st_size, sha256=sha256(p))
        for p in paths
    )


def kind_of(files: tuple[ArtifactFile, ...], *, full: bool = False) -> str:
    """`adapter` where an adapter's configuration is among the files, else `full` or `merged`."""
    if any(PurePosixPath(f.path).name == "adapter_config.json" for f in files):
        return "adapter"
    return "full" if full else "merged"


def settled(waiting: Path, dest: Path) -> tuple[ArtifactFile, ...]:
    """The files that came one by one into `waiting` become the model in `dest`. Raises as `staged` and
    `inspect` do."""
    with staged(dest) as folder:
        for path in sorted(waiting.iterdir()):
            path.rename(folder / path.name)
        waiting.rmdir()
        return inspect(folder)


def base_of(folder: Path) -> str | None:
    """The base model that the adapter itself names; `None` for whole models and unreadable configurations."""
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
    except (OSError, ValueError):
        return None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return base if isinstance(base, str) and base else None


# -- reading the archive -----------------------------------------------------------------------------------


def _extract(archive: Path, folder: Path, limits: Limits) -> None:
    compressed = max(archive.stat().st_size, 1)
    written = 0
    seen: set[str] = set()
    with ExitStack() as stack:
        stream = _Bounded(stack.enter_context(_decoded(archive)))
        tar = stack.enter_context(tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|"))
        for count, member in enumerate(tar, start=1):
            stream.limit = tar.offset + _HEADERS
            if count > limits.files:
                raise ArtifactRefused(f"{archive.name} holds more than {limits.files} entries")
            path = _safe(member.name, limits.depth)
            if member.isdir() or path == PurePosixPath("."):
                continue
            if not member.isreg() or member.issparse():
                raise ArtifactRefused(f"{archive.name} holds a link or a device: {member.name!r}")
            if path.as_posix().lower() in seen:
                raise ArtifactRefused(f"{archive.name} holds {member.name!r} twice")
            seen.add(path.as_posix().lower())
            written += member.size
            if written > limits.total_bytes:
                raise too_large(limits.total_bytes)
            if written > (allowed := max(limits.grace_bytes, int(compressed * limits.ratio))):
                raise ArtifactRefused(
                    f"{archive.name} unpacks to more than {allowed:,} bytes, which no model does"
                )
            if any(fnmatch(path.name.lower(), pattern) for pattern in WANTED):
                _write(cast("IO[bytes]", tar.extractfile(member)), folder / path)


class _Bounded:
    """Reads up to `limit`: tarfile takes a long name or a pax header into memory whole, at any length."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._position = 0
        self.limit = _HEADERS

    def read(self, size: int) -> bytes:
        found = self._stream.read(size)
        self._position += len(found)
        if self._position > self.limit:
            raise ArtifactRefused("the archive has a header longer than any name needs")
        return found


def _safe(name: str, depth: int) -> PurePosixPath:
    path = PurePosixPath(name)
    parts = path.parts
    if (
        path.is_absolute()
        or ".." in parts
        or len(parts) > depth
        or len(name) > 512
        or not all(_PART.match(part) for part in parts)
    ):
        raise ArtifactRefused(f"the artefact names a file outside its folder: {name[:200]!r}")
    return path


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as out:
        shutil.copyfileobj(source, out, _CHUNK)


@contextmanager
def _decoded(archive: Path) -> Generator[IO[bytes]]:
    """The tar inside, by the archive's first bytes, never by its name."""
    with archive.open("rb") as raw:
        head = raw.read(4)
        raw.seek(0)
        packing = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "tar")
        if packing == "zst":
            from orchestrate.core.zstd import zstd

            # 128 MiB is what zstd --long makes at most by itself; more would let a header ask for all memory.
            with zstd.ZstdFile(raw, options={zstd.DecompressionParameter.window_log_max: 27}) as reader:
                yield cast("IO[bytes]", reader)
        elif packing == "gz":
            with gzip.open(raw) as unzipped:
                yield cast("IO[bytes]", unzipped)
        else:
            yield raw


def _decoder_errors() -> tuple[type[Exception], ...]:
    import zlib

    from orchestrate.core.zstd import zstd

    return (zstd.ZstdError, zlib.error)


def _lift(folder: Path) -> None:
    """A model packed inside one folder is what was asked for, not the folder around it."""
    entries = list(folder.iterdir())
    while len(entries) == 1 and entries[0].is_dir():
        inner = entries[0].rename(folder / ".lifted")
        for child in inner.iterdir():
            child.rename(folder / child.name)
        inner.rmdir()
        entries = list(folder.iterdir())


# -- looking at the weights --------------------------------------------------------------------------------
