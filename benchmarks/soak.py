"""Everything goes wrong at once, for as long as is wanted; then jobs lost and jobs doubled are counted.

    python benchmarks/soak.py [--seconds 600] [--slots 4] [--seed N] [--postgres] [--json FILE]

Ends with 1 when a job was lost, doubled or goes on though it was cancelled. What happens is in
`tests/faults/soaking.py`. The seed fixes what is tried, not when the machine gets to it.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults.soaking import WAITS, Soak
from tests.postgres_server import Postgres, postgres_binaries

from orchestrate import sandbox

COLUMNS = ("runs", "jobs", "lost", "doubled", "by_proxy", "wrong_end")


@contextmanager
def server(wanted: bool) -> Iterator[Postgres | None]:
    if not wanted:
        yield None
        return
    binaries = postgres_binaries()
    if binaries is None:
        raise SystemExit("no Postgres on this machine (pg_ctl on the PATH or under /usr/lib/postgresql)")
    made = Postgres(binaries)
    try:
        yield made
    finally:
        made.remove()


def soak(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        postgres = stack.enter_context(server(arguments.postgres))
        hosts = stack.enter_context(sandbox.running(home=folder / "sandbox", train=False, waits=WAITS))
        url = postgres.database() if postgres else f"sqlite:///{folder}/store/runs.sqlite3"
        run = Soak(folder / "soak", url, hosts, seed=arguments.seed, slots=arguments.slots, postgres=postgres)
        run.run(arguments.seconds)
        run.settle()
        return {
            "seed": arguments.seed,
            "seconds": arguments.seconds,
            "store": "postgres" if postgres else "sqlite",
            "commands": dict(run.done),
            "faults": dict(run.faults),
            "points": dict(run.marks()),
            "hosts": run.audit(),
            "crashes": run.crashes(),
        }


def bad(found: dict[str, Any]) -> bool:
    wrong = sum(row[name] for row in found["hosts"].values() for name in ("lost", "doubled", "wrong_end"))
    return bool(wrong or found["crashes"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--slots", type=int, default=4, help="processes at once")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--postgres", action="store_true", help="a server that is restarted meanwhile")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="orchestrate-soak-"))
    found = soak(arguments, folder)
    for name in ("commands", "faults", "points"):
        print(f"{name}: {', '.join(f'{k} {v}' for k, v in sorted(found[name].items()))}")
    print(f"{'backend':<12}" + "".join(f"{name:>10}" for name in COLUMNS))
    for name, row in found["hosts"].items():
        print(f"{name:<12}" + "".join(f"{row[column]:>10}" for column in COLUMNS))
    if found["crashes"]:
        print(found["crashes"])
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if bad(found):
        raise SystemExit(f"what was written is kept in {folder}")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
