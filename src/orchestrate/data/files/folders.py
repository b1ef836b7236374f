"""Which files of a folder are its data: those of a saved dataset, or the shards of one split."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.errors import DataError

PACKED_SUFFIXES = (".gz", ".zst")
DATA_SUFFIXES = (
    ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".parquet", ".arrow", ".txt", *PACKED_SUFFIXES,
)  # fmt: skip
_ABOUT = ("dataset_info.json", "dataset_infos.json", "state.json")
"""What `datasets` writes beside the rows."""
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
    """The files with the rows, in order. Raises `DataError` when the folder holds several splits, or
    nothing."""
    if (folder / "dataset_dict.json").is_file():
        splits = {p.name: [p] for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] != "."}
        if not splits:
            raise DataError(f"{folder} holds no split", fix=f"give one: {folder / 'train'}")
        _require_one(folder, splits)
        return data_files(next(iter(splits.values()))[0])
    files = _saved(folder) or sorted(p for p in folder.rglob("*") if _is_data(p, folder))
    if not files:
        raise DataError(f"{folder} holds no data files", fix=f"known: {', '.join(DATA_SUFFIXES)}")
    shards: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        if split := _split(file.relative_to(folder)):
            shards[split].append(file)
    _require_one(folder, shards)
    return files


def splits_of(folder: Path) -> dict[str, Path]:
    """Split -> file, of the files that lie in a folder itself; one file alone is `train`. Empty where there
    is none, or where several are of one split or of no split that their names tell. JSON and plain text are
    not counted: they are settings and notes as often as rows."""
    files = [p for p in sorted(folder.iterdir()) if _is_data(p, folder) and p.suffix not in (".json", ".txt")]
    if len(files) == 1:
        return {"train": files[0]}
    found = {_NAMES.get(word): path for path in files if (word := _split(path.relative_to(folder)))}
    splits = {name: path for name, path in found.items() if name is not None}
    return splits if len(splits) == len(files) and "train" in splits else {}


def _require_one(folder: Path, splits: dict[str, list[Path]]) -> None:
    """Rows to test with are not to be learnt because they lie beside the others."""
    if len(splits) < 2:
        return
    names = sorted(splits)
    split = "train" if "train" in splits else names[0]
    first, *more = splits.pop(split)
    place = first.parent if more else first
    mixed = any(place in file.parents for files in splits.values() for file in files)
    raise DataError(
        f"{folder} holds several splits: {', '.join(names)}",
        fix=f"move the files of {split} into a folder of their own, and give that"
        if mixed
        else f"give one: {place}",
    )


def _saved(folder: Path) -> list[Path]:
    """The files that a dataset saved by `datasets` names; the rest was computed from it since."""
    try:
        about: Any = msgspec.json.decode((folder / "state.json").read_bytes())
        files = [folder / Path(file["filename"]).name for file in about["_data_files"]]
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError):
        return []  # another program's
    if absent := [file.name for file in files if not file.is_file()]:
        raise DataError(f"{folder} lacks {absent[0]}, which its state.json names", fix="save it again")
    return files


def _is_data(file: Path, folder: Path) -> bool:
    """Neither hidden, nor what `datasets` remembers or has computed from the rows."""
    return (
        file.suffix.lower() in DATA_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.name not in _ABOUT
        and not (file.name.startswith("cache-") and file.suffix == ".arrow")
        and file.is_file()
    )


def _split(file: Path) -> str | None:
    """The split that the name or else the nearest folder tells, as in `data-train-00001.jsonl` and
    `default/test/0000.parquet`."""
    for part in reversed(file.parts):
        for word in re.findall("held[-_ ]?out|[a-z]+", part.lower()):
            if word in _SPLITS or word.startswith("held"):
                return word
    return None
