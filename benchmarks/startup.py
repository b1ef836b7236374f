"""What a command costs before it does its work, against the least that it could.

The floor is a command of one line with the CLI library. Each command runs as a whole process, in turn with
the floor, and its CPU time is taken (user and system), which the machine's other work touches least; the
least of all rounds counts. Aim: at most 3 floors and 80 MB. Files are those of `orchestrate demo
--files-only`: 600 rows to train on; the first round fills the memory of token counts. The store holds 1,000
runs that have ended. Of `submit --watch`, which goes on until the run ends, what it takes to its first line
in a terminal is measured; its host is a sandbox on loopback. Aim: 0.5 s.

    python benchmarks/startup.py [--rounds 9] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

FLOOR = "import typer; app = typer.Typer(); app.command()(lambda: print('hello')); app()"
COMMANDS = (
    "--help",
    "runs",
    "show RUN",
    "models",
    "plan",
    "quote",
    "check",
    "data check train.jsonl",
    "providers",
)
RUNS = 1000
OURS = [sys.executable, "-m", "orchestrate.cli"]
SUBMIT = "submit -p openai --watch"


class Cost(NamedTuple):
    cpu_s: float
    peak_mb: float


def cost(arguments: list[str], env: dict[str, str], folder: Path) -> Cost:
    child = os.fork()
    if not child:
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(silent, stream)
        os.chdir(folder)
        os.execve(arguments[0], arguments, env)
    _, status, used = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(arguments[1:])} ended with {os.waitstatus_to_exitcode(status)}")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def filled(store_file: Path) -> str:
    """A store of ended runs; the last of them."""
    from msgspec.structs import replace

    from orchestrate.spec import JobSpec
    from orchestrate.store.runs import Intent
    from orchestrate.store.store import Store
    from orchestrate.types import Bill, JobStatus, SubmitPhase

    store_file.parent.mkdir(parents=True, exist_ok=True)
    run = ""
    with Store.open(f"sqlite:///{store_file}") as store:
        for n in range(RUNS):
            spec = JobSpec(model="qwen3-8b", train="tickets.jsonl", seed=n)
            run = store.runs.create(
                Intent(spec=spec, provider="local", dataset_digest="d" * 64, host="here")
            ).id
            ended = {
                "phase": SubmitPhase.SUBMITTED,
                "status": JobStatus.SUCCEEDED,
                "job_id": f"job-{n}",
                "bill": Bill(usd=Decimal(2), origin="measured hours x rate"),
            }
            store.runs.apply(run, lambda r, changes=ended: replace(r, **changes))
    return run


def until_first_line() -> Cost:
    """In a terminal, where somebody waits for it: a pipe has no line before the quote."""
    import pty

    import psutil

    words = [*OURS, *SUBMIT.split(), "--yes", "--again"]
    terminal, inside = pty.openpty()
    with subprocess.Popen(words, stdin=inside, stdout=inside, stderr=inside) as child:
        os.close(inside)
        shown = b""
        while not re.search(rb"[a-z]{3}", re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown)):
            shown += os.read(terminal, 1024)
        process = psutil.Process(child.pid)
        used = process.cpu_times()
        held = process.memory_info().rss
        child.terminate()
        os.close(terminal)
    return Cost(used.user + used.system, held / 2**20)


def measure(rounds: int) -> dict[str, Cost]:
    """The least CPU time and the highest peak of the floor and of each command."""
    with tempfile.TemporaryDirectory() as home:
        place = Path(home)
        env = os.environ | {"ORCHESTRATE_HOME": str(place / "home"), "ORCHESTRATE_KEYS": str(place / "keys")}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        cost([*OURS, "demo", "--files-only", "."], env, place)
        # In a process of its own: a command's peak is at least what this one holds when it forks.
        fill = [sys.executable, __file__, "--fill", str(place / "home" / "runs.sqlite3")]
        run = subprocess.run(fill, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
        commands = {name: name.replace("RUN", f"{run} --offline").split() for name in COMMANDS}
        floor = {"the floor": [sys.executable, "-c", FLOOR]}
        measured = floor | {name: [*OURS, *words] for name, words in commands.items()}
        for arguments in measured.values():  # writes the byte code, makes the store, counts the tokens
            cost(arguments, env, place)
        taken: dict[str, list[Cost]] = {name: [] for name in measured}
        for _ in range(rounds):
            for name, arguments in measured.items():
                taken[name].append(cost(arguments, env, place))
        hosts = [*OURS, "sandbox", "--no-train", "--port", "0", "--sandbox-home", "hosts", "run", "--"]
        submits = [*hosts, sys.executable, str(Path(__file__).resolve()), "--submits", str(rounds)]
        done = subprocess.run(submits, stdout=subprocess.PIPE, env=env, cwd=place, check=True, text=True)
        taken[SUBMIT] = [Cost(*one) for one in json.loads(done.stdout.splitlines()[-1])]
    return {name: Cost(min(t.cpu_s for t in all), max(t.peak_mb for t in all)) for name, all in taken.items()}


def told_of_the_machine() -> dict[str, Any]:
    """In a process of its own, as `filled`."""
    script = Path(__file__).with_name("measured_on.py")
    done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def table(figures: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "{machine}, load {load}, Python {python}, {day}:".format(**figures),
        "",
        "| | ms of CPU | times the floor | peak MB |",
        "|---|---:|---:|---:|",
    ]
    for name, one in figures["commands"].items():
        told = name if name == "the floor" else f"`orchestrate {name}`"
        told += ", to its first line" if name == SUBMIT else ""
        lines.append(f"| {told} | {one['cpu_s'] * 1000:.0f} | {one['floors']:.2f} | {one['peak_mb']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a command costs before it does its work.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--submits", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.submits:
        return print(json.dumps([until_first_line() for _ in range(given.submits)]))
    if given.fill:
        return print(filled(given.fill))
    about = told_of_the_machine()
    found = measure(given.rounds)
    floor = found["the floor"].cpu_s
    print("{machine}, load {load}, Python {python}".format(**about))
    for name, one in found.items():
        print(
            f"{name:<24} {one.cpu_s * 1000:5.0f} ms of CPU  {one.cpu_s / floor:.2f} x  {one.peak_mb:4.0f} MB"
        )
    if given.json:
        from measured_on import write

        rows = {name: {**one._asdict(), "floors": one.cpu_s / floor} for name, one in found.items()}
        write(given.json, {**about, "commands": rows})


if __name__ == "__main__":
    main()
