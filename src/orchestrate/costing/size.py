"""How large a job is on one backend: its tokens and what the translation makes of epochs, evaluations and
packing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from orchestrate import text
from orchestrate.catalog import ModelOnHost
from orchestrate.data.tokens import counting
from orchestrate.types import Outcome, QuoteLine, Record, Translation

if TYPE_CHECKING:
    from orchestrate.costing.book import Rate
    from orchestrate.data import Dataset, TokenCount, TrainingData
    from orchestrate.data.rows.pictures import Picture
    from orchestrate.profile import Profile
    from orchestrate.spec import JobSpec


class Lines(Record, frozen=True, kw_only=True):
    """The lines of a quote."""

    lines: tuple[QuoteLine, ...]
    notes: tuple[str, ...] = ()
    """What they assume."""
    open_end: str | None = None
    """What they do not count, so that the price may come to more than their high end."""


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
    """Counts that the billing rules take. Token counts are of one pass, after truncation; the least and the
    most have what is uncertain about them: the tokenizer, the prompt that the answers of a preference pair
    share, images of unknown size."""

    rows: int
    sequences: int
    """Two for a preference pair, the prompt with each answer; else as many as rows."""
    longest: int
    """Tokens of the longest sequence."""
    train_tokens: int
    train_least: Decimal
    train_most: Decimal
    validation_tokens: int
    validation_least: Decimal
    validation_most: Decimal
    validation_rows: int
    validation_sequences: int
    epochs: int
    epochs_low: int
    epochs_high: int
    evals: int
    packing: bool
    max_length: int | None
    reasoning: bool
    average_turns: float
    band: float
    """Relative half-width of the token counts, by the tokenizer alone."""
    notes: tuple[str, ...]
    uncounted: str | None = None
    """What is in the files and in none of these counts."""


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
    limit = _whole(effective(translation, "max_seq_length", spec.max_seq_length)) or resolved.context(
        spec.method.type
    )
    rule = work.profile.picture_tokens
    train = _file(data.train, name, limit, resolved.id, rule)
    validation = _file(data.validation, name, limit, resolved.id, rule) if data.validation else _NONE
    notes = [_counted(train.count)] if train.count else []
    epochs = _whole(effective(translation, "epochs", spec.epochs))
    epochs_low = epochs_high = epochs
    if epochs is None:
        epochs = epochs_low = epochs_high = work.profile.default_epochs
        if epochs is None:
            epochs = work.profile.auto_epochs(data.train.rows)
            epochs_low, epochs_high = 1, epochs + 1
            notes.append(f"epochs left to the host (auto): taken as {epochs}, at most {epochs + 1}")
    if lost := train.lost:
        notes.append(f"rows are cut at {limit} tokens: {lost:,} tokens are neither trained nor billed")
    if train.shared:
        notes.append(
            "a preference pair is counted as its prompt with each answer; whether the host bills the "
            f"{train.shared:,} tokens of the prompts twice is not published: the low end has them once"
        )
    if train.pictures:
        images = text.count(train.images, "image")
        notes.append(f"of them {train.pictures:,} for {images}, by {work.profile.title}'s rule")
    evals = _whole(effective(translation, "evals", spec.evals)) or 0
    uncounted = train.uncounted + validation.uncounted
    return JobSize(
        rows=data.train.rows,
        sequences=train.sequences,
        longest=train.count.longest if train.count else 0,
        train_tokens=train.tokens,
        train_least=train.least,
        train_most=train.most,
        validation_tokens=validation.tokens,
        validation_least=validation.least,
        validation_most=validation.most,
        validation_rows=data.validation.rows if data.validation else 0,
        validation_sequences=validation.sequences,
        epochs=epochs,
        epochs_low=epochs if epochs_low is None else epochs_low,
        epochs_high=epochs if epochs_high is None else epochs_high,
        evals=evals if data.validation else 0,
        packing=effective(translation, "packing", spec.packing) is not False,
        max_length=limit,
        reasoning=data.train.content.reasoning,
        average_turns=data.train.content.average_turns,
        band=max(one.count.error_band for one in (train, validation) if one.count),
        notes=tuple(notes),
        uncounted=f"{text.count(uncounted, 'image')}, for which no rule is published" if uncounted else None,
    )


@dataclass(frozen=True)
class _File:
    count: TokenCount | None = None
    tokens: int = 0
    least: Decimal = Decimal(0)
    most: Decimal = Decimal(0)
    lost: int = 0
    """Cut off."""
    sequences: int = 0
    shared: int = 0
    """Of the prompts of preference pairs, once."""
    images: int = 0
    pictures: int = 0
    """Tokens of the images."""
    uncounted: int = 0
    """Images."""


_NONE = _File()


def _file(
    dataset: Dataset,
    tokenizer: str,
    limit: int | None,
    model: str,
    rule: Callable[[str, Picture], tuple[int, int, int] | None] | None,
) -> _File:
    count = dataset.tokens(tokenizer)
    words = count.tokens if limit is None or count.longest <= limit else count.truncated(limit)
    spread = Decimal(str(count.error_band))
    shared = 0
    if dataset.kind == "preference" and count.tokens:
        # What carries no loss is the prompt, once with each answer; rows that are cut keep their share of it.
        shared = (count.tokens - count.trained_tokens) // 2 * words // count.tokens
    least, likely, most, uncounted = 0, 0, 0, 0
    for picture, number in dataset.pictures.items():
        found = rule(model, picture) if rule else None
        if found is None:
            uncounted += number
            continue
        least, likely, most = least + found[0] * number, likely + found[1] * number, most + found[2] * number
    return _File(
        count=count,
        tokens=words + likely,
        least=(words - shared) * (1 - spread) + least,
        most=words * (1 + spread) + most,
        lost=count.tokens - words,
        sequences=len(count.lengths),
        shared=shared,
        images=sum(dataset.pictures.values()) - uncounted,
        pictures=likely,
        uncounted=uncounted,
    )


def tokenizer_for(resolved: ModelOnHost) -> str:
    """The name of the best counter on this machine, for `Dataset.tokens`."""
    return counting.for_model(tokenizer=resolved.tokenizer, hub=resolved.hub, folder=resolved.folder)


def _counted(count: TokenCount) -> str:
    family, stands_in, base = count.tokenizer.partition("~")
    by = f"{base} in place of {family}'s tokenizer" if stands_in else count.tokenizer
    words = f"{count.tokens:,} tokens in {text.count(count.rows, 'row')}, counted with {by}"
    return f"{words}: +/-{count.error_band:.1%}" if count.error_band else words


def _whole(value: Any) -> int | None:
    """A number, or `None` for `auto`, `max` and the like."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
