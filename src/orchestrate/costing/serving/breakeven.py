"""From which traffic on a tuned model costs less than prompting."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal

from orchestrate.costing.serving.ways import Unit


def break_even(
    training: Decimal, saved: Decimal, units: Sequence[Unit] = (), *, single: bool = False
) -> int | None:
    """The least number of requests a day from which on, at every higher traffic too, the tuned model is not
    dearer; `None` when there is none.

    `training`: by month. `saved`: in a month, for one request a day. Each traffic has as many units as it
    needs, of the kind that is cheapest for it; with `single` there is one.
    """
    if saved <= 0:
        return None
    if not units:
        return _ceiling(training / saved)
    if single:
        least = _ceiling((training + units[0].usd) / saved)
        return least if least <= units[0].carried else None
    alone = [least for unit in units if (least := _alone(training, saved, unit)) is not None]
    if not alone:  # a full unit of any kind costs more than it saves, so that no number of them pays
        return None
    at = min(alone) - 1  # below it two kinds may pay between them: down to the first traffic that does not
    while at > 0:
        cost = training + min(unit.usd * -(-at // unit.carried) for unit in units)
        least = _ceiling(cost / saved)
        start = max((at - 1) // unit.carried * unit.carried + 1 for unit in units)
        if least > start:  # the cost is the same from there to `at`
            return min(least, at + 1)
        at = start - 1
    return 1


def _alone(training: Decimal, saved: Decimal, unit: Unit) -> int | None:
    """With one kind of unit. The worst traffic is where one has just been added: n full ones and a request
    more must pay for n + 1 of them; with the least such n they do at every traffic above."""
    gain = saved * unit.carried - unit.usd
    if gain <= 0:
        return None
    full = max(1, _ceiling((training + unit.usd - saved) / gain))
    return _ceiling((training + full * unit.usd) / saved)


def _ceiling(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_CEILING))
