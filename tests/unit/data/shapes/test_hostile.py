"""Hostile input ends in a clear error or in problems with rows, never in a trace of something else."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrate.core.zstd import zstd
from orchestrate.data import Dataset
from orchestrate.data.files.sources import spooled
from orchestrate.data.operations.check import CheckOptions, check
from orchestrate.data.passes.scan import CHUNK
from orchestrate.data.rows import MOST_DEEP
from orchestrate.data.shapes.known import BY_NAME
from orchestrate.data.shapes.row_reader import reading
from orchestrate.errors import DataError

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
ROW = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
TOOL = b'{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}'


def _nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


DEEP = _nested(200_000)


def _codes(file: Path) -> dict[str, int]:
    return check({"train": str(file)}, CheckOptions(hosts=(), tokenizer="o200k")).files[0].counts


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"messages": ' + DEEP + b"}", "too-deep"),
        (b'{"messages": [{"role": "user", "content": ' + DEEP + b"}]}", "too-deep"),
        (b'{"a": ' + _nested(MOST_DEEP) + b"}", "too-deep"),
        (ROW.strip()[:-1] + b', "tools": ' + _nested(MOST_DEEP) + b"}", "too-deep"),
        (ROW.strip()[:-1] + b', "tools": ' + _nested(MOST_DEEP - 1) + b"}", "bad-tools"),
        (b"\x00" * 50, "invalid-json"),
        (b'{"messages": "\x00"}', "invalid-json"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "lone-surrogate"),
        (b'{"messages": "\xff\xfe"}', "encoding"),
        (b'{"messages": [{"role": "user", "content": "\xc3("}]}', "encoding"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "invalid-json"),
        (b'{"a": NaN, "messages": []}', "invalid-json"),
        (b'"just text"', "not-an-object"),
        (b"null", "not-an-object"),
        (b'{"a": -Infinity}', "invalid-json"),
        (ROW.strip().replace(b'"content": "a"', b'"content": "a", "content": "b"'), "duplicate-key"),
        (b'{"messages": 1, ' + ROW.strip()[1:], "duplicate-key"),
        (ROW.strip()[:-1] + b', "id": 1, "id": 2}', "duplicate-key"),
        (
            ROW.strip().replace(b'"content": "b"', b'"content": "b", "weight": 0, "weight": 1'),
            "duplicate-key",
        ),
        (ROW.strip()[:-1] + b', "tools": [' + TOOL + b'], "tools": []}', "duplicate-key"),
        (ROW.strip()[:-1] + b', "weight" : 0, "weight"  : 1}', "duplicate-key"),
        (ROW.strip()[:-1] + b', "weight"\t: 0, "weight":1}', "duplicate-key"),
        (ROW.strip()[:-1] + b', "id" : "\\" \\" :", "id" : 2}', "duplicate-key"),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"id": '
            b'"c", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "c", '
            b'"content": "r", "content": "s"}, {"role": "assistant", "content": "b"}], '
            b'"tools": [' + TOOL + b"]}",
            "duplicate-key",
        ),
        (b'{"messages": {}}', "bad-message"),
        (b'{"messages": [[]]}', "bad-message"),
        (b'{"messages": [{"role": {}, "content": []}]}', "bad-role"),
        (b'{"messages": [{"role": "user", "content": [{"type": "audio"}]}]}', "bad-content"),
        (b'{"messages": [{"role": "user", "content": "a", "tool_calls": 5}]}', "bad-tool-call"),
        (b'{"messages": [{"role": "user", "content": "a", "weight": "x"}]}', "bad-message"),
        (b'{"messages": [], "tools": 5}', "bad-tools"),
        (b'{"messages": [], "tools": "[["}', "bad-tools"),
        (b'{"messages": [], "tools": "' + DEEP + b'"}', "bad-tools"),
    ],
)
def test_one_bad_line_is_one_problem_of_its_row(line: bytes, code: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROW + line + b"\n" + ROW)
    data = Dataset.open(file)
    assert data.rows == 2 + (code == "duplicate-key")
    assert {(p.code, p.row) for p in data.problems} >= {(code, 2)}


@pytest.mark.slow
def test_line_of_a_hundred_megabytes(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with file.open("wb") as out:
        out.write(ROW)
        out.write(ROW.replace(b'"b"', b'"' + b"word " * 20_000_000 + b'"'))
        out.write(ROW)
    data = Dataset.open(file)
    assert data.rows == 3 and data.bytes > 100_000_000 and data.problems == ()


def test_a_file_of_one_endless_line_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROW.replace(b'"b"', b'"' + b"word " * 20_000_000 + b'"'))
    with pytest.raises(DataError, match="every line is longer than 64 MiB") as told:
        Dataset.open(file)
    assert "one row per line" in str(told.value.fix)


@pytest.mark.slow
def test_a_line_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROW)
    with file.open("r+b") as out:
        out.truncate(600 << 20)  # holes: zeros that take no disk
    with pytest.raises(DataError, match="is longer than 512 MiB"):
        Dataset.open(file)
    file.unlink()


@pytest.mark.slow
def test_of_very_many_problems_the_first_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROW + (b"{}".ljust(2 * CHUNK // 50_000) + b"\n") * 50_000)
    data = Dataset.open(file)
    assert data.rows == 1 and len(data.problems) == 101
    assert data.problems[-1].message == "49,900 more like this"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b"\n\n \n", "empty"),
        ("a.jsonl", b"\x89PNG\r\n\x1a\n\x00\x00", "a picture, not rows"),
        ("a.jsonl", b"\x00\xff" * 500, "no row could be read"),
        ("a.jsonl", b'{"foo": 1}\n', "foo"),
        ("a.jsonl", b'{"foo": 1\n{"foo": 1}\n', "foo.*1 more row could not be read: Expecting"),
        ("a.jsonl.gz", gzip.compress(ROW * 100_000)[:200], "ended before"),
        ("a.jsonl.gz", b"\x1f\x8b" + b"x" * 50, "cannot read"),
        ("a.jsonl.zst", zstd.compress(random.Random(1).randbytes(100_000))[:5000], "cannot read|no row"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"x" * 50, "cannot read"),
        ("a.json", b'[{"text": "a"}, {"text": "b"', "record 1"),
        ("a.json", b'[{"text": "a"} oops]', "record 1"),
        ("a.json", b'[{"text": ' + DEEP + b"}]", "too deeply"),
        ("a.csv", b"text\ncaf\xe9\n", "UTF-8"),
        ("a.csv", b"a,b\n1,2\n", "a, b"),
        ("a.csv", b'prompt,completion\n"a,b\nc,d\n', "line 3: unexpected end of data"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16") + b"x", "not valid UTF-16"),
        ("a.parquet", b"PAR1" + b"x" * 100, "Parquet"),
        ("a.arrow", b"ARROW1" + b"x" * 100, "Arrow"),
        ("a.xlsx", b"PK\x03\x04" + b"x" * 100, "ZIP archive or a spreadsheet"),
        ("a.jsonl.xz", b"\xfd7zXZ\x00" + b"x" * 100, "xz archive"),
        ("a.jsonl", b"\xff\xfea\x00b", "not valid UTF-16"),
    ],
)
def test_unreadable_file_says_why(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Dataset.open(file)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table([["a"], ["b"], ["c"]], names=["prompt", "completion", "prompt"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns named prompt"):
        Dataset.open(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "path", ["/nowhere/at/all.jsonl", "a\x00b", "file:///nowhere.jsonl", "memory://nowhere.jsonl"]
)
def test_no_such_file(path: str) -> None:
    with pytest.raises(DataError):
        Dataset.open(path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data files"):
        Dataset.open(tmp_path)


def test_missing_line_end_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROW + b"\r\n  \n" + ROW.rstrip())
    data = Dataset.open(file)
    assert [n for n, _ in data.numbered()] == [1, 4]
    assert [(p.code, p.row) for p in data.problems] == [("blank-line", 2), ("blank-line", 3)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "role",
                    "content",
                    "from",
                    "value",
                    "conversations",
                    "tools",
                    "type",
                    "text",
                    "function",
                    "name",
                    "arguments",
                    "id",
                    "tool_calls",
                    "weight",
                    "chosen",
                    "rejected",
                    "prompt",
                    "completion",
                    "input",
                    "preferred_output",
                    "non_preferred_output",
                    "instruction",
                    "output",
                    "history",
                    "image_url",
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def read_or_refused(format: str, fields: st.DataObject) -> None:
    """Rows with the right names and any values: they are read, or have a problem."""
    shape = BY_NAME[format]
    names = shape.fields or frozenset({"messages", "prompt", "answer"})
    row = {name: fields.draw(json_values) for name in sorted(names) if fields.draw(st.booleans())}
    line = json.dumps(row).encode()
    read = reading(format).read(line)
    assert read.example is not None or read.problems


@pytest.mark.parametrize("format", BY_NAME)
@settings(max_examples=5, deadline=None, suppress_health_check=SLOW)
@given(fields=st.data())
def test_no_value_breaks_a_reader(format: str, fields: st.DataObject) -> None:
    read_or_refused(format, fields)


@pytest.mark.slow
@pytest.mark.parametrize("format", BY_NAME)
@settings(max_examples=50, deadline=None, suppress_health_check=SLOW)
@given(fields=st.data())
def test_no_value_of_more_breaks_a_reader(format: str, fields: st.DataObject) -> None:
    read_or_refused(format, fields)


@settings(max_examples=300, deadline=None)
@given(line=st.binary(max_size=200))
def test_no_bytes_break_a_reader(line: bytes) -> None:
    read = reading("openai-chat").read(line)
    assert read.example is None and read.problems


@cache
def _zeros(kind: str) -> bytes:
    """A gigabyte of zeros in a megabyte, or less."""
    if kind == "gz":
        return gzip.compress(bytes(64 << 20)) * 16
    return zstd.compress(bytes(64 << 20)) * 16


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.gz", "rows.jsonl.zst"])
def test_a_gigabyte_of_zeros_is_not_unpacked(name: str, tmp_path: Path) -> None:
    packed = tmp_path / name
    packed.write_bytes(_zeros(name.rpartition(".")[2]))
    assert packed.stat().st_size < 2_000_000
    with pytest.raises(DataError, match=r"decompresses to a line longer than 512 MiB"):
        Dataset.open(packed)


def test_an_archive_in_an_archive_in_an_archive_ends(tmp_path: Path) -> None:
    packed = tmp_path / "rows.gz"
    content = ROW
    for _ in range(6):
        content = gzip.compress(content)
    packed.write_bytes(content)
    with pytest.raises(DataError, match="layers of compression"):
        Dataset.open(packed)


def test_the_disk_is_not_filled(tmp_path: Path) -> None:
    target = tmp_path / "rows.jsonl"
    free = shutil.disk_usage(tmp_path).free
    with (
        pytest.raises(DataError, match=r"not enough disk space for rows\.gz") as told,
        spooled(target, "rows.gz", keep_bytes=free + (1 << 30)) as file,
    ):
        for _ in range(100):
            file.write(bytes(1 << 20))
    assert not target.exists() and "TMPDIR" in str(told.value.fix)
    with spooled(target, "rows.gz", keep_bytes=free + (1 << 30)) as file:
        file.write(ROW)  # a few bytes find a place on any disk
    assert target.read_bytes() == ROW


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz"])
def test_no_room_for_what_is_unpacked_is_told(name: str, tmp_path: Path) -> None:
    """The file may not become longer, as on a disk that is full."""
    packed = tmp_path / name
    content = b"prompt,completion\n" + b"a,b\n" * 500_000 if "csv" in name else ROW * 30_000
    packed.write_bytes(gzip.compress(content))
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from orchestrate.cli import main\n"
        "sys.exit(main())"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, "data", "inspect", str(packed)],
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    said = " ".join(done.stderr.split())
    assert "not enough disk space for" in said and "TMPDIR" in said
    assert list(temporary.iterdir()) == []
