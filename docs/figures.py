"""Writes the tables of docs/benchmarks.md that come from the JSON of a benchmark, each between its marks.

python benchmarks/training.py --load all --threads 1 --seeds 5 --json docs/figures/training.json
python benchmarks/tracking.py --json docs/figures/tracking.json
python benchmarks/startup.py --json docs/figures/startup.json
python benchmarks/many_runs.py --json docs/figures/many_runs.json
python benchmarks/data.py --json docs/figures/data-100.json
python benchmarks/data.py --size 1000 --rounds 1 --json docs/figures/data-1000.json
python benchmarks/data.py --size 0 --growth 100,1000,10000 --json docs/figures/data-growth.json
python benchmarks/importing.py --no-details --json docs/figures/importing.json
python benchmarks/evaluation.py --adapter FOLDER --json docs/figures/evaluation.json
python benchmarks/serving.py --json docs/figures/serving.json
python benchmarks/memory.py --json docs/figures/memory.json
python benchmarks/memory.py --published --json docs/figures/memory-published.json
python benchmarks/ui.py --json docs/figures/ui.json
python benchmarks/targets.py --json docs/figures/targets.json
python benchmarks/latency.py --json docs/figures/latency.json
python benchmarks/suggestions.py --json docs/figures/suggestions.json
python benchmarks/selection.py --json docs/figures/selection.json
python benchmarks/sessions.py --json docs/figures/sessions.json
python docs/figures.py
"""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, FIGURES = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "figures"
AIMS = runpy.run_path(str(ROOT / "docs" / "aims.py"))
AIMED = re.compile(r"<!-- from aims\.py -->\n.*?<!-- end -->\n", re.DOTALL)
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
    head = "{machine}, load {load:.1f}, Python {python}".format(**figures)
    head += f", {figures['day']}:" if "day" in figures else ":"
    return "\n".join([head, "", "| | |", "|---|---:|", *rows])


def head(figures: dict[str, Any], *more: str) -> str:
    """The machine, what else it did, and what was measured on it."""
    versions = "".join(f", {name} {told}" for name, told in figures["versions"].items())
    others = figures.get("others", 0)
    beside = f", other work on {others:.1f} of its cores" if others > AIMS["QUIET"] else ""
    machine = "{machine}, initial load {load}{beside}; Python {python}{told}; {day}"
    return "; ".join([machine.format(**figures, beside=beside, told=versions), *more])


def clock(figures: dict[str, Any]) -> tuple[str, str]:
    """That which other work does not touch, and how it is told."""
    by: str = AIMS["clock_of"](figures)
    return by, {"wall": "second", "cpu": "second of processor time"}[by]


def rows(columns: str, *lines: Iterable[object]) -> str:
    """A table; all but its first column hold figures, where they are not named otherwise."""
    words = {"source", "on"}
    marks = "".join("---|" if name.strip() in words else "---:|" for name in columns.split("|")[2:-1])
    return "\n".join([columns, f"|---|{marks}", *(f"| {' | '.join(map(str, line))} |" for line in lines)])


def importing(figures: dict[str, Any]) -> str:
    by, told = clock(figures)
    first, again = figures["first"][by], figures["again"][by]
    details = "with events, metrics and checkpoints of each" if figures["details"] else "without details"
    return (
        f"{head(figures)}.\n{figures['jobs']:,} jobs of an OpenAI sandbox on loopback, {details}, become "
        f"runs in {first:.1f} {told.replace('second', 'seconds')},\nand are found known in {again:.1f}; "
        "the sandbox's own work is in it."
    )


def evaluation(figures: dict[str, Any]) -> str:
    by, told = clock(figures)
    about = (
        "{rows} rows, at most {tokens} tokens each, batches of {batch}, {precision}, {threads} thread(s), "
        "the tiny model "
    ).format(**figures) + ("with a LoRA adapter" if figures["adapter"] else "untuned")
    lines: list[list[object]] = []
    for name, case in figures["cases"].items():
        alone, generate, ours = (case[way][by] for way in ("alone", "generate", "eval"))
        speeds = [f"{figures['rows'] / took:.1f}" for took in (alone, generate, ours)]
        lines.append([name, *speeds, f"{alone / ours:.1f} x", f"{generate / ours:.1f} x", case["differ"]])
    columns = (
        f"| answers a {told} | one row at a time | transformers' `generate` | `eval` | against one at a time "
        "| against `generate` | answers that differ from one at a time |"
    )
    return f"{head(figures, about)}.\n\n{rows(columns, *lines)}"


SERVERS = {
    "serve": "`orchestrate serve`, transformers engine, fp32",
    "generate": "transformers' `generate`, one row and batches of 16",
    "llama.cpp": "llama.cpp's server, F32",
}


def serving(figures: dict[str, Any]) -> str:
    by, told = clock(figures)
    about = ["{requests} requests, {threads} thread(s)".format(**figures)]
    about += [f"llama.cpp is that of {figures['llama.cpp']}"] if "llama.cpp" in figures else []
    lines: list[list[object]] = []
    for size, ways in figures["rows"].items():
        ours = [one[by] for one in ways["serve"]]
        for name, speeds in ways.items():
            told_here = [f"{one[by]:,.0f}" for one in speeds]
            ratios = [f"{one[by] / our:.2f} x" for one, our in zip(speeds, ours, strict=True)]
            lines.append([SERVERS[name], size, *told_here, *ratios])
    columns = (
        f"| tokens a {told} | parameters | 1 client | 16 clients | 1 client, against `serve` "
        "| 16 clients, against `serve` |"
    )
    return f"{head(figures, *about)}.\n\n{rows(columns, *lines)}"


def sessions(figures: dict[str, Any]) -> str:
    about = "{rows} rows of {tokens:,} tokens in {steps} steps, the tiny model, LoRA in fp32, one thread"
    recipe = figures["took"]["recipe over a session"]["cpu"]
    lines = [
        [name, f"{figures['tokens'] / one['cpu']:,.0f}", f"{one['cpu']:.1f}", f"{recipe / one['cpu']:.2f} x"]
        for name, one in figures["took"].items()
    ]
    columns = "| SFT by | tokens a CPU second | CPU seconds | against the recipe |"
    return f"{head(figures, about.format(**figures))}.\n\n{rows(columns, *lines)}"


def latency(figures: dict[str, Any]) -> str:
    lines: list[list[object]] = []
    for name, row in figures["rows"].items():
        ratio, measured, adapter = row["ratio"], row["measured"], row["adapter"]
        lines.append(
            [
                name,
                *(f"{measured[one]:.1f} ms" for one in ("first_ms", "token_ms")),
                *(f"{ratio[one]:.2f}" for one in ("first", "token")),
                f"{adapter['load_ms']:,.0f} ms",
                f"{adapter['token_ms_more']:+.1f} ms",
            ]
        )
    columns = (
        "| parameters | first token | each further one | predicted over measured, first | each "
        "| adapter loaded in | a token takes more with it |"
    )
    return f"{head(figures)}.\n\n{rows(columns, *lines)}"


def memory(figures: dict[str, Any]) -> str:
    if "sections" in figures:
        return published(figures)
    errors = {
        name: sum(case["planned"].values()) / sum(case["measured"].values()) - 1
        for name, case in figures["cases"].items()
    }
    kinds = {"all": errors}
    for name, error in errors.items():
        kinds.setdefault(re.split(r"\W", name)[0], {})[name] = error
    lines: list[list[object]] = []
    for kind, found in kinds.items():
        ends = min(found, key=lambda name: found[name]), max(found, key=lambda name: found[name])
        within = max(abs(error) for error in found.values())
        lines.append([kind, len(found), f"{within:.1%}", *(f"{errors[name]:+.1%} ({name})" for name in ends)])
    columns = "| | cases | within | the plan is least | and most |"
    return f"{head(figures, '{device}, {precision}'.format(**figures))}.\n\n{rows(columns, *lines)}"


def published(figures: dict[str, Any]) -> str:
    parts = ["The plan of {day}, in GB of 10^9 bytes; caches in GiB.".format(**figures)]
    for title, found in figures["sections"].items():
        lines: list[list[str]] = []
        for one in found:
            theirs, ours = one["published"], one["planned"]
            source = "; ".join(filter(None, (one["source"], one["remark"])))
            lines.append([one["what"], f"{theirs:.2f}", f"{ours:.2f}", f"{ours / theirs - 1:+.0%}", source])
        parts.append(rows(f"| {title} | published | the plan | apart | source |", *lines))
    return "\n\n".join(parts)


def ui(figures: dict[str, Any]) -> str:
    about = "{runs:,} runs of {points:,} points".format(**figures)
    lines = [[name.strip(), f"{told:,.0f}"] for name, told in figures["pages"].items()]
    return f"{head(figures, about)}.\n\n{rows('| | |', *lines)}"


BEFORE = {"test": (540, 2043), "test-slow": (1620, None), "all": (2748, None), "lines": 45_872}
"""The tree of 2026-11-25, before the rooms were put in order: seconds, tests."""
TARGETS = {
    "demo": ("the demo, after installation", "orchestrate demo"),
    "env": ("a fresh environment", "make env"),
    "lint": ("checks without tests", "make lint"),
    "test": ("the fast tests", "make test"),
    "test-slow": ("the slow tests", "make test-slow"),
}


def targets(figures: dict[str, Any]) -> str:
    """Each may have been measured on a day of its own."""
    measured: dict[str, dict[str, Any]] = figures["targets"]
    lines = [_target(*told, BEFORE.get(name), measured.get(name)) for name, told in TARGETS.items()]
    parts = [measured.get(name) for name in ("env", "lint", "test", "test-slow")]
    whole = ["all checks and all tests, fresh environment", "`bash .ci/run`", _minutes(*BEFORE["all"])]
    if all(parts):
        whole.append(f"the sum of its parts: {_minutes(sum(part['wall'] for part in parts if part))}")
    lines.append([*whole, "", ""][:6])
    source = ["lines of source", "`git ls-files 'src/*.py' \\| xargs cat \\| wc -l`", f"{BEFORE['lines']:,}"]
    lines.append([*source, f"{figures['lines']:,}, with what was built since", "", ""])
    return rows("| | command | before | now | of processor time | on |", *lines)


def _target(
    what: str, command: str, before: tuple[int, int | None] | None, now: dict[str, Any] | None
) -> list[str]:
    cells = [what, f"`{command}`", _minutes(*before) if before else ""]
    if now is None:
        return [*cells, "not measured yet", "", ""]
    others = now.get("others", 0)
    beside = f", beside other work on {others:.1f} cores" if others > AIMS["QUIET"] else ""
    where = f"{now['machine']}, {now['day']}{beside}"
    return [*cells, _minutes(now["wall"], now["tests"]), _minutes(now["cpu"]) if now["cpu"] else "", where]


def _minutes(seconds: float, tests: int | None = None) -> str:
    told = f"{int(seconds // 60)}:{int(seconds % 60):02}"
    return f"{told} ({tests:,} tests)" if tests else told


KINDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "training": by_its_script("training_table", "tables"),
    "data": by_its_script("data"),
    "startup": by_its_script("startup"),
    "many_runs": by_its_script("many_runs"),
    "tracking": tracking,
    "importing": importing,
    "evaluation": evaluation,
    "serving": serving,
    "memory": memory,
    "ui": ui,
    "targets": targets,
    "latency": latency,
    "suggestions": by_its_script("suggestions"),
    "selection": by_its_script("selection"),
    "sessions": sessions,
}
"""By the first word of a file's name."""


def read(name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))
    return figures


def page(text: str) -> str:
    def section(block: re.Match[str]) -> str:
        name = block["name"]
        told = KINDS[name.split("-")[0]](read(name))
        return f"<!-- from figures/{name}.json -->\n{told}\n<!-- end -->\n"

    def aims(_: re.Match[str]) -> str:
        return f"<!-- from aims.py -->\n{AIMS['table'](read)}\n<!-- end -->\n"

    return AIMED.sub(aims, BLOCK.sub(section, text))


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
