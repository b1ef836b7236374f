"""Files that are read to their end or refused: arrays, UTF-16, bytes in columns, headers, mapped columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.targets import to

from orchestrate.data.dataset import Dataset
from orchestrate.data.files.records import BLOCK
from orchestrate.data.operations.check import CheckOptions, check
from orchestrate.data.operations.convert import convert
from orchestrate.data.operations.fix import fix
from orchestrate.errors import DataError, UsageError

PAIRS = [{"prompt": f"Q{i}", "completion": f"A{i}"} for i in range(20)]


def _pairs(path: Path, **options: Any) -> list[dict[str, str]]:
    data = Dataset.open(path, **options)
    return [{"prompt": e.prompt, "completion": e.completion} for e in data.examples()]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "between", ["\n", "", " " * (BLOCK + 5), "\ufeff"], ids=("line", "none", "block", "mark")
)
def test_arrays_one_after_another_are_all_read(tmp_path: Path, between: str) -> None:
    """As `cat a.json b.json` makes them."""
    file = tmp_path / "two.json"
    file.write_text(json.dumps(PAIRS[:10], indent=1) + between + json.dumps(PAIRS[10:]) + "\n\n")
    assert _pairs(file) == PAIRS


@pytest.mark.parametrize("rest", ["trailing", " " * BLOCK + '{"prompt": "a"}', "]", ","])
def test_what_follows_an_array_is_told(tmp_path: Path, rest: str) -> None:
    file = tmp_path / "junk.json"
    file.write_text(json.dumps(PAIRS) + "\n" + rest)
    with pytest.raises(DataError, match="after record 20"):
        Dataset.open(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "prompt,completion\r\nQ0,A0\r\n"),
        ("a.csv", "prompt\tcompletion\r\nQ0\tA0\r\n"),
        ("a.tsv", "prompt\tcompletion\nQ0\tA0\n"),
        ("unicode text.txt", "prompt\tcompletion\r\nQ0\tA0\r\n"),
        ("a.json", json.dumps(PAIRS[:1], indent=1)),
        ("a.jsonl", json.dumps(PAIRS[0]) + "\n"),
    ],
)
def test_utf16_holds_what_utf8_does(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    file = tmp_path / name
    file.write_bytes(("\ufeff" * (encoding != "utf-16") + text).encode(encoding))
    assert _pairs(file) == PAIRS[:1]
    assert ".utf-16" in Dataset.open(file).container


def test_tabs_in_a_text_do_not_make_it_a_table(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("once\tupon a time\nthere was\n")
    assert Dataset.open(file).kind == "text"


def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("prompt,completion,completion,,\nQ,A,B,,\n")
    with pytest.raises(DataError, match="the column completion twice"):
        Dataset.open(file)
    file.write_text("prompt,completion,,\nQ0,A0,,\n")
    assert _pairs(file) == PAIRS[:1]


def _parquet(file: Path, **columns: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), file)
    return file


def test_text_in_a_column_of_bytes_is_read_as_text(tmp_path: Path) -> None:
    file = _parquet(tmp_path / "a.parquet", prompt=["Zoë?".encode()], completion=["A"])
    assert _pairs(file) == [{"prompt": "Zoë?", "completion": "A"}]


def test_bytes_that_are_no_text_are_refused_where_text_is_needed(tmp_path: Path) -> None:
    file = _parquet(tmp_path / "a.parquet", prompt=[b"\xff\xfe\x80"], completion=["A"])
    with pytest.raises(DataError, match=r"a\.parquet: the column prompt"):
        Dataset.open(file)
    mapped = _parquet(tmp_path / "b.parquet", blob=[b"\xff\xfe\x80"], completion=["A"])
    with pytest.raises(DataError):
        Dataset.open(mapped, columns={"prompt": "blob"})


def test_pictures_beside_the_text_are_let_be_when_they_are_ignored(tmp_path: Path) -> None:
    image = {"bytes": b"\x89PNG\xff", "path": "a.png"}
    file = _parquet(tmp_path / "a.parquet", image=[image], prompt=["Q0"], completion=["A0"])
    assert _pairs(file, columns={"image": ""}) == PAIRS[:1]
    refused = Dataset.open(file)
    assert refused.rows == 0 and refused.problems[0].code == "lost-meaning"


def _three(folder: Path) -> str:
    file = folder / "a.jsonl"
    rows = ({"prompt": f"{i}", "question": f"q{i}", "completion": f"c{i}"} for i in range(20))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_mapped_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The file's own column was used instead."""
    file, columns = _three(tmp_path), {"prompt": "nope"}
    with pytest.raises(UsageError, match="prompt=nope") as error:
        convert(file, to("local"), tmp_path / "out.jsonl", columns=columns)
    assert error.value.fix and "prompt, question, completion" in error.value.fix
    with pytest.raises(UsageError, match="prompt=nope"):
        fix(file, tmp_path / "out.jsonl", columns=columns)


def test_a_mapping_that_hides_a_column_says_so(tmp_path: Path) -> None:
    file, columns = _three(tmp_path), {"prompt": "question"}
    report = convert(file, to("local"), tmp_path / "out.jsonl", columns=columns)
    assert "the column prompt is ignored" in next(
        p.message for p in report.losses if p.code == "hidden-column"
    )
    checked = check({"train": file}, CheckOptions(hosts=(), columns=columns))
    assert checked.ok and checked.files[0].counts["hidden-column"] == 1
    swapped = {"prompt": "question", "question": "prompt"}
    assert "hidden-column" not in {p.code for p in Dataset.open(file, columns=swapped).problems}
