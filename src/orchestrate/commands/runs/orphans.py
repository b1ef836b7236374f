"""spending --end-orphans: what nothing here accounts for, listed, then ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.commands.terminal.command import Output
from orchestrate.commands.terminal.console import confirm, err, note, out, prints_json, table, warn
from orchestrate.errors import HostUnavailable, UsageError
from orchestrate.settings.keys import hide
from orchestrate.text import NOTHING, count, rate

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrate.service import Orchestrator
    from orchestrate.spending.orphans import Orphan, OrphanReport


def ended(ft: Orchestrator, *, sandbox: bool, yes: bool) -> Output[OrphanReport]:
    """Exit code 4 where something could not be asked or ended. Raises `UsageError` where nobody agreed."""
    report = ft.orphans(sandbox=sandbox)
    for gap in report.gaps:
        warn(f"{gap.backend} could not be asked in full: {gap.reason or '; '.join(gap.unseen)}")
    if report.orphans:
        _list(report, err if prints_json() else out)
        if not confirm(f"End {count(len(report.orphans), 'thing')}?", yes=yes):
            told = "nothing was ended: nobody agreed"
            raise UsageError(told, fix="add --yes when another store made none of them")
        report = ft.end_orphans(report, _tell)
    return Output(report, _show, HostUnavailable.exit_code if report.failed or report.gaps else 0)


def _show(report: OrphanReport) -> None:
    if not report.orphans:
        note("nothing bills under our mark that this store does not account for")


def _list(report: OrphanReport, on: Console) -> None:
    shown = table("where", "what", "id", "state", "$/hour", "why", right=("$/hour",), fold=("id", "why"))
    for one in report.orphans:
        item = one.item
        price = NOTHING if item.usd_per_hour is None else rate(item.usd_per_hour)
        shown.add_row(item.provider, item.kind, hide(item.id), item.state, price, one.reason)
    on.print(shown)
    lost = dict.fromkeys(
        one.item.provider for one in report.orphans if one.item.kind == "job" and one.run is None
    )
    for name in lost:
        note(f"to take the jobs of {name} over in place of ending them: orchestrate recover -p {name}")


def _tell(one: Orphan) -> None:
    line = f"{one.item.provider} {one.item.id}: {one.outcome}" + (f", {one.told}" if one.told else "")
    (warn if one.outcome == "failed" else note)(line)
