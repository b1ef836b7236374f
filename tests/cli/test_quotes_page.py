"""docs/quotes.md is what its commands print: the same tables, backends and models, whatever prices do."""

from __future__ import annotations

import re
import shlex

import pytest
from tests.cli.conftest import Cli
from tests.paths import BUNDLED, ROOT

PAGE = (ROOT / "docs" / "quotes.md").read_text()
SECTIONS = re.findall(r"^```sh\norchestrate ([^\n]+)\n```\n\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
ALWAYS_OPEN = {"OPENAI_API_KEY": "sandbox-tests", "OPENAI_BASE_URL": "http://127.0.0.1:9"}
"""OpenAI takes no new jobs from 2027-01-06 on; a sandbox goes on quoting. Nothing is sent there."""


def tables(text: str) -> list[tuple[str, dict[str, str]]]:
    """Each table's header, and the model of each backend in it."""
    found: list[tuple[str, dict[str, str]]] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text + "\n", re.MULTILINE):
        head, _, *rows = block.strip().splitlines()
        cells = [[cell.strip() for cell in row.split("|")] for row in rows]
        found.append((head, {row[1]: row[2] for row in cells}))
    return found


def test_the_page_has_its_commands() -> None:
    assert len(SECTIONS) == 3
    assert re.search(r"Made on \d{4}-\d\d-\d\d by `python docs/quotes.py`", PAGE)
    assert "AWS" in PAGE, "what is not there is said"


@pytest.mark.parametrize(("command", "printed"), SECTIONS, ids=["tiny", "serving", "pairs"])
def test_each_command_prints_what_the_page_shows(cli: Cli, command: str, printed: str) -> None:
    now = cli(*shlex.split(command), cwd=BUNDLED / "orders", **ALWAYS_OPEN)
    assert now.code == 0, now.err
    expected = tables(printed)
    # a backend has a row of its own, and one for each other place that is shown to serve its adapter
    trainers = [{place.partition(",")[0] for place in models} for _, models in expected]
    assert expected and all(len(names) == 4 for names in trainers)
    assert tables(now.out.replace(" (sandbox)", "")) == expected, "the page quotes the real host"


def test_every_provider_of_prices_is_listed() -> None:
    from orchestrate.costing import built_in

    listed = {row for head, rows in tables(PAGE) if head.startswith("| provider |") for row in rows}
    assert listed == {rate.provider for rate in built_in()}


def test_a_tokenizer_on_this_machine_is_not_named_by_its_path(cli: Cli) -> None:
    done = cli("quote", "--provider", "local", cwd=BUNDLED / "orders")
    said = " ".join((done.out + done.err).split())
    assert "counted with the model's own tokenizer; 3 epochs" in said and "hf:" not in said
