"""No module is longer than 700 lines and no function than 60: what has grown beyond is two things."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.paths import ROOT

MODULE, FUNCTION = 700, 60


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """At any depth: no expression holds a function that has a name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child
            yield from statements(child)


def too_long(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    if lines > MODULE:
        yield f"{path}: {lines} lines"
    for node in statements(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines"


def test_modules_and_functions_are_short() -> None:
    modules = sorted((ROOT / "src").rglob("*.py"))
    assert len(modules) > 100
    assert [told for path in modules for told in too_long(path)] == []


def test_a_long_one_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text("def most():\n" + "    1\n" * 59 + "def f():\n" + "    1\n" * 640)
    assert list(too_long(path)) == [f"{path}: 701 lines", f"{path}:61: f has 641 lines"]
