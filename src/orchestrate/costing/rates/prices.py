"""The rates of one name, as they stand on a day."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

from orchestrate import days
from orchestrate.catalog import ModelOnHost
from orchestrate.costing.rate import Rate
from orchestrate.costing.rates.book import RateBook, built_in


@dataclass(frozen=True)
class Prices:
    """Where a price is looked up. `name` is a host's kind, or a second host's own name."""

    name: str
    book: RateBook = field(default_factory=built_in)
    on: date = field(default_factory=days.today)

    def of(
        self, method: str | tuple[str, ...], model: ModelOnHost | None = None, *, gpu: str | None = None
    ) -> Rate | None:
        """Return today's rate; `method` as in `RateBook.find`."""
        ids, params_b = (names(model), model.params_b) if model else ((), None)
        return self.book.find(self.name, method, ids=ids, params_b=params_b, gpu=gpu, on=self.on)


def names(resolved: ModelOnHost) -> frozenset[str]:
    """All names under which a rate file may list the model."""
    known = {resolved.id, resolved.name}
    if resolved.host is not None:
        known.add(resolved.host.id)
    if resolved.model is not None:
        known |= {resolved.model.name, *resolved.model.aliases}
        known |= {resolved.model.hub} if resolved.model.hub else set()
    return frozenset(known)
