"""Tables of any content at any width: every word of every cell is there, whole, and in its row."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console
from rich.text import Text

from orchestrate.core.tables import TextTable

WORDS = [
    "$1,752.01",
    "qwen3-30b-a3b-instruct",
    "a",
    "of",
    "2026-11-26",
    "日本語",
    "accounts/fireworks/models/x",
    "-",
]


def shown(table: TextTable, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return out.getvalue()


@pytest.mark.parametrize("seed", range(40))
def test_no_word_is_broken_and_no_line_is_too_long(seed: int) -> None:
    chance = random.Random(seed)
    names = [f"name{n}" for n in range(chance.randint(1, 9))]
    fold = chance.choice([None, (), names[1:3]])
    table = TextTable(*names, right=names[:1], fold=fold)
    rows = [
        [
            " ".join(chance.choices(WORDS, k=chance.choice([0, 1, 1, 2, 30 if fold is None else 2])))
            for _ in names
        ]
        for _ in range(5)
    ]
    for number, row in enumerate(rows):
        table.add_row(f"row{number}", *row[1:])
    width = chance.choice([60, 80, 100, 140])
    text = shown(table, width)
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(Console(width=999).measure(line).maximum for line in lines) <= width
    starts = [next(i for i, line in enumerate(lines) if f"row{n}" in line) for n in range(5)]
    for number, row in enumerate(rows):
        own = " ".join(lines[starts[number] : starts[number + 1] if number < 4 else None])
        for word in {w for cell in row[1:] for w in cell.split()} - {"-"}:
            assert own.replace(";", " ").split().count(word) == sum(
                cell.split().count(word) for cell in row[1:]
            ), (word, own)


def test_what_has_no_room_goes_below_under_its_name() -> None:
    table = TextTable("id", "cost", "model", "source", right=("cost",))
    table.add_row("run-1", "$0.10", "accounts/fireworks/models/qwen3p5-9b", "read on 2026-10-08 in its docs")
    said = "run-1  $0.10  accounts/fireworks/models/qwen3p5-9b"
    for width, expected in (
        (140, [f"{said}  read on 2026-10-08 in its docs"]),
        (70, [f"{said}  read on 2026-10-08", f"{'':52}in its docs"]),
        (55, ["run-1  $0.10  read on 2026-10-08 in its docs", "  accounts/fireworks/models/qwen3p5-9b"]),
        (16, ["run-1  $0.10"]),
    ):
        lines = [line.rstrip() for line in shown(table, width).splitlines()][1:]
        assert lines[: len(expected)] == expected


def test_facts_stay_beside_their_names() -> None:
    facts = TextTable("", "")
    facts.add_row("digest", "f" * 64)
    facts.add_row("rows", "12 good")
    lines = [line.rstrip() for line in shown(facts, 50).splitlines()]
    assert lines == [f"digest  {'f' * 42}", f"        {'f' * 22}", "rows    12 good"]


def test_text_that_acts_on_a_terminal_keeps_columns_aligned() -> None:
    table = TextTable("name", "cost", right=("cost",))
    table.add_row("a\x1b[31m", "1.00")
    table.add_row(Text("plain", style="green"), "10.00")
    assert shown(table, 40).splitlines() == ["name     cost", "a␛[31m   1.00", "plain   10.00"]


def test_facts_are_complete_where_the_value_has_hardly_any_room() -> None:
    facts = TextTable("", "")
    facts.add_row("a name that is long", "value-of-the-fact")
    assert "value-of-the-fact" in shown(facts, 24)
