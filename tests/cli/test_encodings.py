"""Terminals and redirects that have not all characters: no command ends, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests import forking
from tests.cli.conftest import Cli

ENCODINGS = ("utf-8", "cp1252", "latin-1", "ascii")
TEXT = "Łódź → 日本 🚀 “x” …"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    rows = [
        [{"role": "user", "content": f"{TEXT} {n}"}, {"role": "assistant", "content": f"{n} naïve"}]
        for n in range(12)
    ]
    lines = [json.dumps({"messages": row, "Überschrift": TEXT}, ensure_ascii=False) for row in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "finetune.yaml").write_text(
        f"model: {{openai: gpt-4.1-mini, together: qwen3.5-9b}}\ntrain: train.jsonl\ntags: {{'{TEXT}': x}}\n",
        encoding="utf-8",
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_process_writes_in_any_encoding(project: Path, cli_env: dict[str, str], encoding: str) -> None:
    def said(*words: str) -> bytes:
        env = cli_env | {"PYTHONIOENCODING": encoding, "COLUMNS": "100"}
        # One is an interpreter of its own, which sets its streams up itself.
        python = sys.executable if encoding == "cp1252" else forking.python()
        command = [python, "-m", "orchestrate.cli", *words]
        done = subprocess.run(command, cwd=project, env=env, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = said("data", "inspect", "train.jsonl").decode(encoding)
    assert ("█" if encoding == "utf-8" else "####") in shown
    told = json.loads(said("data", "check", "train.jsonl", "--json").decode(encoding))
    assert "Überschrift" in json.dumps(told, ensure_ascii=False)


@pytest.mark.parametrize(
    "words",
    [
        "check", "plan", "plan --all", "quote", "quote --format md", "runs", "models",
        "models show qwen3.5-9b", "prices", "providers", "plugins", "keys", "doctor", "spending",
        "data inspect train.jsonl",
        "data check train.jsonl", "data preview train.jsonl --model tiny-chat",
        "data convert train.jsonl --to sharegpt -o out.jsonl", "advise train.jsonl", "data split train.jsonl",
        f"show {TEXT.split()[0]}", f"data inspect {TEXT.split()[0]}", "--help", "quote --help",
    ],
)  # fmt: skip
def test_no_command_fails_for_an_encoding(cli: Cli, project: Path, words: str) -> None:
    """In the poorest of them."""
    del project
    usual = cli(*words.split())
    done = cli(*words.split(), PYTHONIOENCODING="ascii")
    assert done.code == usual.code and "bug:" not in done.err
    assert done.out or done.err
