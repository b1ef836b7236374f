"""Actions on a run from its page.

Each action must be confirmed on a page that shows its cost, if any. Actions use the same calls as the
commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.core.amounts import amount
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.paid.consent import require_consent
from orchestrate.runs.evaluation.held_out import EvaluationOrder, EvaluationPlan, PreparedEvaluation
from orchestrate.runs.hosting.deployment import question
from orchestrate.text import count, money, rate
from orchestrate.types import Feature, JobStatus, Run, SubmitPhase
from orchestrate.ui.site import Copy, Form, Site, first

if TYPE_CHECKING:
    from orchestrate import RunHandle


_UNSENT = (SubmitPhase.INTENT, SubmitPhase.UPLOADED)


@dataclass(frozen=True)
class Verb:
    """An action and its button."""

    name: str
    label: str
    ends: bool = False
    """True if the action ends or deletes something permanently."""
    spends: bool = False


VERBS = {
    verb.name: verb
    for verb in (
        Verb("cancel", "Cancel", ends=True),
        Verb("pause", "Pause"),
        Verb("resume", "Resume", spends=True),
        Verb("download", "Download"),
        Verb("deploy", "Deploy", spends=True),
        Verb("undeploy", "Take down", ends=True),
    )
}


@dataclass(frozen=True)
class ActionQuestion:
    """The confirmation prompt for an action: what will happen, and the price if there is one."""

    verb: Verb
    what: str
    sum: str | None = None
    usd_per_hour: Decimal | None = None
    unknown: bool = False
    """True if an unknown price must be confirmed separately."""
    shown: Mapping[str, str] = field(default_factory=dict[str, str])
    """The limits that were used to compute the price, by field name."""


def possible(site: Site, handle: RunHandle) -> list[Verb]:
    """List the actions that are possible in the run's current state."""
    run = handle.record
    try:
        features = handle.provider.features
    except OrchestrateError:  # its backend is not configured any more
        return []
    names: list[str] = []
    if not run.status.terminal:
        if run.status is JobStatus.PAUSED or run.phase in _UNSENT:
            names.append("resume")
        elif run.status is JobStatus.RUNNING and Feature.PAUSE in features:
            names.append("pause")
        names += ["cancel"] if Feature.CANCEL in features else []
    if run.status is JobStatus.SUCCEEDED:
        deployed = handle.deployment()
        up = deployed is not None and not deployed.record.state.over
        names += ["download"] if Feature.DOWNLOAD in features else []
        names += ["undeploy"] if up else ["deploy"] if Feature.DEPLOY in features else []
    return [VERBS[name] for name in names]


_FLAGS = (("max_cost_usd", "max-cost"), ("max_hours", "max-hours"))
_LIMITS = [name for name, _ in _FLAGS]


def _asked_to_deploy(handle: RunHandle, verb: Verb, given: Mapping[str, str]) -> ActionQuestion:
    """Return the question about a deployment, with the limits of the form."""
    offer = handle.deployment_offer(
        max_cost_usd=number(given, "max_cost_usd"), max_hours=number(given, "max_hours")
    )
    shown = {name: first(given, name).strip() for name in _LIMITS}
    if offer.usd_per_hour is None:
        return ActionQuestion(verb, question(offer), "an unknown price", unknown=True, shown=shown)
    total = f"{money(offer.usd_per_hour * 24)} a day"
    if offer.most_usd is not None:
        total = f"at most {money(offer.most_usd)} from now on"
    cost = f"{rate(offer.usd_per_hour)} per hour, {total}"
    return ActionQuestion(verb, question(offer), cost, offer.usd_per_hour, shown=shown)


def asked(handle: RunHandle, name: str, given: Mapping[str, str]) -> ActionQuestion:
    """Build the confirmation prompt for an action. Raises `UsageError` for an unknown action. Does not catch
    errors raised while getting the price from the host."""
    run = handle.record
    if name not in VERBS:
        raise UsageError(f"unknown action: {name!r}", fix=f"orchestrate {name} --help")
    verb = VERBS[name]
    if name == "cancel":
        what = "The job ends. Most hosts bill the training so far. Work not saved in a checkpoint is lost."
        return ActionQuestion(verb, what, None if run.bill is None else f"{money(run.bill.usd)} so far")
    if name == "resume":
        quote = run.quote if run.phase in _UNSENT else None
        what = "The run continues where it stopped, within its current limits or new ones."
        if quote is not None:
            what = "The run continues where it stopped, within the price that you confirmed."
        return ActionQuestion(
            verb, what, None if quote is None or quote.high_usd is None else f"up to {money(quote.high_usd)}"
        )
    if name == "deploy":
        return _asked_to_deploy(handle, verb, given)
    whats: Mapping[str, str] = {
        "pause": "The run stops until you resume it. The host may bill storage in the meantime.",
        "download": "Downloads the run's files to the home folder and checks their hashes.",
        "undeploy": "Client requests will fail. Billing stops once the host confirms the shutdown.",
    }
    return ActionQuestion(verb, whats[name])


def routes(site: Site) -> list[Route]:
    def confirm(request: Request) -> Response:
        handle = site.ft.run(request.path_params["run"])
        name, given = request.path_params["verb"], request.query_params
        limits = [f" --{flag} {first(given, field)}" for field, flag in _FLAGS if first(given, field)]
        return site.page(
            request,
            "confirm.html",
            here="runs",
            copy=Copy(
                command=f"orchestrate {name} {handle.id}{''.join(limits)}",
                python="from orchestrate import Orchestrator\n\nwith Orchestrator() as ft:\n"
                f"    ft.run({handle.id!r}).{name}()",
            ),
            run=handle.record,
            asked=site.from_host(handle.record.provider, lambda: asked(handle, name, given)),
            checkpoint=request.query_params.get("checkpoint", "") if name == "download" else "",
        )

    def act(request: Request, form: Form) -> str:
        handle = site.ft.run(request.path_params["run"])
        name = request.path_params["verb"]
        if name not in VERBS:
            raise UsageError(f"unknown action: {name!r}", fix=f"orchestrate {name} --help")
        limits = {one: first(form, one).strip() for one in _LIMITS}
        if name == "deploy" and any(first(form, f"shown_{one}") != value for one, value in limits.items()):
            # The user has not seen the price with these limits yet, so show the page with the new price
            # first.
            return f"/runs/{handle.id}/do/deploy?{urlencode(limits)}"
        site.work.begin(handle.id, VERBS[name].label.lower(), lambda: _done(handle, name, form))
        return f"/runs/{handle.id}"

    return [
        Route("/runs/{run}/do/{verb}", confirm, methods=["GET"]),
        site.action("/runs/{run}/do/{verb}", act),
    ]


def _done(handle: RunHandle, name: str, form: Form) -> str:
    """Perform the action and describe its result."""
    if name == "download":
        artifact = handle.download(checkpoint=first(form, "checkpoint") or None)
        return f"{len(artifact.files)} files in {artifact.folder}"
    if name == "deploy":
        limits: dict[str, Any] = {
            field: amount
            for field in ("max_usd_per_hour", "max_cost_usd", "max_hours")
            if (amount := number(form, field)) is not None
        }
        up = handle.deploy(accept_unknown_price=ticked(form, "accept_unknown_price"), **limits)
        return f"{up.id} is {up.state.value}"
    if name == "resume":
        resumed = handle.resume(
            max_cost_usd=number(form, "max_cost_usd"), max_hours=number(form, "max_hours")
        )
        return f"{resumed.id} is {resumed.status.value}"
    if name == "undeploy":
        gone = handle.undeploy()
        return "nothing is deployed" if gone is None else f"{gone.id} is {gone.state.value}"
    after: Run = getattr(handle, name)()
    return f"{after.id} is {after.status.value}"


TICK = "confirm the action on its page"


def ticked(form: Form, name: str) -> bool:
    return first(form, name) == "1"


def number(form: Form | Mapping[str, str], name: str) -> Decimal | None:
    """Parse a number from a form. Raises `UsageError` if it is not a number."""
    unit = "hours" if name == "max_hours" else "US dollars"
    return amount(first(form, name).strip() or None, name.replace("_", " "), unit)


# Evaluations started from the page of a run or checkpoint. The page first shows the number of requests and
# their price. The confirmed price is the cost limit.


def evaluate_routes(site: Site) -> list[Route]:
    if site.read_only:
        return []

    def page(request: Request) -> Response:
        handle = site.ft.run(request.path_params["run"])
        checkpoint = request.query_params.get("checkpoint", "")
        test = request.query_params.get("test", "").strip() or str(handle.record.spec.get("test") or "")
        subject = f"{handle.id}@{checkpoint}" if checkpoint else handle.id
        values: dict[str, Any] = {"plan": None, "error": None}
        if test:
            try:
                values["plan"] = site.from_host(handle.record.provider, lambda: _planned(site, subject, test))
            except OrchestrateError as error:
                values["error"] = error
        return site.page(
            request,
            "evaluate.html",
            here="runs",
            copy=_copy(subject, test),
            run=handle.record,
            checkpoint=checkpoint,
            test=test,
            **values,
        )

    def act(request: Request, form: Form) -> str:
        handle = site.ft.run(request.path_params["run"])
        checkpoint, test = first(form, "checkpoint"), first(form, "test").strip()
        limit = number(form, "max_cost_usd")
        if not test:
            raise UsageError("choose a file with held-out rows")
        agreed = partial(ticked, form, "unknown")
        require_consent(limit, agreed, otherwise="nothing was sent", limited=limit is not None, fix=TICK)
        subject = f"{handle.id}@{checkpoint}" if checkpoint else handle.id
        site.work.begin(handle.id, "evaluate", lambda: _evaluated(site, subject, test, limit))
        return f"/runs/{handle.id}"

    return [
        Route("/runs/{run}/evaluate", page, methods=["GET"]),
        site.action("/runs/{run}/evaluate", act),
    ]


def _planned(site: Site, subject: str, test: str) -> EvaluationPlan:
    with PreparedEvaluation(site.ft, [subject], EvaluationOrder(test=test)) as prepared:
        return prepared.plan()


def _evaluated(site: Site, subject: str, test: str, limit: Decimal | None) -> str:
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
