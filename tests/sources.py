"""What is written in `src`, parsed once in each process of the tests: a pass over it takes seconds."""

from __future__ import annotations

import ast
import gc
from functools import cache
from pathlib import Path

from tests.paths import ROOT

SOURCE = ROOT / "src" / "orchestrate"


@cache
def nodes() -> dict[str, list[ast.AST]]:
    """By a module's path in `SOURCE`: all its nodes as `ast.walk` gives them, the module itself first."""
    found = {name(path): [*ast.walk(ast.parse(path.read_bytes()))] for path in sorted(SOURCE.rglob("*.py"))}
    gc.freeze()  # it stays to the end, and no collection of garbage has to look through it
    return found


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()
