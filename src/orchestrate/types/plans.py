"""Records of problems, translated settings, memory plans, quotes and bills."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec.structs import force_setattr

from orchestrate.text import SANDBOX_MARK
from orchestrate.types.listing import Listing
from orchestrate.types.record import Record

if TYPE_CHECKING:
    import pandas


class TokensFrom(StrEnum):
    """Method of counting a file's tokens: all of them, in a sample of its rows, or not at all."""

    EXACT = "exact"
    SAMPLED = "sampled"
    NONE = "none"


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Problem(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One problem in a dataset or a spec. `row` is the 1-based record number, or `None` for the entire
    file."""

    code: str
    message: str
    severity: Severity
    row: int | None = None
    field: str | None = None
    providers: tuple[str, ...] = ()
    """Affected backends. Empty means all."""
    fix: str | None = None
    source: str | None = None
    """The file or URL with the problem."""

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
    """Kinds of source that document a host's field, most reliable first."""

    SDK = "sdk"
    """The types in the host's own SDK define the field."""
    SPECIFICATION = "specification"
    """The API specification published by the host defines the field."""
    DOCUMENTATION = "documentation"
    """Only the host's web pages mention the field."""
    NONE = "none"
    """No published source mentions the field."""


class Setting(Record, frozen=True, kw_only=True):
    """The translation of one setting of the spec for one backend."""

    name: str
    asked: Any = None
    outcome: Outcome
    sent: Any = None
    wire: str | None = None
    """Dotted name of the field in the request body. `None` if nothing is sent."""
    rule: str | None = None
    """Explanation of how the setting was mapped, or why it was rejected."""
    exact: bool = True
    """True if the mapped value has the same meaning. `--strict` rejects inexact values."""
    authority: Authority | None = None
    """Source that documents the field `wire`. `--strict` rejects undocumented fields. `None` if nothing is
    sent, and for backends that publish no fields."""
    instead: Any = None
    """Nearest accepted value, for a rejected setting."""


class MemoryPlan(Record, frozen=True, kw_only=True):
    """The peak device memory of training, by part, and how to reduce it."""

    parts: dict[str, int]
    """Bytes, keyed by part."""
    total_bytes: int
    peak: str
    """Stage of a training step in which the peak is reached."""
    available_bytes: int | None
    """Memory of the device. `None` if unknown."""
    device: str
    fits: bool | None
    rows: int
    """Number of rows in one forward pass. Each answer of a pair counts as a row."""
    longest: int
    """Number of tokens in the longest of these rows."""
    advice: tuple[str, ...] = ()
    """Changes to apply if the plan does not fit, one after another. Each entry states the memory after the
    change."""
    notes: tuple[str, ...] = ()
    """Assumptions, and reasons why the estimate may be less accurate than usual."""


class Translation(Record, frozen=True, kw_only=True):
    """A JobSpec translated for one backend. Every requested setting is listed in `settings`, so nothing is
    dropped silently."""

    provider: str
    model: str
    """The backend's own id of the base model."""
    settings: tuple[Setting, ...]
    body: dict[str, Any]
    """Body of the create request, without the ref and the file ids, which are only known after the upload."""
    memory: MemoryPlan | None = None
    """Memory plan, for a backend that trains on the user's hardware."""
    overrides: dict[str, Any] | None = None
    """Fields that make the spec acceptable for the backend if you set them under its `overrides:`. `None` if
    the spec is already acceptable, or if no fields could make it so."""

    def __str__(self) -> str:
        counts = Counter(setting.outcome.value for setting in self.settings)
        outcomes = ", ".join(f"{counts[o.value]} {o.value}" for o in Outcome if counts[o.value])
        return f"{self.provider}  {self.model}  {outcomes}"

    def _repr_html_(self) -> str:
        from orchestrate import notebook

        return notebook.translation(self)

    def cells(self) -> dict[str, Any]:
        of_outcomes = {o.value: ", ".join(s.name for s in self.settings if s.outcome is o) for o in Outcome}
        return {"provider": self.provider, "model": self.model, **of_outcomes}

    def to_pandas(self) -> pandas.DataFrame:
        """Return a row for each setting. Raises `MissingExtra` if pandas is not installed."""
        return Listing(self.settings).to_pandas()

    @property
    def refused(self) -> tuple[Setting, ...]:
        return tuple(s for s in self.settings if s.outcome is Outcome.REFUSED)

    @property
    def multiplied_rate(self) -> float | None:
        """Learning rate that results from `learning_rate_multiplier` on this backend. `None` if no multiplier
        was requested, or if the backend does not publish its base rate."""
        found = next((s for s in self.settings if s.name == "learning_rate_multiplier"), None)
        if found is None or found.outcome is not Outcome.MAPPED or found.sent is None:
            return None
        return float(found.sent)

    @property
    def inexact(self) -> tuple[Setting, ...]:
        """Return the settings that `--strict` rejects."""
        return tuple(
            s
            for s in self.settings
            if s.outcome is Outcome.REFUSED or not s.exact or s.authority is Authority.NONE
        )


class Confidence(StrEnum):
    """The confidence in a rate: published by the host, inferred by a stated rule, or published earlier and
    not confirmed since."""

    QUOTED = "quoted"
    INFERRED = "inferred"
    OLD = "old"


class QuoteLine(Record, frozen=True, kw_only=True):
    """One line of a quote: `usd = quantity x usd_per_unit`, with a low and a high amount because the quantity
    may be uncertain."""

    component: str
    """Component, such as training, evaluation, minimum, hosting, serving, storage or electricity."""
    quantity: Decimal
    unit: str
    """Unit of the rate, such as `usd_per_mtok` or `usd_per_gpu_hour`. `quantity` is in the corresponding
    unit, such as million tokens or GPU hours."""
    usd_per_unit: Decimal
    usd_low: Decimal
    usd: Decimal
    usd_high: Decimal
    note: str | None = None
    source: str | None = None
    as_of: str | None = None
    confidence: Confidence = Confidence.QUOTED
    own: str | None = None
    """The user's own file or flag that the rate comes from. `None` for built-in rates."""


class PriceRange(NamedTuple):
    """The price in a quote."""

    low_usd: Decimal
    expected_usd: Decimal | None
    """Expected price. `None` if the price is undecided."""
    high_usd: Decimal

    @property
    def counted_usd(self) -> Decimal:
        """Return the price as one number: the expected price, or the high end if there is no expected
        price."""
        return self.high_usd if self.expected_usd is None else self.expected_usd


class Quote(Record, frozen=True, kw_only=True):
    """The price of a spec on one backend before anything is uploaded. If there is no price, `unavailable`
    explains why."""

    provider: str
    model: str
    lines: tuple[QuoteLine, ...] = ()
    assumptions: tuple[str, ...] = ()
    low_usd: Decimal | None = None
    """Low end of the price range. This field, `expected_usd` and `high_usd` are `None` if the quote has no
    price, because it is `unavailable` or because the backend would reject the job (`refused`)."""
    expected_usd: Decimal | None = None
    """Expected price. Also `None` if the price is `undecided`."""
    high_usd: Decimal | None = None
    billed_tokens: int | None = None
    train_seconds: float | None = None
    """Modeled or measured training time. `None` if unknown."""
    unavailable: str | None = None
    warnings: tuple[str, ...] = ()
    recovered: bool = msgspec.field(default=False, name="recalled")
    """True if the job's spec and data are lost, and the quote is computed from what the host reports about
    the job instead. The user never confirmed this price."""
    open_end: str | None = None
    """Costs that the price does not include. The job may cost more than `high_usd`, and no limit can be
    enforced."""
    ends_usd: Decimal | None = None
    """Maximum bill of a rented machine. The machine stops at this amount, even if the run is not finished."""
    undecided: str | None = None
    """Reason why only a price range is known instead of a single price."""
    refused: str | None = None
    """Reason why the backend would reject the job."""
    unlisted: str | None = None
    """Warning that no source confirms that the host tunes the model."""
    served: str | None = None
    """How models tuned from this base model can be served: billed per token, on dedicated GPUs, or not at
    all."""
    rows: int | None = None
    """Rows to train on."""
    epochs: int | None = None
    """Number of epochs that was requested, or that the host is assumed to choose."""
    batch_size: int | None = None
    """Rows per step. `None` if the host chooses."""
    tokens_from: TokensFrom = TokensFrom.EXACT
    """How the tokens were counted: all rows, a sample, or not at all. The sampling error widens the range
    from `low_usd` to `high_usd`. Without a count, there is no price."""
    sandbox: bool = False
    """True if the backend is a sandbox: the price is what the real host would bill."""

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
        host = self.provider + SANDBOX_MARK * self.sandbox
        if self.price is None:
            return f"{host}  {self.model}  no price: {self.why_none}"
        span = f"${self.low_usd:,f} to ${self.high_usd:,f}"
        expected = "" if self.expected_usd is None else f"${self.expected_usd:,f} expected, "
        return f"{host}  {self.model}  {expected}{span}"

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
        """Return a row for each line of the quote. Raises `MissingExtra` if pandas is not installed."""
        return Listing(self.lines).to_pandas()

    @property
    def why_none(self) -> str | None:
        """Reason why the quote has no price: the price is unknown, or the backend would reject the job."""
        return self.unavailable or (f"would be rejected: {self.refused}" if self.refused else None)

    @property
    def price(self) -> PriceRange | None:
        """The price, or `None` if the quote has none."""
        if self.low_usd is None or self.high_usd is None:
            return None
        return PriceRange(self.low_usd, self.expected_usd, self.high_usd)

    @property
    def ranked(self) -> bool:
        """Return whether the quote may rank as the cheapest. It must have a price, and there must be no known
        reason why the job can't run."""
        return self.why_none is None and self.unlisted is None

    @property
    def rank(self) -> tuple[bool, bool, bool, Decimal]:
        """Sort key, for this order:

        - quotes that may rank as the cheapest, by price
        - other quotes with a price
        - quotes of jobs that the backend would reject
        - quotes whose price is unavailable
        """
        usd = self.counted_usd
        return (
            self.unavailable is not None,
            usd is None,
            not self.ranked,
            Decimal(0) if usd is None else usd,
        )

    @property
    def counted_usd(self) -> Decimal | None:
        """Return the price as one number: the expected price, or the high end if there is no expected
        price."""
        return self.price.counted_usd if self.price else None

    @property
    def held_usd(self) -> Decimal:
        """Return the amount that a budget reserves for a run: the high end. It is 0 if no price is known,
        because such a run is only created without a limit."""
        return self.high_usd or Decimal(0)


class Bill(Record, frozen=True, kw_only=True):
    """The cost of a run, and its source. `final` is false while the host may still change it."""

    usd: Decimal
    origin: str
    """Source, such as `trained_tokens x rate`, `total_price`, `estimatedCost` or `measured hours x rate`."""
    lines: tuple[QuoteLine, ...] = ()
    final: bool = True
