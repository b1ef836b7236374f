"""The tables of figures are those that their script makes of what was measured."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_no_figure_was_written_by_hand() -> None:
    script = runpy.run_path(str(DOCS / "figures.py"))
    written = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    named = {block["name"] for block in script["BLOCK"].finditer(written)}
    measured = {path.stem for path in (DOCS / "figures").glob("*.json")}
    assert measured and measured <= named
    assert script["page"](written) == written, "run python docs/figures.py"


def test_what_was_copied_gives_way_to_the_table_of_what_was_measured() -> None:
    page = runpy.run_path(str(DOCS / "figures.py"))["page"]
    copied = "<!-- from figures/{}.json -->\n1 s\n<!-- end -->\n"
    assert "1 s" not in page(copied.format("tracking"))
    assert page(copied.format("nothing")) == copied.format("nothing")
