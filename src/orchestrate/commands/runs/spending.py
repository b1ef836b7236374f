"""The command `spending`."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from orchestrate.commands.terminal.command import HostOutput, Output, command, shown_already
from orchestrate.commands.terminal.console import (
    SANDBOX,
    confirm,
    err,
    mark_sandbox,
    note,
    orchestrator,
    out,
    prints_json,
    table,
    warn,
)
from orchestrate.commands.terminal.notify import NotifyOptions
from orchestrate.errors import HostUnavailable, OverBudget, UsageError
from orchestrate.runs import watch as watching
from orchestrate.runs.spending import BY, AccountStatus, Breakdown, Found, SpendingReport, Sum, cents
from orchestrate.settings import hide
from orchestrate.settings.config import Notify, Settings
from orchestrate.text import NOTHING, count, joined, money, rate

if TYPE_CHECKING:
    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.runs.spending.orphans import Orphan, OrphanReport

_CENT = Decimal("0.01")


@dataclass(frozen=True, kw_only=True)
class SpendingSelection:
    """Options for selecting what to report."""

    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT", help=f"Group by {', '.join(BY)}, tag:NAME, or all; repeatable or comma-separated."
        ),
    ] = None
    month: Annotated[
        str | None, typer.Option(help="Show only this month, such as 2026-11.", metavar="MONTH")
    ] = None
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only the store, without contacting hosts.")
    ] = False
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Show sandbox spending and deployments instead.")
    ] = False
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID_OR_NAME",
            help="Leave this item out of the warnings about idle deployments and unknown costs; repeatable.",
        ),
    ] = None

    def inside(self, settings: Settings) -> bool:
        """Return whether to report on sandboxes: `--sandbox` was passed, or the keys are sandbox keys."""
        return self.sandbox or settings.hosts.sandboxed

    def ask(self, ft: Orchestrator) -> SpendingReport:
        wanted = [part.strip() for one in self.by or ["backend"] for part in one.split(",")]
        return ft.spending(
            list(BY) if "all" in wanted else wanted,
            month=self.month,
            sandbox=self.inside(ft.settings),
            offline=self.offline,
            ignore=self.ignore or (),
        )


@dataclass(frozen=True, kw_only=True)
class ExitCodeOptions:
    """Options for nonzero exit codes."""

    fail_if_over: Annotated[
        bool,
        typer.Option(
            "--fail-if-over",
            help="Exit with code 6 if the budget is exceeded, or code 4 if an unknown cost may exceed it.",
        ),
    ] = False
    fail_if_idle: Annotated[
        bool,
        typer.Option(
            "--fail-if-idle",
            help="Exit with code 1 if a billed deployment has no known use, or if a rented machine belongs "
            "to no run in this store. Otherwise, exit with code 4 if an account could not be fully checked.",
        ),
    ] = False

    def require(self, what: SpendingSelection, settings: Settings) -> None:
        """Check that the requested exit codes can be determined. Raises `UsageError` if --fail-if-idle is
        combined with --offline or --fail-if-over with --sandbox, or if --fail-if-over is used without a
        budget."""
        if self.fail_if_idle and what.offline:
            raise UsageError("--fail-if-idle must contact the hosts, so it cannot be combined with --offline")
        if self.fail_if_over and what.inside(settings):
            raise UsageError(
                "--fail-if-over cannot be combined with --sandbox or sandbox keys: sandbox costs are not "
                "real and do not count toward the budget"
            )
        if self.fail_if_over and settings.budget_usd is None:
            fix = "set budget_usd in orchestrate.toml, or ORCHESTRATE_BUDGET_USD"
            raise UsageError("--fail-if-over needs a budget, but none is set", fix=fix)

    def code(self, report: SpendingReport) -> int:
        if self.fail_if_over and report.over:
            return OverBudget.exit_code
        if self.fail_if_idle and report.idle:
            return 1
        gaps = (self.fail_if_idle and report.gaps) or (self.fail_if_over and report.uncounted)
        return HostUnavailable.exit_code if gaps else 0


@dataclass(frozen=True, kw_only=True)
class RecipientOptions:
    """Options for sending the report to notification channels."""

    notify: Annotated[
        bool, typer.Option("--notify", help="Send this report once to the configured notification channels.")
    ] = False

    def settings(self, given: Settings, channels: NotifyOptions) -> Settings | None:
        """Return the settings with the notification channels for the report, or `None` if no flag requests
        sending it. Raises `UsageError` if no channel is configured, and `ConfigError` if a channel is
        invalid."""
        if not (self.notify or any(vars(channels).values())):
            return None
        settings = channels.over(given)
        if settings.notify == Notify():
            raise UsageError(
                "--notify needs a channel, but none is set", fix="ORCHESTRATE_NOTIFY_URL, or --notify-url"
            )
        return settings


@dataclass(frozen=True, kw_only=True)
class OrphanOptions:
    """Options for shutting down orphaned resources."""

    end_orphans: Annotated[
        bool,
        typer.Option(
            "--end-orphans",
            help="List and shut down billed resources that Orchestrate created but this store does not "
            "contain. They may belong to another store that uses the same accounts.",
        ),
    ] = False
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation before shutting down.")] = (
        False
    )


@command
def spending(
    context: typer.Context,
    *,
    what: SpendingSelection,
    fail: ExitCodeOptions,
    recipient_options: RecipientOptions,
    channels: NotifyOptions,
    end: OrphanOptions,
) -> Iterator[Output[SpendingReport] | HostOutput[OrphanReport]]:
    """Show spent, committed and remaining money, and what is still being billed. Also queries every
    configured account. Lists resources there that are or may be billed, no matter who started them. Shows
    which accounts could not be reached."""
    with orchestrator(context) as ft:
        if end.end_orphans:
            if what.offline:
                raise UsageError(
                    "--end-orphans must contact the hosts, so it cannot be combined with --offline"
                )
            yield _orphans_ended(ft, sandbox=what.inside(ft.settings), yes=end.yes)
            return
        fail.require(what, ft.settings)
        recipients = recipient_options.settings(ft.settings, channels)
        report = what.ask(ft)
        code = fail.code(report)
        yield Output(report, _show, code)
        problems = watching.announce(recipients, message(report)) if recipients else ()
        for problem in problems:
            warn(f"notification failed: {problem}")
        if problems and not code:
            raise typer.Exit(HostUnavailable.exit_code)


def _orphans_ended(ft: Orchestrator, *, sandbox: bool, yes: bool) -> HostOutput[OrphanReport]:
    """Shut down orphaned resources. Sets exit code 4 if something could not be checked or ended. Raises
    `UsageError` if the user declines."""
    report = ft.orphans(sandbox=sandbox)
    mark_sandbox(sandbox)
    for gap in report.gaps:
        warn(f"{gap.backend} could not be fully checked: {_gap(gap)}")
    if report.orphans:
        _list_orphans(report, err if prints_json() else out)
        if not confirm(f"Shut down {count(len(report.orphans), 'resource')}?", yes=yes):
            reason = "nothing was shut down because you did not confirm"
            raise UsageError(reason, fix="add --yes if none of them belongs to another store")
        report = ft.end_orphans(report, _note_ended)
    else:
        note("no orphaned resources found in the accounts that could be checked")
        note("to list these accounts and everything else that bills: orchestrate spending")
    code = HostUnavailable.exit_code if report.failed or report.gaps else 0
    return HostOutput(report, shown_already, code, sandbox=sandbox)


def _list_orphans(report: OrphanReport, on: Console) -> None:
    shown = table(
        "backend", "kind", "id", "state", "$/hour", "reason", right=("$/hour",), fold=("id", "reason")
    )
    for one in report.orphans:
        item = one.item
        price = NOTHING if item.usd_per_hour is None else rate(item.usd_per_hour)
        shown.add_row(item.provider, item.kind, hide(item.id), item.state, price, one.reason)
    on.print(shown)
    lost = dict.fromkeys(
        one.item.provider
        for one in report.orphans
        if one.item.kind == "job" and not one.item.session and one.run is None
    )
    for name in lost:
        note(f"to recover the jobs of {name} instead of ending them: orchestrate recover -p {name}")


def _note_ended(one: Orphan) -> None:
    line = f"{one.item.provider} {one.item.id}: {one.outcome}" + (f", {one.told}" if one.told else "")
    (warn if one.outcome == "failed" else note)(line)


def message(report: SpendingReport) -> dict[str, Any]:
    """Build the message for the notification channels. Each call creates a new message id."""
    return {
        "id": f"spending-{report.at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
        "type": "spending.report",
        "text": headline(report),
        "sandbox": report.sandbox,
        "month": report.month,
        "spent_usd": str(report.total.spent_usd),
        "committed_usd": str(report.total.committed_usd),
        "unknown": len(report.total.unknown),
        "uncounted": list(report.uncounted),
        "budget_usd": _plain(report.budget_usd),
        "left_usd": _plain(report.left_usd),
        "over": report.over,
        "stalled": list(report.stalled),
        "usd_per_hour": _plain(report.usd_per_hour),
        "at_least": report.at_least,
        "unpriced": list(report.unpriced),
        "idle": [
            {
                "backend": found.item.provider,
                "kind": found.item.kind,
                "id": found.item.id,
                "foreign": found.foreign,
                "usd_per_hour": _plain(found.item.usd_per_hour),
            }
            for found in report.idle
        ],
        "not_asked": [{"backend": one.backend, "reason": _gap(one)} for one in report.gaps],
    }


def _plain(usd: Decimal | None) -> str | None:
    return None if usd is None else f"{usd:f}"


# -- the report as text -----------------------------------------------------------------------------------


def headline(report: SpendingReport) -> str:
    """Summarize the report in one line: spent, committed and remaining money, and hourly billing."""
    spent, committed = report.total.spent_usd, report.total.committed_usd
    used = _up(spent) + _up(committed)
    when = f"{report.month}: " if report.month else ""
    parts = [f"{when}{_sum(spent)} spent", f"{_sum(committed)} committed", _left(report, used)]
    unknown = len(report.total.unknown)
    some = f" (plus unknown costs of {count(unknown, 'run')})" if unknown else ""
    return f"{', '.join(parts)}{some}; {_hourly(report)}"


def _left(report: SpendingReport, used: Decimal) -> str:
    budget, left = report.budget_usd, report.left_usd
    if budget is None or left is None:
        return "all play money" if report.sandbox else "no budget is set"
    if report.over:
        return f"{_sum(-left)} over the budget of {rate(budget)}"
    shown = left if report.month else min(left, budget - used)
    return f"{_usd(max(shown, Decimal(0)).quantize(_CENT, ROUND_FLOOR))} left of {rate(budget)}"


def _hourly(report: SpendingReport) -> str:
    if report.offline:
        return "ongoing billing was not checked"
    if report.usd_per_hour is None and not report.billing:
        return "ongoing billing is unknown: no account could be checked"
    least = "at least " if report.at_least else ""
    asked = count(sum(one.asked for one in report.accounts), "account")
    gaps = f"; {count(len(report.gaps), 'account')} could not be fully checked" if report.gaps else ""
    jobs = [found for found in report.standing if not found.by_the_hour and found.item.bills is not False]
    ours = sum(found.unaccounted is None for found in jobs)
    if others := len(jobs) - ours:
        gaps = f"; {count(others, 'job')} running outside this store, not included in the totals{gaps}"
    if ours:
        gaps = f"; {count(ours, 'job')} running, included in the committed amount{gaps}"
    if not report.billing:
        return f"no hourly billing in {asked}{gaps}"
    foreign = sum(found.foreign for found in report.billing)
    whose = f", {foreign} not created by this store" if foreign else ""
    things = count(len(report.billing), "resource")
    if report.usd_per_hour is None:
        return f"{things} still billed hourly at an unknown price{whose}{gaps}"
    return f"{least}{rate(report.usd_per_hour)} per hour is still being billed ({things}{whose}){gaps}"


def _show(report: SpendingReport) -> None:
    for part in shown(report):
        out.print(part, soft_wrap=isinstance(part, Text))
    for line in notes(report):
        err.print(line, soft_wrap=True)


def shown(report: SpendingReport) -> list[RenderableType]:
    """Render the report for the terminal: the headline, a table for each breakdown, and the billed
    resources."""
    head = Text(headline(report), style="bold red" if report.over else "bold")
    parts: list[RenderableType] = [Text.assemble(SANDBOX, " ", head) if report.sandbox else head]
    for breakdown in report.breakdown:
        if breakdown.groups:
            parts += ["", _breakdown(breakdown, report.total)]
    return [*parts, "", _resources(report.standing)] if report.standing else parts


def notes(report: SpendingReport) -> list[Text]:
    """Return the warnings and remarks to show below the tables."""
    lines: list[Text] = []
    if report.uncounted and report.budget_usd is not None:
        lines.append(
            _warning(
                f"cannot check the budget because the cost of {joined(list(report.uncounted))} is "
                "unknown. To exclude an item, pass --ignore ID. To give up on a run: "
                "orchestrate abandon RUN"
            )
        )
    lines += [_warning(_orphan(found)) for found in report.idle if found.unaccounted]
    lines += [
        _warning(
            f"{run} is stalled and may still be billed. See its events: orchestrate events {run}. "
            f"To end it: orchestrate cancel {run}"
        )
        for run in report.stalled
    ]
    if given_up := report.total.abandoned:
        lines.append(
            Text(
                f"abandoned: {joined(list(given_up))}. Their last known costs still count, but their "
                "hosts are no longer checked",
                style="dim",
            )
        )
    unused: dict[str, list[str]] = {}
    for one in report.accounts:
        if one.expected and not one.asked:
            lines.append(_warning(f"{one.backend} could not be checked: {_gap(one)}"))
        elif not one.asked:
            unused.setdefault("no key" if one.keyless else one.reason or "", []).append(one.backend)
        if one.elsewhere:
            lines.append(_warning(f"{one.backend}: {_other(one)}"))
        for line in one.unseen:
            text = f"{one.backend}: {line}"
            lines.append(_warning(text) if one.partial else Text(hide(text), style="dim"))
    for reason, names in unused.items():
        lines.append(
            Text(
                hide(f"not checked because this store has no runs there: {joined(names)} ({reason})"),
                style="dim",
            )
        )
    return lines


def _orphan(found: Found) -> str:
    """Describe a rented machine that belongs to no run in this store, and how to end it."""
    item = found.item
    price = "at an unknown price" if item.usd_per_hour is None else f"at {rate(item.usd_per_hour)} per hour"
    lost = found.lost_run
    recovery = "" if lost is None else f"To recover the run: orchestrate recover {lost} -p {item.provider}. "
    return (
        f"{item.provider} {item.id} may be billed {price}, and {found.unaccounted}. {recovery}To ignore it, "
        f"pass --ignore {quote(item.name or item.id)}. To end it: orchestrate spending --end-orphans"
    )


def _warning(text: str) -> Text:
    return Text.assemble(("warning: ", "yellow"), hide(text))


def _breakdown(breakdown: Breakdown, total: Sum) -> RenderableType:
    groups = breakdown.groups
    names = [name for name in _NUMBERS if name != "answers" or total.requests]
    shown = table(breakdown.by, *names, right=names)
    spent, committed = [g.spent_usd for g in groups], [g.committed_usd for g in groups]
    columns = [_column(spent), _column(committed)]
    for g, first, second in zip(groups, *columns, strict=True):
        shown.add_row(g.key, first, second, *_counts(g, total))
    if len(groups) > 1:
        sums = [_sum(sum(column, Decimal(0))) for column in (spent, committed)]
        last = ("total", *sums, *_counts(total, total))
        shown.add_row(*(Text(word, style="bold") for word in last))
    return shown


def _counts(group: Sum, total: Sum) -> list[str]:
    answers = [group.requests or None] if total.requests else []
    return [count(n) for n in (group.runs, group.deployments, *answers, len(group.unknown) or None)]


_NUMBERS = ("spent", "committed", "runs", "deployments", "answers", "unknown cost")


def _column(parts: Sequence[Decimal]) -> list[str]:
    """Round amounts to cents that add up to the total. Amounts below a cent are not shown as zero. If the
    total is below a cent, amounts are not rounded."""
    if sum(parts, Decimal(0)) < _CENT:
        return [_sum(part) for part in parts]
    return [
        "under $0.01" if part and not shown else _usd(shown)
        for part, shown in zip(parts, cents(parts), strict=True)
    ]


def _resources(resources: Sequence[Found]) -> RenderableType:
    names = ("backend", "kind", "id", "name", "state", "billed", "$/hour", "owner")
    shown = table(*names, right=("$/hour",), fold=("id", "name", "owner"))
    for found in resources:
        item = found.item
        bills = {True: Text("yes", style="red"), False: Text("no"), None: Text("unknown", style="yellow")}
        price = item.usd_per_hour
        shown.add_row(
            item.provider,
            item.kind,
            item.id,
            item.name or "",
            item.state,
            bills[item.bills],
            NOTHING if price is None else rate(price),
            _whose(found),
        )
    return shown


def _whose(found: Found) -> Text:
    idle = ("idle? ", "yellow") if found.idle else ""
    if found.foreign:
        by = f", {found.person}" if found.person else ""
        return Text.assemble(idle, ("not created by this store", "magenta"), by)
    given_up = (", abandoned", "yellow") if found.abandoned else ""
    return Text.assemble(idle, f"{found.run}" + (f", {found.person}" if found.person else ""), given_up)


def _gap(one: AccountStatus) -> str:
    if not one.asked:
        return (one.reason or "the host did not answer").removeprefix(f"{one.backend}: ")
    return "; ".join([*one.unseen, *([_other(one)] if one.elsewhere else [])])


def _other(one: AccountStatus) -> str:
    runs = joined(list(one.elsewhere))
    return (
        f"your API key's account ({one.account}) does not list {runs}, which may be running in another "
        "account"
    )


def _up(usd: Decimal) -> Decimal:
    return usd.quantize(_CENT, ROUND_CEILING)


def _sum(usd: Decimal) -> str:
    """Format an amount in cents, rounded up. Amounts below a cent keep their digits, because a cent can be
    many times larger."""
    return money(usd) if 0 < usd < _CENT else _usd(_up(usd))


def _usd(cents: Decimal) -> str:
    return f"${cents:,.2f}"
