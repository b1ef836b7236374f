"""An evaluation from the page of a run or of one of its checkpoints: what would be asked and for how much
is said first, and what was agreed to is its limit."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.service.evaluation.held_out import EvaluationOrder, PreparedEvaluation
from orchestrate.text import count
from orchestrate.ui.actions import number
from orchestrate.ui.site import Copy, Form, Site, first


def routes(site: Site) -> list[Route]:
    if site.read_only:
        return []

    def page(request: Request) -> Response:
        handle = site.ft.run(request.path_params["run"])
        checkpoint = request.query_params.get("checkpoint", "")
        test = request.query_params.get("test", "").strip() or str(handle.record.spec.get("test") or "")
        subject = f"{handle.id}@{checkpoint}" if checkpoint else handle.id
        told: dict[str, Any] = {"plan": None, "error": None}
        if test:
            try:
                with PreparedEvaluation(site.ft, [subject], EvaluationOrder(test=test)) as prepared:
                    told["plan"] = prepared.plan()
            except OrchestrateError as error:
                told["error"] = error
        return site.page(
            request,
            "evaluate.html",
            here="runs",
            copy=_copy(subject, test),
            run=handle.record,
            checkpoint=checkpoint,
            test=test,
            **told,
        )

    def act(request: Request, form: Form) -> str:
        handle = site.ft.run(request.path_params["run"])
        checkpoint, test = first(form, "checkpoint"), first(form, "test").strip()
        limit = number(form, "max_cost_usd")
        if not test:
            raise UsageError("name the held-out rows")
        if limit is None and first(form, "unknown") != "1":
            raise UsageError("nobody agreed to a price that is not known", fix="tick that on its page")
        subject = f"{handle.id}@{checkpoint}" if checkpoint else handle.id
        site.work.begin(handle.id, "evaluate", lambda: _done(site, subject, test, limit))
        return f"/runs/{handle.id}"

    return [
        Route("/runs/{run}/evaluate", page, methods=["GET"]),
        site.action("/runs/{run}/evaluate", act),
    ]


def _done(site: Site, subject: str, test: str, limit: Decimal | None) -> str:
    order = EvaluationOrder(test=test, max_cost_usd=limit)
    with PreparedEvaluation(site.ft, [subject], order) as prepared:
        found = prepared.run()
    return f"{found.id}, {count(found.items, 'row')}"


def _copy(subject: str, test: str) -> Copy:
    run, _, checkpoint = subject.partition("@")
    flag = f" --test {test}" if test else ""
    asked = f"ft.run({run!r})" if not checkpoint else repr(subject)
    return Copy(
        command=f"orchestrate eval {subject}{flag}",
        python="from orchestrate import Orchestrator\n\nwith Orchestrator() as ft:\n"
        f"    print(ft.evaluate([{asked}], {test or 'test.jsonl'!r}).verdicts)",
    )
