"""Every command of docs/leaving-openai.md is run as it is written, against the sandbox, by a team with models
there."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tests import command, forking
from tests.paths import BUNDLED, ROOT, TINY
from tests.workers import Nursery

from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations

GUIDE = (ROOT / "docs" / "leaving-openai.md").read_text(encoding="utf-8")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_python")]


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    return [line.partition(" #")[0].strip() for line in "".join(blocks).splitlines() if line.strip()]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Iterator[tuple[Path, dict[str, str]]]:
    """A team with a log, a base model of its own, and two jobs that it made with the official client."""
    folder = tmp_path_factory.mktemp("team")
    (folder / "my-base").symlink_to(TINY)
    train, test = ((BUNDLED / f"orders/{name}.jsonl").read_text().splitlines() for name in ("train", "test"))
    (folder / "log.jsonl").write_text("".join(_logged(json.loads(row)) for row in test[:12]))
    env = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_BASE_URL"))}
    env |= {
        "ORCHESTRATE_HOME": str(folder / "home"),
        "ORCHESTRATE_KEYS": str(folder / "keys.toml"),
        "HF_HUB_OFFLINE": "1",
        "PATH": forking.path(),
    }
    with running(home=folder / "sandbox", speed=20, waits=Durations(file=0), start=nursery.start) as hosts:
        with OpenAI(base_url=hosts.env["OPENAI_BASE_URL"], api_key=hosts.env["OPENAI_API_KEY"]) as client:
            for first in (0, 16):
                files = [
                    client.files.create(file=(name, "\n".join(rows).encode()), purpose="fine-tune").id
                    for name, rows in (("t.jsonl", train[first : first + 16]), ("v.jsonl", test[20:32]))
                ]
                job = client.fine_tuning.jobs.create(
                    model="gpt-4o-mini-2024-07-18", training_file=files[0], validation_file=files[1]
                )
                while job.status not in ("succeeded", "failed"):
                    time.sleep(0.1)
                    job = client.fine_tuning.jobs.retrieve(job.id)
                assert job.status == "succeeded"
        yield folder, env | hosts.env


def _logged(row: dict[str, Any]) -> str:
    """As Langfuse exports a call."""
    *asked, answer = row["messages"]
    return json.dumps({"input": asked, "output": answer, "model": "ft:gpt-4o-mini"}) + "\n"


def test_the_commands(team: tuple[Path, dict[str, str]]) -> None:
    folder, env = team
    assert len(commands()) >= 9
    for line in commands():
        line = _named(line, folder, env)
        done = _run(line, folder, env)
        assert done.code == 0, f"{line}\n{done.out.decode()}\n{done.err.decode()}"
    report = (folder / "report.html").read_text()
    assert "Where parity holds" in report and "SANDBOX" in report
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert rows and all(row["messages"][-1]["role"] == "assistant" for row in rows)
    plan = (folder / "plan.yaml").read_text()
    assert plan.count("- run: run-") == 2
    shown = json.loads(_run("orchestrate runs --json", folder, env).out)
    moved = [run for run in shown if run["tags"].get("migrated_from")]
    assert len(moved) == 4 and {run["status"] for run in moved} == {"succeeded"}


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", GUIDE):
        assert (ROOT / "docs" / link).exists(), link


def _named(line: str, folder: Path, env: dict[str, str]) -> str:
    """With the ids for which the guide has words."""
    if "RUN" in line.split():
        due = json.loads(_run("orchestrate record --calendar --json", folder, env).out)
        line = re.sub(r"\bRUN\b", due[0]["run_id"], line)
    if "RECORDING" in line.split():
        [kept] = json.loads(_run("orchestrate record --list --json", folder, env).out)
        line = line.replace("RECORDING", kept["id"])
    # So that a tiny model on two cores has soon answered; whether parity is shown does not matter here.
    return line + " --max-tokens 24 --probes none" if line.endswith("report.html") else line


def _run(line: str, folder: Path, env: dict[str, str]) -> command.Ended:
    program, *words = shlex.split(line)
    assert program == "orchestrate"
    return command.run(words, cwd=folder, env=env)
