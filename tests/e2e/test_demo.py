"""`orchestrate demo`, as a newcomer runs it: it ends well, and its tuned models are better by training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Cli
from tests.paths import BUNDLED


@pytest.mark.slow
def test_the_demo(tmp_path: Path, cli: Cli) -> None:
    module = tmp_path / "shown" / "msgspec.py"  # of a folder that came from elsewhere
    module.parent.mkdir()
    module.write_text("raise SystemExit('a module of the folder ran')\n")
    done = cli("demo", "shown")
    assert done.code == 0, done.out + done.err
    beside_keys = {"keys.toml", "trusted.json", "trusted.lock"}
    assert [path.name for path in tmp_path.iterdir() if path.name not in beside_keys] == ["shown"], (
        "nothing elsewhere"
    )
    assert "SANDBOX" in done.out and str(tmp_path / "shown") in done.err
    assert "continue with:  unset ORCHESTRATE_HOME; cd shown; orchestrate runs --sandbox" in done.out
    folder, own = tmp_path / "shown", {"ORCHESTRATE_HOME": ""}
    listed = [cli("runs", *scope, "--json", cwd=folder, **own).json for scope in ([], ["--sandbox"])]
    runs = [run for found in listed for run in found]
    assert {run["provider"]: run["sandbox"] for run in runs} == {
        "local": False,
        "openai": True,
        "together": True,
        "fireworks": True,
    }
    for run in runs:
        [result] = cli("show", run["id"], "--offline", "--json", cwd=folder, **own).json["evaluations"]
        tuned, rival = (
            next(m["score"] for m in result["measures"] if m["contender"] == name)
            for name in (run["id"], next(d["against"] for d in result["differences"]))
        )
        assert tuned["n"] == 200
        assert tuned["low"] > rival["high"] + 0.3, run["provider"]
        assert {v["contender"]: v["decision"] for v in result["verdicts"]}[run["id"]] == "ship"
    report = (folder / "report.html").read_text()
    assert "SANDBOX" in report and "http://" not in report.replace("http://127.0.0.1", "").replace(
        "http://www.w3.org", ""
    )
    asked = json.loads((BUNDLED / "orders" / "test.jsonl").read_text().splitlines()[0])
    assert json.loads(asked["messages"][-1]["content"]).keys() == json.loads(last_json(done.out)).keys()


def last_json(text: str) -> str:
    return [line for line in text.splitlines() if line.startswith("{")][-1]


@pytest.mark.slow
def test_its_files_are_written_and_never_over_those_of_others(tmp_path: Path, cli: Cli) -> None:
    """The files alone: what they are is checked and quoted by the commands that the demo shows."""
    assert cli("demo", "--files-only").code == 0
    folder = tmp_path / "orchestrate-demo"
    for name in ("finetune.yaml", "train.jsonl", "validation.jsonl", "test.jsonl"):
        assert (folder / name).read_bytes() == (BUNDLED / "orders" / name).read_bytes()
    assert cli("check", cwd=folder).code == 0
    assert cli("demo", "--files-only").code == 0, "again is no error"
    (folder / "train.jsonl").write_text("mine\n")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused = cli("demo")
    assert refused.code == 2 and "train.jsonl already exists with different content" in refused.err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
