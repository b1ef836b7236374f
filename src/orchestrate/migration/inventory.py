"""Inventory of a team's tuned models that may be shut down: shutdown dates, costs, and whether each model can
be retrained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from orchestrate import catalog, description
from orchestrate.errors import SpecError
from orchestrate.types import MIGRATED_FROM, JobStatus, Record, Run

if TYPE_CHECKING:
    from orchestrate.profile import Profile
    from orchestrate.store.store import Store


KEY = "migrate-"
"""Prefix of the new runs' idempotency keys."""


def successors(store: Store) -> dict[str, Run]:
    """Return the newest successful run that replaces each old run, as `{old run's id: new run}`. A sandbox
    rehearsal does not replace a real run."""
    found: dict[str, Run] = {}
    new = [
        run
        for run in store.runs.keyed(KEY)
        if run.status is JobStatus.SUCCEEDED and MIGRATED_FROM in run.tags
    ]
    old = {run.id: run for run in store.runs.of_ids(run.tags[MIGRATED_FROM] for run in new)}
    for run in sorted(new, key=lambda run: (run.created_at, run.id)):
        before = old.get(run.tags[MIGRATED_FROM])
        if before is not None and before.sandbox == run.sandbox and run.abandoned is None:
            found[before.id] = run
    return found


def newest(run: Run, found: dict[str, Run]) -> Run:
    """Follow a run through its migrations and return the latest replacement, or the run itself if it was
    never replaced."""
    seen = {run.id}
    while (after := found.get(run.id)) is not None and after.id not in seen:
        seen.add(after.id)
        run = after
    return run


class InventoryRun(Record, frozen=True, kw_only=True):
    """One run in its current state."""

    run_id: str
    provider: str
    model: str
    tuned_model: str | None
    status: JobStatus
    made_at: datetime
    silent_on: date | None
    """The last day on which the model is available. `None` if no shutdown is announced."""
    days_left: int | None
    cost_usd: Decimal | None
    trained_tokens: int | None
    last_use: datetime | None
    """Time of the model's last use recorded in this store. Hosts do not report usage."""
    data: str
    """Availability of the training data: `here` (a file on this machine), `gone` (with the reason), or
    `unknown`."""
    data_path: str | None = None
    rebuild: str
    """How the model can be retrained: the same base model on other hosts, or similar open models."""


class Inventory(Record, frozen=True, kw_only=True):
    rows: tuple[InventoryRun, ...]
    cost_usd: Decimal
    """Total cost of the runs with a known cost."""
    uncosted: int
    silent: tuple[tuple[date, int], ...]
    """Number of models that are available until a given day, as `[(day, count)]`, earliest day first."""
    data_here: int
    data_gone: int


def inventory(
    runs: Iterable[Run],
    profile: Profile,
    lost: Mapping[str, str],
    today: date,
    used: Mapping[str, datetime],
) -> Inventory:
    """Build the inventory of these runs, with the shutdown date of each model. `lost` maps run ids to the
    reason why their training rows are unavailable. `used` maps run ids to the time when this store last used
    their model."""
    rows = sorted(
        (_held(run, profile, lost.get(run.id), today, used.get(run.id)) for run in runs),
        key=lambda held: (held.silent_on or date.max, held.made_at),
    )
    answering = [row for row in rows if row.tuned_model is not None and row.silent_on is not None]
    days = sorted({row.silent_on for row in answering if row.silent_on is not None})
    costs = [row.cost_usd for row in rows if row.cost_usd is not None]
    return Inventory(
        rows=tuple(rows),
        cost_usd=sum(costs, Decimal(0)),
        uncosted=len(rows) - len(costs),
        silent=tuple((day, sum(row.silent_on == day for row in answering)) for day in days),
        data_here=sum(row.data == "here" for row in rows),
        data_gone=sum(row.data.startswith("gone") for row in rows),
    )


def _held(run: Run, profile: Profile, lost: str | None, today: date, used: datetime | None) -> InventoryRun:
    silent_on = shutdown(run.model, profile)
    named = [path for path in _train_files(run.spec.get("train")) if path != "unknown"]
    away = [path for path in named if "://" not in path and not Path(path).is_file()]
    here = bool(named) and not away
    if away and lost is None:
        lost = f"{away[0]} no longer exists"
    data = "here" if here else f"gone: {lost}" if lost else "unknown"
    return InventoryRun(
        run_id=run.id,
        provider=run.provider,
        model=run.model,
        tuned_model=run.tuned_model,
        status=run.status,
        made_at=run.created_at,
        silent_on=silent_on,
        days_left=(silent_on - today).days if silent_on is not None else None,
        cost_usd=run.bill.usd if run.bill is not None else None,
        trained_tokens=run.trained_tokens,
        last_use=used,
        data=data,
        data_path=", ".join(named) if here else None,
        rebuild=_rebuild(run.model, profile, today)
        if here
        else "no: the training rows are not on this machine",
    )


def _train_files(train: Any) -> list[str]:
    """Return the training files of a spec, one or several."""
    if isinstance(train, list):
        return [str(file.get("path")) for file in cast("list[dict[str, Any]]", train)]
    return [train] if isinstance(train, str) else []


def shutdown(model: str, profile: Profile) -> date | None:
    """Return the last day on which models tuned from this one are available, or `None` if no date is
    announced."""
    try:
        host = catalog.resolve(model, profile).host
    except SpecError:
        return None
    return host.shutdown if host is not None else None


def _rebuild(name: str, profile: Profile, today: date) -> str:
    """Return the closest options for retraining: the same base model on other hosts while they tune it, then
    open models."""
    base = profile.tuned_base(name) if profile.tuned_base else None
    model = catalog.lookup(base or name)
    if model is None:
        return "yes, on any open model"
    ways = [
        f"the same base model on {kind} until {until}"
        for kind, until in elsewhere(model, profile.kind, today)
    ]
    ways += [other.name for other in catalog.alternatives(model)[:2]]
    return f"yes: {', or '.join(ways)}" if ways else "yes, on any open model"


def elsewhere(model: catalog.Model, kind: str, today: date) -> Sequence[tuple[str, date]]:
    """List other hosts where the same closed base model can be tuned, as `[(host, date)]`. Each host accepts
    no new jobs from its date on. Returns an empty list for an open model."""
    if model.open:
        return []
    offers = [(other, model.on(other)) for other, _ in description.entries() if other != kind]
    days = [(other, host.no_new_jobs_after) for other, host in offers if host is not None]
    return [(other, day) for other, day in days if day is not None and day > today]
