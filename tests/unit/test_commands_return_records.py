"""A command returns its record: the decorator alone decides between JSON and the view."""

from __future__ import annotations

import ast
from pathlib import Path

import orchestrate.commands

HOUSE = Path(orchestrate.commands.__file__).parent
PRINTER = HOUSE / "terminal"
ASKED = {
    "data/copies.py": "rows and JSON cannot both go to standard output",
    "runs/spending.py": "what is to be agreed to is listed before there is a record",
    "training/submit.py": "errors of one backend are told while the others go on",
}
"""Modules that ask whether JSON is printed, with the reason."""


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _attributes(tree: ast.AST) -> set[str]:
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_no_command_branches_on_json_or_reads_its_own_command_line() -> None:
    asking: set[str] = set()
    for file in HOUSE.rglob("*.py"):
        if PRINTER in file.parents:
            continue
        tree, place = ast.parse(file.read_text(encoding="utf-8")), file.relative_to(HOUSE).as_posix()
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        taken = {arg.arg for f in functions for arg in (*f.args.args, *f.args.kwonlyargs)}
        assert "json" not in taken and "as_json" not in taken, f"{place}: let it return an Output"
        assert "sys.argv" not in _attributes(tree), place
        if "prints_json" in _names(tree):
            asking.add(place)
        if place != "setup/schema.py":
            assert "print_json" not in _names(tree), f"{place}: let it return an Output"
    assert asking == set(ASKED)
