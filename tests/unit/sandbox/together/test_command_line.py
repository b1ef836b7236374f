"""Together's own command line against the sandbox, with what it sends by its defaults."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrate.sandbox.server import Sandbox

pytestmark = pytest.mark.slow
MODEL = "Qwen/Qwen3.5-9B"
COMMAND = str(Path(sys.executable).parent / "together")


@pytest.fixture
def together(sandbox: Sandbox, tmp_path: Path) -> Callable[..., str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOGETHER_")}
    env = {**kept, **sandbox.env, "HOME": str(tmp_path), "TOGETHER_TELEMETRY_DISABLED": "1"}

    def run(*words: str) -> str:
        asked = [COMMAND, "--non-interactive", *words]
        done = subprocess.run(asked, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def upload(together: Callable[..., str], tmp_path: Path, sandbox: Sandbox) -> Callable[..., str]:
    def send(rows: list[dict[str, object]]) -> str:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        id = json.loads(together("files", "upload", "rows.jsonl", "--json"))["id"]
        sandbox.skip(60)
        return str(id)

    return send


def created(told: str) -> str:
    found = re.search(r"ft-[0-9a-f-]{36}", told)
    assert found, told
    return found[0]


def talk(n: int) -> list[dict[str, object]]:
    return [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]


def test_preference_jobs_with_and_without_a_loss_of_their_own(
    together: Callable[..., str], upload: Callable[..., str], sandbox: Sandbox
) -> None:
    pairs: list[dict[str, object]] = [
        {
            "input": {"messages": talk(n)[:1]},
            "preferred_output": talk(n)[1:],
            "non_preferred_output": talk(0)[1:],
        }
        for n in range(1, 13)
    ]
    file = upload(pairs)
    dpo = ("ft", "create", "--training-file", file, "--model", MODEL, "--training-method", "dpo", "--confirm")
    created(together(*dpo))
    created(together(*dpo, "--dpo-beta", "0"))
    assert sandbox.requests("together", method="POST")[-1]["body"]["training_method"]["dpo_beta"] == 0
    created(together(*dpo, "--simpo-gamma", "0.5"))
    assert sandbox.requests("together", method="POST")[-1]["body"]["training_method"]["simpo_gamma"] == 0.5


def test_a_tokenized_dataset_and_an_endpoint(
    together: Callable[..., str], upload: Callable[..., str], sandbox: Sandbox, tmp_path: Path
) -> None:
    file = upload([{"messages": talk(n)} for n in range(12)])
    job = created(together("ft", "create", "--training-file", file, "--model", MODEL, "--confirm"))
    sandbox.skip(3600)
    together("ft", "download-tokenized-dataset", job, "--output-dir", str(tmp_path / "tokens"))
    [archive] = (tmp_path / "tokens").iterdir()
    rows = [json.loads(line) for line in archive.read_text().splitlines()]
    assert len(rows) == 12 and all(len(r["input_ids"]) == len(r["labels"]) for r in rows)
    together("endpoints", "deploy", MODEL, "--endpoint", "mine", "--json")
    told = json.loads(together("endpoints", "get", "mine", "--json"))
    assert [d["modelId"] for d in told["deployments"]] == [MODEL]
