"""Downloads that go on where they stopped, in this process or in a later one."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from orchestrate.core.files import FULL, move_into_place, opener, own_folder, private_folder, write_whole
from orchestrate.errors import ArtifactRefused, ProviderError, SetupError, UnexpectedAnswer
from orchestrate.providers.base import Progress
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.files.archives import too_large
from orchestrate.settings.hosts import is_loopback

if TYPE_CHECKING:
    import httpx

    from orchestrate.settings.config import HostConfig

MOST_BYTES = 200 * 10**9
"""Of a model whose size is not known: 100 billion parameters in 16 bits."""
MOST_FILE_BYTES = 60 * 10**9
"""Of a file of training data: more than any host takes."""
_BESIDE_WEIGHTS = 10**9
"""Tokenizers, configurations, archives."""
_STALLS = 5
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Stream(Protocol):
    """An answer whose body is read piece by piece: httpx's, or an SDK's streaming answer. Errors (status >=
    400) are raised by whatever opens it."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def iter_bytes(self) -> Iterator[bytes]: ...


Opener = Callable[[dict[str, str]], AbstractContextManager[Stream]]
"""Sends the GET with these further headers."""


def fetch(
    wire: Wire,
    open_stream: Opener,
    file: Path,
    *,
    limit_bytes: int,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Downloads into `file`, whose folder is made for this user alone: others may write beside it, and what
    lies in it is gone on with. What has come so far is in `file` + `.part`, and a later call goes on from
    there when the host can (Range) and says that its file is still the same (ETag).

    Gives up after five tries in a row that brought nothing. Raises `ProviderError`, `ArtifactRefused` for
    more than `limit_bytes` and `PermissionError` where the folder is another user's.
    """
    own_folder(file.parent)
    part = _Part(file, limit_bytes)
    stalls = 0
    while not part.whole:
        before = part.size
        try:
            wire.once(lambda: _receive(wire.provider, open_stream, part, progress), expect=_Part)
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
    """As `fetch`, of one of the account's files; `files` is that part of an SDK's client."""
    content = files.with_streaming_response.content
    fetch(
        wire,
        lambda headers: content(id, extra_headers=headers),
        file,
        limit_bytes=limit_bytes,
        progress=progress,
    )


def limit_bytes(config: HostConfig, params_b: float | None) -> int:
    """The most that a download may bring: what the user set, else what the base model with `params_b` billion
    parameters takes in 32 bits, twice what any host sends."""
    if config.max_download_bytes is not None:
        return config.max_download_bytes
    return MOST_BYTES if params_b is None else int(4e9 * params_b) + _BESIDE_WEIGHTS


def work_folder(config: HostConfig) -> Path:
    """Where data files are written before they are sent: `home` in the host's options, else the cache."""
    if home := config.options.get("home"):
        return private_folder(Path(str(home)).expanduser() / "data")
    import platformdirs

    return private_folder(Path(platformdirs.user_cache_dir("orchestrate")) / "data")


def safe_url(provider: str, url: object) -> str:
    """A signed URL that training data or weights may travel over. Raises `UnexpectedAnswer`."""
    parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return str(url)
    raise UnexpectedAnswer(provider, "the host gave no https URL for a file")


def signed(http: httpx.Client, url: str) -> Opener:
    """Opens a signed URL with a client that carries no key of ours."""

    @contextmanager
    def opened(headers: dict[str, str]) -> Generator[httpx.Response]:
        with http.stream("GET", url, headers=headers) as answer:
            if answer.status_code >= 300:
                answer.read()  # the words of the refusal are in the body
                answer.raise_for_status()
            yield answer

    return opened


class _Part:
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
    def whole(self) -> bool:
        """Whether all of it came before and only the last rename is missing."""
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


def _receive(provider: str, open_stream: Opener, part: _Part, progress: Progress | None) -> _Part:
    with open_stream(_resume_headers(part)) as answer:
        # Unpacked on the way, a few bytes fill the memory, or none come for ever, before one can be counted.
        if (packing := answer.headers.get("content-encoding", "identity")) != "identity":
            raise UnexpectedAnswer(
                provider, f"the file comes packed as {packing[:40]!r}, which was not asked for"
            )
        start, total = _place(answer)
        etag = answer.headers.get("etag")
        if total is not None and total > part.limit:
            raise part.refuse()
        if answer.status_code != 206 or start != part.size or (part.etag and etag != part.etag):
            if answer.status_code == 206 and start != 0:
                part.start_over()
                raise _again(provider, "the host's file has changed since the download began")
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
        raise _again(provider, f"only {done} of {total} bytes arrived")
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
            f"no room for {file}: {error.strerror}",
            fix="make room there; the same command goes on where this one stopped",
        ) from error


def _resume_headers(part: _Part) -> dict[str, str]:
    # Without an ETag nothing proves that the rest belongs to the same file, so it is fetched anew. Packing
    # on the way would make the lengths and places mean something else.
    headers = {"Accept-Encoding": "identity"}
    if part.size and part.etag:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.etag}
    return headers


def _place(answer: Stream) -> tuple[int, int | None]:
    """(first byte, size of the whole file or None)."""
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
