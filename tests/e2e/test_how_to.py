"""The how-to pages from a clean machine: every file, command and program of each, in its order."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests import command
from tests.documented import SHELL, Snippet, environment, snippets
from tests.paths import ROOT

pytestmark = pytest.mark.slow

PAGES = [
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
    ROOT / "docs" / "json.md",
    ROOT / "docs" / "guide.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    env = environment(tmp_path)
    told = [ran(one, folder, env) for one in snippets(page) if not one.unrun]
    assert sum(map(len, told)) > 1
    said = "".join(text for texts in told for text in texts)
    for words in EXPECTED[page.stem]:
        assert words in said, words


EXPECTED = {
    "guide": ["goal format", "adapter.r", "served on dedicated GPUs", "over 6 months"],
    "switch-backend": ["nothing is refused", "SANDBOX", "together "],
    "first-qlora": ["train_loss", "4 steps"],
    "own-prices": ["our contract of 2026-11-01", "rates.yaml"],
    "budget": ["$50.00", "exceeds", "no hourly billing"],
    "offline": ["succeeded"],
    "notifications": ["succeeded"],
    "large-data": ["ready", "median"],
    "answers": ["check", "python"],
    "prepare-data": ["openai-chat", "track 1", "3 valid", "⟦It is on its way.<|im_end|>⟧"],
    "configuration": ["of $100", "budget"],
    "team": ["succeeded"],
    "troubleshooting": ["overhead", "together"],
    "privacy": ["model", "file-", "SANDBOX"],
    "json": ["$schema"],
}
"""What somebody who follows a page sees."""


def ran(one: Snippet, folder: Path, env: dict[str, str]) -> list[str]:
    """What it printed. A block with a file's name before it is that file."""
    if re.fullmatch(r"[\w.-]+\.\w+", one.note):
        (folder / one.note).write_text(one.text)
        return []
    if one.language == "python":
        done = subprocess.run(
            [sys.executable, "-c", one.text], cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [done.stdout]
    assert one.language in SHELL and one.lines, one
    codes = [int(code) for code in one.note.partition(":")[0].removeprefix("exit ").split()] or [0]
    told: list[str] = []
    for line in one.lines:
        program, *words = shlex.split(line)
        assert program == "orchestrate", line
        ended = command.run(words, cwd=folder, env=env)
        assert ended.code in codes, f"{line}\n{ended.out.decode()}\n{ended.err.decode()}"
        told.append(ended.out.decode() + ended.err.decode())
    return told
