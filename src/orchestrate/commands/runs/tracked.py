"""The commands `show`, `events`, `metrics`, `checkpoints`, `cancel`, `pause`, `resume`, `abandon` and
`note`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from msgspec import structs
from rich.text import Text

from orchestrate.commands.terminal.command import HostOutput, Output, command
from orchestrate.commands.terminal.console import (
    RunArg,
    fitted,
    note,
    orchestrator,
    out,
    require_go_ahead,
    stage_text,
    table,
    warn,
)
from orchestrate.core.amounts import amount
from orchestrate.errors import OutcomeUnknown, ProviderError, SetupError
from orchestrate.paid.limits import exceeds
from orchestrate.providers.base import require
from orchestrate.runs.hosting.deployment import NOT_DEPLOYED, uses_of_checkpoint
from orchestrate.store.transitions import UNSENT, UNSETTLED
from orchestrate.text import limit, money, quoted, rate
from orchestrate.types import (
    SESSION,
    Checkpoint,
    Contender,
    Deployment,
    Evaluation,
    Event,
    Feature,
    JobStatus,
    Measure,
    MetricPoint,
    Proof,
    Run,
)
from orchestrate.types.proof import badge

if TYPE_CHECKING:
    from orchestrate import RunHandle
    from orchestrate.api.orchestrator import Orchestrator

Refresh = Annotated[
    bool | None,
    typer.Option(
        "--refresh/--offline",
        help="Refresh from the host, or show the stored state. Default: refresh unless the run has ended.",
    ),
]


class RunShown(Run, frozen=True, kw_only=True):
    evaluations: tuple[Evaluation, ...] = ()
    deployment: Deployment | None = None
    proofs: tuple[Proof, ...] = ()


@command
def show(context: typer.Context, run: RunArg, refresh: Refresh = None) -> Output[RunShown]:
    """Show one run's status, settings, progress and cost."""
    with orchestrator(context) as ft:
        handle = ft.run(run)
        record = _fresh(ft, handle, refresh)
        evaluations = ft.evaluations(record.id)
        deployed = handle.deployment()
        proofs = handle.proofs()
        points = ft.store.history.metrics(record.id) if record.job_kind == SESSION else []
    shown = RunShown(
        **structs.asdict(record),
        proofs=tuple(proofs),
        evaluations=tuple(evaluations),
        deployment=deployed.record if deployed is not None else None,
    )
    so_far = points[-1].values.get("cost_usd") if points and record.bill is None else None
    words = None
    if deployed is not None:
        from orchestrate.commands.deployments import describe  # late: few runs are deployed

        words = describe(deployed)
    return Output(shown, partial(_show, deployed=words, so_far_usd=so_far))


def _show(record: RunShown, deployed: str | None, so_far_usd: float | None) -> None:
    facts: dict[str, str | Text | None] = {
        "run": record.id,
        "backend": f"{record.provider} at {record.host}",
        "model": record.model,
        "status": Text.assemble(stage_text(record), (_raw(record), "dim")),
        "job": record.job_id,
        "ref": record.ref,
        "submit phase": record.phase.value,
        "progress": f"step {record.step or 0} of {record.total_steps}" if record.total_steps else None,
        "trained tokens": f"{record.trained_tokens:,}" if record.trained_tokens else None,
        "tuned model": record.tuned_model,
        "deployment": deployed,
        "served as trained": badge(record.proofs)
        if record.status is JobStatus.SUCCEEDED or record.proofs
        else None,
        "early stopped": "yes" if record.early_stopped else None,
        "error": record.error.message if record.error else None,
        "quote": _quote(record),
        "host's estimate": f"{money(record.estimate_usd)}, before the start" if record.estimate_usd else None,
        "limit": _limits(record),
        "would bill" if record.sandbox else "bill": _bill(record),
        "cost so far": None if so_far_usd is None else money(amount(so_far_usd, "cost_usd")),
        "abandoned": record.abandoned,
        "note": record.note,
        "archived": "yes" if record.archived else None,
        "created": f"{record.created_at:%Y-%m-%d %H:%M:%S} UTC",
        "created by": record.made_by,
        "idempotency key": record.idempotency_key,
        "finished": f"{record.finished_at:%Y-%m-%d %H:%M:%S} UTC" if record.finished_at else None,
        "data digest": record.dataset_digest[:16],
        "spec": ", ".join(f"{k}={_short(v)}" for k, v in record.spec.items() if _shown_in_spec(k, v)),
    }
    for e in record.evaluations:
        for v in e.verdicts:
            if (c := e.contender(v.contender)).run_id == record.id:
                name = "verdict" if c.checkpoint is None else f"verdict of {c.checkpoint}"
                facts[name] = f"{v.decision} ({e.id}): {'; '.join(v.reasons)}"
        for c in e.contenders:
            if c.run_id == record.id:
                mine = [m for m in e.measures if m.contender == c.name and not m.slice]
                facts |= {m.metric: _scored(e, c, m) for m in mine}
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if value is not None:
            taken = width + 2
            text = fitted(value, taken, " " * taken, on=out) if isinstance(value, str) else value
            out.print(Text.assemble((f"{name:<{width}}  ", "bold"), text), soft_wrap=True)


def _limits(run: Run) -> str | None:
    words = [] if run.max_cost_usd is None else [limit(run.max_cost_usd)]
    words += [] if run.max_hours is None else [f"{run.max_hours:g} hours"]
    parts = [" and ".join(words)] if words else []
    if run.allowed_usd is not None and run.allowed_usd != run.max_cost_usd:
        parts.append(f"the run stops at {limit(run.allowed_usd)} in total")
    return "; ".join(parts) or None


def _scored(e: Evaluation, c: Contender, m: Measure) -> str:
    difference = e.difference(c.name, m.metric)
    rival = e.score(difference.against, m.metric) if difference else None
    base = f"{rival.value:.3f} → " if rival else ""
    return f"{base}{m.score.value:.3f} [{m.score.low:.3f}, {m.score.high:.3f}] n={m.score.n}"


@command
def events(context: typer.Context, run: RunArg, refresh: Refresh = None) -> HostOutput[list[Event]]:
    """List the events that the host reported about a run, oldest first."""
    with orchestrator(context) as ft:
        handle = ft.run(run)
        require(ft.provider(handle.record.provider), Feature.EVENTS)
        _fresh(ft, handle, refresh)
        found = handle.events()
    return HostOutput(found, _show_events, sandbox=handle.record.sandbox)


def _show_events(found: list[Event]) -> None:
    if not found:
        note("no events yet")
    for e in found:
        style = {"error": "red", "warning": "yellow"}.get(e.level, "default")
        head = f"{e.at:%Y-%m-%d %H:%M:%S}  "
        out.print(Text.assemble(head, (f"{e.level:<7}", style), f"  {e.message}"), soft_wrap=True)


@command
def metrics(context: typer.Context, run: RunArg, refresh: Refresh = None) -> HostOutput[list[MetricPoint]]:
    """Show loss and other metrics by step."""
    with orchestrator(context) as ft:
        handle = ft.run(run)
        require(ft.provider(handle.record.provider), Feature.METRICS)
        _fresh(ft, handle, refresh)
        found = handle.metrics()
    return HostOutput(found, _show_metrics, sandbox=handle.record.sandbox)


def _show_metrics(found: list[MetricPoint]) -> None:
    if not found:
        note("no metrics yet")
        return
    names = list(dict.fromkeys(name for point in found for name in point.values))
    for part in _side_by_side(names, out.width):
        shown = table("step", *part, right=("step", *part))
        for point in found:
            shown.add_row(
                str(point.step), *(f"{point.values[n]:.6g}" if n in point.values else "" for n in part)
            )
        out.print(shown)


def _side_by_side(names: list[str], width: int) -> list[list[str]]:
    """Group columns that fit side by side. The others go into additional tables below."""
    parts: list[list[str]] = [[]]
    used = 0
    for name in names:
        wide = max(len(name), 11) + 2
        if parts[-1] and used + wide > width - 8:
            parts.append([])
            used = 0
        parts[-1].append(name)
        used += wide
    return parts


@command
def checkpoints(context: typer.Context, run: RunArg, refresh: Refresh = None) -> HostOutput[list[Checkpoint]]:
    """List the checkpoints of a run."""
    with orchestrator(context) as ft:
        handle = ft.run(run)
        provider = ft.provider(handle.record.provider)
        require(provider, Feature.CHECKPOINTS)
        _fresh(ft, handle, refresh)
        found = handle.checkpoints()

    def view(_: list[Checkpoint]) -> None:
        _show_checkpoints(found)
        if found and handle.record.status is JobStatus.SUCCEEDED:
            for said, command in uses_of_checkpoint(provider, handle.id, found[-1].id):
                note(f"{said}:\n  {command}")
            if Feature.DEPLOY in provider.features:
                note(NOT_DEPLOYED)

    return HostOutput(found, view, sandbox=handle.record.sandbox)


def _show_checkpoints(found: list[Checkpoint]) -> None:
    if not found:
        note("no checkpoints yet")
        return
    shown = table("checkpoint", "step", "created", "model", right=("step",))
    for c in found:
        made = f"{c.created_at:%Y-%m-%d %H:%M:%S}" if c.created_at else ""
        shown.add_row(c.id, str(c.step or ""), made, c.model or "")
    out.print(shown)


YesOpt = Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation prompt.")]


@command
def cancel(context: typer.Context, run: RunArg, yes: YesOpt = False) -> Iterator[Output[Run]]:
    """Cancel a run. Most hosts bill the training done so far. Exit code 5 means that the host may or may not
    have created the job. If the job appears later, Orchestrate cancels it."""
    from orchestrate.runs.tracked import ending_question

    with orchestrator(context) as ft:
        handle = ft.run(run)
        before = handle.record
        over = before.status.terminal and before.abandoned is None
        if not over:
            require_go_ahead(ending_question(before), yes=yes)
        after = handle.cancel()
    unsettled = after.phase in UNSETTLED
    yield Output(after, _show_status, OutcomeUnknown.exit_code if unsettled else 0)
    if over:
        note(f"run {before.id} has already ended, so there was nothing to cancel")
    if unsettled:
        note("the host may have the job. To cancel it once it is found:  orchestrate sync")


@command
def pause(context: typer.Context, run: RunArg) -> Output[Run]:
    """Pause a run if the backend supports it."""
    with orchestrator(context) as ft:
        return Output(ft.run(run).pause(), _show_status)


@command
def resume(
    context: typer.Context,
    run: RunArg,
    max_cost: Annotated[
        str | None,
        typer.Option(
            "--max-cost",
            metavar="USD",
            help="New cost limit for the entire run, including the cost so far.",
        ),
    ] = None,
    max_hours: Annotated[
        float | None,
        typer.Option(
            min=0, help="On rented machines: new hour limit for the entire run, including hours used so far."
        ),
    ] = None,
    yes: YesOpt = False,
) -> Iterator[Output[Run]]:
    """Resume a paused or interrupted run, with its current limits or new ones."""
    from orchestrate.runs.queue import crowded
    from orchestrate.runs.tracked import resuming_question

    with orchestrator(context) as ft:
        handle, limit_usd = ft.run(run), amount(max_cost, "--max-cost")
        if not handle.record.status.terminal:
            require_go_ahead(resuming_question(handle.record, limit_usd), yes=yes)
        after = handle.resume(max_cost_usd=limit_usd, max_hours=max_hours)
        yield Output(after, _show_status)
        if message := crowded(ft, after):
            note(message)


@command
def abandon(
    context: typer.Context,
    run: RunArg,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Reason to store with the run.")],
) -> Iterator[Output[Run]]:
    """Give up on a run and its deployments when you've lost access to the account. Orchestrate stops polling
    them, and only their known cost counts against the budget. Nothing is stopped on the host, which may
    continue to bill you."""
    with orchestrator(context) as ft:
        handle = ft.run(run)
        if handle.record.job_id is not None and not handle.status.terminal:
            job, host = handle.record.job_id, handle.record.host
            note(f"job {job} may keep running at {host} and be billed. Cancel it there")
        given_up = handle.deployments(over=False)
        yield Output(handle.abandon(reason), _show_status)
        for one in given_up:
            r, cost = one.record, one.spent_usd
            hourly = f" {rate(r.usd_per_hour)} per hour" if r.usd_per_hour is not None else ""
            counted = "" if cost is None else f". The budget still counts {money(cost)} for it"
            warn(
                f"deployment {r.host_id or r.id} may keep running at {r.host} and be billed{hourly}. Take it "
                f"down there: Orchestrate no longer tracks it{counted}"
            )


@command
def annotate(
    context: typer.Context,
    run: RunArg,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The note. '' removes it.")] = None,
    archive: Annotated[
        bool | None, typer.Option("--archive/--unarchive", help="Hide the run from lists, or show it again.")
    ] = None,
) -> Output[Run]:
    """Set a run's note, or archive the run. Does not contact the host. The cost of an archived run still
    counts."""
    with orchestrator(context) as ft:
        handle = ft.run(run)
        if text is not None or archive is not None:
            handle.annotate(note=text, archived=archive)
    return Output(handle.record, _show_note)


def _show_note(run: Run) -> None:
    out.print(Text(f"{run.id}{' (archived)' if run.archived else ''}: {run.note or 'no note'}"))


def _fresh(ft: Orchestrator, handle: RunHandle, refresh: bool | None) -> Run:
    """Return the run as its host reports it. A run that can no longer change is read from the store, without
    key or network."""
    record = handle.record
    if refresh is False or (
        refresh is None and record.status.terminal and ft.store.runs.is_closed(record.id)
    ):
        return record
    if record.job_id is None:
        if record.phase in UNSENT:
            note(
                f"the run has not been submitted yet. To submit it: orchestrate resume {record.id}. "
                f"To cancel it: orchestrate cancel {record.id}"
            )
        elif not record.status.terminal:
            note("the host has no job for this run yet. To check again: orchestrate sync")
        return record
    try:
        return handle.refresh()
    except (ProviderError, SetupError) as error:
        if refresh or not record.status.terminal:
            raise
        note(f"showing the stored state because the host could not be reached: {error.message}")
        return record


def _show_status(run: Run) -> None:
    out.print(Text.assemble(f"{run.id}  {run.provider}  ", stage_text(run)))


def _raw(run: Run) -> str:
    return f"  (host: {run.raw_status})" if run.raw_status and run.raw_status != run.status.value else ""


def _quote(run: Run) -> str | None:
    if run.quote is None:
        return None
    if run.quote.unavailable:
        return f"none: {run.quote.unavailable}"
    by_data = run.quote.recovered and not run.quote.undecided
    origin = ", computed from the host's data (recovered run)" if by_data else ""
    return f"{quoted(run.quote)}{origin}"


def _bill(run: Run) -> str | None:
    if run.bill is None:
        from orchestrate.costing import spending

        held = spending(run).committed_usd
        text = f"cost unknown; {money(held)} of the budget stays reserved" if held else "bill unknown"
        return text if run.status.terminal and run.job_id is not None and not run.abandoned else None
    final = "" if run.bill.final else "an estimate: "
    over = exceeds(run.bill.usd, run.max_cost_usd)
    return f"{final}{money(run.bill.usd)} ({run.bill.origin})" + (", above its limit" if over else "")


def _shown_in_spec(name: str, value: Any) -> bool:
    """Return whether the field is shown with the spec. The cost limit has its own line."""
    return value is not None and name != "max_cost_usd"


def _short(value: Any) -> str:
    """Format a value on one line, as a spec would."""
    if isinstance(value, dict):
        named = cast("dict[str, Any]", value)
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in named.items() if v is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_short, cast("Sequence[Any]", value))) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
