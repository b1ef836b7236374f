"""`make demo`, as it is run by a newcomer: it ends well, and the tuned models are better by real training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Cli
from tests.paths import ROOT

pytestmark = pytest.mark.slow


def test_the_demo(tmp_path: Path, cli: Cli) -> None:
    home = tmp_path / "home"  # the `cli` fixture's home, so that its runs can be asked about
    words = [sys.executable, str(ROOT / "examples/demo.py"), "--home", str(home)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SANDBOX" in done.stdout
    runs = [*cli("runs", "--json").json, *cli("runs", "--sandbox", "--json").json]
    assert {run["provider"]: run["sandbox"] for run in runs} == {
        "local": False,
        "openai": True,
        "together": True,
        "fireworks": True,
    }
    for run in runs:
        [result] = cli("show", run["id"], "--offline", "--json").json["evaluations"]
        tuned, rival = (
            next(m["score"] for m in result["measures"] if m["contender"] == name)
            for name in (run["id"], next(d["against"] for d in result["differences"]))
        )
        assert tuned["n"] == 200
        assert tuned["low"] > rival["high"] + 0.3, run["provider"]
        assert {v["contender"]: v["decision"] for v in result["verdicts"]}[run["id"]] == "ship"
    report = (home / "report.html").read_text()
    assert "SANDBOX" in report and "http://" not in report.replace("http://127.0.0.1", "").replace(
        "http://www.w3.org", ""
    )
    asked = json.loads((ROOT / "fixtures/datasets/orders/test.jsonl").read_text().splitlines()[0])
    assert json.loads(asked["messages"][-1]["content"]).keys() == json.loads(last_json(done.stdout)).keys()


def last_json(text: str) -> str:
    return [line for line in text.splitlines() if line.startswith("{")][-1]
