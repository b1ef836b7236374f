"""Makes the stores of schema 2 that the tests migrate and go on with, by the code that had that schema.

    git worktree add /tmp/then 02f5c0d
    export PYTHONPATH=/tmp/then/src:/tmp/then/tests/faults
    python make_store_2.py sqlite > store-2.sql
    python make_store_2.py postgresql://... > store-2.postgres.sql

The host is called `file:///HOST`; a test puts its own in that place.
"""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrate.tracking.protocol import submit
from paper_host import Paper, PaperHost

from orchestrate.errors import OrchestrateError, OutcomeUnknown
from orchestrate.spec import JobSpec
from orchestrate.tracking import Store, sync

RUNS = {
    "ended": {},
    "open": {},
    "lost": {"lost": True, "down": True},  # the job is made, and the host cannot be asked for it
    "unmade": {"raises": OutcomeUnknown("paper", "r", "reset"), "down": True},
    "refused": {"refused": True},
    "uploaded": {},
    "intent": {},
}


class Stopped(BaseException):
    pass


def make(url: str, folder: Path) -> None:
    host = PaperHost(folder)
    host.config = replace(host.config, base_url="file:///HOST")
    data: Any = Paper()
    with Store.open(url) as store:
        for name, faults in RUNS.items():
            host.faults = dict(faults)
            stop_at = {"uploaded": "after-uploaded", "intent": "after-intent"}.get(name)

            def reached(point: str, stop_at: str | None = stop_at) -> None:
                if point == stop_at:
                    raise Stopped

            spec = JobSpec(model="m", train="rows.jsonl", suffix=name)
            with contextlib.suppress(OrchestrateError, Stopped):
                submit(store, host, spec, data, reached=reached)
            if name == "ended":
                host.set(host.jobs()[0]["id"], state="done", model="m:tuned")
                sync(store, lambda _: host)


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if sys.argv[1] != "sqlite":
            make(sys.argv[1], folder)
            dump = ["pg_dump", "--inserts", "--no-owner", "--no-privileges", "--no-comments", sys.argv[1]]
            text = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
            lines = (line for line in text.splitlines() if line and not line.startswith(("--", "\\")))
            # A dump empties the search path of whoever loads it.
            print("\n".join(line for line in lines if "search_path" not in line))
            return
        make(f"sqlite:///{folder}/runs.sqlite3", folder)
        with sqlite3.connect(folder / "runs.sqlite3") as raw:
            print(f"PRAGMA application_id = {raw.execute('PRAGMA application_id').fetchone()[0]};")
            print("\n".join(raw.iterdump()))


if __name__ == "__main__":
    main()
