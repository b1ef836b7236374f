"""Starts and prices hyperparameter sweeps. Each trial is an ordinary run that is created exactly once. All
trials share one budget.

    search = sweeps.begin(ft, spec, ["local"], SweepOrder(space=...))
    trials.Searching(ft, search).run(watch, stop)

Starting an identical sweep again continues it, because its id is a digest of the sweep.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from orchestrate.costing.expenses import unpriced
from orchestrate.errors import UsageError
from orchestrate.evaluation.metrics import registry
from orchestrate.runs.preparing import pricing
from orchestrate.runs.preparing.prepared import Prepared, prepare, training_data
from orchestrate.runs.sweep import space, trial_sampler
from orchestrate.runs.sweep.space import PROVIDER, Space
from orchestrate.settings import is_masked, masked
from orchestrate.spec import JobSpec, specfile
from orchestrate.types import Feature, Search

if TYPE_CHECKING:
    from orchestrate.costing import Rate
    from orchestrate.workspace import Workspace

LOSS = "validation_loss"
EVAL = "eval:"
_MOST_PRICED = 128
"""Maximum number of combinations that are all priced before a sweep starts."""
_MOST_UNASKED = 1000
"""Maximum number of combinations in a grid, unless the user limits the number of trials."""


@dataclass(frozen=True, kw_only=True)
class SweepOrder:
    """Options for a sweep and its limits."""

    space: Space
    sampler: str = "grid"
    trials: int = 0
    """Maximum number of trials. By default, a grid runs all of its combinations."""
    target: str = LOSS
    """`validation_loss`, or `eval:METRIC` on held-out rows."""
    test: str | None = None
    share: float = 1.0
    survivors: int = 0
    prune: bool = False
    max_parallel: int = 1
    max_cost_usd: Decimal | None = None
    seed: int = 0


class Price(NamedTuple):
    """Price of a complete sweep in US dollars, estimated before it starts. `high_usd` is an upper bound, no
    matter which trials are selected."""

    expected_usd: Decimal
    high_usd: Decimal
    unpriced: list[str]
    """Combinations without a price, or whose price does not include everything, each with the reason."""


def begin(ft: Workspace, spec: JobSpec, providers: Sequence[str], order: SweepOrder) -> Search:
    """Store a sweep, or only its limits if an identical one exists. Sends nothing. Errors of `plan`
    propagate."""
    search = plan(ft, spec, providers, order)
    ft.store.searches.add(search)
    return search


def plan(ft: Workspace, spec: JobSpec, providers: Sequence[str], order: SweepOrder) -> Search:
    """Build a sweep without storing it. Raises `UsageError` for invalid options, and for a spec that contains
    a secret."""
    _require(order)
    values = specfile.anchored(spec).asked()
    if is_masked(masked(values)):
        raise UsageError("the spec contains a secret, which a sweep must not store")
    names = ft.backends(order.space.choices.get(PROVIDER, ()) or providers)
    total = order.space.size
    wanted = min(order.trials or total, total) if order.sampler == "grid" else order.trials or 20
    survivors = order.survivors or (max(1, wanted // 3) if order.share < 1 else 0)
    first = JobSpec.parse(space.applied(values, {}))
    search = Search(
        id="",
        created_at=ft.store.clock.now(),
        spec=values,
        providers=tuple(names),
        choices={name: tuple(choice) for name, choice in order.space.choices.items()},
        ranges=dict(order.space.ranges),
        sampler=order.sampler,
        trials=wanted,
        seed=order.seed,
        target=order.target,
        test=order.test,
        digest=training_data(ft, first).digest,
        share=order.share,
        survivors=survivors,
        prune=order.prune,
        max_parallel=order.max_parallel,
        max_cost_usd=order.max_cost_usd,
        sandbox=any(ft.provider(name).config.sandbox for name in names),
    )
    for name in names:
        _require_target(ft, first, name, search)
    hosts = [] if search.sandbox else [host for name in names if (host := ft.provider(name).host) != name]
    return replace(search, id=f"sweep-{_digest(search, hosts)}")


def _digest(search: Search, hosts: Sequence[str]) -> str:
    """Return a digest of the sweep without its limits, so the same sweep continues with a higher limit.
    `hosts` are the addresses that are set for its backends. A sandbox may have another one each time."""
    limits = ("id", "created_at", "max_parallel", "max_cost_usd")
    named = {name: value for name, value in search.to_dict().items() if name not in limits}
    named |= {"hosts": hosts} if hosts else {}
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _require(order: SweepOrder) -> None:
    if order.sampler not in trial_sampler.SAMPLERS:
        raise UsageError(
            f"--sampler must be one of {', '.join(trial_sampler.SAMPLERS)} (got {order.sampler!r})"
        )
    if order.sampler == "grid" and order.space.ranges:
        raise UsageError(
            "a grid search cannot use ranges", fix="use --sampler tpe or random, or --grid NAME=VALUES"
        )
    if order.sampler == "grid" and not order.trials and order.space.size > _MOST_UNASKED:
        raise UsageError(
            f"the grid has {order.space.size:,} combinations, and each one is a run",
            fix="limit them with --trials N, preferably with --sampler random or tpe",
        )
    if not 0 < order.share <= 1:
        raise UsageError(f"--first-share must be above 0 and at most 1, got {order.share:g}")
    if order.survivors and order.share == 1:
        raise UsageError("--survivors trains the best trials again on all rows, so it needs --first-share")
    if order.target.startswith(EVAL):
        metric = order.target.removeprefix(EVAL)
        registry.check([metric])
        if registry.better(metric) == "neither":
            raise UsageError(f"{metric} cannot be a target, because neither higher nor lower is better")
    elif order.target != LOSS:
        raise UsageError(f"--target must be {LOSS} or eval:METRIC, got {order.target!r}")


def _require_target(ft: Workspace, spec: JobSpec, name: str, search: Search) -> None:
    """Require what the target needs. Raises `UsageError`."""
    if search.target == LOSS and spec.validation is None:
        raise UsageError(f"the target {LOSS} needs validation data: --validation FILE")
    if search.target != LOSS and (search.test or spec.test or spec.validation) is None:
        raise UsageError(f"the target {search.target} needs held-out rows: --test FILE")
    features = ft.provider(name).features
    if search.prune and Feature.CANCEL not in features:
        raise UsageError(f"--prune needs early stopping, but {name} does not support stopping a run early")


def price(ft: Workspace, search: Search) -> Price:
    """Price a sweep without sending anything. Works offline. Excludes the cost of evaluations, which `eval`
    quotes separately."""
    found: dict[str, _TrialPrice | str | None] = {}

    def priced(settings: space.Settings) -> _TrialPrice | str | None:
        key = _described(settings)
        if key not in found:
            found[key] = _trial_price(ft, search, settings)
        return found[key]

    def high_usd(settings: space.Settings) -> Decimal:
        price = priced(settings)
        return price.high_usd if isinstance(price, _TrialPrice) else Decimal(-1)

    bounds = _bounds(search)
    each: list[space.Settings] = list(islice(bounds.combinations(), _MOST_PRICED))
    if bounds.size > _MOST_PRICED:
        each.append(_most_expensive(bounds, high_usd))
    prices = [price for settings in each if isinstance(price := priced(settings), _TrialPrice)]
    unknown = [why.open_end if isinstance(why, _TrialPrice) else why for why in found.values()]
    reasons = [why for why in unknown if why is not None]
    if not prices:
        return Price(Decimal(0), Decimal(0), reasons)
    expected_usd = sum((price.expected_usd for price in prices), Decimal(0))
    again = search.survivors * max(price.full_usd for price in prices)
    if search.sampler == "grid" and bounds.size == search.trials == len(prices):
        return Price(
            expected_usd + again, sum((price.high_usd for price in prices), Decimal(0)) + again, reasons
        )
    most_usd = max(price.high_usd for price in prices)
    each_usd = expected_usd / len(prices)
    return Price(each_usd * search.trials + again, most_usd * search.trials + again, reasons)


def _bounds(search: Search) -> Space:
    """Return the search space with each range replaced by its high end."""
    searched = space.of(search)
    return Space({**searched.choices, **{name: (high,) for name, (_, high, _) in searched.ranges.items()}})


def require_used(ft: Workspace, search: Search, rates: Sequence[Rate]) -> None:
    """Raise `UsageError` if one of the user's `rates` affects no trial. Searches with too many combinations
    are not checked."""
    bounds = _bounds(search)
    if not rates or bounds.size > _MOST_UNASKED:
        return
    each = [
        (name, JobSpec.parse(space.applied(search.spec, settings)).on(name))
        for settings in bounds.combinations()
        for name in [settings.get(PROVIDER, search.providers[0])]
    ]
    pricing.require_used(ft, each, rates)


class _TrialPrice(NamedTuple):
    expected_usd: Decimal
    high_usd: Decimal
    full_usd: Decimal
    """Highest price of the trial on all rows."""
    open_end: str | None
    """Reason why the trial may cost more, if it may."""


def _trial_price(ft: Workspace, search: Search, settings: space.Settings) -> _TrialPrice | str | None:
    """Return the price of a trial, or why it is unknown. Returns `None` for a trial that would fail before
    anything is sent, which costs nothing."""
    name = settings.get(PROVIDER, search.providers[0])
    each = [prepared_trial(ft, search, dict(settings), name, share) for share in {search.share, 1.0}]
    quotes = [prepared.offer(name).quote for prepared in each]
    if any(quote.refused for quote in quotes):
        return None
    if why := next((quote.unavailable for quote in quotes if quote.unavailable), None):
        return f"{name} {_described(settings)}: {why}"
    prices = [quote.price for quote in quotes if quote.price is not None]
    small = min(prices, key=lambda price: price.high_usd)
    full_usd = max(price.high_usd for price in prices)
    more = next(
        (f"{name} {_described(settings)}: {why}" for quote in quotes if (why := unpriced(quote))), None
    )
    return _TrialPrice(small.counted_usd, small.high_usd, full_usd, more)


def _most_expensive(searched: Space, usd: Callable[[space.Settings], Decimal]) -> space.Settings:
    """Return the most expensive combination, found by one setting after the other."""
    most = next(searched.combinations())
    for name, values in searched.choices.items():
        most[name] = max(values, key=lambda value: usd({**most, name: value}))
    return most


def prepared_trial(
    ft: Workspace, search: Search, settings: dict[str, Any], provider: str, share: float
) -> Prepared:
    values = space.applied(search.spec, settings, share, search.seed)
    values["tags"] = {**(values.get("tags") or {}), "sweep": search.id or "new"}
    return prepare(ft, JobSpec.parse(values), provider)


def _described(settings: space.Settings) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
