"""Every snippet of the documentation is run by a test, or says beside it why it is not; and each, run or not,
is what the program takes today: commands with their options, settings, Python."""

from __future__ import annotations

import ast
import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
import yaml
from tests.documented import SHELL, Snippet, snippets
from tests.paths import ROOT
from tests.printed import parsed, words_of

from orchestrate import Orchestrator
from orchestrate.settings import config

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
RUN_BY = {
    "README.md": "tests/e2e/test_readme.py",
    "docs/tutorial.md": "tests/e2e/test_tutorial.py",
    "docs/leaving-openai.md": "tests/e2e/test_leaving_guide.py",
    "docs/ab.md": "tests/cli/test_ab.py",
    "docs/quotes.md": "tests/cli/test_quotes_page.py",
    "docs/evaluation.md": "tests/e2e/test_evaluation_page.py",
    "docs/gateway.md": "tests/e2e/test_pages.py",
    "docs/notebooks.md": "tests/unit/notebook/test_notebook.py",
    "docs/places.md": "tests/unit/places/test_places_page.py",
    "docs/plugins.md": "tests/e2e/test_pages.py",
    "docs/queue.md": "tests/e2e/test_pages.py",
    "docs/trackers.md": "tests/e2e/test_pages.py",
    "docs/ui.md": "tests/e2e/test_pages.py",
    "docs/sessions.md": "tests/unit/sessions/test_server.py",
    "docs/how-to/": "tests/e2e/test_how_to.py",
    "docs/json.md": "tests/e2e/test_how_to.py",
    "docs/guide.md": "tests/e2e/test_how_to.py",
    "examples/": "tests/e2e/test_examples.py",
    "docs/reference/": "tests/unit/docs/test_reference.py",
}
"""Page, or folder of pages -> the test that runs what stands on it, or makes the page from the code."""
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def commands(page: Path) -> Iterator[str]:
    """In its blocks, and within its sentences."""
    for one in snippets(page):
        if one.language in SHELL:
            yield from one.lines
    yield from re.findall(r"`(orchestrate [^`\n]+)`", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_one_that_there_is(name: str) -> None:
    wrong: list[str] = []
    for line in commands(ROOT / name):
        words = words_of(line) if line.startswith("orchestrate ") else []
        while words:
            asked, words = words, []
            if "--" in asked and asked[asked.index("--") + 1 :][:1] == ["orchestrate"]:
                words = asked[asked.index("--") + 1 :]
            try:
                parsed(asked[1:])
            except typer.Exit:  # as --help and --version do
                pass
            except Exception as error:
                wrong.append(f"{line}: {error}")
    assert wrong == []


def offered(module: str, name: str) -> bool:
    """By it, or as a module in it, which need not be imported yet."""
    return hasattr(importlib.import_module(module), name) or find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("name", NAMES)
def test_every_snippet_can_be_read(name: str) -> None:
    for one in snippets(ROOT / name):
        if one.language == "python" and not name.startswith("docs/reference/"):
            for node in ast.walk(ast.parse(one.text)):
                if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("orchestrate."):
                    assert [
                        alias.name for alias in node.names if not offered(str(node.module), alias.name)
                    ] == []
        elif one.language == "toml":
            tomllib.loads(one.text)
        elif one.language == "yaml":
            list(yaml.safe_load_all(one.text))
        elif one.language == "json":
            [json.loads(line) for line in one.text.splitlines() if line.strip()] if one.text.count(
                "\n{"
            ) else json.loads(one.text)


SETTINGS = [(name, one.text) for name in NAMES for one in snippets(ROOT / name) if one.language == "toml"]
PLACES = [f"{name}-{n}" for n, (name, _) in enumerate(SETTINGS)]


@pytest.mark.parametrize(("name", "text"), SETTINGS, ids=PLACES)
def test_every_settings_file_is_read_with_its_hosts(name: str, text: str, tmp_path: Path) -> None:
    """But for a plug-in's own files, and hosts of the kind that it adds."""
    added: set[str] = set()
    for other in [tomllib.loads(told) for page, told in SETTINGS if page == name]:
        added |= {*other.get("project", {}).get("entry-points", {}).get("orchestrate.providers", {})}
    asked = tomllib.loads(text)
    hosts = asked.get("hosts", {})
    if "project" in asked or added & {host.get("type") for host in hosts.values()}:
        return
    file = tmp_path / "orchestrate.toml"
    file.write_text(text)
    env = {"ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}
    with Orchestrator(config.load(env=env, config_file=file, home=tmp_path / "home")) as ft:
        assert [ft.provider(host).name for host in hosts] == [*hosts]
        assert ft.settings.config_file == file


def runner(name: str) -> str | None:
    return next((test for page, test in RUN_BY.items() if name.startswith(page)), None)


def orphans(name: str) -> list[Snippet]:
    """Programs of a page that nothing runs and that do not say why."""
    if runner(name) is not None:
        return []
    programs = [one for one in snippets(ROOT / name) if one.language == "python" or is_shell(one)]
    return [one for one in programs if not one.unrun]


def is_shell(one: Snippet) -> bool:
    return one.language in SHELL[1:] or (
        one.language == "" and any(line.startswith("orchestrate ") for line in one.lines)
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_program_is_run_or_says_why_not(name: str) -> None:
    assert [one.text for one in orphans(name)] == []


def test_those_who_run_pages_are_there() -> None:
    for page, test in RUN_BY.items():
        assert (ROOT / page).exists()
        text = (ROOT / test).read_text(encoding="utf-8")
        assert Path(page).name.removesuffix(".md") in text or "FOLDER" in text, f"{test} does not read {page}"
