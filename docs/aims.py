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


def _against_cookbook(clock: str) -> Callable[[Figures], float]:
    return lambda figures: _ways(figures, "cookbook", clock) / _ways(figures, "check", clock)


def _mb_by_cpu(figures: Figures) -> float:
    size: float = next(run["mb"] for run in figures["results"] if not run["alone"])
    return size / _ways(figures, "check", "cpu_s")


def _counting(clock: str) -> Callable[[Figures], str]:
    def why(figures: Figures) -> str:
        whole, without, sampled = (_ways(figures, way, clock) for way in ("check", "uncounted", "sampled"))
        base, mb = _ways(figures, "cookbook", clock), next(r["mb"] for r in figures["results"])
        unit = "CPU second" if clock == "cpu_s" else "second"
        told = f"`--tokens sampled` {base / sampled:.1f} times, {mb / sampled:.0f} MB a {unit}"
        return f"exact counts of all tokens are {1 - without / whole:.0%} of it; {told}"

    return why


def _growth(figures: Figures) -> float:
    alone = sorted((run["mb"], run["cpu_s"]) for run in figures["results"] if run["alone"])
    (less, _), (more, _) = alone[-2:]
    by_mb = {mb: cpu / mb for mb, cpu in alone}
    return by_mb[more] / by_mb[less]


def _first_runs(case: Figures) -> tuple[Figures, list[Figures]]:
    """The engine's run with the first seed, and those of the others."""
    firsts = [run for run in case["runs"] if run["seed"] == 0]
    own = next(run for run in firsts if run["name"] == "engine")
    return own, [run for run in firsts if not run["name"].startswith("engine")]


def _ahead(case: Figures, clock: str) -> float:
    own, others = _first_runs(case)
    return min(run[clock] for run in others) / own[clock]


def _short_chats(figures: Figures) -> float:
    return _ahead(figures["cases"][0], TRAINING["clock_of"](figures))


def _other_loads(figures: Figures) -> dict[str, float]:
    clock = TRAINING["clock_of"](figures)
    return {case["name"]: _ahead(case, clock) for case in figures["cases"][1:]}


def _loads_behind(figures: Figures) -> str:
    named = [f"{name} {ahead:.2f}" for name, ahead in _other_loads(figures).items() if ahead < EACH_LOAD]
    return f"{', '.join(named)}: {SAME_PRODUCTS}"


EACH_LOAD = 1.6
SAME_PRODUCTS = (
    "two thirds of its time go to the products of matrices, which both do alike, at what this CPU can do"
)


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


def _batched(figures: Figures) -> float:
    case = figures["cases"]["the questions"]
    clock = clock_of(figures)
    return case["alone"][clock] / case["eval"][clock]


def _said(why: str) -> Callable[[Figures], str]:
    return lambda _: why


COUNTED = ("plan", "quote", "check", "data check train.jsonl")
AIMS = (
    Aim(
        what="`plan`, `quote`, `check`, `data check` of 600 rows: times the floor",
        file="startup",
        before="9.4 (3.3 s)",
        now=_most("floors", *COUNTED),
        bound=3,
    ),
    Aim(
        what="their peak, MB",
        file="startup",
        before="350",
        now=_most("peak_mb", *COUNTED),
        bound=80,
        told="{:.0f}",
    ),
    Aim(
        what="`runs`, `show` of ended runs: times the floor",
        file="startup",
        before="3.9",
        now=_most("floors", "runs", "show RUN"),
        bound=3,
    ),
    Aim(
        what="`submit --watch` to its first line in a terminal: ms of CPU",
        file="startup",
        now=lambda figures: figures["commands"]["submit -p openai --watch"]["cpu_s"] * 1000,
        bound=500,
        told="{:.0f}",
    ),
    Aim(
        what="data check of 100 MB: times the cookbook, by seconds",
        file="data-100",
        before="5.3",
        now=_against_cookbook("wall_s"),
        bound=10,
        least=True,
        why=_counting("wall_s"),
    ),
    Aim(
        what="data check of 1 GB: times the cookbook, by CPU seconds",
        file="data-1000",
        before="6.2",
        now=_against_cookbook("cpu_s"),
        bound=12,
        least=True,
        why=_counting("cpu_s"),
    ),
    Aim(
        what="the same: MB for a CPU second",
        file="data-1000",
        now=_mb_by_cpu,
        bound=90,
        least=True,
        told="{:.0f}",
        why=_counting("cpu_s"),
    ),
    Aim(
        what="the same: peak, MB of all processes",
        file="data-1000",
        now=lambda figures: _ways(figures, "check", "peak_mb"),
        bound=300,
        told="{:.0f}",
    ),
    Aim(
        what="growth to 10 GB is linear: CPU for a MB against that of 1 GB",
        file="data-growth",
        now=_growth,
        bound=1.1,
        told="{:.2f}",
    ),
    Aim(
        what="training, short chats: times the best other",
        file="training",
        before="1.53",
        now=_short_chats,
        bound=2.4,
        least=True,
        told="{:.2f}",
        why=_said(SAME_PRODUCTS),
    ),
    Aim(
        what="the other loads: times the best other, the least of them",
        file="training",
        now=lambda figures: min(_other_loads(figures).values()),
        bound=EACH_LOAD,
        least=True,
        told="{:.2f}",
        why=_loads_behind,
    ),
    Aim(
        what="held-out loss above that of TRL: standard errors, over the seeds",
        file="training",
        before="higher in 3 of 4 seeds",
        now=_above,
        bound=2,
        told="{:+.1f}",
    ),
    Aim(
        what="peak on short chats: times the least of TRL's",
        file="training",
        before="1.11",
        now=_peaks,
        bound=1,
        told="{:.2f}",
    ),
    Aim(
        what="`eval` in batches: times one row at a time",
        file="evaluation",
        before="1",
        now=_batched,
        bound=1,
        least=True,
    ),
    Aim(
        what="batched transitions a second",
        file="tracking",
        now=lambda figures: figures["batched_transitions_per_s"],
        bound=3000,
        least=True,
        told="{:,.0f}",
    ),
    Aim(
        what="sweep of 10,000 changed runs, s",
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
        bound=90,
        told="{:.0f}",
        why=lambda figures: (
            "four trainings and 1,200 answers take {cpu:.0f} s of CPU".format(**figures["targets"]["demo"])
            + _beside(figures["targets"]["demo"])
        ),
    ),
)
"""In the order of what users wait for."""


def table(read: Callable[[str], Figures]) -> str:
    """Markdown. `read` gives the JSON of a name."""
    lines = ["| | before | now | aim | |", "|---|---:|---:|---:|---|"]
    return "\n".join([*lines, *(aim.row(read) for aim in AIMS)])
