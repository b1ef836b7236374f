"""A host is named in its own folders only: what others need of it, its profile and its classes tell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from tests import sources

from orchestrate.data.shapes.known import BY_NAME
from orchestrate.profile import DESCRIBED, built_in, described, this_machine

HOME = this_machine().kind
AWAY = [kind for kind in [*built_in(), *described()] if kind != HOME]
FORMATS = "|".join(sorted(BY_NAME, key=len, reverse=True))
NAMED = re.compile(rf"(?<![a-z])({'|'.join(AWAY)})(?![a-z])", re.IGNORECASE)
AS_BACKEND = re.compile(rf"(--provider|-p|provider_options[.:\s{{]+)[\s=]*{HOME}\b")
"""The word `local` is also an extra, an engine and a package; it is the backend where one is meant."""
TAKES_A_BACKEND = re.compile(r"provider|profile|host|backend|resolve|ids|kind|target", re.IGNORECASE)


def mentions(text: str) -> bool:
    if not any(kind in text.lower() for kind in (*AWAY, HOME)):
        return False  # most texts: a look is faster than a pattern
    return bool(NAMED.search(re.sub(f"{FORMATS}|{DESCRIBED}", "", text)) or AS_BACKEND.search(text))


def in_code(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and text of each string, aside from docstrings and the help of commands, and of each import of a
    host's folder."""
    quiet: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Expr):
            quiet.add(id(node.value))  # docstrings, of fields too
        if isinstance(node, ast.keyword) and node.arg == "help":
            quiet.update(map(id, ast.walk(node.value)))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "EXAMPLES":
            quiet.update(map(id, ast.walk(node.value)))  # the last lines of each command's help
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in quiet:
            if mentions(node.value):
                yield node.lineno, node.value
        elif isinstance(node, ast.ImportFrom):
            for module in (node.module or "", *(f"{node.module}.{name.name}" for name in node.names)):
                if re.match(rf"orchestrate\.(providers|sandbox)\.({'|'.join(built_in())})\b", module):
                    yield node.lineno, module
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and mentions(
            node.name.strip("_").replace("_", "-")
        ):
            yield node.lineno, node.name
        yield from standing_for_backend(node)


def standing_for_backend(node: ast.AST) -> Iterator[tuple[int, str]]:
    """This machine's kind, compared with, given as or looked up as the name of a backend."""
    match node:
        case ast.Compare(left=left, comparators=others):
            about, values = left, others
        case ast.Call(func=about, args=args, keywords=keywords):
            values = [*args, *(one.value for one in keywords)]
        case ast.Subscript(value=about, slice=key):
            values = [key]
        case _:
            return
    word = about.attr if isinstance(about, ast.Attribute) else getattr(about, "id", "")
    if TAKES_A_BACKEND.search(word):
        for value in values:
            if isinstance(value, ast.Constant) and value.value == HOME:
                yield value.lineno, f"{word}: {HOME}"


def shared() -> Iterator[str]:
    for path in sources.nodes():
        room, _, rest = path.partition("/")
        if room == "catalog" or (room in ("providers", "sandbox") and rest.partition("/")[0] in built_in()):
            continue
        if not path.startswith("http/wire/"):  # the formats of an API, whoever speaks it
            yield path


def test_no_shared_module_names_a_host() -> None:
    found = [
        f"{path}:{line}: {text[:80]!r}" for path in shared() for line, text in in_code(sources.nodes()[path])
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        'URL = "https://api.openai.com/v1"',
        'if run.provider == "local": pass',
        'found = resolve("tiny-chat", "local")',
        'raise UsageError("no", fix="orchestrate quote --provider local")',
        'note("Together serves on dedicated endpoints only")',
        'if host.kind == "azure": pass',
        "def fireworks_models(): ...",
        "from orchestrate.providers.openai.provider import OpenAI",
        "from orchestrate.sandbox import together",
    ],
)
def test_a_host_that_is_named_is_found(code: str) -> None:
    assert list(in_code([*ast.walk(ast.parse(code))]))


@pytest.mark.parametrize(
    "code",
    [
        '"""How OpenAI signs."""',
        'FORMAT = "openai-chat"',
        'raise MissingExtra("local", "training", "torch")',
        'typer.Option(help="A backend, as in together.")',
        'note("put altogether")',
    ],
)
def test_what_is_no_host_is_let_through(code: str) -> None:
    assert not list(in_code([*ast.walk(ast.parse(code))]))
