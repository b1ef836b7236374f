"""The tables of `training.py`'s figures, in Markdown. Imports nothing of ours: docs/figures.py runs it."""

from __future__ import annotations

from statistics import fmean, median, stdev
from typing import Any

ENGINE = "engine"
QUIET = 0.15
"""Cores that other work takes, at most, where wall time is told."""
Figures = dict[str, Any]
Run = dict[str, Any]


def tables(figures: Figures) -> str:
    parts = [head(figures), ahead(figures)]
    parts += [everyone(figures, case) for case in figures["cases"][:1]]
    parts += [seeds(case) for case in figures["cases"] if len(_of(case, ENGINE)) > 1]
    return "\n\n".join(part for part in parts if part)


def head(figures: Figures) -> str:
    others = median(run["others"] for case in figures["cases"] for run in case["runs"])
    beside = "no other work" if others <= QUIET else f"other work on {others:.1f} of its cores"
    return (
        "{machine} ({instructions}), initial load {load_average:.1f}, {beside}; torch {torch}, "
        "TRL {trl}, {day}; {model}. Speed is in trained tokens per {clock}."
    ).format(**figures, beside=beside, clock=_told(figures))


def clock_of(figures: Figures) -> str:
    """Where other work runs wall time says nothing."""
    others = [run["others"] for case in figures["cases"] for run in case["runs"]]
    return "wall" if median(others) <= QUIET else "cpu"


def _told(figures: Figures) -> str:
    return {"wall": "second", "cpu": "CPU second"}[clock_of(figures)]


def _of(case: dict[str, Any], name: str) -> list[Run]:
    return [run for run in case["runs"] if run["name"] == name]


def _loss(run: Run) -> str:
    """Nothing for a run whose benchmark ended before the adapters were judged."""
    return "" if run["held_out_loss"] is None else f"{run['held_out_loss']:.3f}"


def _firsts(case: dict[str, Any]) -> list[Run]:
    """One of each contender, with the first seed."""
    return [run for run in case["runs"] if run["seed"] == 0]


def ahead(figures: Figures) -> str:
    """A line for each load: the engine beside the fastest of the others."""
    clock = clock_of(figures)
    lines = [
        "| | tokens, trained | engine | best rival | its speed | speedup | peak MB | the rival's | "
        "held-out loss | the rival's |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case in figures["cases"]:
        firsts = _firsts(case)
        own = next((run for run in firsts if run["name"] == ENGINE), None)
        others = [run for run in firsts if not run["name"].startswith(ENGINE)]
        if own is None or not others:
            continue
        best, trained = min(others, key=lambda run: run[clock]), case["trained_tokens"]
        cells = [
            case["name"],
            f"{case['tokens']:,}, {trained:,}",
            f"{trained / own[clock]:,.0f}",
            best["name"],
            f"{trained / best[clock]:,.0f}",
            f"**{best[clock] / own[clock]:.2f} x**",
            f"{own['peak_mb']:,.0f}",
            f"{best['peak_mb']:,.0f}",
            _loss(own),
            _loss(best),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def everyone(figures: Figures, case: dict[str, Any]) -> str:
    clock, firsts = clock_of(figures), _firsts(case)
    own = next((run for run in firsts if run["name"] == ENGINE), None)
    lines = [
        f"All contenders, {case['name']}:",
        "",
        "| | steps | trained tokens | speedup of the engine | peak MB | held-out loss |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for run in firsts:
        ratio = "" if own is None or run is own else f"{run[clock] / own[clock]:.2f} x"
        lines.append(
            f"| {run['name']} | {run['steps']} | {case['trained_tokens'] / run[clock]:,.0f} | {ratio} "
            f"| {run['peak_mb']:,.0f} | {_loss(run)} |"
        )
    return "\n".join(lines)


def seeds(case: dict[str, Any]) -> str:
    """Held-out loss of the engine and of whoever trained with the same seeds, and how far they are apart."""
    own = {run["seed"]: run["held_out_loss"] for run in _of(case, ENGINE)}
    names = dict.fromkeys(run["name"] for run in case["runs"])
    lines = [
        f"Held-out loss, {case['name']}:",
        "",
        f"| | {' | '.join(f'seed {seed}' for seed in own)} | mean | above the engine |",
        f"|---|{'---:|' * (len(own) + 2)}",
    ]
    for name in names:
        losses = {run["seed"]: run["held_out_loss"] for run in _of(case, name)}
        if losses.keys() != own.keys() or None in {*losses.values(), *own.values()}:
            continue
        apart = [losses[seed] - own[seed] for seed in own]
        error = stdev(apart) / len(apart) ** 0.5
        cells = [name, *(f"{losses[seed]:.3f}" for seed in own), f"**{fmean(losses.values()):.3f}**"]
        cells.append("" if name == ENGINE else f"{fmean(apart):+.3f} ± {error:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
