"""The Python at the end of each page: what it imports and calls is there."""

from __future__ import annotations

import ast
import html
import re
from importlib import import_module

from starlette.testclient import TestClient
from tests.unit.ui.conftest import MakeRun, ended

from orchestrate import Orchestrator


def scripts(web: TestClient, *paths: str) -> dict[str, str]:
    """Of these pages and all that they lead to, by address."""
    waiting, seen, found = list(paths), set(paths), dict[str, str]()
    while waiting:
        text = web.get(path := waiting.pop()).text
        for block in re.findall(r"<pre[^>]*>(.*?)</pre>", text, re.DOTALL):
            if (python := html.unescape(re.sub(r"<[^>]+>", "", block))).startswith("from orchestrate"):
                found[path] = python
        links = {html.unescape(link).partition("#")[0] for link in re.findall(r'href="(/[^"]*)"', text)}
        new = {link for link in links if "?" not in link and not link.startswith("/static")} - seen
        waiting, seen = [*waiting, *new], seen | new
    return found


def test_what_it_imports_and_calls_is_there(web: TestClient, make_run: MakeRun) -> None:
    make_run("going", points=2)
    make_run("done", **ended())
    found = scripts(web, "/")
    pages = {path.rstrip("/").rpartition("/")[2] for path in found}
    assert {"", "money", "quote", "data", "tokens", "new", "queue", "sweeps", "deployments"} <= pages
    missing: list[str] = []
    for path, python in found.items():
        names: dict[str, object] = {"ft": Orchestrator}
        for node in ast.walk(ast.parse(python)):
            if isinstance(node, ast.ImportFrom):
                module = import_module(node.module or "")
                names |= {one.name: getattr(module, one.name, None) for one in node.names}
        missing += [f"{path}: {name}" for name, value in names.items() if value is None]
        for node in ast.walk(ast.parse(python)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = names.get(node.value.id)
                if owner is not None and node.attr != "store" and not hasattr(owner, node.attr):
                    missing.append(f"{path}: {node.value.id}.{node.attr}")
    assert not missing
