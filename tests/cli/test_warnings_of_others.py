"""What torch, transformers and peft have to say stays with us: nobody can act on it. In processes that load
them anew, as a warning at the import of a library is told once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.paths import BUNDLED
from tests.unit.serving.conftest import random_adapter

pytestmark = [
    pytest.mark.slow,
    # Of the adapter that is made here, in this process.
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
COMMANDS = {
    "eval --model local=tiny-chat --test test.jsonl --limit 2": (
        r"with 2 rows you can detect differences of .*",
        r"local=tiny-chat: 2 requests; costs nothing",
        r"all answers: .*items\.jsonl",
    ),
    "export adapter out --to peft": (
        r"written to .*/out",
        r" *[\d,]+  [0-9a-f]{16}  [\w.]+\.(md|json|jinja|safetensors)",
    ),
}
"""With all that we say beside what is asked for."""


def test_no_line_is_another_library_s(tmp_path: Path, cli_env: dict[str, str]) -> None:
    shutil.copy(BUNDLED / "orders" / "test.jsonl", tmp_path)
    random_adapter(tmp_path / "adapter", seed=3)
    env = {name: value for name, value in cli_env.items() if not name.startswith("PYTHONW")}
    for words, ours in COMMANDS.items():
        asked = [sys.executable, "-m", "orchestrate.cli", *words.split()]
        done = subprocess.run(
            asked, cwd=tmp_path, env=env | {"COLUMNS": "1000"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert lines, "our own notes are there"
        strange = [line for line in lines if not any(re.fullmatch(one, line) for one in ours)]
        assert not strange, words
        assert "Warning" not in done.stdout
