"""How long the command takes to start, against the least that it could take.

The floor is a bare `python -c pass` plus the import of the CLI library with all that it needs to print help.
Each command is timed as a whole process, in turn with the floor, so that a machine whose speed drifts does
not matter; the ratio of medians is what counts. Aim: at most 3 for `orchestrate --help` and `orchestrate
runs`.

    python benchmarks/startup.py [--runs 15]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PASS = "pass"
CLI_LIBRARY = "import typer, typer.main, typer.core, typer.rich_utils"
COMMANDS = {
    "orchestrate --help": ["--help"],
    "orchestrate runs": ["runs"],
    "orchestrate --version": ["--version"],
}


def seconds(arguments: list[str], env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(arguments, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(runs: int) -> dict[str, float]:
    """Medians in seconds: `pass`, `library`, and each command."""
    timed = {
        "pass": [sys.executable, "-c", PASS],
        "library": [sys.executable, "-c", CLI_LIBRARY],
        **{name: [sys.executable, "-m", "orchestrate.cli", *args] for name, args in COMMANDS.items()},
    }
    with tempfile.TemporaryDirectory() as home:
        place = Path(home)
        env = os.environ | {"ORCHESTRATE_HOME": str(place / "home"), "ORCHESTRATE_KEYS": str(place / "keys")}
        for arguments in timed.values():  # writes the byte code, makes the store
            seconds(arguments, env)
        taken: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(runs):
            for name, arguments in timed.items():
                taken[name].append(seconds(arguments, env))
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    medians = measure(parser.parse_args().runs)
    # The library's time holds one bare start already: pass + import of the library.
    floor = medians["library"]
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(
        f"bare start {medians['pass'] * 1000:.0f} ms, with the CLI library {floor * 1000:.0f} ms (the floor)"
    )
    for name in COMMANDS:
        print(f"{name:<24} {medians[name] * 1000:5.0f} ms   {medians[name] / floor:.2f} x the floor")


if __name__ == "__main__":
    main()
