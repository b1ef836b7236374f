"""The search of the built site finds pages for what users type. It takes a section in which every word is the
beginning of one of its words, as the site's own script does."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.paths import ROOT

QUESTIONS = {
    "tool calling": "prepare-data",
    "how do I stop billing": "budget|answers|troubleshooting",
    "ModuleNotFoundError": "troubleshooting",
    "delete my data": "privacy|answers",
    "out of memory": "troubleshooting",
    "proxy certificate": "troubleshooting",
    "laptop died resume": "troubleshooting|answers",
    "csv columns": "prepare-data",
    "ORCHESTRATE_STORE": "reference/configuration",
    "share runs team postgres": "team|answers",
    "vision images": "prepare-data|answers",
    "how much does fine-tuning cost": "answers|quotes",
    "OpenAI evals shut down": "leaving-openai",
    "call the tuned model from my app": "answers",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=folder, check=True)
    return json.loads((folder / "site" / "search.json").read_text(encoding="utf-8"))


def found(index: dict[str, Any], query: str) -> list[str]:
    separator = re.compile(index["config"]["separator"])

    def words(text: str) -> set[str]:
        plain = html.unescape(re.sub(r"<[^>]+>", " ", text)).lower()
        return {word for word in separator.split(plain) if word}

    asked = words(query)
    places: list[str] = []
    for item in index["items"]:
        known = words(" ".join([item["title"], item["text"], *item["path"]]))
        if all(any(word.startswith(one) for word in known) for one in asked):
            places.append(item["location"])
    return places


@pytest.mark.slow
def test_every_question_finds_its_page(index: dict[str, Any]) -> None:
    missed = {
        query: found(index, query)[:5]
        for query, page in QUESTIONS.items()
        if not any(re.search(page, place) for place in found(index, query))
    }
    assert missed == {}


@pytest.mark.slow
def test_words_that_stand_nowhere_find_nothing(index: dict[str, Any]) -> None:
    assert found(index, "xylophone quartet") == []


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    pages = {str(Path(page).relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages == listed
