"""The documentation's site: built in strict mode, with each page, and every link of it leads somewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from tests.paths import ROOT

DOCS = ROOT / "docs"


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(given["id"] or "")
        link = given.get("href") if tag == "a" else given.get("src")
        if link and not urlsplit(link).scheme and not link.startswith("//"):
            self.links.add(link)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(DOCS, folder / "docs")
    (folder / "mkdocs.yml").write_bytes((ROOT / "mkdocs.yml").read_bytes())
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((folder / "site").rglob("*.html"))
    return {page.resolve(): Page(page.read_text()) for page in pages}


def files_of(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [file for part in parts for file in files_of(part)]


def test_every_page_of_the_documentation_is_in_its_list() -> None:
    listed = files_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.slow
def test_every_link_leads_somewhere(site: dict[Path, Page]) -> None:
    root = Path(*next(iter(site)).parts[: next(iter(site)).parts.index("site") + 1])
    dead: list[str] = []
    for path, page in site.items():
        if path.name == "404.html":  # its links are those of a host's root
            continue
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            known = site.get(target)
            wrong_anchor = (
                parts.fragment and known is not None and unquote(parts.fragment) not in known.anchors
            )
            if not target.exists() or wrong_anchor:
                dead.append(f"{path.relative_to(root)}: {link}")
    assert len(site) > 10
    assert dead == []
