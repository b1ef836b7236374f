"""`orchestrate data split`: split a file into train, validation and test, and keep rows in their split when
rows are added.

The hash of a group's key determines its split. Rows of one conversation (the same first user message and
system text) form a group, and groups with near duplicates of each other are merged. A group is never divided
between splits. A group's key is the smallest digest of its rows, so the order of the file has no effect.
Added rows can move a group in two cases: if a new near duplicate has the smallest digest of the group
(probability 1 / (n + 1) for a group of n rows), or if a new row merges two groups.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from math import isclose, isfinite
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate.data.dataset_reader import OpenedFile, open_dataset, require_rows
from orchestrate.data.dialects import canonical_line
from orchestrate.data.files import is_stream, require_writable, writing
from orchestrate.data.passes import compare
from orchestrate.data.passes.scan import DESIRABLE, UNDESIRABLE, ScanTask, pieces, ranges
from orchestrate.data.rows import (
    ChatMessage,
    CompletionExample,
    Example,
    UnpairedExample,
    encode_sorted,
    messages_of,
)
from orchestrate.data.shapes.known import WRITTEN
from orchestrate.data.shapes.row_reader import last_answer, parse, visible
from orchestrate.errors import DataError, UsageError
from orchestrate.text import count
from orchestrate.types import Record

NAMES = ("train", "validation", "test")
_MANIFEST = ".split.json"


class SplitFile(Record, frozen=True, kw_only=True):
    split: str
    path: str
    rows: int
    share: float


class _Manifest(Record, frozen=True, kw_only=True):
    """Hidden file in the output folder that lists the files of the last split, which may be replaced."""

    files: tuple[str, ...]
    asked: int | None = None
    """The requested seed."""
    seed: int | None = None
    """The seed that was used. With the same seed, rows stay in their split when rows are added."""


class SplitReport(Record, frozen=True, kw_only=True):
    """The result of `data split`. `groups` is the number of groups of rows that stay together."""

    path: str
    files: tuple[SplitFile, ...]
    rows: int
    groups: int
    left_out: int
    """Number of rows with errors. They are not part of any split."""
    source_format: str
    format: str
    """Format of the written files."""
    fields_left_out: int
    """Number of rows and messages with fields that no training format uses. These fields are not written."""
    seed: int = 0
    pooled: int = 0
    """Number of groups whose answers are too rare to appear in every split. They are split together, as one
    stratum. 0 without `stratify`."""
    ungrouped: int = 0
    """Number of rows without a value in the `group_by` column. Each forms its own group."""


class TooFew(DataError):
    """Raised if the rows form too few groups, so that a split would be empty."""


@dataclass(frozen=True)
class Division:
    """Options for dividing rows into splits. Raises `UsageError` for a seed that is not an unsigned 64-bit
    integer."""

    shares: Sequence[float]
    seed: int = 0
    near_duplicates: bool = True
    """True to put near duplicates into the same split."""
    stratify: bool = False
    """True to give each answer (a label, or a range of answer lengths) the same share in every split. Answers
    that are too rare for this are pooled into one stratum. Rows near the boundary between two splits may move
    when rows are added."""
    fill: bool = False
    """True to search for a seed with which no split is empty and the split sizes are close to the requested
    shares. Meant for small files. Rows may change splits when rows are added."""
    group_by: str | None = None
    """Column that groups rows: rows with equal values stay in the same split. Write nested columns as
    `metadata.customer`."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"the seed must be between 0 and 2^64 - 1 (got {self.seed})")


def parse_shares(text: str) -> tuple[float, ...]:
    """Parse shares such as `80/10/10` or `0.9/0.1` into fractions that add up to 1. Raises `UsageError`
    when the text can't be parsed or the shares add up to neither 100 nor 1."""
    try:
        parts = [float(part) for part in re.split(r"[/:,]", text)]
    except ValueError:
        parts = []
    if not 2 <= len(parts) <= 3 or min(parts) <= 0 or not isfinite(sum(parts)):
        raise UsageError(
            f"{text!r} is not a valid split: write train/validation or train/validation/test, "
            "such as 80/10/10"
        )
    whole = next((whole for whole in (1, 100) if isclose(sum(parts), whole, rel_tol=1e-6)), None)
    if whole is None:
        raise UsageError(
            f"{text!r} adds up to {sum(parts):g}, but the parts must add up to 100, such as 80/10/10"
        )
    return tuple(part / whole for part in parts)


def group_key(example: Example) -> bytes:
    """Return a key that all rows of a conversation share."""
    if isinstance(example, CompletionExample):
        return example.prompt.encode()
    opening: list[ChatMessage] = []
    for m in messages_of(example):
        opening.append(m)
        if m.role == "user":
            break
    if not opening:
        return visible(example).encode()
    return b"\n".join(f"{m.role}:{m.text}".encode() for m in opening)


def place(key: bytes, shares: Sequence[float], seed: int) -> int:
    """Return the index of the split that a key belongs to. Compares a uniform hash of the key with the
    cumulative shares."""
    at = _uniform(key, seed)
    for i, share in enumerate(shares):
        at -= share
        if at < 0:
            return i
    return len(shares) - 1


def _uniform(key: bytes, seed: int) -> float:
    digest = hashlib.sha256(seed.to_bytes(8, "little") + key).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclass(frozen=True, order=True)
class _SplitRow:
    key: bytes
    stratum: str


def split(
    path: str,
    division: Division,
    folder: Path,
    *,
    columns: Mapping[str, str] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SplitReport:
    """Write train.jsonl, validation.jsonl and, with three shares, test.jsonl to `folder`. Files from an
    earlier split are replaced. Raises `UsageError` if one of the files was not written by a split.

    Raises `DataError` if the file can't be read or `require_rows` rejects it, `TooFew` if a split would be
    empty, and `MissingExtra` if near duplicates must stay together but rensa is not installed.
    """
    if is_stream(folder) or folder.is_file():
        raise UsageError(f"{folder} is not a folder", fix="choose a folder with -o")
    names = NAMES[: len(division.shares)]
    paths = [folder / f"{name}.jsonl" for name in names]
    earlier = _require_own(folder, paths, path)
    opened = open_dataset(path, columns=columns, workers=workers, progress=progress)
    data = opened.facts
    require_rows(data)
    rows = [
        _SplitRow(hashlib.sha256(group_key(e)).digest(), _stratum(e) if division.stratify else "")
        for e in data.examples()
    ]
    groups, ungrouped = _grouped(opened, rows, division, workers)
    if len(set(groups)) < len(division.shares):
        raise _too_few(path, groups, division)
    keys = _least(rows, groups)
    seed, placed = _shared_out(groups, keys, division, earlier)
    plain = division.group_by is None and not division.stratify
    if plain and len(set(placed.values())) < len(names):  # by chance, for a small file
        seed, placed = _shared_out(groups, keys, replace(division, fill=True))
    if empty := [name for i, name in enumerate(names) if i not in placed.values()]:
        raise _empty(path, empty, len(placed), division)
    folder.mkdir(parents=True, exist_ok=True)
    counts = _write(data.examples(), [placed[group] for group in groups], paths)
    with writing(folder / _MANIFEST) as file:
        written = tuple(sorted({*earlier.files, *(p.name for p in paths)}))
        file.write(_Manifest(files=written, asked=division.seed, seed=seed).to_json())
    return SplitReport(
        path=path,
        files=tuple(
            SplitFile(split=name, path=str(file), rows=counts[i], share=counts[i] / max(1, data.rows))
            for i, (name, file) in enumerate(zip(names, paths, strict=True))
        ),
        rows=data.rows,
        groups=len(set(groups)),
        left_out=opened.total.written - data.rows,
        source_format=data.format,
        format=WRITTEN[data.kind],
        fields_left_out=opened.total.fields_left_out,
        seed=seed,
        pooled=len(_strata(groups, keys, division.shares)[1]) if division.stratify else 0,
        ungrouped=ungrouped,
    )


def _grouped(
    opened: OpenedFile, rows: Sequence[_SplitRow], division: Division, workers: int | None
) -> tuple[list[int], int]:
    """Return the group of each row, and the number of rows without a value to group by. Each group belongs
    to one split."""
    groups, ungrouped, leaders = _conversations(rows), 0, list[list[int]]()
    if division.group_by is not None:
        values = _values(opened, division.group_by)
        ungrouped = sum(value in _NO_VALUE for value in values)
        leaders.append(_conversations_of(values))
    if division.near_duplicates:
        task = ScanTask(opened.source.lines, 0, 0, opened.facts.format, opened.facts.columns)
        leaders.append(compare.clusters(compare.signatures(task, opened.source.line_bytes, workers)))
    for found in leaders:
        for i, leader in enumerate(found):
            compare.join(groups, i, leader)
        groups = [compare.root(groups, i) for i in range(len(groups))]
    return groups, ungrouped


def _values(opened: OpenedFile, column: str) -> list[Any]:
    """Return the column's value in each valid row. Raises `UsageError` if no row has the column."""
    bad, found = set(opened.total.rowless), list[Any]()
    names: dict[str, None] = {}
    for number, line in enumerate(_lines(opened), 1):
        if number in bad:
            continue
        row, _ = parse(line)
        names |= dict.fromkeys(row if len(names) < _MOST_NAMES else ())
        found.append(_value(row, column))
    if all(value is None for value in found):
        raise UsageError(
            f"{opened.facts.path} has no column {column}", fix=f"its columns: {', '.join(list(names)[:20])}"
        )
    return found


def _lines(opened: OpenedFile) -> Iterator[bytes]:
    for start, end in ranges(opened.source.lines, opened.source.line_bytes):
        yield from chain.from_iterable(pieces(opened.source.lines, start, end))


def _value(row: Any, column: str) -> Any:
    """Return the value of a column or of a dotted path."""
    if not isinstance(row, dict):
        return None
    held = cast("dict[str, Any]", row)
    if column in held:
        return held[column]
    first, dot, rest = column.partition(".")
    return _value(held.get(first), rest) if dot else None


def _conversations_of(values: Sequence[Any]) -> list[int]:
    """Return, for each row, the first row with the same value. Rows without a value form their own groups."""
    first: dict[bytes, int] = {}
    return [
        i if value in _NO_VALUE else first.setdefault(encode_sorted(value), i)
        for i, value in enumerate(values)
    ]


_MOST_NAMES = 100
_NO_VALUE = (None, "")


def _too_few(path: str, groups: Sequence[int], division: Division) -> TooFew:
    near_duplicates = division.near_duplicates
    of = "near-duplicate rows" if near_duplicates else "rows of the same conversation"
    if division.group_by is not None:
        of = f"rows with the same {division.group_by}"
    made = count(len(set(groups)), "group")
    return TooFew(
        f"{path}: {count(len(groups), 'row')} form {made} of {of}. Groups are never divided, so a "
        "split would be empty",
        fix="add different rows"
        + (", or allow near-duplicates in different splits: --no-near" * near_duplicates),
    )


def _empty(path: str, names: Sequence[str], groups: int, division: Division) -> TooFew:
    """Build the error for an empty split. It suggests --exact only if that could help."""
    least = min(division.shares)
    fix = "add rows, or make this split larger"
    if not division.fill and not division.stratify:
        fix = f"use --exact to find a seed that fills each split, or {fix}"
    return TooFew(
        f"{path}: {' and '.join(names)} would be empty, because {count(groups, 'group')} are too few for a "
        f"{least:.0%} split, and groups are never divided",
        fix=fix,
    )


def _require_own(folder: Path, paths: Sequence[Path], source: str) -> _Manifest:
    """Return the manifest of an earlier split. Raises `UsageError` if a path was not written by a split,
    or if a file of the earlier split would remain although its rows may now be in other files."""
    try:
        earlier = _Manifest.from_json((folder / _MANIFEST).read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        earlier = _Manifest(files=())
    own = frozenset(earlier.files)
    for path in paths if folder.is_dir() else ():
        require_writable(path, source)
        if path.exists() and path.name not in own:
            raise UsageError(
                f"{path} already exists and was not written by `data split`",
                fix="choose another folder with -o",
            )
    for name in sorted(own - {path.name for path in paths}):
        if (folder / name).exists():
            raise UsageError(
                f"{folder / name} is left over from an earlier split, and its rows would also be "
                "in the new files",
                fix=f"rm {folder / name}, or choose another folder with -o",
            )
    return earlier


def _conversations(rows: Sequence[_SplitRow]) -> list[int]:
    """Return, for each row, the first row with the same key."""
    first: dict[bytes, int] = {}
    return [first.setdefault(row.key, i) for i, row in enumerate(rows)]


def _least(rows: Sequence[_SplitRow], groups: Sequence[int]) -> dict[int, _SplitRow]:
    """Return, for each group, its row with the smallest key. Equal keys are ordered by stratum."""
    least: dict[int, _SplitRow] = {}
    for row, group in zip(rows, groups, strict=True):
        least[group] = min(least.get(group, row), row)
    return least


_SEEDS = 1000
"""Maximum number of seeds to try. With shares of 80/10/10 and three groups, about one seed in 21 puts each
group into a different split."""
_FEW = 2000
"""Minimum number of groups for using the requested seed without trying others. With this many groups, a 10%
split typically deviates from its share by less than 1% of the rows."""
_FEWEST = 100
"""Minimum number of groups for which the search stops at the first seed within the allowed deviation. With
fewer groups, a single row is a large share of a split, so all seeds are compared and the best one is used."""
_NEAR = 0.01
"""Largest deviation from the requested shares, as a fraction of the rows, for a seed to be accepted."""
_STILL_NEAR = 0.03
"""Maximum deviation from the requested shares, as a fraction of the rows, at which the seed of an earlier
split into the same folder is reused."""


def _shared_out(
    groups: Sequence[int], keys: Mapping[int, _SplitRow], division: Division, earlier: _Manifest | None = None
) -> tuple[int, dict[int, int]]:
    """Return the seed and the split of each group. An earlier split's seed is reused if it still fits."""
    placed = _placed(groups, keys, division, division.seed)
    if not division.fill or len(keys) >= _FEW:
        return division.seed, placed
    if earlier is not None and earlier.seed is not None and earlier.asked == division.seed:
        kept = _placed(groups, keys, division, earlier.seed)
        if _miss(groups, kept, division.shares) <= (0, _STILL_NEAR * len(groups)):
            return earlier.seed, kept
    seeds = range(division.seed, min(division.seed + _SEEDS, 2**64))
    best: tuple[tuple[int, float], int, dict[int, int]] | None = None
    for seed in seeds:
        placed = _placed(groups, keys, division, seed)
        miss = _miss(groups, placed, division.shares)
        if best is None or miss < best[0]:
            best = (miss, seed, placed)
        if len(keys) >= _FEWEST and miss <= (0, _NEAR * len(groups)):
            break
    assert best is not None  # noqa: S101  there is at least one seed
    return best[1], best[2]


def _miss(groups: Sequence[int], placed: Mapping[int, int], shares: Sequence[float]) -> tuple[int, float]:
    """Return the number of empty splits, and the number of rows that deviate from the requested shares."""
    rows = Counter(placed[group] for group in groups)
    off = sum(abs(rows[i] - share * len(groups)) for i, share in enumerate(shares))
    return len(shares) - len(rows), off


def _placed(
    groups: Sequence[int], keys: Mapping[int, _SplitRow], division: Division, seed: int
) -> dict[int, int]:
    shares = division.shares
    if division.stratify:
        return _stratified(groups, keys, shares, seed)
    return {group: place(key.key, shares, seed) for group, key in keys.items()}


def _stratified(
    groups: Sequence[int], keys: Mapping[int, _SplitRow], shares: Sequence[float], seed: int
) -> dict[int, int]:
    """Fill the splits with the groups of each stratum, ordered by hash, up to their shares."""
    sizes = Counter(groups)
    strata, rare = _strata(groups, keys, shares)
    placed: dict[int, int] = {}
    for members in (*strata, rare):
        members.sort(key=lambda group: _uniform(keys[group].key, seed))
        placed |= zip(members, _filled([sizes[group] for group in members], shares), strict=True)
    return placed


def _strata(
    groups: Sequence[int], keys: Mapping[int, _SplitRow], shares: Sequence[float]
) -> tuple[list[list[int]], list[int]]:
    """Return the groups of each stratum that is large enough to appear in every split, and all other
    groups."""
    strata: dict[str, list[int]] = defaultdict(list)
    for group in dict.fromkeys(groups):
        strata[keys[group].stratum].append(group)
    fills = {len(s): set(_filled([1] * len(s), shares)) for s in strata.values()}
    full = [s for s in strata.values() if len(fills[len(s)]) == len(shares)]
    return full, [group for s in strata.values() if len(fills[len(s)]) < len(shares) for group in s]


def _filled(sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Return the split of each group. Splits are filled one after another, up to their shares."""
    total, done, into = sum(sizes), 0, 0
    placed: list[int] = []
    for size in sizes:
        while into < len(shares) - 1 and done + size / 2 > total * sum(shares[: into + 1]):
            into += 1
        placed.append(into)
        done += size
    return placed


def _stratum(example: Example) -> str:
    """Return the stratum of an answer: a short answer is a label, longer answers are grouped by length in
    powers of two."""
    if isinstance(example, UnpairedExample):
        return DESIRABLE if example.label else UNDESIRABLE
    answer = last_answer(example)
    return answer if len(answer) <= 60 else f"length {len(answer).bit_length()}"


def _write(examples: Iterable[Example], into: Sequence[int], paths: Sequence[Path]) -> Counter[int]:
    line = canonical_line
    counts: Counter[int] = Counter()
    with ExitStack() as stack:
        files = [stack.enter_context(writing(path)) for path in paths]
        for example, target in zip(examples, into, strict=True):
            files[target].write(line(example) + b"\n")
            counts[target] += 1
    return counts
