"""What was spent and is committed, by whom and for what: each run is one expense, each deployment one for
each month in which it was up, answers one for each purpose, backend, month and user. Sums of expenses lose no
digit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Literal

import msgspec

from orchestrate.costing.spent.budget import billed_by_month, deployment_spending, spending
from orchestrate.errors import UsageError
from orchestrate.text import meant
from orchestrate.types import Deployment, DeploymentState, Record, Run, SubmitPhase

CENT = Decimal("0.01")
_NANO = Decimal("1e-9")
NONE = "(none)"
BY = ("backend", "month", "purpose", "project", "tag", "person", "account")
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


class Expense(Record, frozen=True, kw_only=True):
    """What one run costs, or one deployment in one month, to the billionth of a dollar, so that sums are
    exact."""

    id: str
    kind: Literal["run", "deployment", "answers"] = "run"
    purpose: str | None = None
    """Of answers: `evaluation`, `judging` ..."""
    requests: int = 0
    """Of answers."""
    backend: str
    account: str | None = None
    month: str
    """`2026-11`, in UTC: of a run the month in which it ended, of a deployment one in which it was up; of
    what goes on, this month."""
    tags: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    project: str | None = None
    """The tag `project`, else the project in Weights & Biases."""
    person: str | None = None
    sandbox: bool = False
    """Play money."""
    spent_usd: Decimal = Decimal(0)
    committed_usd: Decimal = Decimal(0)
    known: bool = True
    """`False` where neither a bill nor a price says what it costs: its sums are no zeros then."""
    abandoned: bool = False
    """Its user gave it up; the sums have the last that was known of its bill."""


class Sum(Record, frozen=True, kw_only=True):
    """A group of expenses."""

    key: str
    spent_usd: Decimal = Decimal(0)
    committed_usd: Decimal = Decimal(0)
    runs: int = 0
    deployments: int = 0
    requests: int = 0
    """For answers that are billed one by one."""
    unknown: tuple[str, ...] = ()
    """Ids of those whose cost is not known and in neither sum."""
    abandoned: tuple[str, ...] = ()
    """Ids of runs and deployments that were given up: their hosts are not asked about them any more."""


def of_run(run: Run, now: datetime) -> Expense:
    money = spending(msgspec.structs.replace(run, sandbox=False))
    at = (run.finished_at or run.updated_at) if run.status.terminal else now
    return Expense(
        id=run.id,
        backend=run.provider,
        account=run.account,
        month=f"{at:%Y-%m}",
        tags=run.tags,
        project=run.tags.get("project") or _wandb_project(run),
        person=run.made_by,
        sandbox=run.sandbox,
        spent_usd=exact(money.spent_usd),
        committed_usd=exact(money.committed_usd),
        known=run.phase is SubmitPhase.REFUSED or _billed(run) or _priced(run),
        abandoned=run.abandoned is not None,
    )


def of_deployment(deployment: Deployment, run: Run | None, now: datetime) -> list[Expense]:
    """One for each month in which it was up, this month with what is still committed. Tags and project are
    those of its run."""
    money = deployment_spending(msgspec.structs.replace(deployment, sandbox=False), now)
    at = (deployment.ended_at or deployment.updated_at) if deployment.state.over else now
    last = f"{at:%Y-%m}"
    seconds = billed_by_month(deployment, deployment.billing_since or now, now)
    earlier = deployment.billed_s - sum(deployment.billed_by_month.values())  # of no month that is known
    seconds[last] = seconds.get(last, 0.0) + max(earlier, 0.0)
    whole = sum(seconds.values())
    billed = bool(deployment.billed_s) or deployment.billing_since is not None
    spent = {month: exact(money.spent_usd * _share(part, whole)) for month, part in seconds.items()}
    # What the shares lose by rounding is the last month's, so that they add up.
    spent[last] += exact(money.spent_usd) - sum(spent.values(), Decimal(0))
    return [
        Expense(
            id=deployment.id,
            kind="deployment",
            backend=deployment.provider,
            account=deployment.account,
            month=month,
            tags=run.tags if run else {},
            project=(run.tags.get("project") or _wandb_project(run)) if run else None,
            person=deployment.made_by,
            sandbox=deployment.sandbox,
            spent_usd=usd,
            committed_usd=exact(money.committed_usd) if month == last else Decimal(0),
            known=deployment.usd_per_hour is not None or (deployment.state.over and not billed),
            abandoned=deployment.state is DeploymentState.ABANDONED,
        )
        for month, usd in spent.items()
        if usd or month == last
    ]


def _share(part: float, whole: float) -> Decimal:
    return Decimal(str(part)) / Decimal(str(whole)) if whole else Decimal(0)


def _billed(run: Run) -> bool:
    """Whether its bill is more than what it has come to so far."""
    over = run.status.terminal or run.abandoned is not None
    return run.bill is not None and (run.bill.final or over)


def _priced(run: Run) -> bool:
    if run.abandoned is not None:
        return False  # what its host still bills nobody asks
    return (
        run.estimate_usd is not None
        or run.allowed_usd is not None
        or (run.quote is not None and run.quote.price is not None)
    )


def _wandb_project(run: Run) -> str | None:
    wandb = run.spec.get("wandb")
    return wandb.get("project") if isinstance(wandb, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def exact(usd: Decimal) -> Decimal:
    """To the billionth: so many digits can be summed in any order."""
    whole = usd.quantize(CENT)
    return whole if whole == usd else usd.quantize(_NANO)


def in_month(expenses: Iterable[Expense], month: str | None) -> list[Expense]:
    """Those of a month as `2026-11`, by default all. Raises `UsageError`."""
    if month is not None and not _MONTH.fullmatch(month):
        raise UsageError(f"{month!r} is not a month", fix="write it as 2026-11")
    return [e for e in expenses if month is None or e.month == month]


def grouped(expenses: Sequence[Expense], by: str) -> list[Sum]:
    """Each expense is in one group, so that the groups add up to the whole. `by` is one of `BY`, or
    `tag:NAME` for the values of one tag (`tag` alone groups by all tags together). The dearest group comes
    first, months in their order. Raises `UsageError`."""
    key = _key(by)
    groups: dict[str, list[Expense]] = {}
    for expense in expenses:
        groups.setdefault(key(expense) or NONE, []).append(expense)
    sums = [total(found, name) for name, found in groups.items()]
    if by == "month":
        return sorted(sums, key=lambda one: one.key)
    return sorted(sums, key=lambda one: (-(one.spent_usd + one.committed_usd), one.key))


def total(expenses: Iterable[Expense], key: str = "total") -> Sum:
    found = list(expenses)
    return Sum(
        key=key,
        spent_usd=sum((e.spent_usd for e in found), Decimal(0)),
        committed_usd=sum((e.committed_usd for e in found), Decimal(0)),
        runs=sum(e.kind == "run" for e in found),
        deployments=len({e.id for e in found if e.kind == "deployment"}),
        requests=sum(e.requests for e in found),
        unknown=tuple(dict.fromkeys(e.id for e in found if not e.known)),
        abandoned=tuple(dict.fromkeys(e.id for e in found if e.abandoned)),
    )


def _key(by: str) -> Callable[[Expense], str | None]:
    name, _, tag = by.partition(":")
    if name == "tag" and tag:
        return lambda e: e.tags.get(tag)
    if by == "tag":
        return lambda e: ", ".join(f"{k}={v}" for k, v in sorted(e.tags.items()))
    if by not in BY:
        raise UsageError(
            f"spending is not kept by {by!r}{meant(by, BY)}", fix=f"one of {', '.join(BY)}, or tag:NAME"
        )
    if by == "purpose":
        return lambda e: e.purpose or ("training" if e.kind == "run" else e.kind)
    return lambda e: getattr(e, by)


def cents(parts: Sequence[Decimal]) -> list[Decimal]:
    """The parts in whole cents that add up to their sum rounded up to a cent: each is rounded down, and the
    cents that are left go to those with the largest remainders. None is negative."""
    whole = [part.quantize(CENT, ROUND_FLOOR) for part in parts]
    left = int((sum(parts, Decimal(0)).quantize(CENT, ROUND_CEILING) - sum(whole, Decimal(0))) / CENT)
    by_remainder = sorted(range(len(parts)), key=lambda i: (whole[i] - parts[i], i))
    for i in by_remainder[:left]:
        whole[i] += CENT
    return whole
