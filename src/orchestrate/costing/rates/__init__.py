"""Rates in one YAML file per provider. The user's own rates override them.

A file has the fields `provider`, `sources` (which maps short keys to citations) and `rates`. A rate has a
price (the name of its field is the unit), a method, a scope (a model, a size band, a GPU, or everything), the
day on which it started, the day on which it was last checked, and a confidence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate import description
from orchestrate.catalog import Model, ModelOnHost, find
from orchestrate.core import days
from orchestrate.costing.rate import FLAG, MOST_USD, Rate
from orchestrate.errors import ConfigError, UsageError
from orchestrate.text import rate as price
from orchestrate.types import decoding


def completion_price(model: str, base_url: str | None = None) -> Callable[[int, int], Decimal] | None:
    """Return a function that computes the price in US dollars from the numbers of prompt and completion
    tokens. Returns `None` if the price is unknown. `model` is the host's name for the model, and `base_url`
    selects the host if several offer the model."""
    from genai_prices import Usage, calc_price

    def price(prompt: int, completion: int, *, url: str | None) -> Decimal:
        usage = Usage(input_tokens=prompt, output_tokens=completion)
        return calc_price(usage, model_ref=model, provider_api_url=url).total_price

    for url in dict.fromkeys((base_url, None)):
        try:
            price(1, 1, url=url)
        except LookupError:
            continue
        return lambda prompt, completion, url=url: price(prompt, completion, url=url)
    return None


class RateBook(msgspec.Struct, frozen=True):
    """Rates in layers. Rates in later layers take precedence."""

    layers: tuple[tuple[Rate, ...], ...]

    def __iter__(self) -> Iterator[Rate]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for layer in self.layers:
            yield from layer

    def over(self, rates: Iterable[Rate]) -> RateBook:
        """Return a copy of this book in which `rates` take precedence."""
        extra = tuple(rates)
        return RateBook((*self.layers, extra)) if extra else self

    def find(
        self,
        provider: str,
        method: str | tuple[str, ...],
        *,
        ids: Iterable[str] = (),
        params_b: float | None = None,
        gpu: str | None = None,
        tier: str | None = None,
        on: date,
    ) -> Rate | None:
        """Return the rate that applies on the day `on`, or `None` if no rate matches. The closest match wins,
        and among equally close matches, the one that started last.

        `method` may be several names for the same method, most specific first: `("sft_lora", "sft")`. All
        names are tried in one layer before the next lower layer, so a user's general price takes precedence
        over a specific built-in one. A rate's `start` is only the first day on which it is *known* to apply.
        If no rate has started yet, the earliest one is used.
        """
        names = frozenset(name.lower() for name in ids)
        size = None if params_b is None else Decimal(str(params_b))
        methods = (method,) if isinstance(method, str) else method
        for layer, each in product(reversed(self.layers), methods):
            found = [
                (fit, rate)
                for rate in layer
                if rate.provider == provider
                and each in rate.methods
                and rate.offered(on)
                and (fit := rate.fit(names, size, gpu, tier))
            ]
            if found:
                best = max(fit for fit, _ in found)
                return _in_force([rate for fit, rate in found if fit == best], on)
        return None


def _in_force(rates: list[Rate], on: date) -> Rate:
    begun = [rate for rate in rates if rate.start <= on]
    return max(begun, key=lambda r: r.start) if begun else min(rates, key=lambda r: r.start)


# -- reading -----------------------------------------------------------------------------------------------


def built_in() -> RateBook:
    """Return the rates included in this package, plus the rates of hosts that are defined by a description
    file."""
    return _built_in(description.entries())


@cache
def _built_in(entries: tuple[description.Entry, ...]) -> RateBook:
    folder = files("orchestrate.costing").joinpath("rates")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    rates = [
        rate for name in names for rate in parse(folder.joinpath(name).read_text(encoding="utf-8"), name)
    ]
    for kind, host in description.readable(entries).items():
        document = {
            "provider": kind,
            "sources": host.sources,
            "undated": host.undated,
            "rates": [*host.rates],
        }
        rates += _rates(document, f"{kind}.yaml")
    return RateBook((tuple(rates),))


def load(path: Path) -> list[Rate]:
    """Load rates from a user's file in the format of the built-in ones. Each provider is a separate YAML
    document. Raises `ConfigError`, which names the file, the rate and the problem."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> list[Rate]:
    """Parse the text of a rate file. See `load`."""
    import yaml

    from orchestrate.core.expansion import documents

    try:
        found = documents(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name} is not YAML: {error}") from error
    return [rate for document in found if document for rate in _rates(document, name)]


def _rates(document: Any, name: str) -> list[Rate]:
    if not isinstance(document, dict) or not {"provider", "rates"} <= document.keys():
        raise ConfigError(
            f"{name}: a rate file must have the fields `provider` and `rates`. It may also have `sources` "
            "and `undated` (a list of the sources without a date)"
        )
    values = cast("dict[str, Any]", document)
    listed: Any = values["rates"]
    sources: Any = values.get("sources") or {}
    if not isinstance(listed, list) or not isinstance(sources, dict):
        raise ConfigError(f"{name}: `rates` must be a list, and `sources` must map names to strings")
    entries, names = cast("list[Any]", listed), cast("dict[str, Any]", sources)
    undated_ones = cast("list[Any]", list(values.get("undated") or ()))
    rates: list[Rate] = []
    for number, item in enumerate(entries, 1):
        if not isinstance(item, dict):
            raise ConfigError(f"{name}: rate {number} is not a mapping")
        entry = cast("dict[str, Any]", item)
        source = str(entry.get("source") or "")
        undated = source in undated_ones
        fields: dict[str, Any] = {"provider": values["provider"], "undated": undated, **entry}
        fields["source"] = names.get(source, source)
        if not fields["source"]:
            raise ConfigError(f"{name}: rate {number} has no source")
        if unknown := sorted(set(map(str, fields)) - set(Rate.__struct_fields__) | ({"own"} & set(fields))):
            raise ConfigError(f"{name}: rate {number} has an unknown field {unknown[0]}")
        try:
            rates.append(decoding.convert(fields, Rate))
        except (msgspec.ValidationError, ValueError) as error:
            raise ConfigError(f"{name}: rate {number} ({entry.get('method')}): {error}") from error
    return rates


_FLAG = re.compile(r"^(?P<provider>[\w.-]+):(?P<method>[\w]+)(?:@(?P<what>[^=]+))?=(?P<usd>[^=]+)$")
_UNIT_OF = {
    "deployment": "usd_per_gpu_hour",
    "gpu_rental": "usd_per_gpu_hour",
    "rft": "usd_per_gpu_hour",
    "minimum": "usd_per_job",
    "electricity": "usd_per_kwh",
    "owned": "usd_per_hour",
    "hosting": "usd_per_hour",
    "storage": "usd_per_gb_month",
}


def parse_flag(text: str, today: date) -> Rate:
    """Parse `--rate PROVIDER:METHOD[@MODEL-OR-GPU]=USD`, for example `together:sft_lora@qwen3.5-9b=0.30` or
    `local:owned@A100=0.45`.

    The method determines the unit: US dollars per million tokens for training and inference, per GPU-hour for
    deployment, gpu_rental and rft, per hour for owned and hosting, per kWh for electricity, and per job for
    minimum. Raises `UsageError` for a flag that can't be parsed.
    """
    found = _FLAG.match(text.strip())
    try:
        usd = Decimal(found["usd"].strip()) if found else None
    except InvalidOperation:
        usd = None
    if found is None or usd is None or not usd.is_finite() or not 0 <= usd < MOST_USD:
        raise UsageError(
            f"--rate {text!r} is not valid",
            fix="write PROVIDER:METHOD[@MODEL]=USD, for example mycloud:sft_lora@qwen3.5-9b=0.30",
        )
    unit = _UNIT_OF.get(found["method"], "usd_per_mtok")
    target = "gpu" if unit == "usd_per_gpu_hour" or found["method"] == "owned" else "model"
    return decoding.convert(
        {
            "provider": found["provider"],
            "method": found["method"],
            target: found["what"],
            unit: usd,
            "start": today,
            "confidence": "quoted",
            "source": FLAG,
            "own": f"{FLAG} {text.strip()}",
        },
        Rate,
    )


USER_FILE = "rates.yaml"
"""Name of the user's rate file, in the configuration folder or next to a project's `orchestrate.toml`."""


def user_book(folders: Iterable[Path], flags: Iterable[str] = (), *, today: date | None = None) -> RateBook:
    """Return the built-in rates, overridden by the user's rates. Reads `rates.yaml` from each of the
    `folders` that contains one, then applies the `--rate` flags. Files in later folders and later flags take
    precedence.

    Raises `ConfigError` for an invalid file and `UsageError` for an invalid flag.
    """
    book = built_in()
    for folder in dict.fromkeys(folders):
        if (path := folder / USER_FILE).is_file():
            book = book.over(msgspec.structs.replace(rate, own=str(path)) for rate in load(path))
    return book.over(parse_flag(flag, today or days.today()) for flag in flags)


@dataclass(frozen=True)
class Prices:
    """Rates of one host on one day. `name` is a provider name in the rate files, such as the host's kind."""

    name: str
    book: RateBook = field(default_factory=built_in)
    on: date = field(default_factory=days.today)

    def of(
        self, method: str | tuple[str, ...], model: ModelOnHost | None = None, *, gpu: str | None = None
    ) -> Rate | None:
        """Return the rate on this day. See `RateBook.find` for `method`."""
        ids, params_b = (names(model), model.params_b) if model else ((), None)
        return self.book.find(self.name, method, ids=ids, params_b=params_b, gpu=gpu, on=self.on)


def names(resolved: ModelOnHost) -> frozenset[str]:
    """Return all names for the model that a rate file may use."""
    known = {resolved.id, resolved.name}
    if resolved.host is not None:
        known.add(resolved.host.id)
    if resolved.model is not None:
        known |= {resolved.model.name, *resolved.model.aliases}
        known |= {resolved.model.hub} if resolved.model.hub else set()
    return frozenset(known)


def current(book: RateBook, on: date) -> list[Rate]:
    """Return the rates that apply on a day: those that have started and have neither ended nor been
    superseded."""
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
    """Return an error message for each pair of rates with the same scope and the same start date. Such pairs
    appear if someone copies a rate and doesn't change its start date."""
    seen: dict[tuple[Any, ...], Rate] = {}
    found: list[str] = []
    for r in rates:
        for method in r.methods:
            key = (r.provider, method, r.models, r.over_b, r.upto_b, r.gpu, r.tier, r.start)
            other = seen.setdefault(key, r)
            if other is not r:
                found.append(
                    f"{r.provider} {method} {r.applies_to} has two prices that start on {r.start}: "
                    f"{price(other.usd)} and {price(r.usd)}"
                )
    return found


def prices_of(book: RateBook, model: str, on: date) -> tuple[Model, list[Rate]]:
    """Return a model and its rates on this day, for every backend that can fine-tune it. Raises `UsageError`
    for an unknown model."""
    entry, found = find(model), list[Rate]()
    for r in current(book, on):
        host = entry.on(r.provider)
        if host is None or r.provider not in entry.hosts:
            continue
        resolved = ModelOnHost(provider=r.provider, id=host.id, model=entry, host=host)
        if r.gpu is not None or r.concerns(names(resolved), entry.params_b):
            found.append(r)
    return entry, found
