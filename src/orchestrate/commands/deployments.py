"""The commands `deploy`, `undeploy` and `deployments`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import typer
from msgspec import structs

from orchestrate.commands.exports import show_proof
from orchestrate.commands.terminal.command import HostOutput, Output, command, for_people
from orchestrate.commands.terminal.console import (
    RunArg,
    confirm,
    err,
    mark_sandbox,
    note,
    orchestrator,
    out,
    table,
    warn,
)
from orchestrate.commands.terminal.options import PayOpt
from orchestrate.core.amounts import amount
from orchestrate.errors import UsageError
from orchestrate.paid.consent import require_consent, require_hourly_price
from orchestrate.runs.hosting.deployment import ending, price
from orchestrate.runs.hosting.deployment import limits as ends_by
from orchestrate.text import SANDBOX_MARK, duration, money, rate
from orchestrate.types import Deployment, DeploymentState, Proof

if TYPE_CHECKING:
    from orchestrate import DeploymentHandle
    from orchestrate.settings.config import Settings


PATIENCE_S = 900.0
"""Default number of seconds to wait for the first answer, while the host starts GPUs."""


@dataclass(frozen=True)
class DeployCommandLimits:
    """Options for the hardware and limits of a deployment."""

    shape: Annotated[
        str | None,
        typer.Option(help="Hardware type, as the backend names it. Default: the cheapest that fits."),
    ] = None
    max_usd_per_hour: Annotated[
        str | None,
        typer.Option(metavar="USD", help="Don't deploy if the hourly price of all replicas exceeds this."),
    ] = None
    max_cost: Annotated[
        str | None,
        typer.Option(metavar="USD", help="Take the deployment down once its uptime has cost this much."),
    ] = None
    max_hours: Annotated[
        float | None, typer.Option(min=0, help="Take the deployment down after this many hours.")
    ] = None
    idle: Annotated[
        str | None,
        typer.Option(help="Idle time after which the host stops the deployment, such as 30m or 2h."),
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Deployment option: min_replicas, max_replicas, or one of the backend's own.",
        ),
    ] = None
    accept_unknown_price: Annotated[
        bool, typer.Option("--accept-unknown-price", help="Continue even if the price is unknown.")
    ] = False
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="NAME", help="Creator of the deployment. Default: user@machine."),
    ] = None

    @property
    def options(self) -> dict[str, Any]:
        """Return the options to pass to the backend, from --set and other flags. Raises `UsageError` if one
        is invalid."""
        found: dict[str, Any] = {}
        for pair in self.settings or []:
            name, sign, value = pair.partition("=")
            if not sign or not name:
                raise UsageError(f"--set must be NAME=VALUE, got {pair!r}")
            found[name] = value
        if self.shape is not None:
            found["shape"] = self.shape
        if self.idle is not None:
            found["idle_minutes"] = _minutes(self.idle)
        return found

    @property
    def limits(self) -> dict[str, Decimal | None]:
        """Return the limits of the deployment. Raises `UsageError` if one is invalid."""
        return {
            "max_usd_per_hour": amount(self.max_usd_per_hour, "--max-usd-per-hour"),
            "max_cost_usd": amount(self.max_cost, "--max-cost", above_zero=True),
            "max_hours": amount(self.max_hours, "--max-hours", "hours", above_zero=True),
        }


class DeploymentMade(Deployment, frozen=True, kw_only=True):
    proof: Proof | None = None


class TakenDown(TypedDict):
    run: str
    state: Literal["down", "ending"]
    deployment: Deployment | None


@command
def deploy(
    context: typer.Context,
    *,
    run: RunArg,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="HOST",
            help="Host to deploy on. Default: the host that trained the model. If you choose another host, "
            "the adapter is uploaded to it.",
        ),
    ] = None,
    terms: DeployCommandLimits,
    prove: Annotated[bool, typer.Option(help="Verify the deployed model once it answers.")] = True,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for the first answer before verifying.")
    ] = PATIENCE_S,
    yes: PayOpt = False,
) -> Output[DeploymentMade]:
    """Deploy a tuned model on its host's GPUs, or its adapter on another host. Billed hourly until
    `orchestrate undeploy`. Verifies the deployed model. If verification fails, the exit code is 1 and the
    deployment keeps running and billing. If interrupted, repeat the command to finish the deployment."""
    from orchestrate.runs import serving

    options, limits = terms.options, terms.limits
    with orchestrator(context, made_by=terms.by) as ft:
        handle = ft.run(run)
        handle.check()
        host = to or handle.record.provider
        offer_limits = {name: limits[name] for name in ("max_cost_usd", "max_hours")}
        offer = handle.deployment_offer(to, **offer_limits, **options)
        accepted = terms.accept_unknown_price
        require_hourly_price(host, offer.usd_per_hour, accepted=accepted)
        what = offer.model if host == handle.record.provider else f"the adapter of {handle.id}"
        mark_sandbox(offer.sandbox)
        err.print(f"Deploying {what} on {host} costs {price(offer)}.")
        err.print(ending(offer))
        agreed = partial(confirm, "Deploy?", yes=yes)
        require_consent(offer.most_usd or None, agreed, otherwise="not deployed", fix="add --yes")
        if limits["max_usd_per_hour"] is None and offer.deployment is None:  # else an earlier limit stays
            limits["max_usd_per_hour"] = offer.usd_per_hour  # the confirmed price
        given: dict[str, Any] = {**limits, "accept_unknown_price": accepted, **options}
        deployment = handle.deploy(to, **given)
        if deployment.record.limited:
            _watched(ft.settings)
        record = deployment.record
        if show := for_people(out.print):
            show(f"{record.host_id}  {record.raw_state}  {record.model or ''}")
            note(f"to take it down: orchestrate undeploy {run}" + (f" --at {to}" if to else ""))
        proof = None
        if prove:
            proof, why = serving.prove_deployed(ft, handle, deployment, wait)
            if why is not None:
                note(f"not proved: {why}")
    made = DeploymentMade(**structs.asdict(record), proof=proof)
    failed = proof is not None and proof.state == "failed"
    return Output(made, lambda made: show_proof(made.proof) if made.proof is not None else None, int(failed))


@command
def undeploy(
    context: typer.Context,
    run: RunArg,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="HOST", help="Host of the deployment. Default: wherever the model is deployed."
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait until the host confirms the shutdown.")
    ] = 60.0,
) -> HostOutput[TakenDown]:
    """Take down a deployment and wait until the host confirms that nothing is running. Exit code 5 means that
    something may still be running. Each `orchestrate sync` tries again."""
    with orchestrator(context) as ft:
        handle = ft.run(run)
        ended = handle.undeploy(at, patience_s=wait)
        record = ended.record if ended is not None else None
        cost = ended.spent_usd if ended is not None else None
        down = record is None or record.state.over
        left_s = 0.0 if ended is None or down else ended.settles_in_s
    taken = TakenDown(run=handle.id, state="down" if down else "ending", deployment=record)
    where = at or handle.record.provider
    view = partial(_show_taken, where=where, cost=cost, left_s=left_s)
    sandbox = (record or handle.record).sandbox
    return HostOutput(taken, view, 0 if down else 5, sandbox=sandbox)


def _show_taken(taken: TakenDown, where: str, cost: Decimal | None, left_s: float) -> None:
    record, again = taken["deployment"], f"orchestrate undeploy {taken['run']}   (or sync, worker)"
    if record is None:
        note(f"{where} has no deployment of this run")
    elif taken["state"] == "down":
        spent = f"; about {money(cost)} based on uptime" if cost else ""
        note(f"down, confirmed by {record.provider}{spent}")
    elif record.host_id is None:
        warn(
            f"{record.provider} lists no deployment of this run, but may still start one within the next "
            f"{duration(left_s)}. To check again after that: {again}"
        )
    else:
        at_price = f" at {rate(record.usd_per_hour)} per hour" if record.usd_per_hour is not None else ""
        bills = (
            f"the deployment is still billed{at_price}"
            if record.billing_since is not None
            else "the deployment is not currently billed"
        )
        warn(
            f"{record.provider} still lists {record.host_id} ({record.raw_state}) after the shutdown "
            f"request: {bills}. To check again: {again}"
        )


@command
def deployments(
    context: typer.Context,
    all: Annotated[bool, typer.Option("--all", help="Include ended deployments.")] = False,
) -> Output[list[Deployment]]:
    """List the deployments in this store in their last known state, newest first. `orchestrate sync` updates
    them from the hosts."""
    with orchestrator(context) as ft:
        handles = ft.deployments(over=None if all else False)
        costs = [one.spent_usd for one in handles]
    none = "nothing is deployed" if not all else "no deployments yet"
    found = [one.record for one in handles]
    return Output(found, lambda found: _show(found, costs) if found else note(none))


def _show(found: Sequence[Deployment], costs: Sequence[Decimal | None]) -> None:
    names = ("run", "backend", "state", "$/hour", "so far", "limit", "by", "created")
    shown = table(*names, right=("$/hour", "so far"))
    for r, cost in zip(found, costs, strict=True):
        shown.add_row(
            r.run_id,
            r.provider,
            state_of(r),
            money(r.usd_per_hour),
            money(cost),
            ends_by(r.max_cost_usd, r.max_hours),
            r.made_by or "",
            f"{r.created_at:%Y-%m-%d %H:%M}",
        )
    out.print(shown)


def state_of(deployment: Deployment) -> str:
    """Return the deployment's state and its problems."""
    state = deployment.state.value.replace("_", " ")
    if deployment.state in (DeploymentState.UP, DeploymentState.IDLE) and not deployment.complete:
        state += ", incomplete: deploy again"
    return state + SANDBOX_MARK * deployment.sandbox


def describe(deployment: DeploymentHandle) -> str:
    """Describe a deployment, such as `up, $8.00 per hour, about $16.00 so far, ends after 3 h`."""
    record, cost = deployment.record, deployment.spent_usd
    parts = [state_of(record)]
    if record.usd_per_hour is not None and not record.state.over:
        parts.append(f"{rate(record.usd_per_hour)} per hour")
    if cost is not None:
        parts.append(f"about {money(cost)} " + ("in total" if record.state.over else "so far"))
    ends = ends_by(record.max_cost_usd, record.max_hours)
    if ends and not record.state.over:
        parts.append(f"ends {ends}")
    reason = record.cause if record.cause is not None else record.problem
    return ", ".join(parts) + (f" ({reason})" if reason else "")


def _minutes(text: str) -> int:
    """Parse `30m`, `2h`, or a number of minutes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(m|min|h)?", text.strip())
    if found is None:
        raise UsageError(f"--idle must be a time such as 30m or 2h, got {text!r}")
    return round(float(found[1]) * (60 if found[2] == "h" else 1))


def _watched(settings: Settings) -> None:
    """Print which process enforces the limits."""
    from orchestrate.runs import watch as watching

    if sys.stderr.isatty() and sys.platform != "win32":
        watching.background(settings).ensure()
        note("a background watcher takes the deployment down at its limit, while this machine is running")
    else:
        note(
            "the limit is enforced while `orchestrate worker` or `watch` runs, and at each `orchestrate sync`"
        )
