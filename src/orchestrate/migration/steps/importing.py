"""Past jobs of an account as runs, and what is at stake there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from typing import TYPE_CHECKING

from orchestrate.core import days
from orchestrate.migration.importing import Importer, ImportReport
from orchestrate.migration.inventory import Held as Held
from orchestrate.migration.inventory import Inventory, inventory
from orchestrate.types import Record, Run

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace


class Taken(Record, frozen=True, kw_only=True):
    """What came of an import."""

    provider: str
    account: str
    imported: int
    known: int
    left_out: int
    files: int
    files_gone: int
    problems: dict[str, str]
    inventory: Inventory


def take(
    ft: Workspace,
    name: str,
    *,
    since: datetime | None = None,
    every: bool = False,
    details: bool = True,
    files: bool = True,
    tell: Callable[[str, int, int], object] | None = None,
    today: date | None = None,
) -> Taken:
    """`today`: the day by which models are silent. Raises `MissingKey`, and `ProviderError` where the host's
    list cannot be read."""
    provider = ft.ready(name)
    importer = Importer(ft.store, provider, ft.settings.home / "imported", ft.rates, tell)
    report: ImportReport = importer.run(since=since, every=every, details=details, files=files)
    there = ft.store.runs.matching(provider=name, host=provider.host)
    # Of this account: another key may see another one, and a new key of the same account has its jobs.
    runs = [run for run in there if run.account == report.account or run.job_id in report.jobs]
    found = inventory(runs, provider.profile, importer.lost(), today or days.today(), _used(ft, runs))
    return Taken(
        provider=name,
        account=report.account,
        imported=len(report.imported),
        known=report.known,
        left_out=report.left_out,
        files=report.files,
        files_gone=report.files_gone,
        problems=report.problems,
        inventory=found,
    )


def _used(ft: Workspace, runs: list[Run]) -> dict[str, datetime]:
    """Run id -> when its deployment was last asked from this store."""
    found: dict[str, datetime] = {}
    for deployment in ft.store.deployments.matching():
        if deployment.used_at is not None:
            found[deployment.run_id] = deployment.used_at
    return {run.id: found[run.id] for run in runs if run.id in found}
