"""What is written: never the input, never what is another's, and pipes and links stay what they are."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.targets import to

from orchestrate.core.zstd import zstd
from orchestrate.data.dataset import Dataset
from orchestrate.data.files import beside, is_stdout
from orchestrate.data.operations.convert import convert
from orchestrate.data.operations.dedupe import dedupe
from orchestrate.data.operations.fix import fix
from orchestrate.data.operations.split import Division, parse_shares, split
from orchestrate.errors import UsageError

SHARES = (0.5, 0.5)


def _rows(file: Path, count: int = 20) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"prompt": f"{i * 7919} and what?", "completion": f"{i * 31337} it is"} for i in range(count))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    ("command", "name"), [(fix, "x.changes.jsonl"), (dedupe, "x.removed.jsonl")], ids=["fix", "dedupe"]
)
def test_a_log_does_not_replace_the_input(tmp_path: Path, command: Callable[..., object], name: str) -> None:
    file = _rows(tmp_path / name)
    before = file.read_bytes()
    with pytest.raises(UsageError, match="is also the input"):
        command(str(file), tmp_path / "x.jsonl")
    assert file.read_bytes() == before and not (tmp_path / "x.jsonl").exists()


def test_a_link_into_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").symlink_to(tmp_path / "absent" / "x.jsonl")
    with pytest.raises(UsageError, match="does not exist"):
        convert(str(_rows(tmp_path / "a.jsonl")), to("local"), tmp_path / "x.jsonl")


def test_a_shard_of_the_input_is_not_replaced(tmp_path: Path) -> None:
    file = _rows(tmp_path / "in" / "part.jsonl")
    with pytest.raises(UsageError, match="is also the input"):
        convert(str(tmp_path / "in"), to("local"), file)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("d/train.jsonl", "d/train.fixed.jsonl"),
        ("d/train.v1.jsonl.gz", "d/train.v1.fixed.jsonl"),
        ("chat.2024-05.csv", "chat.2024-05.fixed.jsonl"),
        ("saved.v2/", "saved.v2.fixed.jsonl"),
        (".", "data.fixed.jsonl"),
        ("..", "data.fixed.jsonl"),
        ("-", "data.fixed.jsonl"),
        ("https://host/a/rows.v3.jsonl?key=secret.x", "rows.v3.fixed.jsonl"),
    ],
)
def test_default_names_keep_what_tells_files_apart(source: str, name: str) -> None:
    assert beside(source, "fixed.jsonl") == Path(name)


def test_a_split_replaces_its_own_files_only(tmp_path: Path) -> None:
    file, folder = _rows(tmp_path / "all.jsonl"), tmp_path / "out"
    other = _rows(folder / "train.jsonl", 3)
    before = other.read_bytes()
    with pytest.raises(UsageError, match="was not written by `data split`"):
        split(str(file), Division(SHARES, near_duplicates=False), folder)
    assert other.read_bytes() == before and not (folder / "validation.jsonl").exists()
    other.unlink()
    first = split(str(file), Division(SHARES, near_duplicates=False), folder)
    again = split(str(_rows(file, 30)), Division(SHARES, near_duplicates=False), folder)
    assert (first.rows, again.rows) == (20, 30)
    assert Dataset.open(folder / "train.jsonl").rows == again.files[0].rows


def test_no_file_of_an_earlier_split_stays_beside_a_new_one(tmp_path: Path) -> None:
    """Its rows would be in the training file now."""
    file, folder = str(_rows(tmp_path / "all.jsonl")), tmp_path / "out"
    split(file, Division((0.4, 0.3, 0.3), near_duplicates=False), folder)
    with pytest.raises(UsageError, match=r"test\.jsonl is left over from an earlier split"):
        split(file, Division(SHARES, near_duplicates=False), folder)
    (folder / "test.jsonl").unlink()
    split(file, Division(SHARES, near_duplicates=False), folder)
    split(file, Division((0.4, 0.3, 0.3), near_duplicates=False), folder)


@pytest.mark.parametrize("shares", ["nan/10", "inf/10", "1e308/1e308"])
def test_shares_are_finite(shares: str) -> None:
    with pytest.raises(UsageError, match="is not a valid split"):
        parse_shares(shares)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(tmp_path: Path, seed: int) -> None:
    with pytest.raises(UsageError, match="seed"):
        split(str(_rows(tmp_path / "a.jsonl")), Division(SHARES, seed=seed), tmp_path / "out")


def test_a_pipe_stays_one_and_gets_the_rows(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    convert(str(_rows(tmp_path / "a.jsonl")), to("local"), pipe)
    reader.join(240)
    assert pipe.is_fifo() and got[0].count(b"\n") == 20


@pytest.mark.parametrize("command", [fix, dedupe])
def test_what_has_a_log_beside_it_is_a_file(tmp_path: Path, command: Callable[..., object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for output in (tmp_path / "pipe", Path("-")):
        with pytest.raises(UsageError, match="is not a file"):
            command(str(_rows(tmp_path / "a.jsonl")), output)
    assert (tmp_path / "pipe").is_fifo()


def test_the_target_of_a_link_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "kept" / "rows.jsonl", tmp_path / "link.jsonl"
    _rows(target, 3)
    link.symlink_to(target)
    convert(str(_rows(tmp_path / "a.jsonl")), to("local"), link)
    assert link.is_symlink() and Dataset.open(target).rows == 20


@pytest.mark.parametrize(
    ("suffix", "unpack"), [(".gz", gzip.decompress), (".zst", zstd.decompress)], ids=["gz", "zst"]
)
def test_an_output_is_packed_as_its_name_says(
    tmp_path: Path, suffix: str, unpack: Callable[[bytes], bytes]
) -> None:
    file, output = str(_rows(tmp_path / "a.jsonl")), tmp_path / f"b.jsonl{suffix}"
    convert(file, to("local"), output)
    first = output.read_bytes()
    assert unpack(first).count(b"\n") == 20 and Dataset.open(output).rows == 20
    convert(file, to("local"), output)
    assert output.read_bytes() == first
    report = dedupe(file, tmp_path / f"c.jsonl{suffix}")
    assert unpack((tmp_path / f"c.jsonl{suffix}").read_bytes()).count(b"\n") == 20
    assert report.log == str(tmp_path / "c.removed.jsonl")


def test_parquet_is_not_packed_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already compressed"):
        convert(str(_rows(tmp_path / "a.jsonl")), to("parquet"), tmp_path / "b.parquet.gz")


def test_standard_output_by_its_names() -> None:
    assert is_stdout(Path("-")) and is_stdout(Path("/dev/stdout")) and not is_stdout(Path("./rows"))
