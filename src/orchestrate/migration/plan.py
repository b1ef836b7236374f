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
from orchestrate.migration.proposals import Proposal
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
# each run). margin: how much worse is still as good.
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
        return target[1] if target is not None else Decimal(0)


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
    provider, _ = chosen
    for target in proposal.targets:
        price, quote = "no price", target.quote
        if quote is not None and not quote.unavailable:
            price = text.span(quote.low_usd, quote.high_usd)
        why = target.refused or price
        head.append(f"  # {_comment(f'{target.provider}: {target.model}, {why}')}")
    held = proposal.held_out
    if held is not None:
        head.append(f"  # {_comment(f'judged by {held.rows:,} rows: {held.origin}')}")
    model = next(t.model for t in proposal.targets if t.provider == provider)
    fields: dict[str, Any] = {"run": one.run_id, "to": provider, "model": model}
    if held is None:
        fields["proof"] = False
    return [*head, *_fields(fields)]


def _cheapest(proposal: Proposal) -> tuple[str, Decimal] | None:
    """Return the cheapest backend that takes it, by the high end of the quote. The budget of a plan can hold
    none without a price."""
    able = [
        (target.quote.high_usd, target.provider)
        for target in proposal.targets
        if target.refused is None and target.model is not None and target.quote is not None
        if not target.quote.unavailable
    ]
    return (min(able)[1], min(able)[0]) if able else None


def _fields(values: dict[str, Any]) -> list[str]:
    lines = yaml_text(values, sort_keys=False, allow_unicode=True).splitlines()
    return [f"  {'- ' if place == 0 else '  '}{line}" for place, line in enumerate(lines)]


def _comment(words: str) -> str:
    return " ".join(words.split())


def _up(usd: Decimal) -> str:
    """To the next cent."""
    cents = (usd * 100).to_integral_value(rounding="ROUND_CEILING")
    return f"{cents / 100:.2f}"
