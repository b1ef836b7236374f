"""Compares what `orchestrate plan --suggest` proposes with the defaults and with a grid, on three tasks.

Held-out loss decides: with settings this far from a tiny model's best, no answer may be right at all. Each
setting is trained with several seeds, and a difference is noise where its interval of 90% holds 0.

python benchmarks/suggestions.py [--seeds 3] [--json docs/figures/suggestions.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrate import Orchestrator
from orchestrate.evaluation.learning_curve import Gain, measured_gain
from orchestrate.runs import watch
from orchestrate.runs.sweep import space, sweeps
from orchestrate.runs.sweep.curve import measured_points, seeded
from orchestrate.runs.sweep.trials import Searching
from orchestrate.settings import config
from orchestrate.spec import JobSpec
from orchestrate.types import Trial

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TASKS = {"classification": "classification", "format": "extraction", "answers": "tone"}
RATES = (1 / 3, 3, 10)
RANKS = (0.5, 2)
MACHINE = "local"
Settings = Mapping[str, Any]


def grid(proposed: Settings) -> dict[str, tuple[Any, ...]]:
    """Rates and ranks around those that are proposed, one rate ten times as high."""
    rate, rank = proposed["learning_rate"], proposed["adapter.r"]
    return {
        "learning_rate": tuple(float(f"{rate * times:.2g}") for times in RATES),
        "adapter.r": tuple(int(rank * times) for times in RANKS),
    }


def trained(
    ft: Orchestrator, spec: Settings, fixed: Settings, varied: Settings, seeds: int
) -> list[tuple[Settings, list[Trial]]]:
    """Trials of each combination, once for every seed."""
    asked = JobSpec.parse(space.applied(spec, fixed))
    search = sweeps.begin(
        ft, asked, [MACHINE], sweeps.SweepOrder(space=seeded(varied, seeds), max_parallel=6)
    )
    carried = Searching(ft, search)
    carried.run(watch.watcher(ft).turn, threading.Event())
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in carried.trials:
        if trial.score is None:
            raise SystemExit(f"trial {trial.number} has no score: {trial.note}")
        groups.setdefault(tuple(trial.settings.get(name) for name in varied), []).append(trial)
    return [({**fixed, **dict(zip(varied, key, strict=True))}, same) for key, same in groups.items()]


def beside(
    groups: Sequence[tuple[str, Settings, Sequence[Trial]]],
) -> list[tuple[str, Settings, float, Gain]]:
    """Each group's mean held-out loss, and what it gains over the first, the defaults: the noise is that of
    the seeds, which is taken to be the same for all groups."""
    points = measured_points([(0, same) for _, _, same in groups], higher=False)
    return [
        (which, settings, point.loss, measured_gain(points[0], point))
        for (which, settings, _), point in zip(groups, points, strict=True)
    ]


def verdict(gain: Gain) -> str:
    """Of the proposals against the defaults."""
    if gain.low is None or gain.high is None:
        return "not known"
    return "worse" if gain.high < 0 else "better" if gain.low > 0 else "within the noise"


def measured(folder: Path, home: Path, seeds: int, *, with_grid: bool) -> dict[str, Any]:
    settings = config.load(env={"ORCHESTRATE_HOME": str(home), "HF_HUB_OFFLINE": "1"}, cwd=home)
    spec = {
        "model": "tiny-chat",
        "train": str(folder / "train.jsonl"),
        "validation": str(folder / "test.jsonl"),
        "adapter": "lora",
        "provider_options": {MACHINE: {"threads": 1}},
    }
    with Orchestrator(settings) as ft:
        [found] = ft.suggest(spec, MACHINE)
        proposed = dict(found.values)
        varied = grid(proposed)
        fixed = {name: value for name, value in proposed.items() if name not in (*varied, "adapter.alpha")}
        asked: list[tuple[str, Settings, Settings]] = [("default", {}, {}), ("proposal", proposed, {})]
        if with_grid:
            asked.append(("grid", fixed, varied))
        groups = [
            (which, values, same)
            for which, own, changed in asked
            for values, same in trained(ft, spec, own, changed, seeds)
        ]
    return {
        "points": [
            {
                "which": which,
                "settings": own,
                "loss": loss,
                "losses": [trial.score for trial in same],
                "gain": gain.to_dict(),
            }
            for (which, own, loss, gain), (*_, same) in zip(beside(groups), groups, strict=True)
        ]
    }


def table(figures: dict[str, Any]) -> str:
    """For docs/figures.py."""
    lines = [
        "{machine}, initial load {load:.1f}, other work on {others:.1f} of its cores; Python {python}, "
        "torch {versions[torch]}; {day}; tiny-chat, {seeds} seeds.".format(**figures),
        "",
        "| task | proposed | held-out loss of the default | of the proposal | gain over the default (90%) | "
        "| the best of the grid |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for task, told in figures["tasks"].items():
        default, proposal, *rest = told["points"]
        best = min(rest, key=lambda point: point["loss"], default=None)
        gain = Gain.from_dict(proposal["gain"])
        interval = f"{gain.value:+.3f} ({gain.low or 0.0:+.3f} to {gain.high or 0.0:+.3f})"
        found = "not tried" if best is None else f"{best['loss']:.3f}: {_words(best['settings'])}"
        lines.append(
            f"| {task} | {_words(proposal['settings'])} | {default['loss']:.3f} | {proposal['loss']:.3f} "
            f"| {interval} | {verdict(gain)} | {found} |"
        )
    return "\n".join(lines)


def _words(settings: Settings) -> str:
    names = {"learning_rate": "rate", "adapter.r": "r", "epochs": "epochs", "batch_size": "batch"}
    return ", ".join(f"{told} {settings[name]:g}" for name, told in names.items() if name in settings)


def main() -> None:
    from measured_on import Meter, about, write

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--task", action="append", choices=list(TASKS), help="these alone; added to the JSON")
    parser.add_argument("--no-grid", action="store_true", help="the default and the proposal alone")
    parser.add_argument("--home", type=Path, help="keeps the runs, so that an interrupted benchmark goes on")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures, meter = about("torch", "transformers", "peft"), Meter.now()
    tasks: dict[str, Any] = {}
    if given.task and given.json is not None and given.json.exists():
        tasks = json.loads(given.json.read_text(encoding="utf-8"))["tasks"]
    with tempfile.TemporaryDirectory() as scratch:
        for task in given.task or TASKS:
            home = (given.home or Path(scratch)) / task
            home.mkdir(parents=True, exist_ok=True)
            folder = EXAMPLES / TASKS[task]
            tasks[task] = measured(folder, home, given.seeds, with_grid=not given.no_grid)
    figures |= {"seeds": given.seeds, "others": meter.others()}
    figures["tasks"] = {task: tasks[task] for task in TASKS if task in tasks}
    if given.json is not None:
        write(given.json, figures)
    print(table(figures))


if __name__ == "__main__":
    main()
