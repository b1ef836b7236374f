"""The command without any extra: what it does then, and which line installs what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXTRAS = ("numpy", "torch", "transformers", "peft", "bitsandbytes", "starlette", "uvicorn")
EXTRAS += ("pyarrow", "fsspec", "rensa", "hyperscan", "langdetect", "psycopg")
START = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); from orchestrate.cli import main; main()"
ROWS = [
    [{"role": "user", "content": f"q{i % 9}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(20)
]


@pytest.fixture
def base(tmp_path: Path, cli_env: dict[str, str]):
    lines = [json.dumps({"messages": row}) + "\n" for row in [*ROWS, ROWS[3]]]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    (tmp_path / "valid.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "finetune.yaml").write_text("model: qwen3.5-9b\ntrain: train.jsonl\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", START, *arguments]
        return subprocess.run(words, cwd=tmp_path, env=cli_env, capture_output=True, text=True, input="")

    return run


@pytest.mark.parametrize(
    "arguments",
    ["--help", "init new", "plan -p together", "check -p together", "quote -p together", "runs", "models",
     "prices list -p together", "data inspect train.jsonl", "data dedupe train.jsonl --dry-run", "doctor",
     "data split train.jsonl --no-near", "data convert train.jsonl --to sharegpt",
     "providers", "local memory 8B", "sync"],
)  # fmt: skip
def test_it_works_without_extras(base, arguments: str) -> None:
    done = base(*arguments.split())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("sandbox run -- true", "sandbox"),
        ("local bench", "local"),
        ("data convert train.jsonl --to parquet", "data"),
        ("data dedupe train.jsonl --near", "data"),
        ("data split train.jsonl", "data"),
        ("data check train.jsonl --near", "data"),
        ("--store postgresql://user@host/x runs", "postgres"),
    ],
)
def test_what_is_missing_is_said_with_the_line_that_installs_it(base, arguments: str, extra: str) -> None:
    done = base(*arguments.split())
    assert done.returncode == 3 and f"pip install 'orchestrate-ft[{extra}]'" in done.stderr


def test_without_packages_what_is_left_out_is_said_with_the_option_that_does_without(base) -> None:
    assert "or --no-near" in base("data", "split", "train.jsonl").stderr
    checked = base("data", "check", "train.jsonl", "--validation", "valid.jsonl")
    assert "nearly equal rows is not looked for" in checked.stderr


def test_rows_are_compared_as_they_are_with_numpy(base, cli) -> None:
    words = ("data", "check", "train.jsonl", "--validation", "valid.jsonl", "--for", "together", "--json")
    bare, whole = base(*words), cli(*words)
    assert bare.returncode == whole.code
    told = json.loads(bare.stdout)
    assert {p["code"] for p in told["report"]["problems"]} >= {"duplicate", "conflict", "leakage"}
    assert told["report"]["problems"] == whole.json["report"]["problems"]
