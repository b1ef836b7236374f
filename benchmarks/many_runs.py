"""What commands and pages cost with very many runs in the store, against a hundredth of them.

Each command runs as a whole process, in turn with both stores, and its CPU time is taken (user and system);
the least of all rounds counts. Of pages the CPU time of the server is taken, which is the mean of several.
The runs are of one backend, three models and seven teams, over two years; all but the newest five have ended.
No host is contacted.

    python benchmarks/many_runs.py [--runs 100000] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

COMMANDS = (
    "runs",
    "runs --tag team=t3",
    "runs --search nobody",
    "runs --sort cost",
    "runs --status failed",
    "show last --offline",
    "spending --offline --by tag:team --by month",
    "sync",
)
PAGES = {
    "the runs": "",
    "a search that finds nothing": "?q=nobody",
    "sorted by cost": "?sort=-cost",
    "grouped by backend": "?group=backend",
    "grouped by a tag": "?group=tag.team",
    "sorted by a setting": "?sort=spec.seed",
    "grouped by a setting": "?group=spec.seed",
    "spending": "money",
}
LESS, OPEN, BATCH, TIMES = 100, 5, 1000, 10


def fill(file: Path, runs: int) -> None:
    """Written in large transactions, with the columns that the store's own changes of a run write."""
    import msgspec

    from orchestrate.spec import JobSpec
    from orchestrate.store import new_id, ref_of, schema
    from orchestrate.store.history import columns
    from orchestrate.store.runs import Intent
    from orchestrate.store.store import Store
    from orchestrate.types import Bill, JobStatus, Run, SubmitPhase

    file.parent.mkdir(parents=True)
    with Store.open(f"sqlite:///{file}") as store:
        spec = JobSpec(model="qwen3-8b", train="tickets.jsonl", tags={"team": "t0"})
        first = store.runs.create(Intent(spec=spec, provider="local", dataset_digest="d" * 64, host="here"))
        ended = {"phase": SubmitPhase.SUBMITTED, "status": JobStatus.SUCCEEDED}
        first = store.runs.apply(first.id, lambda run: msgspec.structs.replace(run, **ended))
        begun, step = first.created_at - timedelta(days=730), timedelta(days=730) / runs

        def at(n: int) -> datetime:
            return begun + n * step

        def one(n: int) -> Run:
            id, usd = new_id("run-", at(n), n), Decimal(100 + n % 97) / 100
            changes: dict[str, Any] = {"id": id, "ref": ref_of(id), "job_id": f"job-{n}", "created_at": at(n)}
            changes |= {"updated_at": at(n), "finished_at": at(n), "model": f"model-{n % 3}"}
            changes |= {"tags": {"team": f"t{n % 7}"}, "bill": Bill(usd=usd, origin="measured hours x rate")}
            if n % 20 == 0:
                changes["status"] = JobStatus.FAILED
            if n >= runs - OPEN:
                changes |= {"status": JobStatus.RUNNING, "finished_at": None}
            return msgspec.structs.replace(first, **changes)

        for start in range(1, runs, BATCH):
            some = [one(n) for n in range(start, min(start + BATCH, runs))]
            rows = [
                {"id": run.id, "closed": run.status.terminal, **columns(run, store.clock)} for run in some
            ]
            with store.database.writing() as connection:
                connection.execute(schema.runs.insert(), rows)
                schema.write_tags(connection, some)
        store.ledger.recount()


def pages(env: dict[str, str]) -> dict[str, float]:
    """CPU seconds of the server by page."""
    import httpx
    import psutil
    from startup import OURS

    words, silent = [*OURS, "ui", "--json", "--read-only"], subprocess.DEVNULL
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=silent, env=env) as server:
        told = b""
        while not told.endswith(b"}\n") and server.stdout is not None:
            told += server.stdout.readline()
        root, process = json.loads(told)["url"], psutil.Process(server.pid)
        found: dict[str, float] = {}
        with httpx.Client(follow_redirects=True, trust_env=False, timeout=60) as client:
            client.get(root).raise_for_status()
            for name, page in PAGES.items():
                client.get(root + page).raise_for_status()
                before = process.cpu_times()
                for _ in range(TIMES):
                    client.get(root + page).raise_for_status()
                after = process.cpu_times()
                found[name] = (after.user + after.system - before.user - before.system) / TIMES
        server.terminate()
    return found


def measure(runs: int, rounds: int) -> tuple[dict[str, list[Any]], dict[str, list[float]]]:
    """Commands and pages, each with fewer runs and with all."""
    from startup import OURS, Cost, cost

    with tempfile.TemporaryDirectory() as home:
        envs: list[dict[str, str]] = []
        for number in (runs // LESS, runs):
            place = Path(home) / str(number)
            made = [sys.executable, __file__, "--fill", str(place / "runs.sqlite3"), "--runs", str(number)]
            subprocess.run(made, check=True)
            env = os.environ | {"ORCHESTRATE_HOME": str(place), "ORCHESTRATE_KEYS": str(place / "keys")}
            env.pop("PYTHONDONTWRITEBYTECODE", None)
            envs.append(env)
        taken: dict[str, list[list[Any]]] = {command: [[], []] for command in COMMANDS}
        for round in range(rounds + 1):  # the first writes the byte code
            for command, both in taken.items():
                for env, costs in zip(envs, both, strict=True):
                    took = cost([*OURS, *command.split()], env, Path(home))
                    costs += [took] if round else []
        of_pages = [pages(env) for env in envs]
    commands = {
        command: [Cost(min(c.cpu_s for c in costs), max(c.peak_mb for c in costs)) for costs in both]
        for command, both in taken.items()
    }
    return commands, {name: [found[name] for found in of_pages] for name in PAGES}


def table(figures: dict[str, Any]) -> str:
    """Markdown."""
    runs = figures["runs"]
    lines = [
        "{machine}, load {load}, Python {python}, {day}:".format(**figures),
        "",
        f"| | {runs // LESS:,} runs, ms of CPU | {runs:,} runs | times | peak MB | and with {runs:,} |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, (less, more) in figures["commands"].items():
        cpu = f"{less['cpu_s'] * 1000:.0f} | {more['cpu_s'] * 1000:.0f} | {more['cpu_s'] / less['cpu_s']:.2f}"
        lines.append(f"| `orchestrate {name}` | {cpu} | {less['peak_mb']:.0f} | {more['peak_mb']:.0f} |")
    lines += [
        "",
        f"| page | {runs // LESS:,} runs, ms of the server's CPU | {runs:,} runs |",
        "|---|---:|---:|",
    ]
    for name, both in figures["pages"].items():
        lines.append(f"| {name} | {' | '.join(f'{cpu_s * 1000:.0f}' for cpu_s in both)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="What commands and pages cost with very many runs in the store."
    )
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.fill:
        return fill(given.fill, given.runs)
    from startup import told_of_the_machine

    about = told_of_the_machine()
    found, of_pages = measure(given.runs, given.rounds)
    commands = {name: [one._asdict() for one in both] for name, both in found.items()}
    figures = {**about, "runs": given.runs, "commands": commands, "pages": of_pages}
    print(table(figures))
    if given.json:
        from measured_on import write

        write(given.json, figures)


if __name__ == "__main__":
    main()
