"""Each command that the program's texts name is one that there is, with the options it is named with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.paths import ROOT
from tests.printed import commands, options, unknown, unknown_in

SOURCES = sorted((ROOT / "src" / "orchestrate").rglob("*.py"))


def texts(source: Path) -> Iterator[tuple[int, str]]:
    """Strings as they are printed, with a word in the place of each value."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, _put_together(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value


def _put_together(node: ast.JoinedStr) -> str:
    told = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            told += str(part.value)
        elif told.endswith(" ") and told.endswith("orchestrate "):
            told += "NAME"  # a command that only the program knows
        else:
            told += " X" if told[-1:].isalpha() else "X"
    return told


@pytest.mark.slow
def test_each_text_names_commands_that_there_are() -> None:
    wrong = [
        f"{source.relative_to(ROOT)}:{line}: {found}"
        for source in SOURCES
        for line, text in texts(source)
        if "orchestrate " in text and text != "orchestrate account"  # a mark of keys
        for found in unknown_in(text)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("run `orchestrate check --fix`", ["check --fix"]),
        ("orchestrate init FILE --map question=X   (or another)", ["init FILE --map question=X"]),
        ("orchestrate sync, then orchestrate watch RUN", ["sync", "watch RUN"]),
        ("from orchestrate import text", []),
    ],
)
def test_commands_are_found_in_sentences(text: str, found: list[str]) -> None:
    assert [*commands(text)] == found


@pytest.mark.parametrize("wrong", ["check --fix", "data nothing", "nothing", "init t.csv --columns a=b"])
def test_what_there_is_not_is_told(wrong: str) -> None:
    assert unknown(wrong)


@pytest.mark.parametrize("right", ["ui shows the runs", "models qwen", "prices list --method gpu_rental"])
def test_a_sentence_may_go_on(right: str) -> None:
    assert unknown(right) is None


def fixes(source: Path) -> Iterator[tuple[int, str]]:
    """What errors advise, as in `texts`."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "fix":
            for part in ast.walk(node.value):
                if isinstance(part, ast.JoinedStr):
                    yield part.lineno, _put_together(part)
                elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value


@pytest.mark.slow
def test_each_option_that_a_fix_names_is_one_of_some_command() -> None:
    known = options() | {"--help", "--head", "--enable-lora", "--max-lora-rank"}  # ray's and vLLM's own too
    advised = [
        (f"{source.relative_to(ROOT)}:{line}", option)
        for source in SOURCES
        for line, text in fixes(source)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", text)
    ]
    assert len(advised) > 100
    assert [(where, option) for where, option in advised if option not in known] == []
