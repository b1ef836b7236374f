"""The plan by which a whole account moves: a YAML file that is written once, edited by a person, then carried
out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from orchestrate import text
from orchestrate.core.files import write_whole
from orchestrate.errors import UsageError
from orchestrate.migration.proposals import Proposal, Target
from orchestrate.spec.specfile import parse, yaml_text
from orchestrate.types import Record, decoding

MOST_USD = Decimal(10**12)
SKIP = "skip"
"""In the place of a backend."""
_HEAD = """\
# Written by: orchestrate migrate --all --plan {name}
# Edit it: `to` is a backend, or skip; `model` is what is trained there. Then carry it out, as often as is
# needed until all is done; nothing is submitted twice:  orchestrate migrate --plan {name}
#
# budget_usd: the sum of the high ends of all quotes here must fit, and with it what moving these runs has
# cost before, be it elsewhere; the answers of the proofs are not in it (--max-answers-cost limits those of
# each run), nor is serving. margin: how much worse is still as good.
"""


class Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One run."""

    run: str
    to: str
    model: str | None = None
    """`None`: as it would be proposed."""
    test: str | None = None
    """Held-out rows; `None`: the run's own, or its recording's."""
    proof: bool = True

    @property
    def skipped(self) -> bool:
        return self.to == SKIP


class Plan(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    budget_usd: Decimal
    margin: float = 0.05
    runs: list[Entry]


class PlannedMove(Record, frozen=True, kw_only=True):
    """A line of a plan that is about to be written: what is proposed of one run, or why nothing is."""

    run_id: str
    told: str
    proposal: Proposal | None = None
    skipped: str | None = None

    @property
    def high_usd(self) -> Decimal:
        target = _cheapest(self.proposal) if self.proposal is not None else None
        return target.quote.held_usd if target is not None and target.quote is not None else Decimal(0)


def write(path: Path, planned: Sequence[PlannedMove], margin: float, moved_usd: Decimal = Decimal(0)) -> None:
    """With the reasons as comments. `moved_usd`: what moving these runs has cost before. Raises `UsageError`
    where there is such a file: a person may have edited it."""
    if path.exists():
        raise UsageError(
            f"{path} is there already, perhaps edited", fix="carry it out without --all, or name another file"
        )
    budget = sum((one.high_usd for one in planned), moved_usd)
    lines = [_HEAD.format(name=path.name), f"budget_usd: {_up(budget)}", f"margin: {margin:g}", "runs:"]
    for one in planned:
        lines += _entry(one)
    write_whole(path, ("\n".join(lines) + "\n").encode())


def read(path: Path) -> Plan:
    """Raises `UsageError` for what is no plan, with the place."""
    try:
        values, _ = parse(path.read_text(encoding="utf-8"), path)
        plan = decoding.convert(values, Plan, strict=False)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}",
            fix=f"orchestrate migrate --all --plan {path} --to BACKENDS",
        ) from error
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no plan: {error}", fix="mend it, or have another one written") from error
    if not plan.budget_usd.is_finite() or not 0 <= plan.budget_usd < MOST_USD:
        raise UsageError(f"{path}: budget_usd is a number of US dollars, not {plan.budget_usd}")
    if not 0 < plan.margin < math.inf:
        raise UsageError(f"{path}: margin is how much worse is still as good, above 0; not {plan.margin:g}")
    twice = {entry.run for entry in plan.runs if sum(e.run == entry.run for e in plan.runs) > 1}
    if twice:
        raise UsageError(f"{path} names {text.joined(sorted(twice))} twice", fix="one entry for each run")
    return plan


def _entry(one: PlannedMove) -> list[str]:
    head = [f"  # {_comment(one.told)}"]
    proposal = one.proposal
    chosen = _cheapest(proposal) if proposal is not None else None
    if proposal is None or chosen is None:
        reasons = one.skipped or "; ".join(
            f"{t.provider}: {t.refused}" for t in (proposal.targets if proposal is not None else ())
        )
        return [*head, f"  # skipped: {_comment(reasons)}", *_fields({"run": one.run_id, "to": SKIP})]
    for target in proposal.targets:
        head += [f"  # {_comment(line)}" for line in _told(target)]
    many = len(proposal.targets) > 1
    months = text.count(proposal.months, "month")
    by = f"the cheapest to train and serve for {months} of these, " if many else ""
    head.append(f"  # {by}served at {_comment(proposal.traffic)}")
    head += [f"  # {_comment(note)}" for note in proposal.notes]
    held = proposal.held_out
    if held is not None:
        head.append(f"  # {_comment(f'judged by {held.rows:,} rows: {held.origin}')}")
    fields: dict[str, Any] = {"run": one.run_id, "to": chosen.provider, "model": chosen.model}
    if held is None:
        fields["proof"] = False
    return [*head, *_fields(fields)]


def _told(target: Target) -> list[str]:
    """What a backend would take for training and serving, and the settings that it goes without."""
    named = target.quote.price if target.quote is not None else None
    price = "no price" if named is None else f"{text.span(named.low_usd, named.high_usd)} to train"
    monthly = (
        "no price of serving" if target.monthly_usd is None else f"{text.money(target.monthly_usd)} a month"
    )
    served = f", {monthly} ({target.serving})" if target.model is not None else ""
    lines = [f"{target.provider}: {target.model}, {target.refused or price + served}"]
    if target.left_out and target.refused is None:
        each = "; ".join(f"{change.what} {change.was} ({change.why})" for change in target.left_out)
        lines.append(f"{target.provider} goes without: {each}")
    return lines


def _cheapest(proposal: Proposal) -> Target | None:
    """Return the backend that is cheapest to train and serve on, of those that take it. The budget of a plan
    can hold none without a price of training."""
    able = [
        target
        for target in proposal.targets
        if target.refused is None and target.model is not None and target.quote is not None
        if target.quote.high_usd is not None
    ]
    return min(able, key=lambda target: target.rank(proposal.months), default=None)


def _fields(values: dict[str, Any]) -> list[str]:
    lines = yaml_text(values, sort_keys=False, allow_unicode=True).splitlines()
    return [f"  {'- ' if place == 0 else '  '}{line}" for place, line in enumerate(lines)]


def _comment(words: str) -> str:
    return " ".join(words.split())


def _up(usd: Decimal) -> str:
    """To the next cent."""
    cents = (usd * 100).to_integral_value(rounding="ROUND_CEILING")
    return f"{cents / 100:.2f}"
