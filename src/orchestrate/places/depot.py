"""Run directories behind an fsspec URL: S3, GCS, a bucket of a hub, a shared disk.

    blobs/<sha256>                      what goes up once for all runs: data, models, our own code
    runs/<ref>/order.json               what to train, with the blobs that it takes
    runs/<ref>/control                  `pause` or `cancel`
    runs/<ref>/attempts/00000001.json   which worker took it, and the time that it has used
    runs/<ref>/pulse.json               replaced with every report
    runs/<ref>/status.json  proof.json  as in a run directory
    runs/<ref>/events/0001-00000001     a file that only grows, in numbered parts
    runs/<ref>/folders/<name>/<sha256>  files of a checkpoint or of the result
    runs/<ref>/folders/<name>/manifest  which of them the folder is made of; written last

Such stores know neither rename nor append. A file is written by one request, so a reader has the old one or
the new; a folder is there when its manifest is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from orchestrate.errors import ArtifactRefused, HostUnavailable, MissingExtra, OrchestrateError
from orchestrate.files import new_folder, sha256, whole, write_whole
from orchestrate.types import ArtifactFile, Record, decoding

R = TypeVar("R", bound=Record)


NO_KEY = "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...   or  aws configure"


class Depot:
    """A folder of some file system; `url` as fsspec takes it. Raises `MissingExtra` for one whose package is
    not installed, `HostUnavailable` when the store does not do what it is asked."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            import fsspec.core  # pyright: ignore[reportMissingTypeStubs]
        except ImportError as error:
            raise MissingExtra("data", f"runs kept at {url}", "fsspec") from error
        try:
            open_at: Any = fsspec.core.url_to_fs  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            found = open_at(self.url, use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            raise MissingExtra("s3", f"runs kept at {url}", str(error.name or error)) from error
        except ValueError as error:
            raise HostUnavailable(self.url, f"{url} is no place for runs: {error}") from error
        self._system, self._root = found
        protocols = self._system.protocol
        self._disk = "file" in ((protocols,) if isinstance(protocols, str) else protocols)

    @property
    def packages(self) -> tuple[str, ...]:
        """That the file system needs beside fsspec, as distributions."""
        module = type(self._system).__module__.partition(".")[0]
        return () if module == "fsspec" else (module,)

    # -- files ---------------------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """In one step: a reader sees the old content or the new."""
        with self._asked(f"write {name}"):
            if self._disk:
                path = Path(self._at(name))
                write_whole(new_folder(path.parent) / path.name, data)
            else:
                self._system.pipe_file(self._at(name), data)

    def read(self, name: str) -> bytes | None:
        """`None` for a file that is not there."""
        with self._asked(f"read {name}"), suppress(FileNotFoundError):
            return self._system.cat_file(self._at(name))
        return None

    def names(self, folder: str) -> list[str]:
        """What lies directly in it, sorted, without what is only being written; nothing for a folder that is
        not there."""
        with self._asked(f"list {folder}"), suppress(FileNotFoundError):
            self._system.invalidate_cache()
            found: list[Any] = self._system.ls(self._at(folder), detail=False)
            names = {str(one).rstrip("/").rpartition("/")[2] for one in found} - {""}
            return sorted(name for name in names if not name.startswith("."))
        return []

    def size(self, name: str) -> int | None:
        with self._asked(f"look at {name}"), suppress(FileNotFoundError):
            self._system.invalidate_cache()
            return int(self._system.info(self._at(name))["size"])
        return None

    def remove(self, folder: str) -> None:
        with self._asked(f"remove {folder}"), suppress(FileNotFoundError):
            self._system.invalidate_cache()
            self._system.rm(self._at(folder), recursive=True)

    # -- by content ----------------------------------------------------------------------------------------

    def keep(self, path: Path, under: str = "blobs") -> ArtifactFile:
        """Sends a file unless it is there; it is called by its hash."""
        file = ArtifactFile(path=path.name, bytes=path.stat().st_size, sha256=sha256(path))
        name = f"{under}/{file.sha256}"
        if self.size(name) != file.bytes:
            with self._asked(f"write {name}"):
                if self._disk:
                    target = Path(self._at(name))
                    with whole(new_folder(target.parent) / target.name) as draft:
                        self._system.put_file(str(path), str(draft))
                else:
                    self._system.put_file(str(path), self._at(name))
        return file

    def keep_bytes(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if self.size(f"blobs/{digest}") != len(data):
            self.write(f"blobs/{digest}", data)
        return digest

    def fetch(self, file: ArtifactFile, target: Path, under: str = "blobs") -> None:
        """Raises `ArtifactRefused` unless what arrives is what was sent."""
        if target.is_file() and target.stat().st_size == file.bytes and sha256(target) == file.sha256:
            return
        new_folder(target.parent)
        with whole(target) as draft:
            with self._asked(f"read {under}/{file.sha256}"):
                self._system.get_file(self._at(f"{under}/{file.sha256}"), str(draft))
            if sha256(draft) != file.sha256:
                raise ArtifactRefused(f"{self.url} holds other bytes for {file.path} than were sent to it")

    def keep_folder(self, folder: Path, under: str = "blobs") -> tuple[ArtifactFile, ...]:
        """Every file below, by its path there."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return tuple(
            msgspec.structs.replace(self.keep(path, under), path=path.relative_to(folder).as_posix())
            for path in paths
        )

    def fetch_folder(self, files: Iterable[ArtifactFile], target: Path, under: str = "blobs") -> None:
        for file in files:
            self.fetch(file, target / safe(file.path), under)

    # -- shared --------------------------------------------------------------------------------------------

    def run(self, ref: str) -> StoredRun:
        return StoredRun(self, ref)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _asked(self, what: str) -> Generator[None]:
        """The kinds of errors are those of each file system's library."""
        try:
            yield
        except (FileNotFoundError, OrchestrateError):
            raise
        except Exception as error:
            told = f"{self.url} could not be asked to {what}: {type(error).__name__}: {error}"
            failure = HostUnavailable(self.url, told, fix="try again; what was sent is kept")
            if type(error).__name__ == "NoCredentialsError":
                failure.fix, failure.retryable = NO_KEY, False
            raise failure from error


class StoredRun:
    """One run's part of a depot."""

    def __init__(self, depot: Depot, ref: str) -> None:
        self.depot, self.ref = depot, ref
        self.folder = f"runs/{ref}"

    def write(self, name: str, data: bytes) -> None:
        self.depot.write(f"{self.folder}/{name}", data)

    def read(self, name: str) -> bytes | None:
        return self.depot.read(f"{self.folder}/{name}")

    def record(self, name: str, kind: type[R]) -> R | None:
        """`None` for a file that is not there, or empty. Raises `HostUnavailable` for one that does not read,
        as of a full disk or another version."""
        data = self.read(name)
        return self.decoded(name, data, kind) if data else None

    def decoded(self, name: str, data: bytes, kind: type[R]) -> R:
        try:
            return kind.from_json(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            told = f"{name} of {self.ref} in {self.depot.url} is damaged, or of another version: {error}"
            raise HostUnavailable(self.depot.url, told) from error

    def remove(self) -> None:
        self.depot.remove(self.folder)

    # -- files that grow -----------------------------------------------------------------------------------

    def parts(self, name: str, after: tuple[int, int] = (0, 0)) -> list[tuple[int, int]]:
        """(edition, number) of the parts after the given one, of the newest edition that has its first. An
        edition begins anew when lines were taken back, with all that is left as its first part."""
        found = sorted(
            (int(edition), int(number))
            for edition, _, number in (
                one.partition("-") for one in self.depot.names(f"{self.folder}/{name}")
            )
            if edition.isdigit() and number.isdigit()
        )
        begun = [edition for edition, number in found if number == 1]
        if not begun:
            return []
        newest = [part for part in found if part[0] == begun[-1]]
        unbroken = [part for place, part in enumerate(newest, 1) if part[1] == place]
        return [part for part in unbroken if part > after]

    def part(self, name: str, part: tuple[int, int]) -> bytes:
        return self.read(f"{name}/{_part(part)}") or b""

    def add_part(self, name: str, part: tuple[int, int], data: bytes) -> None:
        self.write(f"{name}/{_part(part)}", data)

    # -- folders -------------------------------------------------------------------------------------------

    def keep_folder(self, name: str, folder: Path) -> None:
        """Whole or not at all: the manifest comes last."""
        place = f"{self.folder}/folders/{name}"
        files = self.depot.keep_folder(folder, place)
        self.depot.write(f"{place}/manifest", msgspec.json.encode(files))

    def manifest(self, name: str) -> tuple[ArtifactFile, ...] | None:
        """`None` for a folder that is not whole."""
        data = self.read(f"folders/{name}/manifest")
        return None if data is None else decoding.decode(data, type=tuple[ArtifactFile, ...])

    def folders(self) -> list[str]:
        """Names of those that lie there, whole or not."""
        return self.depot.names(f"{self.folder}/folders")

    def fetch_folder(self, name: str, target: Path, only: Iterable[str] = ()) -> bool:
        """`only`: paths of these files; False when the folder is not whole."""
        wanted = set(only)
        if (files := self.manifest(name)) is None:
            return False
        some = [file for file in files if not wanted or file.path in wanted]
        try:
            self.depot.fetch_folder(some, target, f"{self.folder}/folders/{name}")
        except FileNotFoundError:  # removed since for a newer one
            return False
        return True

    def drop_folder(self, name: str) -> None:
        self.depot.remove(f"{self.folder}/folders/{name}/manifest")
        self.depot.remove(f"{self.folder}/folders/{name}")


def safe(path: str) -> str:
    """Raises `ArtifactRefused` for a path that leads out of its folder."""
    if not path or path.startswith(("/", "\\")) or ".." in Path(path).parts or ":" in path:
        raise ArtifactRefused(f"a manifest names the file {path!r}, which leads out of its folder")
    return path


def _part(part: tuple[int, int]) -> str:
    return f"{part[0]:04d}-{part[1]:08d}"
