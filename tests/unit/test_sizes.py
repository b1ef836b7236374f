"""No module is longer than 700 lines and no function than 60: what has grown beyond is two things."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from tests import sources

MODULE, FUNCTION = 700, 60


def too_long(file: str, text: str, nodes: Iterable[ast.AST]) -> Iterator[str]:
    lines = text.count("\n")
    if lines > MODULE:
        yield f"{file}: {lines} lines"
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION:
                yield f"{file}:{node.lineno}: {node.name} has {lines} lines"


def test_modules_and_functions_are_short() -> None:
    modules = sources.nodes()
    assert len(modules) > 100
    texts = {file: (sources.SOURCE / file).read_text(encoding="utf-8") for file in modules}
    assert [told for file, nodes in modules.items() for told in too_long(file, texts[file], nodes)] == []


def test_a_long_one_is_seen() -> None:
    text = "def most():\n" + "    1\n" * 59 + "def f():\n" + "    1\n" * 640
    found = too_long("long.py", text, ast.walk(ast.parse(text)))
    assert list(found) == ["long.py: 701 lines", "long.py:61: f has 641 lines"]
