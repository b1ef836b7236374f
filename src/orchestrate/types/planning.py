"""Before and after a run: what is wrong, what becomes of each setting, what it takes and costs."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import force_setattr

from orchestrate.types.listing import Listing
from orchestrate.types.record import Record

if TYPE_CHECKING:
    import pandas


class TokensFrom(StrEnum):
    """The way a file's tokens are counted: all of them, in a sample of its rows, or not at all."""

    EXACT = "exact"
    SAMPLED = "sampled"
    NONE = "none"


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Problem(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One thing wrong with a dataset or a spec. `row` is the 1-based record number, `None` for the whole
    file."""

    code: str
    message: str
    severity: Severity
    row: int | None = None
    field: str | None = None
    providers: tuple[str, ...] = ()
    """Backends concerned; empty means all."""
    fix: str | None = None
    source: str | None = None
    """The file or URL in which it was found."""

    def __str__(self) -> str:
        row = f"row {self.row}, " if self.row is not None else ""
        place = f"{row}{self.field or ''}".removesuffix(", ")
        return f"{self.severity.value}: {f'{place}: ' if place else ''}{self.message}"

    def _repr_html_(self) -> str:
        from orchestrate import notebook

        return notebook.problem(self)


class Outcome(StrEnum):
    KEPT = "kept"
    MAPPED = "mapped"
    DEFAULTED = "defaulted"
    REFUSED = "refused"


class Authority(StrEnum):
    """From where it is known that a host has a field, the surest first."""

    SDK = "sdk"
    """The types of the host's own SDK."""
    SPECIFICATION = "specification"
    """The description of the API that the host publishes."""
    DOCUMENTATION = "documentation"
    """The host's pages only."""
    NONE = "none"
    """Nothing that is published names it."""


class Setting(Record, frozen=True, kw_only=True):
    """The translation of one setting of the spec for one backend."""

    name: str
    asked: Any = None
    outcome: Outcome
    sent: Any = None
    wire: str | None = None
    """The field of the request body that carries it, dotted; `None` when nothing is sent."""
    rule: str | None = None
    """How it was mapped, or why it was refused."""
    exact: bool = True
    """Whether the mapped value means the same thing; an inexact one is refused under `--strict`."""
    authority: Authority | None = None
    """From where it is known that the host has the field `wire`; one that nothing names is refused under
    `--strict`. `None` where nothing is sent, and of backends that publish no fields."""
    instead: Any = None
    """Of a refused one: the nearest value that is taken."""


class MemoryPlan(Record, frozen=True, kw_only=True):
    """The device memory that training needs at its peak, by part, and what to do about it."""

    parts: dict[str, int]
    """Bytes."""
    total_bytes: int
    peak: str
    """The moment of a step at which it is reached."""
    available_bytes: int | None
    """Of the device; `None` when it is not known."""
    device: str
    fits: bool | None
    rows: int
    """Side by side in one forward pass; each of a pair's two counts."""
    longest: int
    """Tokens of the longest of them."""
    advice: tuple[str, ...] = ()
    """What to change where it does not fit, each with the total that it leads to, one on top of the other."""
    notes: tuple[str, ...] = ()
    """What was assumed, and what makes it less exact than measured cases were."""


class Translation(Record, frozen=True, kw_only=True):
    """A JobSpec in the words of one backend. Nothing is dropped silently: every asked-for setting has a
    row."""

    provider: str
    model: str
    """The backend's own id of the base model."""
    settings: tuple[Setting, ...]
    body: dict[str, Any]
    """The create request without what only the upload knows (file ids) and without the ref."""
    memory: MemoryPlan | None = None
    """Of a backend that trains on hardware of the user's."""
    overrides: dict[str, Any] | None = None
    """Fields under `overrides:` of this backend with which it refuses nothing of the spec; `None` where
    it refuses nothing, or where no fields could mend that."""

    def __str__(self) -> str:
        counts = Counter(setting.outcome.value for setting in self.settings)
        told = ", ".join(f"{counts[o.value]} {o.value}" for o in Outcome if counts[o.value])
        return f"{self.provider}  {self.model}  {told}"

    def _repr_html_(self) -> str:
        from orchestrate import notebook

        return notebook.translation(self)

    def cells(self) -> dict[str, Any]:
        of_outcomes = {o.value: ", ".join(s.name for s in self.settings if s.outcome is o) for o in Outcome}
        return {"provider": self.provider, "model": self.model, **of_outcomes}

    def to_pandas(self) -> pandas.DataFrame:
        """Return a row for each setting. Raises `MissingExtra`."""
        return Listing(self.settings).to_pandas()

    @property
    def refused(self) -> tuple[Setting, ...]:
        return tuple(s for s in self.settings if s.outcome is Outcome.REFUSED)

    @property
    def multiplied_rate(self) -> float | None:
        """The learning rate that a `learning_rate_multiplier` becomes here; `None` where none was asked for,
        or the backend keeps to itself what it multiplies."""
        found = next((s for s in self.settings if s.name == "learning_rate_multiplier"), None)
        if found is None or found.outcome is not Outcome.MAPPED or found.sent is None:
            return None
        return float(found.sent)

    @property
    def inexact(self) -> tuple[Setting, ...]:
        """Return the settings that `--strict` refuses."""
        return tuple(
            s
            for s in self.settings
            if s.outcome is Outcome.REFUSED or not s.exact or s.authority is Authority.NONE
        )


class Confidence(StrEnum):
    """The confidence in a rate: quoted by the host, inferred by a stated rule, or quoted once and not
    seen since."""

    QUOTED = "quoted"
    INFERRED = "inferred"
    OLD = "old"


class QuoteLine(Record, frozen=True, kw_only=True):
    """`usd = quantity x usd_per_unit`, with the band of the quantity's uncertainty around it."""

    component: str
    """training, evaluation, minimum, hosting, serving, storage, electricity ..."""
    quantity: Decimal
    unit: str
    """The unit of the rate, for example `usd_per_mtok` or `usd_per_gpu_hour`; quantity is in its
    denominator."""
    usd_per_unit: Decimal
    usd_low: Decimal
    usd: Decimal
    usd_high: Decimal
    note: str | None = None
    source: str | None = None
    as_of: str | None = None
    confidence: Confidence = Confidence.QUOTED
    own: str | None = None
    """The user's own file or flag that the rate comes from; `None` for built-in rates."""


class PriceRange(NamedTuple):
    """The price that a quote names."""

    low_usd: Decimal
    expected_usd: Decimal | None
    """`None` where the price is undecided."""
    high_usd: Decimal

    @property
    def counted_usd(self) -> Decimal:
        """Return the price as one number: the expected price, or the high end if it is undecided."""
        return self.high_usd if self.expected_usd is None else self.expected_usd


class Quote(Record, frozen=True, kw_only=True):
    """The price of a spec on one backend before anything is uploaded. `unavailable` says why there is
    none."""

    provider: str
    model: str
    lines: tuple[QuoteLine, ...] = ()
    assumptions: tuple[str, ...] = ()
    low_usd: Decimal | None = None
    """`None`, as the two that follow, where there is no price: nobody can name that of what is `unavailable`
    or would be `refused`."""
    expected_usd: Decimal | None = None
    """`None` also where the price is `undecided`."""
    high_usd: Decimal | None = None
    billed_tokens: int | None = None
    train_seconds: float | None = None
    """Modelled or measured time to train; `None` where nothing is known."""
    unavailable: str | None = None
    warnings: tuple[str, ...] = ()
    recalled: bool = False
    """Made of what the host tells of a job whose spec and data are gone: nobody agreed to it."""
    open_end: str | None = None
    """What the price does not count: the job may cost more than `high_usd`, and no limit can be checked."""
    ends_usd: Decimal | None = None
    """Of a rented machine: at this much its bill ends, whatever the run does."""
    undecided: str | None = None
    """Why no single price can be named, only the range: the host tells which when it is asked."""
    refused: str | None = None
    """Why the backend would refuse the job as it is."""
    unlisted: str | None = None
    """That nothing says that the host tunes the model at all."""
    served: str | None = None
    """How the backend serves what is tuned from this base: by the token, on dedicated GPUs, or not."""
    rows: int | None = None
    """To train on."""
    epochs: int | None = None
    """As asked for, or as the host is taken to choose."""
    batch_size: int | None = None
    """Rows to a step; `None` where the host chooses."""
    tokens_from: TokensFrom = TokensFrom.EXACT
    """What the price stands on: all rows counted, or a sample of them, whose interval is within `low_usd` and
    `high_usd`; without a count there is no price."""

    def __post_init__(self) -> None:
        named = [usd for usd in (self.low_usd, self.expected_usd, self.high_usd) if usd is not None]
        if not named and self.why_none is None:
            force_setattr(self, "unavailable", f"{self.provider} gave no price")
        if self.why_none is not None:
            for name in ("low_usd", "expected_usd", "high_usd"):
                force_setattr(self, name, None)
        elif len(named) < 3:  # a single figure of a plug-in is both ends
            force_setattr(self, "low_usd", min(named))
            force_setattr(self, "high_usd", max(named))

    def __str__(self) -> str:
        if self.price is None:
            return f"{self.provider}  {self.model}  no price: {self.why_none}"
        span = f"${self.low_usd:,f} to ${self.high_usd:,f}"
        expected = "" if self.expected_usd is None else f"${self.expected_usd:,f} expected, "
        return f"{self.provider}  {self.model}  {expected}{span}"

    def _repr_html_(self) -> str:
        from orchestrate import notebook

        return notebook.quote(self)

    def cells(self) -> dict[str, Any]:
        return {
            "provider": self.provider,
            "model": self.model,
            "expected_usd": self.expected_usd,
            "low_usd": self.low_usd,
            "high_usd": self.high_usd,
            "billed_tokens": self.billed_tokens,
            "rows": self.rows,
            "epochs": self.epochs,
            "train_seconds": self.train_seconds,
            "served": self.served,
            "why_not": self.why_none or self.unlisted,
        }

    def to_pandas(self) -> pandas.DataFrame:
        """Return a row for each line of the quote. Raises `MissingExtra`."""
        return Listing(self.lines).to_pandas()

    @property
    def why_none(self) -> str | None:
        """Why it names no price: it is unknown, or the backend would refuse the job."""
        return self.unavailable or (f"would be rejected: {self.refused}" if self.refused else None)

    @property
    def price(self) -> PriceRange | None:
        """`None` where it names none."""
        if self.low_usd is None or self.high_usd is None:
            return None
        return PriceRange(self.low_usd, self.expected_usd, self.high_usd)

    @property
    def ranked(self) -> bool:
        """Return whether the quote can be the cheapest: it has a price, and as far as is known the job
        can run."""
        return self.why_none is None and self.unlisted is None

    @property
    def rank(self) -> tuple[bool, bool, bool, Decimal]:
        """Sorts quotes: those that can be had first, then by price; then those of what would be refused,
        and last those that have none for another reason."""
        usd = self.counted_usd
        return (
            self.unavailable is not None,
            usd is None,
            not self.ranked,
            Decimal(0) if usd is None else usd,
        )

    @property
    def counted_usd(self) -> Decimal | None:
        """Return the price as one number: the expected price, or the high end if it is undecided."""
        return self.price.counted_usd if self.price else None

    @property
    def held_usd(self) -> Decimal:
        """Return the amount that a budget reserves for a run: the high end. It is 0 if no price is known,
        because such a run is only created if no limit is set."""
        return self.high_usd or Decimal(0)


class Bill(Record, frozen=True, kw_only=True):
    """The cost of a run, and its source. `final` is false while the host may still change it."""

    usd: Decimal
    origin: str
    """For example `trained_tokens x rate`, `total_price`, `estimatedCost`, `measured hours x rate`."""
    lines: tuple[QuoteLine, ...] = ()
    final: bool = True
