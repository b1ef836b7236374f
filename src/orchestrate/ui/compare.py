"""Compare runs side by side: overlaid curves, settings that differ, costs and scores.

For small comparisons, the page also shows the report's findings. For large ones, it only shows as many runs
as fit on the screen.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from orchestrate.core.progress import cost_so_far
from orchestrate.http import web
from orchestrate.text import money
from orchestrate.types import Evaluation, MetricPoint, Run
from orchestrate.ui.curves import AXES, charts
from orchestrate.ui.site import Copy, Site, compact, name_of
from orchestrate.ui.table import flat

FEW = 12
"""Maximum number of runs for a full comparison, which includes every pair of runs."""
_POINTS = {True: 1500, False: 100}
"""Points per curve: the first number for comparisons of few runs, the second for comparisons of many."""
_OF_MANY = ("loss", "reward", "accuracy")
"""The charts shown for comparisons of many runs."""
_NOT_SETTINGS = {"suffix", "tags", "max_cost_usd", "provider_options"}


@dataclass(frozen=True)
class ComparedRun:
    """One row of the table of compared runs."""

    run: Run
    cells: Sequence[str]
    loss: str
    cost: str
    score: str


def routes(site: Site) -> list[Route]:
    def asked(request: Request) -> list[Run]:
        ids = list(dict.fromkeys(request.query_params.getlist("run")))
        known = {run.id: run for run in site.ft.store.runs.of_ids(ids)}
        return [known.get(run_id) or site.ft.run(run_id).record for run_id in ids]

    def page(request: Request) -> Response:
        runs = asked(request)
        names, lines = _table(site, runs)
        few = 1 < len(runs) <= FEW
        found = site.ft.compare(runs) if few else None
        return site.page(
            request,
            "compare.html",
            here="compare",
            copy=_copy(runs),
            runs=runs,
            query=request.url.query,
            names=names,
            lines=lines,
            found=found,
            axes=AXES,
            few=FEW,
        )

    def curves(request: Request) -> Response:
        runs = asked(request)
        axis = request.query_params.get("axis", AXES[0])
        most = _POINTS[len(runs) <= FEW]
        points = site.ft.store.history.sampled([run.id for run in runs], most)
        named = {label: points[run.id] for label, run in zip(_labels(runs), runs, strict=True)}
        only = None if len(runs) <= FEW else _OF_MANY
        return web.json_answer(charts(named, axis if axis in AXES else AXES[0], most, only))

    def colors(request: Request) -> Response:
        """Map the label of each curve to the value of one setting of its run."""
        name, runs = request.query_params.get("by", ""), asked(request)
        values = [settings.get(name, "") for settings in _settings(runs)]
        labels = _labels(runs)
        return web.json_answer({"values": dict(zip(labels, values, strict=True)), "order": _ordered(values)})

    def report(request: Request) -> Response:
        html = site.ft.compare(asked(request)).render("html")
        return HTMLResponse(html, headers={"content-security-policy": _policy(html)})

    return [
        Route("/compare", page, methods=["GET"]),
        Route("/compare/curves", curves, methods=["GET"]),
        Route("/compare/colors", colors, methods=["GET"]),
        Route("/compare/report", report, methods=["GET"]),
    ]


def _settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return each run's settings and results by dotted names."""
    found: list[dict[str, str]] = []
    for run in runs:
        spec = {name: value for name, value in run.spec.items() if name not in _NOT_SETTINGS}
        shown = {name: compact(value) for name, value in flat(spec).items()}
        tags = {f"tag {name}": value for name, value in run.tags.items()}
        found.append({"backend": run.provider, **shown, "data": run.dataset_digest[:12], **tags})
    return found


def _ordered(values: Sequence[str]) -> list[str]:
    """Sort distinct values: numbers by size, unset values last."""

    def place(value: str) -> tuple[bool, bool, float, str]:
        try:
            return value == "", False, float(value), value
        except ValueError:
            return value == "", True, 0.0, value

    return sorted(set(values), key=place)


def _table(site: Site, runs: Sequence[Run]) -> tuple[list[str], list[ComparedRun]]:
    """Return the names of the settings that differ, and a row for each run."""
    settings = _settings(runs)
    names = list(dict.fromkeys(name for found in settings for name in found))
    differ = [name for name in names if len({found.get(name) for found in settings}) > 1]
    last = site.ft.store.history.last_points([run.id for run in runs])
    newest = {id: one for one in site.ft.store.history.evaluations() for id in one.run_ids}
    return differ, [
        ComparedRun(
            run,
            [found.get(name, "") for name in differ],
            _loss(last.get(run.id)),
            money(cost_so_far(run)),
            _score(newest.get(run.id), run.id),
        )
        for run, found in zip(runs, settings, strict=True)
    ]


def _loss(point: MetricPoint | None) -> str:
    value = point.values.get("train_loss") if point else None
    return "" if value is None else f"{value:.4f}"


def _score(found: Evaluation | None, run_id: str) -> str:
    """Return the score of the first metric with its interval."""
    mine = next((c for c in found.contenders if c.run_id == run_id), None) if found else None
    score = found.score(mine.name) if found and mine else None
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})" if score else ""


def _labels(runs: Sequence[Run]) -> list[str]:
    names = [name_of(run) for run in runs]
    times = Counter(names)
    return [name if times[name] == 1 else run.id for name, run in zip(names, runs, strict=True)]


def _policy(html: str) -> str:
    """Return the content security policy of a report, which only allows its inline style."""
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() for style in styles]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return f"default-src 'none'; style-src {allowed}; frame-ancestors 'none'"


def _copy(runs: Sequence[Run]) -> Copy:
    ids = [run.id for run in runs] or ["RUN", "RUN"]
    return Copy(
        command=f"orchestrate compare {' '.join(ids)}",
        python="from orchestrate import Orchestrator\n\nwith Orchestrator() as ft:\n"
        f"    for found in ft.compare({ids!r}).findings:\n        print(found)",
    )
