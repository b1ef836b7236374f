"""Writes docs/quotes.md: what the fixtures would cost on all backends, by the commands that it shows.

python docs/quotes.py
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from orchestrate import costing
from orchestrate.costing import Rate

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "quotes.md"
FOLDER = ROOT / "src" / "orchestrate" / "bundled" / "orders"
_SPEC = "orchestrate quote"
_PAIRS = "../../../../fixtures/datasets/formats/good/openai_preference.jsonl"
SECTIONS = {
    "The demo's orders, 600 rows; the bundled tiny model on this machine": f"{_SPEC} --format md",
    "The same with a model of 9 billion parameters on this machine too, and half a year of serving": (
        f"{_SPEC} --set model.local=qwen3.5-9b"
        ' --traffic "20k req/day, 900 in, 150 out" --months 6 --compare-with gpt-4.1 --format md'
    ),
    "Three preference pairs (DPO)": (
        f"{_SPEC} --method dpo --train {_PAIRS} --set validation=null --format md"
    ),
}


def output(command: str) -> str:
    """What a command of a section prints. Offline; with a home of its own, so that no user's rates count."""
    _, *words = shlex.split(command)
    with tempfile.TemporaryDirectory() as home:
        kept = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_BASE_URL"))}
        env = kept | {
            "ORCHESTRATE_HOME": home,
            "ORCHESTRATE_KEYS": f"{home}/keys.toml",
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "orchestrate.cli", *words],
            cwd=FOLDER,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return done.stdout


def _known() -> Iterator[str]:
    by_provider: dict[str, list[Rate]] = {}
    for rate in costing.built_in():
        by_provider.setdefault(rate.provider, []).append(rate)
    yield "| provider | prices | the oldest and the newest check | units |"
    yield "| --- | --- | --- | --- |"
    for provider, rates in sorted(by_provider.items()):
        checks = sorted(rate.last_checked for rate in rates)
        units = ", ".join(sorted({rate.unit.removeprefix("usd_") for rate in rates}))
        yield f"| {provider} | {len(rates)} | {checks[0]} to {checks[-1]} | {units} |"


def page(on: date) -> str:
    parts = [
        "# Quotes for the fixtures on all backends",
        f"Made on {on} by `python docs/quotes.py`, which runs the commands below in "
        "`src/orchestrate/bundled/orders` (`orchestrate demo --files-only` writes it out); nothing was sent "
        "anywhere. "
        "Prices age: run them again for today's. The hours on this machine are modelled until "
        "`orchestrate local bench` has measured it, and electricity is taken at the price of "
        "`orchestrate prices list --provider local`.",
    ]
    for title, command in SECTIONS.items():
        parts += [f"## {title}", f"```sh\n{command}\n```", output(command).strip()]
    parts += [
        "## What is known of prices",
        "\n".join(_known()),
        "Each price has its source, start date and the day on which it was last checked: "
        "`orchestrate prices list`, and `orchestrate prices check` for those that are too old. AWS, Azure "
        "and Google Cloud are not among the GPU rentals: no dated price with a source was at hand for them. "
        "Set what you pay with `--rate local:gpu_rental=2.49`, or in `rates.yaml` in the home folder or the "
        "project.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(date.today()), encoding="utf-8")
