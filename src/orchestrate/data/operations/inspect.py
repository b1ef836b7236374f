"""`orchestrate data inspect`: compute statistics of a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from orchestrate.data.dataset_reader import count_tokens, open_dataset
from orchestrate.data.facts import Facts, data_digest
from orchestrate.data.passes import compare
from orchestrate.data.passes.scan import DESIRABLE, UNDESIRABLE
from orchestrate.data.shapes.row_reader import visible
from orchestrate.types import Record

BINS = 16
LABELS = (DESIRABLE, UNDESIRABLE)
LONGEST = 5
LEAST_LETTERS = 20
"""Minimum number of letters of Latin text for language detection. Shorter text gives unreliable results."""
SURE = 0.9
"""Minimum probability for reporting a language."""
ENOUGH_LETTERS = 75
"""Minimum number of letters (about fifteen words) for detecting the language of a single row. None of 1,200
English texts of at least this length was misclassified, compared with 3% of shorter texts. Other scripts need
fewer letters."""
FEW = 0.05
UNCERTAIN = "uncertain"
LANGUAGE_SAMPLE = 200
"""Number of rows at the start of the file used to detect languages."""

GUIDANCE = (
    (300, "under 300 rows: enough to try the pipeline. A format or a style needs 300-500 good rows"),
    (1_000, "300-1,000 rows: enough for a format or a style. A domain needs 1,000-5,000"),
    (5_000, "1,000-5,000 rows: enough for a domain. A new capability needs 5,000 or more"),
    (None, "5,000 rows or more: enough for a new capability if they are varied"),
)


class Bin(Record, frozen=True, kw_only=True):
    """Histogram bin: the number of sequences with `low` to `high` tokens, both inclusive."""

    low: int
    high: int
    count: int


class LongRow(Record, frozen=True, kw_only=True):
    row: int
    tokens: int


class InspectReport(Record, frozen=True, kw_only=True):
    """The result of `data inspect`. Lengths are in tokens of `tokenizer`. A preference pair counts as two
    sequences."""

    path: str
    container: str
    format: str
    kind: str
    formats: dict[str, int]
    """Number of rows in each format, if the file mixes several."""
    bytes: int
    lines: int
    rows: int
    rows_with_errors: int
    digest: str
    """The digest of the rows."""
    data_digest: str
    """Data digest that `orchestrate show` prints for a run trained on this file alone."""
    tokenizer: str
    tokens_exact: bool
    tokens: int
    trained_tokens: int
    epoch_tokens: dict[str, int]
    """Number of tokens processed in 1, 2, 3 and 4 epochs."""
    length_percentiles: dict[str, int]
    histogram: tuple[Bin, ...]
    longest: tuple[LongRow, ...]
    roles: dict[str, int]
    turns: dict[str, int]
    """Number of rows, keyed by number of user messages."""
    tools: dict[str, int]
    """Number of tool calls, keyed by tool name."""
    labels: dict[str, int]
    """Number of desirable and undesirable answers, for unpaired rows. Empty for other rows."""
    languages: dict[str, int]
    """Number of rows in each language, counted in the first rows of the file. Keys are ISO 639-1 codes,
    `uncertain`, `too short` and `none`. Empty if langdetect is not installed."""
    duplicates: int
    problems: dict[str, int]
    guidance: str


def inspect(
    path: str,
    *,
    tokenizer: str = "o200k",
    columns: Mapping[str, str] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> InspectReport:
    """Compute statistics of a file. Raises `DataError` if the file cannot be read or its format is
    unknown."""
    opened = open_dataset(
        path, columns=columns, tokenizers=(tokenizer,), compare=True, workers=workers, progress=progress
    )
    data, total = opened.facts, opened.total
    count = count_tokens(data, tokenizer)
    lengths = sorted(count.lengths)
    broken = total.written - total.rows
    return InspectReport(
        path=path,
        container=data.container,
        format=data.format,
        kind=data.kind,
        formats={data.format: data.rows} | dict(total.formats) if total.formats else {},
        bytes=data.bytes,
        lines=total.lines,
        rows=data.rows,
        rows_with_errors=broken,
        digest=data.digest,
        data_digest=data_digest(data.digest),
        tokenizer=count.tokenizer,
        tokens_exact=count.exact,
        tokens=count.tokens,
        trained_tokens=count.trained_tokens,
        epoch_tokens={str(n): n * count.tokens for n in (1, 2, 3, 4)},
        length_percentiles={str(p): _percentile(lengths, p) for p in (1, 50, 90, 99, 100)},
        histogram=_histogram(lengths),
        longest=_longest(count.lengths, total.numbers, 2 if data.kind == "preference" else 1),
        roles=dict(total.roles),
        turns={str(turns): rows for turns, rows in sorted(total.turns.items())},
        tools=dict(total.tools.most_common()),
        labels={name: total.labels[name] for name in LABELS} if data.kind == "unpaired" else {},
        languages=languages(data),
        duplicates=compare.duplicates(total).count,
        problems=dict(total.counts),
        guidance=next(text for limit, text in GUIDANCE if limit is None or data.rows < limit),
    )


def _percentile(ordered: Sequence[int], percent: int) -> int:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0


def _histogram(ordered: Sequence[int]) -> tuple[Bin, ...]:
    """Return equal bins up to the 99th percentile. The last bin also contains all longer sequences."""
    if not ordered:
        return ()
    low, high = ordered[0], max(_percentile(ordered, 99), ordered[0])
    width = max(1, -(-(high - low + 1) // BINS))
    counts = Counter(min((length - low) // width, BINS - 1) for length in ordered)
    last = max(counts)
    return tuple(
        Bin(
            low=low + i * width,
            high=ordered[-1] if i == last else low + (i + 1) * width - 1,
            count=counts[i],
        )
        for i in range(last + 1)
    )


def _longest(lengths: Sequence[int], numbers: Sequence[int], each: int) -> tuple[LongRow, ...]:
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))[:LONGEST]
    return tuple(LongRow(row=numbers[i // each], tokens=lengths[i]) for i in order)


def languages(data: Facts) -> dict[str, int]:
    """Count rows by language in a sample. Detection on a single short row is often wrong, so a language that
    occurs in only a few rows is counted as `uncertain`."""
    try:
        import langdetect  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        return {}
    langdetect.DetectorFactory.seed = 0
    found: Counter[str] = Counter()
    evident: set[str] = set()
    for example in islice(data.examples(), LANGUAGE_SAMPLE):
        text = visible(example)[:1000]
        letters = sum(map(str.isalpha, text))
        if text.isascii() and letters < LEAST_LETTERS:
            found["too short"] += 1
            continue
        try:
            best: Any = langdetect.detect_langs(text)[0]  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
        except langdetect.LangDetectException:  # text without letters
            found["none"] += 1
            continue
        name = str(best.lang) if best.prob >= SURE else UNCERTAIN
        found[name] += 1
        foreign = sum(c.isalpha() and not c.isascii() for c in text)
        if letters >= ENOUGH_LETTERS or 2 * foreign >= letters:
            evident.add(name)
    least = FEW * (found.total() - found["too short"] - found["none"])
    reported = evident | {UNCERTAIN, "too short", "none"}
    for name in [name for name, rows in found.items() if name not in reported and rows < least]:
        found[UNCERTAIN] += found.pop(name)
    return dict(found.most_common())
