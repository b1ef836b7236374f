"""Starts and prices hyperparameter sweeps. Each trial is an ordinary run that is created exactly once. All
trials share one budget.

    search = searching.begin(ft, spec, ["local"], SweepOrder(space=...))
    trials.Searching(ft, search).run(watch, stop)

Starting an identical sweep again continues it, because its id is a digest of the sweep.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from orchestrate.errors import UsageError
from orchestrate.evaluation.metrics import registry
from orchestrate.runs.preparing.prepared import Prepared, prepare, training_data
from orchestrate.runs.sweep import space, trial_sampler
from orchestrate.runs.sweep.space import PROVIDER, Space
from orchestrate.settings import is_masked, masked
from orchestrate.spec import JobSpec, specfile
from orchestrate.types import Feature, Search

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

LOSS = "validation_loss"
EVAL = "eval:"
_MOST_PRICED = 32
"""Maximum number of combinations that are priced before a sweep starts."""
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
    """Combinations without a price, each with the reason."""


def begin(ft: Workspace, spec: JobSpec, providers: Sequence[str], order: SweepOrder) -> Search:
    """Store a sweep, or return the existing one if it is identical. Sends nothing. Raises `UsageError` for
    invalid options, and for a spec that contains a secret."""
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
    )
    for name in names:
        _require_target(ft, first, name, search)
    search = replace(search, id=f"sweep-{_digest(search)}")
    ft.store.searches.add(search)
    return replace(search, max_parallel=order.max_parallel, max_cost_usd=order.max_cost_usd)


def _digest(search: Search) -> str:
    """Return a digest of the sweep without its limits, so the same sweep continues with a higher limit."""
    limits = ("id", "created_at", "max_parallel", "max_cost_usd")
    named = {name: value for name, value in search.to_dict().items() if name not in limits}
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
    searched = space.of(search)
    ends = {name: high for name, (_, high, _) in search.ranges.items()}
    expected, high, full = list[Decimal](), list[Decimal](), list[Decimal]()
    unpriced: list[str] = []
    for settings in islice(searched.combinations(), _MOST_PRICED):
        for name in [settings[PROVIDER]] if PROVIDER in settings else list(search.providers[:1]):
            each = [
                prepared_trial(ft, search, {**settings, **ends}, name, share) for share in {search.share, 1.0}
            ]
            quotes = [prepared.offer(name).quote for prepared in each]
            if any(quote.refused for quote in quotes):
                continue  # such a trial fails before anything is sent, and costs nothing
            if why := next((quote.unavailable for quote in quotes if quote.unavailable), None):
                unpriced.append(f"{name} {_described(settings)}: {why}")
                continue
            prices = [quote.price for quote in quotes if quote.price is not None]
            small = min(prices, key=lambda price: price.high_usd)
            expected.append(small.counted_usd)
            high.append(small.high_usd)
            full.append(max(price.high_usd for price in prices))
    if not high:
        return Price(Decimal(0), Decimal(0), unpriced)
    each_usd, most_usd = sum(expected, Decimal(0)) / len(expected), max(high)
    again = search.survivors * max(full)
    if search.sampler == "grid" and searched.size == search.trials == len(high):
        return Price(sum(expected, Decimal(0)) + again, sum(high, Decimal(0)) + again, unpriced)
    return Price(each_usd * search.trials + again, most_usd * search.trials + again, unpriced)


def prepared_trial(
    ft: Workspace, search: Search, settings: dict[str, Any], provider: str, share: float
) -> Prepared:
    values = space.applied(search.spec, settings, share, search.seed)
    values["tags"] = {**(values.get("tags") or {}), "sweep": search.id or "new"}
    return prepare(ft, JobSpec.parse(values), provider)


def _described(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
