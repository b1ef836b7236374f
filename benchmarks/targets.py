"""What those wait for who work here: the demo, the environment, the checks and the tests.

    python benchmarks/targets.py --json docs/figures/targets.json            # all: over an hour
    python benchmarks/targets.py demo test --json docs/figures/targets.json  # these; the others' figures stay

`env` makes an environment of its own from nothing, all others use that of the checkout (`make env`; VENV
names another). The demo runs as after an installation, in an empty folder. A target that fails is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured_on import Meter, about, write

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / os.environ.get("VENV", ".venv") / "bin"
PASSED = re.compile(r"\b(\d+) passed\b")


def make(*words: str) -> Callable[[Path], list[str]]:
    return lambda _: ["make", *words]


TARGETS: dict[str, Callable[[Path], list[str]]] = {
    "env": lambda folder: ["make", f"VENV={folder / 'venv'}", "env"],
    "demo": lambda folder: [str(BIN / "orchestrate"), "demo", str(folder / "demo")],
    "lint": make("lint"),
    "test": make("test"),
    "test-slow": make("test-slow"),
}
"""By the name of what the Makefile has."""


def measured(name: str) -> dict[str, Any] | None:
    with tempfile.TemporaryDirectory() as folder:
        words = TARGETS[name](Path(folder))
        figures, begun = about(), Meter.now()
        print("$", *words, flush=True)
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            tests: int | None = None
            for line in child.stdout:
                print(line, end="", flush=True)
                tests = int(found[1]) if (found := PASSED.search(line)) else tests
        figures |= {**begun.took(), "others": begun.others(), "tests": tests}
    return None if child.returncode else figures


def lines_of_source() -> int:
    listed = subprocess.run(
        ["git", "ls-files", "src/*.py"], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
    )
    return sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in listed.stdout.split())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    kept: dict[str, Any] = {"targets": {}}
    if given.json and given.json.exists():
        kept = json.loads(given.json.read_text(encoding="utf-8"))
    failed: list[str] = []
    for name in given.targets or TARGETS:
        found = measured(name)
        if found is None:
            failed.append(name)
            continue
        kept["targets"][name] = found
        kept["lines"] = lines_of_source()
        print(json.dumps(found, indent=1), flush=True)
        if given.json:
            write(given.json, kept)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
