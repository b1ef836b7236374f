"""Size of a job on one backend: its tokens, epochs and evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrate import text
from orchestrate.catalog import ModelOnHost
from orchestrate.data.tokens import COVERAGE, counters
from orchestrate.spec.specfile import template_text
from orchestrate.types import Outcome, QuoteLine, Record, TokensFrom, Translation

if TYPE_CHECKING:
    from orchestrate.costing.rate import Rate
    from orchestrate.data import Dataset, TokenCount, TrainingData
    from orchestrate.data.rows.traits import Picture
    from orchestrate.profile import Profile
    from orchestrate.spec import JobSpec


class Lines(Record, frozen=True, kw_only=True):
    """Lines of a quote, and the assumptions behind them."""

    lines: tuple[QuoteLine, ...]
    notes: tuple[str, ...] = ()
    """Assumptions behind the lines."""
    open_end: str | None = None
    """Description of costs that the lines do not include. If set, the total may exceed the high end of their
    range."""


Bills = Callable[["JobSize", "Rate"], Lines]
"""Type of a function that computes a job's quote lines from its size and the price per training token."""


@dataclass(frozen=True)
class PlannedJob:
    """A job that has not been uploaded yet, with the settings that one backend would use."""

    provider: str
    profile: Profile
    spec: JobSpec
    data: TrainingData
    translation: Translation
    resolved: ModelOnHost


class JobSize(Record, frozen=True, kw_only=True):
    """Sizes that determine the cost of a job.

    Token counts are for one epoch, after truncation. Their low and high ends allow for three uncertainties:
    the host may use a different tokenizer, it may bill the shared prompt of a preference pair once or twice,
    and the size of images may be unknown.
    """

    rows: int
    sequences: int
    """Number of sequences: two for each preference pair (the prompt with each answer), and one for any other
    row."""
    longest: int
    """Number of tokens in the longest sequence."""
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
    passes: Decimal
    """Number of epochs, which is fractional if `max_steps` ends the run within an epoch."""
    evals: int
    packing: bool
    max_length: int | None
    reasoning: bool
    average_turns: float
    band: float
    """Relative half-width of the token counts, due to the tokenizer alone."""
    notes: tuple[str, ...]
    uncounted: str | None = None
    """Description of content that these counts do not include."""


def effective(translation: Translation, name: str, default: Any = None) -> Any:
    """Return the effective value of a setting: the value sent to the backend (or the backend's default),
    otherwise the requested value. Returns `default` if the setting was rejected or is unknown."""
    for setting in translation.settings:
        if setting.name == name and setting.outcome is not Outcome.REFUSED:
            return setting.asked if setting.sent is None else setting.sent
    return default


def epochs_of(translation: Translation, profile: Profile, rows: int) -> int:
    """Return the requested number of epochs, or the number that the host is assumed to choose."""
    requested = _whole(effective(translation, "epochs"))
    return requested or profile.default_epochs or profile.auto_epochs(rows)


def batch_of(translation: Translation) -> int | None:
    """Return the effective batch size in rows, or `None` if the host chooses it. The value sent to the host
    may be smaller, for example if it applies to each device."""
    for setting in translation.settings:
        if setting.name == "batch_size" and setting.outcome is Outcome.MAPPED and setting.exact:
            return _whole(setting.asked)
    return _whole(effective(translation, "batch_size"))


def measure(work: PlannedJob) -> JobSize:
    """Compute the size of a job. Counts tokens with the model's tokenizer if it is on this machine, otherwise
    with a substitute tokenizer from the catalog."""
    spec, data, translation, resolved = work.spec, work.data, work.translation, work.resolved
    name = tokenizer_for(resolved, spec)
    limit = _limit(work)
    rule = work.profile.picture_tokens
    drop = limit if effective(translation, "truncation") == "drop" else None
    train = _file(data.train, name, limit, resolved.id, rule, drop)
    validation = _file(data.validation, name, limit, resolved.id, rule, drop) if data.validation else _NONE
    notes = [_counted(train.count)] if train.count else []
    if data.mixed:
        notes.append(data.mixed)
    run = _run(work)
    if run.note:
        notes.append(run.note)
    if train.left_out:
        notes.append(
            f"{text.count(train.left_out, 'row')} with more than {limit} tokens will be dropped and not "
            "billed"
        )
    if lost := train.lost:
        notes.append(
            f"rows are truncated at {limit} tokens, so {lost:,} tokens are neither trained on nor billed"
        )
    if train.shared:
        notes.append(
            "the prompt of each preference pair counts twice, once with each answer. The host does not "
            f"publish whether it bills the {train.shared:,} shared prompt tokens twice, so the "
            "low end counts them once"
        )
    if train.pictures:
        images = text.count(train.images, "image")
        notes.append(f"includes {train.pictures:,} tokens for {images}, by {work.profile.title}'s rules")
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
        epochs=run.epochs,
        epochs_low=run.epochs_low,
        epochs_high=run.epochs_high,
        passes=run.passes,
        evals=run.evals if data.validation else 0,
        packing=effective(translation, "packing", spec.packing) is not False,
        max_length=limit,
        reasoning=data.train.content.reasoning,
        average_turns=data.train.content.average_turns,
        band=max(one.count.error_band for one in (train, validation) if one.count),
        notes=tuple(notes),
        uncounted=f"{text.count(uncounted, 'image')} without a published rule" if uncounted else None,
    )


def _limit(work: PlannedJob) -> int | None:
    """Return the number of tokens above which a row is truncated or dropped."""
    requested = _whole(effective(work.translation, "max_seq_length", work.spec.max_seq_length))
    return requested or work.resolved.context(work.spec.method.type)


class _TrainingLength(NamedTuple):
    """Length of a job's training."""

    epochs: int
    epochs_low: int
    epochs_high: int
    passes: Decimal
    evals: int
    note: str | None = None


def _run(work: PlannedJob) -> _TrainingLength:
    spec, translation, rows = work.spec, work.translation, work.data.train.rows
    epochs, note = _whole(effective(translation, "epochs", spec.epochs)), None
    evals = _whole(effective(translation, "evals", spec.evals)) or 0
    if most := _whole(effective(translation, "max_steps")):
        return _by_steps(work, most, epochs)
    low = high = epochs
    if epochs is None:
        epochs = low = high = work.profile.default_epochs
        if epochs is None:
            epochs = work.profile.auto_epochs(rows)
            low, high = 1, epochs + 1
            note = (
                f"the host chooses the number of epochs (auto). The quote assumes {epochs}, and at most "
                f"{epochs + 1}"
            )
    if every := _whole(effective(translation, "eval_steps")):
        evals = -(-epochs * _steps_per_epoch(work) // every)
    return _TrainingLength(
        epochs, epochs if low is None else low, epochs if high is None else high, Decimal(epochs), evals, note
    )


def _by_steps(work: PlannedJob, most: int, epochs: int | None) -> _TrainingLength:
    """Return where a number of optimizer steps may end the run."""
    per_epoch = _steps_per_epoch(work)
    steps = most if epochs is None else min(most, epochs * per_epoch)
    passes = Decimal(steps) / per_epoch
    begun = -(-steps // per_epoch)
    every = _whole(effective(work.translation, "eval_steps"))
    evals = _whole(effective(work.translation, "evals", work.spec.evals))
    if every:
        evals = -(-steps // every)
    note = f"{text.count(steps, 'optimizer step')} with {per_epoch:,} per epoch"
    return _TrainingLength(begun, begun, begun, passes, begun if evals is None else evals, note)


def _steps_per_epoch(work: PlannedJob) -> int:
    """Return the number of optimizer steps per epoch. A row that is split counts as several examples."""
    batch = _whole(effective(work.translation, "batch_size", work.spec.batch_size)) or 1
    train = work.data.train
    count = train.tokens(tokenizer_for(work.resolved, work.spec))
    if effective(work.translation, "truncation") == "drop" and (limit := _limit(work)):
        count = count.within(limit, pairs=train.kind == "preference")
    sequences = count.sequences
    return max(1, -(-(sequences // 2 if train.kind == "preference" else sequences) // batch))


@dataclass(frozen=True)
class _FileSize:
    count: TokenCount | None = None
    tokens: int = 0
    least: Decimal = Decimal(0)
    most: Decimal = Decimal(0)
    lost: int = 0
    """Number of tokens removed by truncation."""
    left_out: int = 0
    """Number of dropped rows."""
    sequences: int = 0
    shared: int = 0
    """Number of prompt tokens in preference pairs, with each pair's prompt counted once."""
    images: int = 0
    pictures: int = 0
    """Number of image tokens."""
    uncounted: int = 0
    """Number of images for which no token rule is published."""


_NONE = _FileSize()


def _file(
    dataset: Dataset,
    tokenizer: str,
    limit: int | None,
    model: str,
    rule: Callable[[str, Picture], tuple[int, int, int] | None] | None,
    drop: int | None,
) -> _FileSize:
    """`drop`: rows of more tokens are left out."""
    count, left_out = dataset.tokens(tokenizer), 0
    if drop is not None and count.longest > drop:
        kept = count.within(drop, pairs=dataset.kind == "preference")
        count, left_out = kept, count.rows - kept.rows
    text_tokens = count.tokens if limit is None or count.longest <= limit else count.truncated(limit)
    spread = Decimal(str(count.error_band))
    shared = 0
    if dataset.kind == "preference" and count.tokens:
        # Tokens without loss are the prompts, which are counted with both answers. Truncated rows are assumed
        # to keep the same share of prompt tokens.
        shared = (count.tokens - count.trained_tokens) // 2 * text_tokens // count.tokens
    least, likely, most, uncounted = 0, 0, 0, 0
    for picture, number in dataset.pictures.items():
        found = rule(model, picture) if rule else None
        if found is None:
            uncounted += number
            continue
        least, likely, most = least + found[0] * number, likely + found[1] * number, most + found[2] * number
    return _FileSize(
        count=count,
        tokens=text_tokens + likely,
        least=(text_tokens - shared) * max(Decimal(0), 1 - spread) + least,
        most=text_tokens * (1 + spread) + most,
        lost=count.tokens - text_tokens,
        left_out=left_out,
        sequences=count.sequences,
        shared=shared,
        images=sum(dataset.pictures.values()) - uncounted,
        pictures=likely,
        uncounted=uncounted,
    )


def chat_of(spec: JobSpec) -> dict[str, Any]:
    """Return the settings of a spec that change how the model's tokenizer processes a row. Raises `SpecError`
    if the chat template can't be read."""
    chat: dict[str, Any] = {}
    if spec.chat_template is not None:
        chat["chat_template"] = template_text(spec.chat_template)
    if spec.chat_template_kwargs:
        chat["chat_template_kwargs"] = spec.chat_template_kwargs
    if spec.added_tokens:
        chat["added_tokens"] = spec.added_tokens
    return chat


def tokenizer_for(resolved: ModelOnHost, spec: JobSpec | None = None) -> str:
    """Return the name of the best token counter on this machine, for `Dataset.tokens`. The name includes the
    settings of `spec` that change how rows are tokenized, such as the chat template. Raises `SpecError` if
    the chat template can't be read."""
    chat = {} if spec is None else chat_of(spec)
    if spec is not None and spec.method.type == "sft" and spec.method.earlier_thinking not in (None, "train"):
        chosen = spec.method.train_on
        # Earlier answers only get their own rows if they are trained. Otherwise, the setting has no effect.
        if chosen != "last" and (not isinstance(chosen, tuple) or "assistant" in chosen):
            chat["earlier_thinking"] = spec.method.earlier_thinking
    return counters.for_model(
        tokenizer=resolved.tokenizer, hub=resolved.hub, folder=resolved.folder, chat=chat
    )


def _counted(count: TokenCount) -> str:
    family, stands_in, base = count.tokenizer.partition("~")
    by = f"{base} (the tokenizer of {family} is not available)" if stands_in else count.tokenizer
    if by.startswith("hf:"):  # its folder, and what the spec changes of its template
        by = "the model's own tokenizer"
    counted = f"{count.tokens:,} tokens in {text.count(count.rows, 'row')}, counted with {by}"
    if count.tokens_from is TokensFrom.SAMPLED:
        counted = f"about {counted}, estimated from a sample ({COVERAGE}% interval)"
    return f"{counted}: +/-{count.error_band:.1%}" if count.error_band else counted


def _whole(value: Any) -> int | None:
    """Return an integer, or `None` for `auto`, `max` and the like."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
