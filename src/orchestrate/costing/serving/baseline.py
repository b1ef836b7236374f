"""Prompting a base model: what tuning is compared with."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

from msgspec.structs import replace

from orchestrate import catalog
from orchestrate.catalog import HostModel, Model
from orchestrate.catalog.models import lookup
from orchestrate.costing.serving.traffic import DAYS_PER_MONTH, Traffic
from orchestrate.errors import UsageError
from orchestrate.text import rate
from orchestrate.types import Record


class BasePrice(Record, frozen=True, kw_only=True):
    """Prompting a base model at a provider's public price, per request of the traffic it was asked for."""

    model: str
    provider: str
    usd_per_request: Decimal
    input_tokens: int
    """Of the prompt, with what the tuned model would not need."""
    source: str
    until: date | None = None
    """Its last day, where its host has announced one."""
    successor: BasePrice | None = None
    """What its host names as the replacement."""
    note: str = ""

    def ends(self, on: date, days: int) -> bool:
        """Whether it ends before so many days have passed."""
        return self.until is not None and (self.until - on).days < days

    def mean_usd(self, on: date, days: int) -> Decimal:
        """Of a request over so many days: the successor's price counts from the end on."""
        if self.until is None or self.successor is None or not self.ends(on, days) or days <= 0:
            return self.usd_per_request
        alive = max((self.until - on).days, 0)
        after = self.successor.mean_usd(on + timedelta(alive), days - alive)
        return (self.usd_per_request * alive + after * (days - alive)) / days

    def words(self, on: date, days: int) -> str:
        """What is prompted over so many days."""
        if not self.ends(on, days):
            return self.model
        if self.successor is None:
            return f"{self.model}, which ends on {self.until} and has no named successor"
        return f"{self.model} until its end on {self.until}, then {self.successor.model}"

    def terms(self) -> str:
        more = f"; {self.note}" if self.note else ""
        return (
            f"prompting {self.model} ({self.provider}) with {self.input_tokens} input tokens costs "
            f"{rate(self.usd_per_request)} per request ({self.source}){more}"
        )


def base_price(model: str, traffic: Traffic, *, saved_tokens: int = 0) -> BasePrice:
    """The price of one request from the package `genai-prices`; `saved_tokens` are the examples and
    instructions that only the base model needs in its prompt. Its end and successor are the catalog's. Raises
    `UsageError` for a model that it does not know."""
    from importlib.metadata import version

    from genai_prices import Usage, calc_price

    known = lookup(model)
    wanted = (known and (known.hub or next((host.id for host in known.hosts.values()), None))) or model
    tokens = traffic.input_tokens + saved_tokens
    usage = Usage(input_tokens=tokens, output_tokens=traffic.output_tokens)
    for name in dict.fromkeys((model, wanted)):
        try:
            found = calc_price(usage, model_ref=name)
        except LookupError:
            continue
        host = _ending(known)
        return BasePrice(
            model=found.model.name or model,
            provider=found.provider.id,
            usd_per_request=found.total_price,
            input_tokens=tokens,
            source=f"genai-prices {version('genai-prices')}",
            until=host.shutdown if host else None,
            successor=_named(host, traffic, saved_tokens) if host else None,
        )
    raise UsageError(
        f"genai-prices has no price of {model!r}",
        fix="name a model as its provider does, for example gpt-4.1",
    )


def _ending(model: Model | None) -> HostModel | None:
    """Where its maker's own host ends it. Open weights go on elsewhere."""
    if model is None or model.open:
        return None
    hosts = [host for host in model.hosts.values() if host.shutdown]
    return max(hosts, key=lambda host: host.shutdown or date.min, default=None)


def _named(host: HostModel, traffic: Traffic, saved_tokens: int) -> BasePrice | None:
    if host.successor is None:
        return None
    found = base_price(host.successor, traffic, saved_tokens=saved_tokens)
    return replace(found, note=host.successor_note or "")


def default_base(traffic: Traffic, months: int, on: date, *, saved_tokens: int = 0) -> BasePrice:
    """The catalog's model for comparison, or the successor that its host names once it ends within the
    period."""
    base = base_price(catalog.comparison().name, traffic, saved_tokens=saved_tokens)
    days = int(DAYS_PER_MONTH * months)
    while base.ends(on, days) and base.successor is not None:
        base = base.successor
    return base
