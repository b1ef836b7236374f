"""What can be done with a run from its page. Each act is asked about first, on a page that names the sum
where money is spent, and is done by the same calls as the commands do it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.text import money, rate
from orchestrate.types import Feature, JobStatus, Run, SubmitPhase
from orchestrate.ui.site import Copy, Form, Site, first

if TYPE_CHECKING:
    from orchestrate.handles.run import RunHandle

_UNSENT = (SubmitPhase.INTENT, SubmitPhase.UPLOADED)


@dataclass(frozen=True)
class Verb:
    """An act, as a button says it."""

    name: str
    label: str
    ends: bool = False
    """Something that cannot be got back."""
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
class Asked:
    """What a person agrees to: the sum, if there is one, and what happens."""

    verb: Verb
    what: str
    sum: str | None = None
    usd_per_hour: Decimal | None = None
    unknown: bool = False
    """A price that nobody knows has to be agreed to by itself."""


def possible(site: Site, handle: RunHandle) -> list[Verb]:
    """What can be done with a run as it stands."""
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


def asked(handle: RunHandle, name: str) -> Asked:
    """Raises `UsageError` for an act that there is not, and what a host says that is asked for its price."""
    run = handle.record
    if name not in VERBS:
        raise UsageError(f"there is no {name!r} on these pages", fix=f"orchestrate {name} --help")
    verb = VERBS[name]
    if name == "cancel":
        what = "It ends. Most hosts bill what was trained so far; what is not saved as a checkpoint is lost."
        return Asked(verb, what, None if run.bill is None else f"{money(run.bill.usd)} so far")
    if name == "resume":
        quote = run.quote if run.phase in _UNSENT else None
        what = "It goes on where it stopped, within the limits that it has, or with others."
        if quote is not None:
            what = "It goes on where it stopped, within the price agreed to when it was submitted."
        return Asked(verb, what, None if quote is None else f"up to {money(quote.high_usd)}")
    if name == "deploy":
        price = handle.deployment_price()
        what = "It goes on GPUs of its host and bills by the hour, asked or idle, until it is taken down."
        if price is None:
            return Asked(verb, what, "a price that is not known", unknown=True)
        return Asked(verb, what, f"{rate(price)} an hour, {money(price * 24)} a day", price)
    whats: Mapping[str, str] = {
        "pause": "It stops until it is resumed. A host may bill what it keeps meanwhile.",
        "download": "Its files are fetched into the home folder, and their hashes checked.",
        "undeploy": "It answers no more, and is billed no more once its host shows that it is gone.",
    }
    return Asked(verb, whats[name])


def routes(site: Site) -> list[Route]:
    def confirm(request: Request) -> Response:
        handle = site.ft.run(request.path_params["run"])
        name = request.path_params["verb"]
        return site.page(
            request,
            "confirm.html",
            here="runs",
            copy=Copy(
                command=f"orchestrate {name} {handle.id}",
                python="from orchestrate import Orchestrator\n\nwith Orchestrator() as ft:\n"
                f"    ft.run({handle.id!r}).{name}()",
            ),
            run=handle.record,
            asked=asked(handle, name),
            checkpoint=request.query_params.get("checkpoint", "") if name == "download" else "",
        )

    def act(request: Request, form: Form) -> str:
        handle = site.ft.run(request.path_params["run"])
        name = request.path_params["verb"]
        if name not in VERBS:
            raise UsageError(f"there is no {name!r} on these pages")
        site.work.begin(handle.id, VERBS[name].label.lower(), lambda: _done(handle, name, form))
        return f"/runs/{handle.id}"

    return [
        Route("/runs/{run}/do/{verb}", confirm, methods=["GET"]),
        site.action("/runs/{run}/do/{verb}", act),
    ]


def _done(handle: RunHandle, name: str, form: Form) -> str:
    """Does it, and says how it went."""
    if name == "download":
        artifact = handle.download(checkpoint=first(form, "checkpoint") or None)
        return f"{len(artifact.files)} files in {artifact.folder}"
    if name == "deploy":
        limits: dict[str, Any] = {
            field: amount
            for field in ("max_usd_per_hour", "max_cost_usd", "max_hours")
            if (amount := number(form, field)) is not None
        }
        agreed = first(form, "accept_unknown_price") == "1"
        up = handle.deploy(accept_unknown_price=agreed, **limits)
        return f"{up.id} is {up.state.value}"
    if name == "resume":
        resumed = handle.resume(
            max_cost_usd=number(form, "max_cost_usd"), max_hours=number(form, "max_hours")
        )
        return f"{resumed.id} is {resumed.status.value}"
    if name == "undeploy":
        gone = handle.undeploy()
        return "the host shows none" if gone is None else f"{gone.id} is {gone.state.value}"
    after: Run = getattr(handle, name)()
    return f"{after.id} is {after.status.value}"


def number(form: Form, name: str) -> Decimal | None:
    """Raises `UsageError` for what is no number."""
    written = first(form, name).strip().removeprefix("$").replace(",", "")
    if not written:
        return None
    try:
        found = Decimal(written)
    except InvalidOperation:
        found = Decimal("nan")
    if not found.is_finite() or found < 0:
        raise UsageError(f"{name.replace('_', ' ')} takes a number, such as 25 or 7.50; got {written!r}")
    return found
