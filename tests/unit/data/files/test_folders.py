"""Folders: which files are the data, and that no split is read as if it were part of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrate.data.dataset import Dataset
from orchestrate.errors import DataError


def _shard(file: Path, *texts: str, before: bytes = b"") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(before + b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts))


def _texts(path: Path) -> list[str]:
    data = Dataset.open(path)
    assert not [p for p in data.problems if p.severity == "error"]
    return [example.text for example in data.examples()]  # type: ignore[union-attr]


def _arrow(file: Path, *texts: str) -> None:
    import pyarrow as pa

    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": list(texts)})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _saved(folder: Path) -> None:
    """As `save_to_disk` writes it and a later `map` leaves it."""
    _arrow(folder / "data-00000-of-00002.arrow", "a")
    _arrow(folder / "data-00001-of-00002.arrow", "b")
    _arrow(folder / "cache-216568e3418694cc.arrow", "a!", "b!")
    names = [{"filename": f"data-0000{i}-of-00002.arrow"} for i in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names}))
    (folder / "dataset_info.json").write_text("{}")


def test_what_was_computed_from_a_saved_dataset_is_not_read(tmp_path: Path) -> None:
    _saved(tmp_path)
    assert _texts(tmp_path) == ["a", "b"]


def test_also_where_nothing_names_the_files(tmp_path: Path) -> None:
    _saved(tmp_path / "inner")
    (tmp_path / "inner" / "state.json").unlink()
    assert _texts(tmp_path) == ["a", "b"]


def test_a_saved_dataset_that_lacks_a_shard_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path)
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match="lacks data-00001-of-00002"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize(
    ("train", "other"),
    [
        ("train.jsonl", "val.jsonl"),
        ("train.jsonl", "eval.jsonl"),
        ("Train.jsonl", "TEST.JSONL"),
        ("train_part1.jsonl", "heldout_part1.jsonl"),
        ("data-train.jsonl", "data-held-out.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl"),
        ("default/train/0000.jsonl", "default/test/0000.jsonl"),
    ],
)
def test_splits_in_one_folder_are_not_merged(tmp_path: Path, train: str, other: str) -> None:
    _shard(tmp_path / train, "a")
    _shard(tmp_path / other, "b")
    with pytest.raises(DataError, match="several splits: ") as error:
        Dataset.open(tmp_path)
    assert error.value.fix == f"pass the files of one split: {tmp_path / train}"
    assert _texts(tmp_path / train) == ["a"]


def test_a_split_of_several_shards_is_given_as_its_folder(tmp_path: Path) -> None:
    for i in range(2):
        _shard(tmp_path / "train" / f"{i}.jsonl", f"{i}")
    _shard(tmp_path / "test" / "0.jsonl", "b")
    with pytest.raises(DataError) as error:
        Dataset.open(tmp_path)
    assert error.value.fix == f"pass the files of one split: {tmp_path / 'train'}"
    assert _texts(tmp_path / "train") == ["0", "1"]


def test_shards_of_splits_that_lie_together_are_to_be_moved_apart(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "test-0"):
        _shard(tmp_path / f"{name}.jsonl", name)
    with pytest.raises(DataError) as error:
        Dataset.open(tmp_path)
    assert error.value.fix and error.value.fix.startswith("move the files of train")


def test_every_shard_is_read_whatever_its_case_and_mark(tmp_path: Path) -> None:
    _shard(tmp_path / "part0.jsonl", "a", before=b"\xef\xbb\xbf")
    _shard(tmp_path / "part1.JSONL", "b", before=b"\xef\xbb\xbf")
    (tmp_path / "part2.jsonl").write_text('{"text": "c"}\n', encoding="utf-16")
    assert _texts(tmp_path) == ["a", "b", "c"]


def test_what_is_hidden_is_no_shard(tmp_path: Path) -> None:
    _shard(tmp_path / "train.jsonl", "a")
    _shard(tmp_path / ".ipynb_checkpoints" / "train-checkpoint.jsonl", "old")
    assert _texts(tmp_path) == ["a"]
