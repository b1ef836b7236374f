"""Writes the tables of docs/benchmarks.md that come from the JSON of a benchmark, each between its marks.

python benchmarks/training.py --load all --threads 2 --seeds 5 --json docs/figures/training.json
python benchmarks/tracking.py --json docs/figures/tracking.json
python docs/figures.py
"""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, FIGURES = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "figures"
BLOCK = re.compile(r"<!-- from figures/(?P<name>[\w-]+)\.json -->\n.*?<!-- end -->\n", re.DOTALL)


def training(figures: dict[str, Any]) -> str:
    told: str = runpy.run_path(str(ROOT / "benchmarks" / "training_table.py"))["tables"](figures)
    return told


def tracking(figures: dict[str, Any]) -> str:
    names = {
        "transitions_per_s": "durable transitions a second, each a commit of its own",
        "batched_transitions_per_s": "transitions a second, 500 in a commit",
        "batched_transitions_per_cpu_s": "the same for a second of processor time",
        "sweep_requests": "requests for the sweep of {sweep_runs:,} runs",
        "sweep_all_changed_s": "seconds for it, each run changed",
        "sweep_all_changed_cpu_s": "of processor time, with the sandbox's in the same process",
        "sweep_again_s": "seconds for it, none changed",
        "list_50_newest_ms": "ms to list the 50 newest of them",
    }
    rows = [f"| {told.format(**figures)} | {figures[name]:,} |" for name, told in names.items()]
    head = "{machine}, load {load:.1f}, Python {python}:".format(**figures)
    return "\n".join([head, "", "| | |", "|---|---:|", *rows])


KINDS: dict[str, Callable[[dict[str, Any]], str]] = {"training": training, "tracking": tracking}
"""By the first word of a file's name."""


def page(text: str) -> str:
    def section(block: re.Match[str]) -> str:
        name = block["name"]
        measured = FIGURES / f"{name}.json"
        if not measured.exists():
            return block[0]  # what an earlier script made stays until this one has run
        figures = json.loads(measured.read_text(encoding="utf-8"))
        told = KINDS[name.split("-")[0]](figures)
        return f"<!-- from figures/{name}.json -->\n{told}\n<!-- end -->\n"

    return BLOCK.sub(section, text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
