"""Serving an adapter where it was not trained: on rented GPUs, or at a host that bills it by the token."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec

from orchestrate.catalog import ModelOnHost
from orchestrate.costing.rate import Rate
from orchestrate.costing.rates.prices import Prices
from orchestrate.costing.serving.ways import Serving, by_tokens, gpu_rates, on_gpus, token_rates
from orchestrate.profile import built_in
from orchestrate.types import decoding

if TYPE_CHECKING:
    from orchestrate.costing.serving.ownership import Use

RENTAL = "gpu_rental"
_ENGINE = "vLLM on rented GPUs, run by you: the work and the storage are not counted, nor the time to start"


class AdapterHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host that serves a user's adapters by the token."""

    provider: str
    """As in the rates, whose methods are inference_adapter_input and _output."""
    title: str
    models: tuple[str, ...]
    """The bases whose adapters it takes, by the catalog's names."""
    source: str
    note: str = ""
    closed: str = ""
    """Why an adapter from elsewhere cannot go there."""


@cache
def adapter_hosts() -> tuple[AdapterHost, ...]:
    import yaml

    text = files("orchestrate.costing").joinpath("adapters.yaml").read_text(encoding="utf-8")
    return decoding.convert(yaml.safe_load(text)["hosts"], tuple[AdapterHost, ...])


def rented(resolved: ModelOnHost, use: Use, prices: Prices) -> Iterator[tuple[str, Serving]]:
    """Each name that rents GPUs and does not train, with its cheapest kind for the load. `prices` gives book
    and day."""
    names = {rate.provider for rate in prices.book if rents(rate)}
    for name in sorted(names):
        rates = gpu_rates(Prices(name, prices.book, prices.on), RENTAL)
        if found := on_gpus(resolved, use, rates, what="rented", note=_ENGINE):
            yield name, found


def adapters(
    resolved: ModelOnHost, trainer: str, use: Use, prices: Prices
) -> Iterator[tuple[str, Serving | str]]:
    """Each host that serves adapters of this base by the token; a text says why there is no price of it."""
    for host in adapter_hosts():
        if resolved.model is None or resolved.model.name not in host.models:
            continue
        theirs = Prices(host.provider, prices.book, prices.on)
        # A host of ours has the price of its tuned models among its rates, wherever they were trained.
        rates = token_rates(theirs, resolved, "inference_adapter") or token_rates(theirs, resolved)
        if host.closed and host.provider != trainer:
            yield host.title, host.closed
        elif rates is None:
            reason = f"serves adapters of {resolved.name} by the token, at a price that was not found"
            yield host.title, f"{reason} ({host.source})"
        else:
            found = by_tokens(use.traffic, *rates)
            told = (*found.assumptions, *([host.note] if host.note else []))
            yield host.title, msgspec.structs.replace(found, assumptions=told)


def rents(rate: Rate) -> bool:
    """Whether a rate is the price of a GPU that is rented to serve on: not of one that trains here or at a
    host."""
    return RENTAL in rate.methods and rate.provider not in built_in()
