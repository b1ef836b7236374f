"""The command without any extra: what it does then, and which line installs what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.paths import ROOT

EXTRAS = ("numpy", "torch", "transformers", "peft", "bitsandbytes", "starlette", "uvicorn")
EXTRAS += ("pyarrow", "fsspec", "rensa", "hyperscan", "langdetect", "psycopg")
BARE = f"""
import gc, json, os, sys
gc.disable()
sys.modules.update(dict.fromkeys({EXTRAS}))
import orchestrate.data.operations.check, orchestrate.runs.preparing.pricing, orchestrate.api.orchestrator
import orchestrate.spec.specfile
import orchestrate.store.store
from orchestrate.costing import built_in
from orchestrate.data.tokens.counters import batch_counter
from orchestrate.cli import main
built_in()
for vocabulary in ("o200k_base", "qwen3.5"):
    batch_counter(vocabulary)(["warm"])
gc.enable()
gc.freeze()
for line in sys.stdin:
    words, folder, env, *streams = json.loads(line)
    child = os.fork()
    if not child:
        for number, path in enumerate([os.devnull, *streams]):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = ["orchestrate", *words]
        main()
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""For each line with a command a process where no extra is, forked from one that has imported the rest."""
ROWS = [
    [{"role": "user", "content": f"q{i % 9}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(20)
]


@pytest.fixture(scope="module")
def bare() -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", BARE], **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def base(bare: subprocess.Popen[str], tmp_path: Path, cli_env: dict[str, str]):
    lines = [json.dumps({"messages": row}) + "\n" for row in [*ROWS, ROWS[3]]]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    (tmp_path / "valid.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "finetune.yaml").write_text("model: qwen3.5-9b\ntrain: train.jsonl\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        streams = [tmp_path / f"{name}-{time.monotonic_ns()}" for name in ("out", "err")]
        print(
            json.dumps([arguments, str(tmp_path), cli_env, *map(str, streams)]), file=bare.stdin, flush=True
        )
        code = int(bare.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, *(path.read_text() for path in streams))

    return run


@pytest.mark.parametrize(
    "arguments",
    ["--help", "plan -p together", "check -p together", "quote -p together", "data inspect train.jsonl",
     "data convert train.jsonl --to sharegpt", "doctor", "local memory 8B",
     *(pytest.param(line, marks=pytest.mark.slow) for line in (
        "init new", "runs", "models", "prices list -p together", "data dedupe train.jsonl --dry-run",
        "data split train.jsonl --no-near", "providers", "sync"))],
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
    assert "or use --no-near" in base("data", "split", "train.jsonl").stderr
    checked = base("data", "check", "train.jsonl", "--validation", "valid.jsonl")
    assert "near-duplicates across splits were not checked" in checked.stderr


def test_rows_are_compared_as_they_are_with_numpy(base, cli) -> None:
    words = ("data", "check", "train.jsonl", "--validation", "valid.jsonl", "--for", "together", "--json")
    bare, whole = base(*words), cli(*words)
    assert bare.returncode == whole.code
    told = json.loads(bare.stdout)
    assert {p["code"] for p in told["report"]["problems"]} >= {"duplicate", "conflict", "leakage"}
    assert told["report"]["problems"] == whole.json["report"]["problems"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_older_python_is_told_so_in_one_line(tmp_path: Path) -> None:
    """Before anything of it is installed: pip's own words would be about some dependency."""
    old = tmp_path / "python3.10"
    say = "import sys; sys.version_info = (3, 10, 13); exec(sys.argv[1])"
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{say}' \"$2\"\n")
    old.chmod(0o755)
    made = ["make", "demo", f"PYTHON={old}", f"VENV={tmp_path}/made"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(made, cwd=ROOT, env=env, capture_output=True, text=True)
    told, makes = done.stderr.splitlines()
    assert done.returncode == 2 and told.startswith("Python 3.11 or newer is needed") and "make: ***" in makes
    assert not (tmp_path / "made").exists()
