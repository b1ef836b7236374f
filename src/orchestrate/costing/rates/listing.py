"""Rates as they are listed, which no quote needs."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any

from orchestrate.catalog import Model, ModelOnHost, find
from orchestrate.costing.rate import FLAG, Rate
from orchestrate.costing.rates.book import RateBook
from orchestrate.costing.rates.prices import names
from orchestrate.text import rate as price


def current(book: RateBook, on: date) -> list[Rate]:
    """The rates that `RateBook.find` can return on a day: begun, not ended, not superseded; overrides
    first."""
    chosen: dict[tuple[Any, ...], Rate] = {}
    for r in book:  # later layers come later and replace
        if not r.offered(on) or r.start > on:
            continue
        for method in r.methods:
            key = (r.provider, method, r.models, r.over_b, r.upto_b, r.gpu, r.tier)
            other = chosen.get(key)
            if other is None or r.source == FLAG or r.start >= other.start:
                chosen[key] = r
    return list(dict.fromkeys(chosen.values()))


def clashes(rates: Iterable[Rate]) -> list[str]:
    """Two prices of one thing that begin on one day: an edit where an addition was due, or a copy."""
    seen: dict[tuple[Any, ...], Rate] = {}
    found: list[str] = []
    for r in rates:
        for method in r.methods:
            key = (r.provider, method, r.models, r.over_b, r.upto_b, r.gpu, r.tier, r.start)
            other = seen.setdefault(key, r)
            if other is not r:
                found.append(
                    f"{r.provider} {method} {r.applies_to}: two prices begin on {r.start}, "
                    f"{price(other.usd)} and {price(r.usd)}"
                )
    return found


def prices_of(book: RateBook, model: str, on: date) -> tuple[Model, list[Rate]]:
    """The model, and every rate of a day that concerns it on a backend that tunes it. Raises `UsageError` for
    an unknown model."""
    entry, found = find(model), list[Rate]()
    for r in current(book, on):
        host = entry.on(r.provider)
        if host is None or r.provider not in entry.hosts:
            continue
        resolved = ModelOnHost(provider=r.provider, id=host.id, model=entry, host=host)
        if r.gpu is not None or r.concerns(names(resolved), entry.params_b):
            found.append(r)
    return entry, found
