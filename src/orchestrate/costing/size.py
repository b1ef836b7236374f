"""How large a job is on one backend: its tokens and what the translation makes of epochs, evaluations and
packing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrate.catalog import ModelOnHost
from orchestrate.data.tokens import counting
from orchestrate.types import Outcome, QuoteLine, Record, Translation

if TYPE_CHECKING:
    from orchestrate.costing.book import Rate
    from orchestrate.data import TokenCount, TrainingData
    from orchestrate.profile import Profile
    from orchestrate.spec import JobSpec

Lines = tuple[list[QuoteLine], list[str]]
"""The lines of a quote, and what they assume."""
Bills = Callable[["JobSize", "Rate"], Lines]
"""How a host bills a job by its tokens, at the rate of a training token."""


@dataclass(frozen=True)
class Work:
    """A job before its upload, as one backend would do it."""

    provider: str
    profile: Profile
    spec: JobSpec
    data: TrainingData
    translation: Translation
    resolved: ModelOnHost


class JobSize(Record, frozen=True, kw_only=True):
    """Counts that the billing rules take. Token counts are of one pass, after truncation."""

    rows: int
    train_tokens: int
    validation_tokens: int
    validation_rows: int
    epochs: int
    epochs_low: int
    epochs_high: int
    evals: int
    packing: bool
    max_length: int | None
    reasoning: bool
    average_turns: float
    band: float
    """Relative half-width of the token counts."""
    notes: tuple[str, ...]


def effective(translation: Translation, name: str, default: Any = None) -> Any:
    """The value of a setting that the backend will use: sent, defaulted, or `default` when refused or not
    told."""
    for setting in translation.settings:
        if setting.name == name and setting.outcome is not Outcome.REFUSED:
            return setting.asked if setting.sent is None else setting.sent
    return default


def measure(work: Work) -> JobSize:
    """Counts with the model's tokenizer where it is here, else with the stand-in that the catalog names."""
    spec, data, translation, resolved = work.spec, work.data, work.translation, work.resolved
    name = tokenizer_for(resolved)
    train = data.train.tokens(name)
    validation = data.validation.tokens(name) if data.validation else None
    limit = _whole(effective(translation, "max_seq_length", spec.max_seq_length)) or resolved.context(
        spec.method.type
    )
    band = max(train.error_band, validation.error_band if validation else 0.0)
    notes = [_counted(train)]
    epochs = _whole(effective(translation, "epochs", spec.epochs))
    epochs_low = epochs_high = epochs
    if epochs is None:
        epochs = epochs_low = epochs_high = work.profile.default_epochs
        if epochs is None:
            epochs = work.profile.auto_epochs(train.rows)
            epochs_low, epochs_high = 1, epochs + 1
            notes.append(f"epochs left to the host (auto): taken as {epochs}, at most {epochs + 1}")
    train_tokens = _cut(train, limit)
    if train_tokens < train.tokens:
        lost = train.tokens - train_tokens
        notes.append(f"rows are cut at {limit} tokens: {lost:,} tokens are neither trained nor billed")
    evals = _whole(effective(translation, "evals", spec.evals)) or 0
    return JobSize(
        rows=train.rows,
        train_tokens=train_tokens,
        validation_tokens=_cut(validation, limit) if validation else 0,
        validation_rows=validation.rows if validation else 0,
        epochs=epochs,
        epochs_low=epochs if epochs_low is None else epochs_low,
        epochs_high=epochs if epochs_high is None else epochs_high,
        evals=evals if validation else 0,
        packing=effective(translation, "packing", spec.packing) is not False,
        max_length=limit,
        reasoning=data.train.content.reasoning,
        average_turns=data.train.content.average_turns,
        band=band,
        notes=tuple(notes),
    )


def tokenizer_for(resolved: ModelOnHost) -> str:
    """The name of the best counter on this machine, for `Dataset.tokens`."""
    return counting.for_model(tokenizer=resolved.tokenizer, hub=resolved.hub, folder=resolved.folder)


def _counted(count: TokenCount) -> str:
    text = f"{count.tokens:,} tokens in {count.rows:,} rows, counted with {count.tokenizer}"
    if not count.error_band:
        return text
    family, stands_in, base = count.tokenizer.partition("~")
    if stands_in:
        text = text.replace(count.tokenizer, f"{base} in place of {family}'s tokenizer")
    return f"{text}: +/-{count.error_band:.0%}"


def _cut(count: TokenCount, limit: int | None) -> int:
    return count.tokens if limit is None or count.longest <= limit else count.truncated(limit)


def _whole(value: Any) -> int | None:
    """A number, or `None` for `auto`, `max` and the like."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
