"""Everything that the SDKs and their HTTP libraries log of whole runs, at DEBUG, against a sandbox."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.logged import Logged

from orchestrate.providers.calls import hosted
from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.settings import Secret, hide

WANDB = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
from orchestrate import JobSpec, Orchestrator
models = {"openai": "gpt-4.1-mini", "together": "qwen3.5-9b", "fireworks": "qwen3.5-9b"}
spec = JobSpec(model=models, train="train.jsonl", wandb={"project": "p"})
with Orchestrator() as ft:
    for name in models:
        run = ft.submit(spec, provider=name)
        run.wait(poll_s=0.2)
        if name != "openai":
            run.download(name)
"""


@pytest.mark.slow
def test_no_key_and_no_signed_address_is_logged(tmp_path: Path) -> None:
    row = '{"messages": [{"role": "user", "content": "q%d"}, {"role": "assistant", "content": "a"}]}\n'
    (tmp_path / "train.jsonl").write_text("".join(row % i for i in range(12)))
    own = {"ORCHESTRATE_HOME": str(tmp_path / "home"), "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}
    own |= {f"{name}_LOG": "debug" for name in ("OPENAI", "TOGETHER", "FIREWORKS")}
    with running(home=tmp_path / "sandbox", train=False, speed=100, waits=Durations(file=0.0)) as hosts:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=tmp_path,
            env=os.environ | own | hosts.env | {"WANDB_API_KEY": WANDB},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    log = done.stdout + done.stderr
    for name in ("openai", "together", "fireworks"):
        assert f"DEBUG:{name}._base_client:" in log, "the SDK did log"
    assert "HTTP Request: PUT http" in log and "/_signed/" in log, "so did httpx"
    assert "signature=" not in log
    for secret in (WANDB, *(v for k, v in hosts.env.items() if k.endswith("_API_KEY"))):
        assert secret not in log
    for file in (tmp_path / "home").rglob("*"):
        assert not file.is_file() or WANDB.encode() not in file.read_bytes(), file


@pytest.fixture
def factory():
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


def test_records_of_these_libraries_are_masked_and_others_are_not(factory: None, logged: Logged) -> None:
    secret = Secret("not-like-any-known-key")
    hosted.guard()
    hosted.guard()
    url = "https://h.example/x?signature=abc"
    try:
        raise ValueError(f"{secret.reveal()} at {url}")
    except ValueError:
        logging.getLogger("together.lib.files").exception("sent %s to %s", secret.reveal(), url)
    logging.getLogger("httpx").info("100%% of %(a)s", {"a": url})
    logging.getLogger("mine").info("kept %s", url)
    text = logged.text
    assert text.count("[removed]") == 5 and "signature" not in text.replace(url, "", 1)
    assert secret.reveal() not in text
    assert [r.getMessage() for r in logged.records][1:] == [
        "100% of https://h.example/x?[removed]",
        f"kept {url}",
    ]
    assert json.loads(json.dumps(hide(f"x{secret.reveal()}y"))) == "x[removed]y"
