"""The aims of speed, each with what was measured before the work on it and what is measured now.

docs/figures.py writes the table into docs/benchmarks.md. "Before" was measured on a 2-core Intel machine with
AMX, side by side with what it is compared with. A figure of now comes from the JSON of its benchmark, and so
does the verdict.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

TRAINING = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "training_table.py"))
QUIET: float = TRAINING["QUIET"]
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Aim:
    what: str
    file: str
    """Of the JSON, without its ending."""
    now: Callable[[Figures], float]
    bound: float
    least: bool = False
    """The bound is the least that is wanted, else the most."""
    before: str = "not measured"
    told: str = "{:.1f}"
    why: Callable[[Figures], str] | None = None
    """Where it is missed."""

    def row(self, read: Callable[[str], Figures]) -> str:
        aim = f"at {'least' if self.least else 'most'} {self.told.format(self.bound)}"
        figures = read(self.file)
        try:
            now = self.now(figures)
        except KeyError:  # a benchmark can be run in part
            return f"| {self.what} | {self.before} | not measured yet | {aim} | |"
        met = now >= self.bound if self.least else now <= self.bound
        why = f": {self.why(figures)}" if self.why else ""
        verdict = "met" if met else f"**missed**{why}{_beside(figures)}"
        return f"| {self.what} | {self.before} | {self.told.format(now)} | {aim} | {verdict} |"


def clock_of(figures: Figures) -> str:
    """Where other work runs wall time says nothing."""
    return "wall" if figures["others"] <= QUIET else "cpu"


def _beside(figures: Figures) -> str:
    others = figures.get("others")
    return f" (beside other work on {others:.1f} cores)" if others and others > QUIET else ""


def _most(part: str, *commands: str) -> Callable[[Figures], float]:
    return lambda figures: max(figures["commands"][command][part] for command in commands)


def _ways(figures: Figures, way: str, clock: str) -> float:
    return median(run[clock] for run in figures["results"] if run["way"] == way and not run["alone"])


def _cpu_of_check(figures: Figures) -> float:
    return _ways(figures, "check", "cpu_s")


def _counting(figures: Figures) -> str:
    whole, without, sampled = (_ways(figures, way, "cpu_s") for way in ("check", "uncounted", "sampled"))
    told = f"`--tokens sampled` takes {sampled:.1f}, the cookbook {_ways(figures, 'cookbook', 'cpu_s'):.1f}"
    return f"exact token counts are {1 - without / whole:.0%} of it; {told}"


def _growth(figures: Figures) -> float:
    alone = sorted((run["mb"], run["cpu_s"]) for run in figures["results"] if run["alone"])
    (less, _), (more, _) = alone[-2:]
    by_mb = {mb: cpu / mb for mb, cpu in alone}
    return by_mb[more] / by_mb[less]


PEFT = "peft and Trainer"
EACH_LOAD, EACH_VOCABULARY = 1.15, 2.0


def _first_runs(case: Figures) -> tuple[Figures, list[Figures]]:
    """The engine's run with the first seed, and those of the others."""
    firsts = [run for run in case["runs"] if run["seed"] == 0]
    own = next(run for run in firsts if run["name"] == "engine")
    return own, [run for run in firsts if not run["name"].startswith("engine")]


def _ahead(case: Figures, clock: str) -> float:
    """Raises `KeyError` where a contender that trains this load was left out: it may be the best other."""
    own, others = _first_runs(case)
    if case["name"] not in PAIRS and all(run["name"] != PEFT for run in others):
        raise KeyError(PEFT)
    return min(run[clock] for run in others) / own[clock]


PAIRS = ("DPO pairs",)
"""Loads that peft and Trainer alone cannot train."""


def _loads(figures: Figures, *, vocabularies: bool) -> dict[str, float]:
    clock = TRAINING["clock_of"](figures)
    cases = [case for case in figures["cases"] if ("entries" in case["name"]) == vocabularies]
    return {case["name"]: _ahead(case, clock) for case in cases}


def _least(*, vocabularies: bool) -> Callable[[Figures], float]:
    return lambda figures: min(_loads(figures, vocabularies=vocabularies).values())


def _loads_behind(*, vocabularies: bool) -> Callable[[Figures], str]:
    def why(figures: Figures) -> str:
        bound = EACH_VOCABULARY if vocabularies else EACH_LOAD
        found = _loads(figures, vocabularies=vocabularies).items()
        return ", ".join(f"{name} {ahead:.2f}" for name, ahead in found if ahead < bound)

    return why


def _peaks(figures: Figures) -> float:
    own, others = _first_runs(figures["cases"][0])
    return own["peak_mb"] / min(run["peak_mb"] for run in others if run["name"].startswith("TRL"))


def _held_out(figures: Figures) -> list[float]:
    """How far the engine's loss is above its rival's, seed by seed."""
    losses: dict[str, dict[int, float]] = {}
    for run in figures["cases"][0]["runs"]:
        losses.setdefault(run["name"], {})[run["seed"]] = run["held_out_loss"]
    rival = losses["TRL, like lengths together"]
    return [loss - rival[seed] for seed, loss in losses["engine"].items()]


def _above(figures: Figures) -> float:
    """In standard errors of the mean."""
    apart = _held_out(figures)
    return fmean(apart) / (stdev(apart) / len(apart) ** 0.5)


def _against_generate(case: str) -> Callable[[Figures], float]:
    def times(figures: Figures) -> float:
        of, clock = figures["cases"][case], clock_of(figures)
        return of["generate"][clock] / of["eval"][clock]

    return times


def _against_llama(clients: int) -> Callable[[Figures], float]:
    """By tokens for a second of processor time, with the worst size of model; `clients` is the place of their
    number in the figures."""
    return lambda figures: min(
        ways["serve"][clients]["cpu"] / ways["llama.cpp"][clients]["cpu"] for ways in figures["rows"].values()
    )


def _said(why: str) -> Callable[[Figures], str]:
    return lambda _: why


COUNTED = ("plan", "quote", "check", "data check train.jsonl")
AIMS = (
    Aim(
        what="`plan`, `quote`, `check`, `data check` with 600 rows: CPU time, in floors",
        file="startup",
        before="9.4 (3.3 s)",
        now=_most("floors", *COUNTED),
        bound=3,
    ),
    Aim(
        what="their peak memory, MB",
        file="startup",
        before="350",
        now=_most("peak_mb", *COUNTED),
        bound=80,
        told="{:.0f}",
    ),
    Aim(
        what="`runs`, `show` of finished runs: CPU time, in floors",
        file="startup",
        before="3.9",
        now=_most("floors", "runs", "show RUN"),
        bound=1.7,
        told="{:.2f}",
        why=_said("SQLAlchemy, which every read of the store goes through, is a third of it"),
    ),
    Aim(
        what="lists, searches, `spending` and `sync` with 100,000 runs: CPU time relative to 1,000 runs",
        file="many_runs",
        before="`runs --tag` 2.8 s, `spending` 3.2 s",
        now=lambda figures: max(more["cpu_s"] / less["cpu_s"] for less, more in figures["commands"].values()),
        bound=1.2,
        told="{:.2f}",
    ),
    Aim(
        what="`submit --watch` until its first line in a terminal: CPU ms",
        file="startup",
        now=lambda figures: figures["commands"]["submit -p openai --watch"]["cpu_s"] * 1000,
        bound=500,
        told="{:.0f}",
    ),
    Aim(
        what="data check of 100 MB: CPU seconds",
        file="data-100",
        now=_cpu_of_check,
        bound=1.6,
        why=_counting,
    ),
    Aim(
        what="data check of 1 GB: CPU seconds",
        file="data-1000",
        now=_cpu_of_check,
        bound=11,
        why=_counting,
    ),
    Aim(
        what="the same: peak memory of all processes, MB",
        file="data-1000",
        now=lambda figures: _ways(figures, "check", "peak_mb"),
        bound=300,
        told="{:.0f}",
    ),
    Aim(
        what="growth to 10 GB is linear: CPU time per MB, relative to 1 GB",
        file="data-growth",
        now=_growth,
        bound=1.1,
        told="{:.2f}",
    ),
    Aim(
        what="training: speed relative to the best rival, on the worst load",
        file="training",
        before="1.53 on short chats",
        now=_least(vocabularies=False),
        bound=EACH_LOAD,
        least=True,
        told="{:.2f}",
        why=_loads_behind(vocabularies=False),
    ),
    Aim(
        what="training with vocabularies of 32,000 entries or more: the same",
        file="training",
        now=_least(vocabularies=True),
        bound=EACH_VOCABULARY,
        least=True,
        told="{:.2f}",
        why=_loads_behind(vocabularies=True),
    ),
    Aim(
        what="held-out loss above TRL's: standard errors over the seeds",
        file="training",
        before="higher in 3 of 4 seeds",
        now=_above,
        bound=2,
        told="{:+.1f}",
    ),
    Aim(
        what="peak memory on short chats, relative to TRL's lowest",
        file="training",
        before="1.11",
        now=_peaks,
        bound=1,
        told="{:.2f}",
    ),
    Aim(
        what="`eval` of plain questions: speed relative to transformers' `generate`",
        file="evaluation",
        now=_against_generate("the questions"),
        bound=1.3,
        least=True,
    ),
    Aim(
        what="`eval` after 5 examples: speed relative to transformers' `generate`",
        file="evaluation",
        now=_against_generate("behind 5 examples"),
        bound=2.5,
        least=True,
    ),
    Aim(
        what="`serve` with one client: speed relative to llama.cpp's server, per CPU second",
        file="serving",
        now=_against_llama(0),
        bound=0.5,
        least=True,
        told="{:.2f}",
    ),
    Aim(
        what="`serve` with 16 clients: speed relative to llama.cpp's server, per CPU second",
        file="serving",
        now=_against_llama(1),
        bound=1,
        least=True,
        told="{:.2f}",
    ),
    Aim(
        what="batched transitions per second",
        file="tracking",
        now=lambda figures: figures["batched_transitions_per_s"],
        bound=3000,
        least=True,
        told="{:,.0f}",
    ),
    Aim(
        what="sync of 10,000 changed runs, s",
        file="tracking",
        before="13.4",
        now=lambda figures: figures["sweep_all_changed_s"],
        bound=4,
        why=_said("two fifths of it are the official SDK's, which builds its objects of the answers"),
    ),
    Aim(
        what="the demo after installation, s",
        file="targets",
        before="over 120",
        now=lambda figures: figures["targets"]["demo"]["wall"],
        bound=60,
        told="{:.0f}",
        why=lambda figures: f"four trainings and 1,200 answers{_beside(figures['targets']['demo'])}",
    ),
    Aim(
        what="the same: CPU seconds",
        file="targets",
        now=lambda figures: figures["targets"]["demo"]["cpu"],
        bound=75,
        told="{:.0f}",
        why=_said("most of it are the four trainings"),
    ),
)
"""In the order of what users wait for."""


def table(read: Callable[[str], Figures]) -> str:
    """Markdown. `read` gives the JSON of a name."""
    lines = ["| | before | now | aim | |", "|---|---:|---:|---:|---|"]
    return "\n".join([*lines, *(aim.row(read) for aim in AIMS)])
