"""A file at any fsspec URL -> a file on this machine, or an error that says what to do about it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

from orchestrate.core.files import FULL
from orchestrate.core.packages import needed
from orchestrate.errors import DataError, OrchestrateError, SetupError, UsageError
from orchestrate.settings.environment import download_limit

_LOOKED_AT_BYTES = 16 << 20
"""The disk is looked at whenever so much was written, or as much as is kept."""
_KEPT_BYTES = 512 << 20
_KEPT_SHARE = 20
"""A twentieth of the disk, at most `_KEPT_BYTES`, is left to others."""


class Spool:
    """An opened file that is written to, and how much room there is. See `spooled`."""

    def __init__(
        self, file: IO[bytes], folder: Path, what: str, keep_bytes: int | None, most_bytes: int | None
    ) -> None:
        self._file, self._folder, self._what = file, folder, what
        self._most, self._written = most_bytes, 0
        share = min(_KEPT_BYTES, shutil.disk_usage(folder).total // _KEPT_SHARE)
        self._keep = share if keep_bytes is None else keep_bytes
        self._step = min(_LOOKED_AT_BYTES, self._keep)
        self._left = self._step

    def write(self, piece: bytes) -> None:
        """Raise `DataError` when the disk would be nearly full, or this is more than may come."""
        self._left -= len(piece)
        self._written += len(piece)
        if self._most is not None and self._written > self._most:
            raise too_large(self._what, self._most)
        if self._left < 0:
            self._file.flush()
            self._look()
        self._file.write(piece)

    def require_room(self, size: int) -> None:
        """Raise `DataError` for content of a size that was announced, before any of it is written."""
        if self._most is not None and size > self._most:
            raise too_large(self._what, self._most)
        if shutil.disk_usage(self._folder).free < self._keep + size:
            raise _no_room(self._what, self._folder)

    def _look(self) -> None:
        self._left = self._step
        self.require_room(0)


def too_large(what: str, most_bytes: int) -> DataError:
    return DataError(
        f"{what} is larger than {most_bytes / 10**9:g} GB, the most that is downloaded; nothing was kept",
        fix="check the address, or allow more: ORCHESTRATE_MAX_DOWNLOAD_GB=100",
    )


def _no_room(what: str, folder: Path) -> DataError:
    return DataError(
        f"{what} needs more room than there is in {folder}; nothing was kept",
        fix="free some disk space, or set TMPDIR to a folder on a larger disk",
    )


@contextmanager
def spooled(
    path: Path, what: str, keep_bytes: int | None = None, *, most_bytes: int | None = None
) -> Generator[Spool]:
    """Open a file to write to, until `keep_bytes` of the disk are free or it has `most_bytes`. After an error
    it is removed. Raises `DataError`, which says that `what` needs more room, or is too large."""
    try:
        with path.open("wb") as file:
            yield Spool(file, path.parent, what, keep_bytes, most_bytes)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:  # what was still to be written out
            raise _no_room(what, path.parent) from error
        raise


BLOCK = 1 << 20
MOST_BYTES = 10 * 10**9
"""Of a file at a URL, unless ORCHESTRATE_MAX_DOWNLOAD_GB says otherwise."""
_USUAL = "http, https, s3, gs, az, hf, sftp, file, memory"
_TAKEN = frozenset(
    {
        "abfs", "abfss", "adl", "az", "blockcache", "data", "dropbox", "file", "filecache", "ftp", "gcs",
        "gdrive", "gs", "hf", "http", "https", "libarchive", "local", "memory", "oci", "oss", "s3", "s3a",
        "sftp", "simplecache", "smb", "ssh", "tar", "tos", "webdav", "webhdfs", "zip"
    }
)  # fmt: skip
"""Protocols that fetch a file, unpack it or keep a copy. A spec may come from anybody: what reads a file to
learn what to read next, runs another program or asks a notebook's server is not among them."""
_HOSTED = frozenset({"http", "https", "ftp", "sftp", "webdav"})
"""Protocols whose address begins with a host."""
_CREDENTIALS = frozenset({"NoCredentialsError", "DefaultCredentialsError", "ClientAuthenticationError"})
_BROKEN = frozenset({"ClientPayloadError", "RemoteProtocolError", "IncompleteRead", "ProtocolError"})
"""An answer that ended early, as HTTP clients call it."""
_MEDIA_TYPE = ("mimetype", "ContentType", "contentType", "content_type")
"""What HTTP, S3, Google's and Azure's file systems call it."""
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


def fetch(url: str, target: Path) -> str:
    """Copy what is at `url` to `target`, in bounded memory and with a bound on its size.

    Returns what its host says that it is, as in `text/csv`, when the name does not tell, and else nothing.

    Raises `UsageError` for a protocol that is not known or not for files, `SetupError` when the protocol's
    package or the credentials are missing, else `DataError`, with `retryable` where trying again can help.
    """
    with needed("data", f"reading {shown(url)}", "fsspec"):
        import fsspec  # pyright: ignore[reportMissingTypeStubs]
    protocol = url.split("://", 1)[0].split("::")[-1]
    known = _TAKEN & set[str](cast("Any", fsspec).available_protocols())
    chain = {part.partition("://")[0] for part in url.split("::") if "://" in part or part.isalpha()}
    if unknown := chain - known:
        raise UsageError(
            f"cannot read {shown(url)}: the protocol {min(unknown)} is not known",
            fix=f"known, among others: {_USUAL}",
        )
    try:
        opened = cast("Any", fsspec).open(url, "rb")
        most = download_limit() or MOST_BYTES
        with opened as remote, spooled(target, shown(url), most_bytes=most) as local:
            # Not every host says how much it will send, and not every one keeps to it.
            local.require_room(getattr(remote, "size", None) or 0)
            while block := remote.read(BLOCK):
                local.write(block)
        return "" if target.suffix else _media_type(opened)
    except DataError:
        raise
    except Exception as error:  # each protocol raises what its own client raises
        raise _explained(url, protocol, error) from error


def _media_type(opened: Any) -> str:
    told: dict[str, Any] = {}
    with suppress(Exception):  # the file is here, and its first bytes may tell as well
        told = opened.fs.info(opened.path)
    found = next((told[name] for name in _MEDIA_TYPE if told.get(name)), "")
    return str(found).partition(";")[0].strip().lower()


def shown(url: str) -> str:
    """The address without what may be secret in it: a user's password, a signature in the query."""
    parts = urlsplit(url)
    host = parts.netloc.rsplit("@", 1)[-1]
    return parts._replace(netloc=host, query="...&" * bool(parts.query), fragment="").geturl().rstrip("&")


def _explained(url: str, protocol: str, error: Exception) -> OrchestrateError:
    """fsspec hides the reason behind a `FileNotFoundError` that only repeats the address: the chain of causes
    has it."""
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, ImportError):
            package = one.name or protocol
            if one.name is None and one is not chain[-1]:
                continue  # fsspec's own words; the import that failed follows
            return SetupError(
                f"reading {shown(url)} needs the package {package!r}, which is not installed",
                fix=f"pip install {package}",
            )
    place = (urlsplit(url).hostname if protocol in _HOSTED else None) or f"the host of {protocol}"
    status = next((s for one in chain if isinstance(s := getattr(one, "status", None), int)), None)
    if status is not None:
        return _by_status(url, place, status)
    if any(isinstance(one, PermissionError) or _is(one, _CREDENTIALS) for one in chain):
        return _by_status(url, place, 403)
    if any(isinstance(one, socket.gaierror) for one in chain):
        return _again(
            f"cannot read {shown(url)}: the name of {place} is not known, or there is no network",
            "check the address",
        )
    if any(isinstance(one, ConnectionRefusedError) for one in chain):
        return _again(f"cannot read {shown(url)}: {place} accepts no connections", "check the address")
    if any(isinstance(one, ConnectionError | TimeoutError) or _is(one, _BROKEN) for one in chain):
        return _again(f"cannot read {shown(url)}: the connection to {place} broke", "try again")
    if isinstance(error, FileNotFoundError):
        return _by_status(url, place, 404)
    if isinstance(error, OSError):
        reason = error.strerror or type(chain[-1]).__name__
        return _again(f"cannot read {shown(url)}: {reason}", "try again, or copy the file here")
    # The message may hold the address, and with it its secrets.
    return DataError(
        f"cannot read {shown(url)}: {protocol} failed with {type(error).__name__}",
        fix="copy the file to this machine",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _is(error: BaseException, names: frozenset[str]) -> bool:
    """By the names of the types, as their packages need not be installed."""
    return any(base.__name__ in names for base in type(error).__mro__)


def _again(message: str, fix: str) -> DataError:
    error = DataError(message, fix=f"{fix}; trying again may help")
    error.retryable = True
    return error


def _by_status(url: str, place: str, status: int) -> OrchestrateError:
    what = f"cannot read {shown(url)}: "
    if status == 404:
        return DataError(f"{what}there is no such file", fix="check the address; trying again will not help")
    if status in (401, 403):
        return SetupError(
            f"{what}{place} refuses this machine access",
            fix="give the credentials that its client reads from the environment, or a signed address",
        )
    if status in _BUSY:
        return _again(f"{what}{place} answered {status}", "wait a moment")
    return DataError(f"{what}{place} answered {status}", fix="check the address")
