"""Resumable downloads from hosts, and safe unpacking of archives."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import urlsplit

import msgspec

from orchestrate.core.files import (
    FULL,
    move_into_place,
    opener,
    own_folder,
    private_folder,
    remember_sha256,
    sha256,
    sha256_once,
    whole_folder,
    write_whole,
)
from orchestrate.core.tensors import tensors
from orchestrate.errors import ArtifactRefused, ProviderError, SetupError, UnexpectedAnswer, UsageError
from orchestrate.providers.base import Progress
from orchestrate.providers.calls.hosted import Wire
from orchestrate.settings import SANDBOX_NOT_TRAINED
from orchestrate.settings.hosts import is_loopback
from orchestrate.types import Artifact, ArtifactFile

if TYPE_CHECKING:
    import httpx

    from orchestrate.settings.config import HostConfig

# Unpacking of a host's download into a folder that is safe to load.


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
"""Patterns of the file names in a model folder, in lower case. Other files in an archive are not unpacked."""
_CHUNK = 1 << 20
_HEADERS = 64 << 10
"""Maximum number of header bytes, including read-ahead, to read before each file in an archive."""
_PART = re.compile(r"^[^\x00-\x1f\\:]+$")
_MAGIC = {b"\x28\xb5\x2f\xfd": "zst", b"\x1f\x8b": "gz"}


@dataclass(frozen=True)
class DownloadLimits:
    """Limits that stop an archive bomb before it fills the disk. No real model reaches them."""

    total_bytes: int = 2 << 40
    files: int = 5_000
    ratio: float = 40.0
    """Maximum number of unpacked bytes per byte of the archive. Checked once `grace_bytes` have been
    unpacked."""
    grace_bytes: int = 64 << 20
    depth: int = 6


def unpack(archive: Path, dest: Path, *, limits: DownloadLimits | None = None) -> tuple[ArtifactFile, ...]:
    """Unpack a `.tar`, `.tar.gz` or `.tar.zst` (recognized by its first bytes) into `dest` and return its
    files.

    Raises `ArtifactRefused` without creating `dest` if the archive is hostile or damaged, or has no
    safetensors weights. Raises `UsageError` if `dest` exists and is not empty."""
    with staged(dest) as folder:
        try:
            _extract(archive, folder, limits or DownloadLimits())
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
        f"the download exceeds {max(0, limit):,} bytes, more than this model should need. Nothing was stored",
        fix="if the model is really that large, raise the limit, for example to 500 GB:  export "
        "ORCHESTRATE_MAX_DOWNLOAD_GB=500",
    )


@contextmanager
def staged(dest: Path) -> Generator[Path]:
    """Create a temporary folder next to `dest`. Rename it to `dest` if the `with` block succeeds, and remove
    it otherwise. Raises `UsageError` if `dest` exists and is not empty."""
    require_empty(dest)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(dest, replace=False) as folder:
        yield folder
        require_empty(dest)


def require_empty(dest: Path) -> None:
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} exists and is not empty", fix="choose another folder, or remove this one")


def wanted(name: str) -> bool:
    """Return True if a file with this name belongs to a model folder. Raises `ArtifactRefused` if the name is
    not a safe relative path."""
    path = _safe(name, DownloadLimits().depth)
    return any(fnmatch(path.name.lower(), pattern) for pattern in WANTED)


def inspect(folder: Path) -> tuple[ArtifactFile, ...]:
    """List the files of a model folder with their sizes and hashes. Raises `ArtifactRefused` if the
    folder has no safetensors files, or if one of them is invalid."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    weights = [p for p in paths if p.suffix == ".safetensors"]
    if not weights:
        raise ArtifactRefused(
            "the artifact has no safetensors weights, and other formats are rejected because "
            "loading a pickle can run code",
            fix="choose another checkpoint (orchestrate checkpoints RUN)",
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
    """Classify a model by its files: `adapter` if they include an adapter configuration, otherwise `full` if
    the argument `full` is True, otherwise `merged`."""
    if any(PurePosixPath(f.path).name == "adapter_config.json" for f in files):
        return "adapter"
    return "full" if full else "merged"


def settled(waiting: Path, dest: Path) -> tuple[ArtifactFile, ...]:
    """Create the model folder `dest` from the individually downloaded files in `waiting`, and return its
    files. Errors of `staged` and `inspect` propagate."""
    with staged(dest) as folder:
        for path in sorted(waiting.iterdir()):
            path.rename(folder / path.name)
        waiting.rmdir()
        return inspect(folder)


def base_of(folder: Path) -> str | None:
    """Return the base model named in the adapter's configuration, or `None` for full models and unreadable
    configurations."""
    base = _config_of(folder).get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def required_base(artifact: Artifact) -> str:
    """Return the base model with which a downloaded model is loaded. Raises `UsageError` if the files don't
    name it, or if they are placeholders of a sandbox that did not train."""
    if _config_of(Path(artifact.folder)).get(SANDBOX_NOT_TRAINED):
        raise UsageError(
            f"the model in {artifact.folder} was not trained, because its sandbox only simulated the job",
            fix="train it in a sandbox: orchestrate sandbox run -- orchestrate rerun RUN",
        )
    if artifact.base_model is None:
        raise UsageError(f"the downloaded model in {artifact.folder} does not name its base model")
    return artifact.base_model


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", config) if isinstance(config, dict) else {}


# -- reading the archive -----------------------------------------------------------------------------------


def _extract(archive: Path, folder: Path, limits: DownloadLimits) -> None:
    compressed = max(archive.stat().st_size, 1)
    written = 0
    seen: set[str] = set()
    with ExitStack() as stack:
        stream = _Bounded(stack.enter_context(_decoded(archive)))
        tar = stack.enter_context(tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|"))
        for count, member in enumerate(tar, start=1):
            stream.limit = tar.offset + _HEADERS
            if count > limits.files:
                raise ArtifactRefused(f"{archive.name} contains more than {limits.files} entries")
            path = _safe(member.name, limits.depth)
            if member.isdir() or path == PurePosixPath("."):
                continue
            if not member.isreg() or member.issparse():
                raise ArtifactRefused(f"{archive.name} contains {member.name!r}, which is not a regular file")
            if path.as_posix().lower() in seen:
                raise ArtifactRefused(f"{archive.name} holds {member.name!r} twice")
            seen.add(path.as_posix().lower())
            written += member.size
            if written > limits.total_bytes:
                raise too_large(limits.total_bytes)
            if written > (allowed := max(limits.grace_bytes, int(compressed * limits.ratio))):
                raise ArtifactRefused(
                    f"{archive.name} unpacks to more than {allowed:,} bytes, "
                    "too much for an archive of its size"
                )
            if any(fnmatch(path.name.lower(), pattern) for pattern in WANTED):
                _write(cast("IO[bytes]", tar.extractfile(member)), folder / path)


class _Bounded:
    """Reads up to `limit`: tarfile reads a long name or a pax header into memory entirely, at any length."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._position = 0
        self.limit = _HEADERS

    def read(self, size: int) -> bytes:
        found = self._stream.read(size)
        self._position += len(found)
        if self._position > self.limit:
            raise ArtifactRefused("the archive contains a header that is too long for a file name")
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
        raise ArtifactRefused(f"the artifact contains an unsafe file path: {name[:200]!r}")
    return path


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as out:
        shutil.copyfileobj(source, out, _CHUNK)


@contextmanager
def _decoded(archive: Path) -> Generator[IO[bytes]]:
    """Open the tar inside, by the archive's first bytes, never by its name."""
    with archive.open("rb") as raw:
        head = raw.read(4)
        raw.seek(0)
        packing = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "tar")
        if packing == "zst":
            from orchestrate.core.zstd import zstd

            # zstd --long uses at most 128 MiB by default. A higher limit would let a header request all
            # memory.
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


# Downloads that resume where they stopped, in this process or in a later one.


MOST_BYTES = 200 * 10**9
"""Size limit for a model of unknown size: 100 billion parameters in 16 bits."""
MOST_FILE_BYTES = 60 * 10**9
"""Size limit for a training data file, larger than any host accepts."""
_BESIDE_WEIGHTS = 10**9
"""Bytes allowed in addition to the weights, for tokenizers, configurations and archive overhead."""
_STALLS = 5
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class DownloadStream(Protocol):
    """Streaming response from httpx or an SDK. Its status is always below 400, because an `Opener` raises an
    error for any other status."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def iter_bytes(self) -> Iterator[bytes]: ...


Opener = Callable[[dict[str, str]], AbstractContextManager[DownloadStream]]
"""Function that sends a GET request with additional headers and opens the response as a stream."""


def fetch(
    wire: Wire,
    open_stream: Opener,
    file: Path,
    *,
    limit_bytes: int,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Download into `file` and return its path. The folder must be writable only by the current user.
    Otherwise, others could replace the partial file.

    Partial content is stored in `file` + `.part`. A later call continues the download if the host supports
    `Range` and its `ETag` shows that the file is unchanged. Gives up after five consecutive attempts without
    progress. Raises `ProviderError` if the download fails, `ArtifactRefused` if the file is larger than
    `limit_bytes`, and `PermissionError` if the folder belongs to another user."""
    own_folder(file.parent)
    part = _PartialFile(file, limit_bytes)
    stalls = 0
    while not part.complete:
        before = part.size
        try:
            wire.once(lambda: _receive(wire.provider, open_stream, part, progress), expect=_PartialFile)
        except ProviderError as error:
            stalls = 0 if part.size > before else stalls + 1
            if not error.retryable or stalls >= _STALLS:
                raise
            sleep(error.retry_after_s if error.retry_after_s is not None else min(8.0, 0.25 * 2**stalls))
        else:
            break
    part.finish()
    return file


def fetch_by_id(
    wire: Wire, files: Any, id: str, file: Path, limit_bytes: int, progress: Progress | None = None
) -> None:
    """Download one of the account's files with `fetch`. `files` is the `files` resource of an SDK client."""
    content = files.with_streaming_response.content
    fetch(
        wire,
        lambda headers: content(id, extra_headers=headers),
        file,
        limit_bytes=limit_bytes,
        progress=progress,
    )


def limit_bytes(config: HostConfig, params_b: float | None) -> int:
    """Return the maximum size of a download in bytes. If the user set a limit, returns that limit. Otherwise,
    returns the size of a model with `params_b` billion parameters in 32 bits, which is at least twice the
    size that hosts send. If `params_b` is `None`, returns `MOST_BYTES`."""
    if config.max_download_bytes is not None:
        return config.max_download_bytes
    return MOST_BYTES if params_b is None else int(4e9 * params_b) + _BESIDE_WEIGHTS


def work_folder(config: HostConfig) -> Path:
    """Return the folder that holds data files until they are uploaded. It is inside the host's `home` option
    if set, otherwise inside the cache folder."""
    if home := config.options.get("home"):
        return private_folder(Path(str(home)).expanduser() / "data")
    import platformdirs

    return private_folder(Path(platformdirs.user_cache_dir("orchestrate")) / "data")


def safe_url(provider: str, url: object) -> str:
    """Return the URL if it uses https or points to this machine. Raises `UnexpectedAnswer` otherwise, because
    training data and weights must not be sent unencrypted."""
    parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return str(url)
    raise UnexpectedAnswer(provider, "the host did not return an https URL for the file")


def signed(http: httpx.Client, url: str) -> Opener:
    """Return an `Opener` for a signed URL. `http` must be a client that does not send API keys."""

    @contextmanager
    def opened(headers: dict[str, str]) -> Generator[httpx.Response]:
        with http.stream("GET", url, headers=headers) as answer:
            if answer.status_code >= 300:
                answer.read()  # the words of the refusal are in the body
                answer.raise_for_status()
            yield answer

    return opened


class _PartialFile:
    """The unfinished file and, beside it, which version of the host's file it is a part of."""

    def __init__(self, file: Path, limit: int) -> None:
        self.file, self.limit = file, limit
        self.path = file.with_name(file.name + ".part")
        self._about = file.with_name(file.name + ".part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def etag(self) -> str | None:
        return self._known().get("etag")

    @property
    def complete(self) -> bool:
        """True if everything was downloaded before and only the final rename is missing."""
        return self.size > 0 and self.size == self._known().get("total")

    def start_over(self, etag: str | None = None, total: int | None = None) -> None:
        open(self.path, "wb", opener=opener).close()
        write_whole(self._about, json.dumps({"etag": etag, "total": total}).encode())

    def _known(self) -> dict[str, Any]:
        try:
            return json.loads(self._about.read_bytes())
        except (OSError, ValueError):
            return {}

    def refuse(self) -> ArtifactRefused:
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)
        return too_large(self.limit)

    def finish(self) -> None:
        move_into_place(self.path, self.file)
        self._about.unlink(missing_ok=True)


def _receive(
    provider: str, open_stream: Opener, part: _PartialFile, progress: Progress | None
) -> _PartialFile:
    with open_stream(_resume_headers(part)) as answer:
        # If httpx decompressed the response, a few bytes could fill the memory before they are counted.
        if (packing := answer.headers.get("content-encoding", "identity")) != "identity":
            raise UnexpectedAnswer(
                provider, f"the file is compressed as {packing[:40]!r}, which Orchestrate did not request"
            )
        start, total = _place(answer)
        etag = answer.headers.get("etag")
        if total is not None and total > part.limit:
            raise part.refuse()
        if answer.status_code != 206 or start != part.size or (part.etag and etag != part.etag):
            if answer.status_code == 206 and start != 0:
                part.start_over()
                raise _again(provider, "the host's file changed during the download")
            part.start_over(etag, total)
        most = part.limit if total is None else total
        with _room(part.path), open(part.path, "ab", opener=opener) as out:
            done = out.tell()
            for chunk in answer.iter_bytes():
                done += len(chunk)
                if done > most:
                    break
                out.write(chunk)
                if progress is not None:
                    progress(done, total if total is not None else done)
    if total is None and done > most:
        raise part.refuse()
    if total is not None and done != total:
        if done > total:
            part.start_over()
        raise _again(provider, f"received {done} bytes instead of {total}")
    return part


@contextmanager
def _room(file: Path) -> Generator[None]:
    """A full disk is no fault of the host, and asking it again is no help."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise SetupError(
            f"no disk space for {file}: {error.strerror}",
            fix="free up some disk space, then run the same command again to continue the download",
        ) from error


def _resume_headers(part: _PartialFile) -> dict[str, str]:
    # Without an ETag, nothing proves that the rest belongs to the same file, so the download starts over.
    # With compression, lengths and offsets would not refer to the file itself.
    headers = {"Accept-Encoding": "identity"}
    if part.size and part.etag:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.etag}
    return headers


def _place(answer: DownloadStream) -> tuple[int, int | None]:
    """Return (first byte, size of the entire file or None)."""
    if answer.status_code == 206:
        match = _RANGE.match(answer.headers.get("content-range", ""))
        if match:
            return int(match.group(1)), None if match.group(2) == "*" else int(match.group(2))
    length = answer.headers.get("content-length", "")
    return 0, int(length) if length.isascii() and length.isdigit() else None


def _again(provider: str, reason: str) -> UnexpectedAnswer:
    error = UnexpectedAnswer(provider, reason)
    error.retryable = True
    return error


# Downloaded models, stored with a description so each model is downloaded only once.


def read(folder: Path) -> Artifact | None:
    """Return the model in `folder` if all its files match their stored hashes. A damaged or incomplete folder
    is cleared, so the model can be downloaded again."""
    artifact = described(folder)
    if artifact is None:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with suppress(OSError):
        if all(sha256_once(folder / file.path) == file.sha256 for file in artifact.files):
            return artifact
    _description(folder).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # it may be gone
    return None


def described(folder: Path) -> Artifact | None:
    """Return the stored description of a full model, without checking its files."""
    try:
        return Artifact.from_json(_description(folder).read_bytes())
    except (OSError, msgspec.MsgspecError):
        return None


def write(folder: Path, artifact: Artifact) -> None:
    """Write the description of a model. Call this last, because a folder with a description counts as
    complete."""
    for file in artifact.files:
        remember_sha256(folder / file.path, file.sha256)
    write_whole(_description(folder), artifact.to_json())


def _description(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.json"
