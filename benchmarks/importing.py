"""How long an import of an account with thousands of jobs takes, and another one that finds it all known.

    python benchmarks/importing.py [--jobs 5000] [--no-details] [--json FILE]

The account is an OpenAI sandbox on loopback with the official SDK in front: a host far away adds its latency
to each request. Events, metrics and checkpoints of each job are fetched too, unless --no-details; all jobs
have one file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from measured_on import Meter, about, write
from openai import OpenAI

from orchestrate import Orchestrator, sandbox
from orchestrate.migration import account_import
from orchestrate.settings import config

MODEL = "gpt-4.1-mini-2025-04-14"


def fill(running: Any, jobs: int) -> None:
    """The account, with jobs that have ended."""
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    client = OpenAI(base_url=running.env["OPENAI_BASE_URL"], api_key=running.env["OPENAI_API_KEY"])
    rows = "".join(json.dumps(row) + "\n" for _ in range(20)).encode()
    file = client.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
    running.skip(3600)
    for _ in range(jobs // 500):
        running.create_jobs("openai", [{"model": MODEL, "training_file": file.id}] * 500)
    running.skip(1e6)


def timed(ft: Orchestrator, details: bool) -> tuple[dict[str, float], account_import.AccountImport]:
    begun = Meter.now()
    found = account_import.take(ft, "openai", every=True, details=details)
    return begun.took(), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--no-details", dest="details", action="store_false")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    machine, begun = about("openai"), Meter.now()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with sandbox.running(home=folder / "sandbox", train=False) as running:
            fill(running, asked.jobs)
            env = {**running.env, "ORCHESTRATE_KEYS": str(folder / "keys.toml")}
            with Orchestrator(config.load(env=env, cwd=folder, home=folder / "home")) as ft:
                first, found = timed(ft, asked.details)
                again, known = timed(ft, asked.details)
    others = begun.others()
    told = machine | {
        "jobs": found.imported,
        "details": asked.details,
        "first": first,
        "again": again,
        "known_again": known.known,
        "others": others,
    }
    print(json.dumps(told, indent=1))
    if asked.json is not None:
        write(asked.json, told)


if __name__ == "__main__":
    main()
