"""The README as the package index shows it, which has none of this repository's files."""

from __future__ import annotations

import re

import pytest
from tests.paths import ROOT
from tests.printed import visible


def test_the_package_index_renders_it_whole() -> None:
    markdown = pytest.importorskip("readme_renderer.markdown")  # that of the index itself
    source = (ROOT / "README.md").read_text(encoding="utf-8")
    page = markdown.render(source)
    targets = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert len(targets) > 20 and all(target.startswith(("https://", "#")) for target in targets), targets
    headings = re.findall(r"^#{1,2} ", re.sub(r"^```.*?^```", "", source, flags=re.M | re.S), re.MULTILINE)
    assert page.count("<h1") + page.count("<h2") == len(headings)
    assert page.count("<pre") == source.count("\n```") // 2, "every block of code is one"
    assert page.count("<table") == len(re.findall(r"^\|[ -|]*---", source, re.MULTILINE))
    assert page.count("<img") == source.count("![")


@pytest.mark.slow
def test_each_command_is_named_in_the_readme_or_on_a_page() -> None:
    docs = ROOT / "docs"
    pages = [ROOT / "README.md", *docs.glob("*.md"), *(docs / "how-to").glob("*.md")]
    said = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = [" ".join(words) for words in visible() if words]
    assert len(named) > 80
    assert [name for name in named if not re.search(rf"(orchestrate |`){re.escape(name)}\b", said)] == []
