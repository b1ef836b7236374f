"""Writes the tables of docs/benchmarks.md that come from the JSON of a benchmark, each between its marks.

python benchmarks/training.py --load all --threads 2 --seeds 5 --json docs/figures/training.json
python benchmarks/tracking.py --json docs/figures/tracking.json
python benchmarks/startup.py --json docs/figures/startup.json
python benchmarks/data.py --json docs/figures/data-100.json
python benchmarks/data.py --size 1000 --rounds 1 --json docs/figures/data-1000.json
python benchmarks/data.py --size 0 --growth 100,1000,10000 --json docs/figures/data-growth.json
python benchmarks/importing.py --no-details --json docs/figures/importing.json
python benchmarks/ui.py --json docs/figures/ui.json
python docs/figures.py

A table without its JSON was copied before there was such a file; once there is, the benchmark's takes its
place.
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


def by_its_script(name: str, table: str = "table") -> Callable[[dict[str, Any]], str]:
    """The table that a benchmark makes."""

    def told(figures: dict[str, Any]) -> str:
        found: str = runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))[table](figures)
        return found

    return told


def tracking(figures: dict[str, Any]) -> str:
    names = {
        "transitions_per_s": "durable transitions a second, each a commit of its own",
        "batched_transitions_per_s": "transitions a second, 500 in a commit",
        "batched_transitions_per_cpu_s": "the same for a second of processor time",
        "sweep_requests": "requests for the sweep of {sweep_runs:,} runs",
        "sweep_all_changed_s": "seconds for it, each run changed",
        "sweep_all_changed_cpu_s": "of processor time in it",
        "list_50_newest_ms": "ms to list the 50 newest of them",
    }
    rows = [f"| {told.format(**figures)} | {figures[name]:,} |" for name, told in names.items()]
    head = "{machine}, load {load:.1f}, Python {python}:".format(**figures)
    return "\n".join([head, "", "| | |", "|---|---:|", *rows])


def importing(figures: dict[str, Any]) -> str:
    return (
        "{machine}, {cores} cores, load {load}: {jobs:,} jobs of an OpenAI sandbox on loopback become runs\n"
        "in {first_s} s, and are found known in {again_s} s.".format(**figures)
    )


def ui(figures: dict[str, Any]) -> str:
    rows = [f"| {name.strip()} | {told:,.0f} |" for name, told in figures.items() if name != "machine"]
    return "\n".join([f"{figures['machine']}:", "", "| | |", "|---|---:|", *rows])


KINDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "training": by_its_script("training_table", "tables"),
    "data": by_its_script("data"),
    "startup": by_its_script("startup"),
    "tracking": tracking,
    "importing": importing,
    "ui": ui,
}
"""By the first word of a file's name."""


def page(text: str) -> str:
    def section(block: re.Match[str]) -> str:
        name = block["name"]
        measured = FIGURES / f"{name}.json"
        if not measured.exists():
            return block[0]
        figures = json.loads(measured.read_text(encoding="utf-8"))
        told = KINDS[name.split("-")[0]](figures)
        return f"<!-- from figures/{name}.json -->\n{told}\n<!-- end -->\n"

    return BLOCK.sub(section, text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
