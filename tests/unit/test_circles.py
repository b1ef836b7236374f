"""Modules that import one another are hard to read and to load: few circles exist, and no more may come."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Set

import pytest
from tests import sources

MOST = {"at import": 0, "with late imports": 2, "with those of types": 5}
"""How many circles, by which imports count; each kind includes the ones before it."""
KINDS = tuple(MOST)
Arrows = dict[str, dict[str, int]]
"""Module -> what it imports -> the first of `KINDS` in which that counts."""


def arrows(modules: Mapping[str, Iterable[ast.AST]]) -> Arrows:
    names = {module(file) for file in modules}
    found: Arrows = {name: {} for name in names}
    for file, nodes in modules.items():
        kinds = dict[ast.AST, int]()
        for node in (nodes := list(nodes)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                kinds |= {inner: max(1, kinds.get(inner, 0)) for inner in ast.walk(node)}
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                kinds |= {inner: 2 for one in node.body for inner in ast.walk(one)}
        for node in nodes:
            for name in imported(node):
                to = name if name in names else name.rpartition(".")[0]
                if to in names and to != module(file):
                    kind = kinds.get(node, 0)
                    found[module(file)][to] = min(kind, found[module(file)].get(to, kind))
    return found


def module(file: str) -> str:
    return f"orchestrate/{file}".removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def circles(found: Arrows, kind: int) -> set[frozenset[str]]:
    """The groups of modules of which each is reached from each other one."""
    names = sorted(found)
    reached = [sum(1 << names.index(to) for to, k in found[name].items() if k <= kind) for name in names]
    for through in range(len(names)):
        for i, reach in enumerate(reached):
            if reach >> through & 1:
                reached[i] |= reached[through]
    return {
        frozenset(names[j] for j in range(len(names)) if reached[i] >> j & 1 and reached[j] >> i & 1)
        for i in range(len(names))
        if reached[i] >> i & 1
    }


@pytest.fixture(scope="module")
def of_src() -> Arrows:
    return arrows(sources.nodes())


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_modules_import_one_another(of_src: Arrows, kind: str) -> None:
    found = circles(of_src, KINDS.index(kind))
    assert len(found) <= MOST[kind], "\n".join(" - ".join(sorted(circle)) for circle in found)


def parsed(**modules: str) -> Mapping[str, Iterable[ast.AST]]:
    return {f"{name}.py": ast.walk(ast.parse(text)) for name, text in modules.items()}


def named(found: Set[frozenset[str]]) -> list[list[str]]:
    return [sorted(name.removeprefix("orchestrate.") for name in circle) for circle in found]


def test_a_circle_is_seen_by_the_imports_that_make_it() -> None:
    late = "def f():\n    from orchestrate import a"
    types = "if TYPE_CHECKING:\n    from orchestrate.c import C"
    found = arrows(parsed(a="from orchestrate.b import B", b=late, c="import orchestrate.b", d=types))
    assert [named(circles(found, kind)) for kind in range(3)] == [[], [["a", "b"]], [["a", "b"]]]
    found = arrows(parsed(a="from orchestrate.c import C", b="import orchestrate.a", c=types, d=""))
    assert [named(circles(found, kind)) for kind in range(3)] == [[], [], []]
    found = arrows(parsed(a="from orchestrate import c", c="if TYPE_CHECKING:\n    import orchestrate.a"))
    assert [named(circles(found, kind)) for kind in range(3)] == [[], [], [["a", "c"]]]
