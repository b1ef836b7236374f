"""Rates as data: one YAML file for each provider, read once, laid over by the user's own.

A file has `provider`, `sources` (key -> text) and `rates`. A rate has its unit in its key, the method, what
it is for (a model, a size band, a GPU, or everything), the day it began, the day it was checked, and how well
it is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate import days, description
from orchestrate.errors import ConfigError, UsageError
from orchestrate.types import Confidence, Record

UNITS = (
    "usd_per_mtok",
    "usd_per_gpu_hour",
    "usd_per_hour",
    "usd_per_job",
    "usd_per_kwh",
    "usd_per_gb_month",
)

MOST_USD = Decimal(1_000_000_000)
"""Of one unit: above it a price is a slip of the hand, and sums of it lose their cents."""
SPREAD = {Confidence.QUOTED: Decimal(0), Confidence.INFERRED: Decimal("0.2"), Confidence.OLD: Decimal("0.3")}
"""Relative half-width put around a rate. Old: the last known moves of published prices were -30% (Together's
training rates, September 2026) and +14 to +30% (Fireworks' GPUs, same month). Inferred: the rule by which
Together's bands are inferred misses the one model family that does not follow it, gpt-oss, by 18%."""


class Rate(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One price. Exactly one of the `usd_per_...` fields is set; it is the unit."""

    provider: str
    method: str | tuple[str, ...]
    """sft_lora, dpo_full, rft, minimum, deployment, gpu_rental, inference_tuned_input ..."""
    model: str | tuple[str, ...] | None = None
    """The host's id, the hub id or the canonical name."""
    over_b: Decimal | None = None
    """Band of billions of parameters: more than this, ..."""
    upto_b: Decimal | None = None
    """... and at most this."""
    gpu: str | None = None
    tier: str | None = None
    usd_per_mtok: Decimal | None = None
    usd_per_gpu_hour: Decimal | None = None
    usd_per_hour: Decimal | None = None
    usd_per_job: Decimal | None = None
    usd_per_kwh: Decimal | None = None
    usd_per_gb_month: Decimal | None = None
    usd_max: Decimal | None = None
    """The upper end, where the host publishes a range and no table."""
    start: date
    """First day on which it is known to hold."""
    end: date | None = None
    """Last day on which it is offered."""
    checked: date | None = None
    """When its source was last read; `start` when not given."""
    undated: bool = False
    """Its source is a copy that does not say from when it is."""
    confidence: Confidence
    source: str
    note: str | None = None
    own: str | None = None
    """The user's file or flag that it comes from; `None` for built-in rates."""

    def __post_init__(self) -> None:
        units = [name for name in UNITS if getattr(self, name) is not None]
        if len(units) != 1:
            raise ValueError(f"a rate needs exactly one of {', '.join(UNITS)}; got {units or 'none'}")
        if not all(usd.is_finite() and usd < MOST_USD for usd in (self.usd, self.usd_max or Decimal(0))):
            raise ValueError(f"a price is a number below {MOST_USD:,}")
        if self.usd < 0 or (self.usd_max is not None and self.usd_max < self.usd):
            raise ValueError("a price is not negative, and usd_max is not below it")
        if self.end is not None and self.end < self.start:
            raise ValueError(f"ends {self.end}, before it starts {self.start}")

    @property
    def unit(self) -> str:
        return next(name for name in UNITS if getattr(self, name) is not None)

    @property
    def usd(self) -> Decimal:
        return getattr(self, self.unit)

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.method,) if isinstance(self.method, str) else self.method

    @property
    def models(self) -> tuple[str, ...]:
        if self.model is None:
            return ()
        return (self.model,) if isinstance(self.model, str) else self.model

    @property
    def last_checked(self) -> date:
        return self.checked or self.start

    @property
    def as_of(self) -> str:
        """For people and for `QuoteLine.as_of`: a date, or `undated`."""
        return "undated" if self.undated else self.last_checked.isoformat()

    @property
    def applies_to(self) -> str:
        """For people: the model, the band, the GPU, or `any`."""
        if self.models:
            return ", ".join(self.models)
        if self.gpu:
            return f"{self.gpu} {self.tier}" if self.tier else self.gpu
        if self.over_b is None and self.upto_b is None:
            return "any"
        if self.upto_b is None:
            return f"over {self.over_b}B"
        return f"up to {self.upto_b}B" if self.over_b is None else f"over {self.over_b}B to {self.upto_b}B"

    def offered(self, on: date) -> bool:
        """Whether it is to be had on this day. A user's own price holds from the day that he gives; before it
        the host's holds."""
        begun = self.own is None or self.source == "--rate" or self.start <= on
        return begun and (self.end is None or on <= self.end)

    def band(self) -> tuple[Decimal, Decimal, Decimal]:
        """Low, expected and high price per unit; of a published range the expected one is only its middle."""
        if self.usd_max is not None:
            return self.usd, (self.usd + self.usd_max) / 2, self.usd_max
        spread = SPREAD[self.confidence]
        return self.usd * (1 - spread), self.usd, self.usd * (1 + spread)

    def concerns(self, ids: Iterable[str], params_b: float | None) -> bool:
        """Whether it may be the price of a model with these names and this size."""
        size = None if params_b is None else Decimal(str(params_b))
        return self.fit(frozenset(name.lower() for name in ids), size, None, None) > 0

    def fit(self, ids: frozenset[str], params_b: Decimal | None, gpu: str | None, tier: str | None) -> int:
        """How closely it fits what is asked: 3 the model or GPU itself, 2 its band, 1 everything, 0 not at
        all."""
        if self.models:
            return 3 if any(name.lower() in ids for name in self.models) else 0
        if self.gpu is not None:
            if gpu is None or (tier is not None and tier != self.tier):
                return 0
            asked, mine = _words(gpu), _words(self.gpu)
            # People say H100 where the driver says NVIDIA H100 80GB HBM3.
            return 3 if asked <= mine else 2 if mine <= asked else 0
        if self.over_b is None and self.upto_b is None:
            return 1
        if params_b is None:
            return 0
        above = self.over_b is None or params_b > self.over_b
        return 2 if above and (self.upto_b is None or params_b <= self.upto_b) else 0


@dataclass(frozen=True)
class Lookup:
    """For which rates a quote looks."""

    provider: str
    methods: tuple[str, ...]
    ids: frozenset[str] = frozenset()
    params_b: float | None = None
    gpu: str | None = None

    def takes(self, rate: Rate) -> bool:
        """Whether it may find this one."""
        if rate.provider != self.provider or not set(rate.methods) & set(self.methods):
            return False
        if rate.gpu is None and self.gpu is not None and not rate.models:
            return True
        names = frozenset(name.lower() for name in self.ids)
        size = None if self.params_b is None else Decimal(str(self.params_b))
        return rate.fit(names, size, self.gpu, None) > 0

    @property
    def flags(self) -> tuple[str, ...]:
        """What `--rate` may be given for it."""
        of = f"@{self.gpu}" if self.gpu else ""
        return tuple(f"{self.provider}:{m}{'' if m == 'electricity' else of}" for m in self.methods)


def require_used(rates: Iterable[Rate], lookups: Sequence[Lookup]) -> None:
    """Raises `UsageError` for a rate that none of the quotes can have looked for."""
    for rate in rates:
        if any(lookup.takes(rate) for lookup in lookups):
            continue
        flags = sorted({flag for lookup in lookups for flag in lookup.flags})
        raise UsageError(
            f"{rate.own} is a price of nothing that is quoted here",
            fix=f"give one of {', '.join(flags)}" if flags else "leave it out",
        )


def _words(gpu: str) -> set[str]:
    text = re.sub(r"(?i)nvidia|geforce|-|_", " ", gpu)
    return {word for word in re.sub(r"(?i)(?<=\d)\s*gb\b", "GB", text).upper().split() if word != "TENSOR"}


class RateBook(msgspec.Struct, frozen=True):
    """Rates in layers; a rate of a later layer is taken before any of an earlier one."""

    layers: tuple[tuple[Rate, ...], ...]

    def __iter__(self) -> Iterator[Rate]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for layer in self.layers:
            yield from layer

    def over(self, rates: Iterable[Rate]) -> RateBook:
        """This book with `rates` laid over it."""
        extra = tuple(rates)
        return RateBook((*self.layers, extra)) if extra else self

    def find(
        self,
        provider: str,
        method: str,
        *,
        ids: Iterable[str] = (),
        params_b: float | None = None,
        gpu: str | None = None,
        tier: str | None = None,
        on: date,
    ) -> Rate | None:
        """The rate in force on a day: the closest fit first, then the one that began last.

        A rate's `start` is the first day it is *known* to hold, so where none has begun the earliest is
        taken.
        """
        names = frozenset(name.lower() for name in ids)
        size = None if params_b is None else Decimal(str(params_b))
        for layer in reversed(self.layers):
            found = [
                (fit, rate)
                for rate in layer
                if rate.provider == provider
                and method in rate.methods
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
    """The rates that come with the package, and those of hosts that a file describes."""
    return _built_in(description.entries())


@cache
def _built_in(entries: tuple[description.Entry, ...]) -> RateBook:
    folder = files("orchestrate.costing").joinpath("rates")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    rates = [
        rate for name in names for rate in parse(folder.joinpath(name).read_text(encoding="utf-8"), name)
    ]
    for kind, told in description.readable(entries).items():
        document = {
            "provider": kind,
            "sources": told.sources,
            "undated": told.undated,
            "rates": [*told.rates],
        }
        rates += _rates(document, f"{kind}.yaml")
    return RateBook((tuple(rates),))


def load(path: Path) -> list[Rate]:
    """Rates of a user's file, in the form of the built-in ones; several providers as several YAML documents.

    Raises `ConfigError` that names the file, the rate and what is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> list[Rate]:
    """As `load`, from the file's text."""
    import yaml

    from orchestrate.expansion import require_bounded

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for node in yaml.compose_all(text, Loader=loader):
            require_bounded(node)
        documents: list[Any] = list(yaml.load_all(text, Loader=loader))
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name} is not YAML: {error}") from error
    return [rate for document in documents if document for rate in _rates(document, name)]


def _rates(document: Any, name: str) -> list[Rate]:
    if not isinstance(document, dict) or not {"provider", "rates"} <= document.keys():
        raise ConfigError(
            f"{name}: a rate file needs the fields provider and rates, and may have sources, and as undated "
            "the keys of those without a date"
        )
    values = cast("dict[str, Any]", document)
    listed: Any = values["rates"]
    sources: Any = values.get("sources") or {}
    if not isinstance(listed, list) or not isinstance(sources, dict):
        raise ConfigError(f"{name}: rates is a list, and sources are names with what they stand for")
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
            raise ConfigError(f"{name}: rate {number} has no source; every price says where it was read")
        if unknown := sorted(set(map(str, fields)) - set(Rate.__struct_fields__) | ({"own"} & set(fields))):
            raise ConfigError(f"{name}: rate {number} has an unknown field {unknown[0]}")
        try:
            rates.append(msgspec.convert(fields, Rate))
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
    """`--rate PROVIDER:METHOD[@MODEL-OR-GPU]=USD`, for example `together:sft_lora@qwen3.5-9b=0.30` or
    `local:owned@A100=0.45`.

    The unit is the method's usual one: US dollars per million tokens for training and inference, per GPU-hour
    for deployment, gpu_rental and rft, per hour for owned and hosting, per kWh for electricity, per job for
    minimum. Raises `UsageError`.
    """
    found = _FLAG.match(text.strip())
    try:
        usd = Decimal(found["usd"].strip()) if found else None
    except InvalidOperation:
        usd = None
    if found is None or usd is None or not usd.is_finite() or not 0 <= usd < MOST_USD:
        raise UsageError(
            f"--rate {text!r} is not understood",
            fix="write PROVIDER:METHOD[@MODEL]=USD, for example mycloud:sft_lora@qwen3.5-9b=0.30",
        )
    unit = _UNIT_OF.get(found["method"], "usd_per_mtok")
    target = "gpu" if unit == "usd_per_gpu_hour" or found["method"] == "owned" else "model"
    return msgspec.convert(
        {
            "provider": found["provider"],
            "method": found["method"],
            target: found["what"],
            unit: usd,
            "start": today,
            "confidence": "quoted",
            "source": "--rate",
            "own": f"--rate {text.strip()}",
        },
        Rate,
    )


USER_FILE = "rates.yaml"
"""Of the user: in the home folder of the configuration, or beside `orchestrate.toml` for a whole project."""


def user_book(folders: Iterable[Path], flags: Iterable[str] = (), *, today: date | None = None) -> RateBook:
    """The built-in rates under the `rates.yaml` of each folder that has one, under `--rate` flags; later
    wins.

    Raises `ConfigError` for a bad file and `UsageError` for a bad flag.
    """
    book = built_in()
    for folder in dict.fromkeys(folders):
        if (path := folder / USER_FILE).is_file():
            book = book.over(msgspec.structs.replace(rate, own=str(path)) for rate in load(path))
    return book.over(parse_flag(flag, today or days.today()) for flag in flags)
