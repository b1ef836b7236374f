"""Find data files in folders, convert them to JSON Lines, and write output files atomically."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import msgspec

from orchestrate.core import files
from orchestrate.errors import DataError, UsageError

# Output files are written atomically and never replace their input.


PACKED_SUFFIXES = (".gz", ".zst")
DATA_SUFFIXES = (
    ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".parquet", ".arrow", ".txt", *PACKED_SUFFIXES,
)  # fmt: skip
_ABOUT = ("dataset_info.json", "dataset_infos.json", "state.json")
"""Files that the `datasets` library writes next to the rows."""
_SPLITS = frozenset(
    {"train", "training", "validation", "valid", "val", "dev", "eval", "evaluation", "test", "holdout"}
)


_NAMES = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
    "test": "test",
    "holdout": "test",
}


def data_files(folder: Path) -> list[Path]:
    """List the data files of a folder, in order. Raises `DataError` when the folder contains several
    splits or no data files."""
    if (folder / "dataset_dict.json").is_file():
        splits = {p.name: [p] for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] != "."}
        if not splits:
            raise DataError(
                f"{folder} contains no splits", fix=f"expected a folder such as {folder / 'train'}"
            )
        _require_one(folder, splits)
        return data_files(next(iter(splits.values()))[0])
    files = _saved(folder) or sorted(p for p in folder.rglob("*") if _is_data(p, folder))
    if not files:
        raise DataError(
            f"{folder} contains no data files", fix=f"supported types: {', '.join(DATA_SUFFIXES)}"
        )
    shards: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        if split := _split(file.relative_to(folder)):
            shards[split].append(file)
    _require_one(folder, shards)
    return files


def splits_of(folder: Path) -> dict[str, Path]:
    """Return the splits at the top level of a folder, as {split: file}. A single file is the `train` split.
    Returns an empty dict if there are no files, if a file's name doesn't identify its split, if two files
    belong to the same split, or if no file is the `train` split. JSON and plain text files are ignored
    because they often contain settings and notes instead of rows."""
    files = [p for p in sorted(folder.iterdir()) if _is_data(p, folder) and p.suffix not in (".json", ".txt")]
    if len(files) == 1:
        return {"train": files[0]}
    found = {_NAMES.get(word): path for path in files if (word := _split(path.relative_to(folder)))}
    splits = {name: path for name, path in found.items() if name is not None}
    return splits if len(splits) == len(files) and "train" in splits else {}


def _require_one(folder: Path, splits: dict[str, list[Path]]) -> None:
    """Reject folders with several splits, so that test rows are never trained on."""
    if len(splits) < 2:
        return
    names = sorted(splits)
    split = "train" if "train" in splits else names[0]
    first, *more = splits.pop(split)
    place = first.parent if more else first
    mixed = any(place in file.parents for files in splits.values() for file in files)
    raise DataError(
        f"{folder} contains several splits: {', '.join(names)}",
        fix=f"move the files of {split} into their own folder, and pass that folder"
        if mixed
        else f"pass the files of one split: {place}",
    )


def _saved(folder: Path) -> list[Path]:
    """Return the files listed by a dataset that `datasets` saved. Other files are caches."""
    try:
        about: Any = msgspec.json.decode((folder / "state.json").read_bytes())
        files = [folder / Path(file["filename"]).name for file in about["_data_files"]]
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError):
        return []  # written by another program
    if absent := [file.name for file in files if not file.is_file()]:
        raise DataError(f"{folder} lacks {absent[0]}, which is listed in its state.json", fix="save it again")
    return files


def _is_data(file: Path, folder: Path) -> bool:
    """Return whether a file contains rows. Hidden files and the metadata and caches of `datasets` don't."""
    return (
        file.suffix.lower() in DATA_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.name not in _ABOUT
        and not (file.name.startswith("cache-") and file.suffix == ".arrow")
        and file.is_file()
    )


def _split(file: Path) -> str | None:
    """Return the split that the file name or the nearest folder names, as in `data-train-00001.jsonl` and
    `default/test/0000.parquet`."""
    for part in reversed(file.parts):
        for word in re.findall("held[-_ ]?out|[a-z]+", part.lower()):
            if word in _SPLITS or word.startswith("held"):
                return word
    return None


_STDOUT = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})


def is_stdout(output: Path) -> bool:
    return str(output) in _STDOUT


def is_stream(output: Path) -> bool:
    """Return whether `output` is standard output, a pipe or a device instead of a regular file."""
    return is_stdout(output) or (output.exists() and not output.is_file() and not output.is_dir())


def require_writable(output: Path, *sources: str, stream: bool = False) -> None:
    """Check before a long operation that `output` can be written. Raises `UsageError` if `output` is a
    folder, is one of the `sources` or inside one, or if its parent folder does not exist. Pipes and devices
    are only allowed with `stream`."""
    if is_stream(output):
        if not stream:
            raise UsageError(f"{output} is not a file", fix="pass a file name with -o")
        return
    if files.inside(output).is_dir():
        raise UsageError(f"{output} is a folder", fix="pass a file name with -o")
    folder = _behind_links(output).parent if output.is_symlink() else output.parent
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist", fix=f"mkdir -p {folder}")
    if any(_is_of(output, source) for source in sources):
        raise UsageError(
            f"{output} is also the input file, which is never overwritten", fix="choose another name with -o"
        )


def _is_of(output: Path, source: str) -> bool:
    given = Path("/dev/stdin" if source == "-" else source)
    if "://" in source or not output.exists() or not given.exists():
        return False
    return output.samefile(given) or (given.is_dir() and given.resolve() in _behind_links(output).parents)


def _behind_links(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _base(name: str) -> str:
    """Return a file name without its compression and data suffixes: `rows.v1` for `rows.v1.jsonl.gz`."""
    for suffixes in (PACKED_SUFFIXES, DATA_SUFFIXES):
        if Path(name).suffix.lower() in suffixes:
            name = Path(name).stem
    return name


def beside(source: str, suffix: str) -> Path:
    """Return the path of a file derived from `source`, in the same folder: `data/train.v1.jsonl.gz` ->
    `data/train.v1.fixed.jsonl`. For a URL or a pipe, the path is in the working folder."""
    if source == "-" or source.startswith("/dev/"):
        return Path(f"data.{suffix}")
    # The query of a URL may be secret.
    given = Path(re.split("[?#]", source.rsplit("/", 1)[-1])[0]) if "://" in source else Path(source)
    name = _base(given.name).strip(".")
    return given.with_name(f"{name}.{suffix}") if name else Path(f"data.{suffix}")


def log_beside(output: Path, what: str, *sources: str) -> Path:
    """Return the path of a log next to an output file: `rows.changes.jsonl` for `rows.jsonl`. Raises
    `UsageError` under the same conditions as `require_writable`."""
    log = output.with_name(f"{_base(output.name)}.{what}.jsonl")
    require_writable(log, *sources)
    return log


@contextmanager
def whole(path: Path) -> Generator[Path]:
    """Yield a temporary path to write to. When the block ends, the file is moved to `path`, or copied if
    `path` is a stream. If the block raises an exception, nothing is written."""
    if is_stream(path):
        with tempfile.TemporaryDirectory(prefix="orchestrate-") as folder:
            partial = Path(folder, "rows")
            yield partial
            with partial.open("rb") as made, _stream(path) as target:
                shutil.copyfileobj(made, target)
        return
    with files.whole(path) as partial:
        yield partial


def _stream(path: Path) -> IO[bytes]:
    return open(1, "wb", closefd=False) if is_stdout(path) else files.inside(path).open("ab")


@contextmanager
def writing(path: Path) -> Generator[IO[bytes]]:
    """Open `path` for writing. As with `whole`, nothing is written if the block raises an exception. The
    output is compressed if the name ends in .gz or .zst."""
    with whole(path) as partial, partial.open("wb") as file, _packing(file, path.suffix.lower()) as packed:
        yield packed


def _packing(file: IO[bytes], suffix: str) -> Any:
    if suffix == ".gz":
        # Without a timestamp, equal rows give equal files.
        return gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0)
    if suffix == ".zst":
        from orchestrate.core.zstd import zstd

        return zstd.ZstdFile(file, "wb")
    return nullcontext(file)
