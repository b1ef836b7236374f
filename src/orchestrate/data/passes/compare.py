"""Compare rows: duplicates, contradictions, rows shared between splits, and near duplicates.

Near duplicates are found with MinHash over five-word shingles and locality-sensitive hashing in bands.

rensa computes the signatures. A worker returns 16 band keys and a 128-byte sketch for each row. Rows that
share a band key are candidates, and their sketches are compared to confirm them. A pair is found with
probability 0.95 at a similarity of 0.8, and 0.9999 at 0.9.

Rows of the same task are similar without being duplicates, so phrases that many rows share (an instruction, a
template) count as the file's form and are ignored. A system prompt counts for at most a fifth of its row.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from xxhash import xxh3_64_intdigest

from orchestrate.core import needed
from orchestrate.data.passes import ordered
from orchestrate.data.passes.scan import ScanTask, Total, pieces, ranges, read_rows
from orchestrate.data.rows import ChatExample, ChatMessage, Example, Kind, UnpairedExample, messages_of
from orchestrate.data.shapes.row_reader import reading, visible
from orchestrate.errors import MissingExtra

FEW = 400_000
"""Number of rows up to which plain Python is faster than importing numpy, if few rows are repeated."""


@dataclass(frozen=True)
class Matches:
    """Matching rows, as pairs of row numbers."""

    pairs: tuple[tuple[int, int], ...]
    """The first pairs, up to a fixed number."""
    count: int
    """Total number of pairs."""


def numpy() -> Any:
    """Import numpy. Raises `MissingExtra` if it is not installed."""
    with needed("data", "comparing rows", "numpy"):
        import numpy as np
    return np


def repeats(hashes: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Find repeated elements. Returns two sequences: the index of every element that equals an earlier one,
    in order, and for each of them the index at which its value first occurs."""
    if len(hashes) <= FEW:
        return _repeats_plainly(hashes)
    try:
        np = numpy()
    except MissingExtra:
        return _repeats_plainly(hashes)
    values = np.frombuffer(hashes, dtype=np.uint64)
    if not len(values):
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
    order = np.argsort(values, kind="stable")
    new = np.concatenate(([True], values[order[1:]] != values[order[:-1]]))
    first = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
    again = np.flatnonzero(~new)
    by_row = np.argsort(order[again], kind="stable")
    return order[again][by_row], first[again][by_row]


def _repeats_plainly(hashes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Find repeats without numpy, which the base installation lacks. Slower and larger for many rows."""
    if len(set(hashes)) == len(hashes):
        return [], []
    seen: dict[int, int] = {}
    first = [seen.setdefault(value, i) for i, value in enumerate(hashes)]
    again = [i for i, j in enumerate(first) if i != j]
    return again, [first[i] for i in again]


def duplicates(total: Total, most: int = 100) -> Matches:
    """Find rows that equal an earlier row, field by field."""
    return _matches(total, total, list(zip(*repeats(total.hashes), strict=True)), most)


def conflicts(total: Total, kind: Kind, most: int = 100) -> Matches:
    """Find rows that contradict an earlier row: the same prompt with a different answer (for RL rows, a
    different reference), or the same prompt and answers with the opposite judgment."""
    again, first = repeats(total.answered if kind in ("preference", "unpaired") else total.prompts)
    said = total.answered if kind == "rl" else total.hashes
    pairs = [(int(i), int(j)) for i, j in zip(again, first, strict=True)]
    repeated = {int(i) for i in repeats(total.hashes)[0]} if pairs else set[int]()
    found = [(i, j) for i, j in pairs if said[i] != said[j] and i not in repeated]
    return _matches(total, total, found, most)


def shared(rows: Total, of: Total, *, prompts: bool = False, most: int = 100) -> Matches:
    """Find rows of `rows` that also occur in `of`. With `prompts`, finds rows whose prompt occurs in `of`,
    excluding rows that occur there in full."""
    mine, theirs = (rows.prompts, of.prompts) if prompts else (rows.hashes, of.hashes)
    at = _first_of(mine, theirs)
    identical = _first_of(rows.hashes, of.hashes) if prompts else {}
    found = [(i, at[v]) for i, v in enumerate(mine) if v in at and rows.hashes[i] not in identical]
    return _matches(rows, of, found, most)


def _first_of(wanted: Sequence[int], values: Sequence[int]) -> dict[int, int]:
    """Return the first index of each wanted value that occurs. Memory grows with `wanted`, not with
    `values`."""
    left = set(wanted)
    found: dict[int, int] = {}
    for i, value in enumerate(values):
        if value in left:
            found.setdefault(value, i)
    return found


def _matches(rows: Total, of: Total, pairs: Sequence[tuple[int, int]], most: int) -> Matches:
    return Matches(tuple((rows.numbers[i], of.numbers[j]) for i, j in pairs[:most]), len(pairs))


PERMUTATIONS = 128
BANDS = 16
WORDS = 5
SEED = 42
AVOIDED = 0x5851F42D4C957F2D
"""Value XORed with the band keys of undesirable answers, so that they don't match those of desirable
answers."""
SAMPLED = 512
"""Number of rows sampled to find phrases that many rows share. The rows with the smallest hashes are used, so
the order of rows has no effect."""
FORM_SHARE, FORM_ROWS = 0.1, 20
"""Minimum fraction and minimum number of sampled rows that must share a phrase for it to count as part of
the file's form."""
SYSTEM_SHARE = 4
"""Limit on how much a system prompt contributes to the similarity of rows. For every `SYSTEM_SHARE` phrases
in the rest of a row, one phrase of its system prompt is used."""


@dataclass
class Signatures:
    """MinHash signatures: `bands` has 16 64-bit keys per row, `sketches` 128 bytes per row."""

    numbers: array[int] = field(default_factory=lambda: array("I"))
    bands: bytearray = field(default_factory=bytearray)
    sketches: bytearray = field(default_factory=bytearray)
    lines: int = 0

    def add(self, other: Signatures) -> None:
        self.numbers.extend(number + self.lines for number in other.numbers)
        self.bands += other.bands
        self.sketches += other.sketches
        self.lines += other.lines


def signatures(task: ScanTask, size: int, workers: int | None = None, form: Any = None) -> Signatures:
    """Compute the signatures of all valid rows of a file. Phrases in `form` are ignored. By default, these
    are the phrases that many rows of the file share. Raises `MissingExtra` if rensa is not installed."""
    _rensa()
    form = shared_form([(task, size)]) if form is None else form
    tasks = [replace(task, start=start, end=end) for start, end in ranges(task.path, size)]
    found = Signatures()
    for part in ordered(partial(sign, form=form), tasks, workers):
        found.add(part)
    return found


def sign(task: ScanTask, form: Any) -> Signatures:
    """Compute the signatures of the rows in one byte range. This is a pure function."""
    part = Signatures()
    hashes: list[Any] = []
    avoided: list[bool] = []
    for number, row in read_rows(task):
        part.lines = number
        if row.example is not None:
            hashes.append(_own_shingles(row.example, form))
            avoided.append(isinstance(row.example, UnpairedExample) and not row.example.label)
            part.numbers.append(number)
    if hashes:
        keys, sketches = _sketched(hashes)
        # Answers with different judgments are not duplicates, so they never share a band.
        keys[numpy().array(avoided)] ^= numpy().uint64(AVOIDED)
        part.bands += keys.tobytes()
        part.sketches += sketches.tobytes()
    return part


def shared_form(files: Sequence[tuple[ScanTask, int]]) -> Any:
    """Return the hashes (uint64, sorted) of phrases that many rows share, estimated from a sample of the
    files. `files` contains each file's task and size in bytes."""
    np = numpy()
    sample: dict[int, tuple[ScanTask, bytes]] = {}
    for task, size in files:
        for start, end in ranges(task.path, size):
            for lines in pieces(task.path, start, end):
                written = [line.removesuffix(b"\n") for line in lines if line.strip()]
                sample.update({xxh3_64_intdigest(line): (task, line) for line in written})
                if len(sample) > 2 * SAMPLED:
                    sample = {key: sample[key] for key in sorted(sample)[:SAMPLED]}
    examples: list[Example] = []
    for key in sorted(sample)[:SAMPLED]:
        task, line = sample[key]
        if (example := reading(task.format, task.columns).read(line).example) is not None:
            examples.append(example)
    if len(examples) < FORM_ROWS:
        return np.empty(0, dtype=np.uint64)
    held = np.concatenate([np.unique(_shingles(visible(example))) for example in examples])
    phrases, times = np.unique(held, return_counts=True)
    return phrases[times >= max(FORM_ROWS, FORM_SHARE * len(examples))]


def _own_shingles(example: Example, form: Any) -> Any:
    """Return the shingles that distinguish a row from others in its file. Of the system prompt, only a
    limited number with the smallest hashes is used, so that it doesn't dominate the similarity of rows.
    Copies of a prompt give the same shingles."""
    np = numpy()
    texts: tuple[list[ChatMessage], list[ChatMessage]] = ([], [])
    for m in messages_of(example):
        texts[m.role in ("system", "developer")].append(m)
    if not all(texts):
        every = _shingles(visible(example))
        own = _without(form, every)
        return own if len(own) else every
    own, of_system = (_without(form, _shingles(visible(ChatExample(messages=part)))) for part in texts)
    if not len(own):
        return of_system if len(of_system) else _shingles(visible(example))
    return np.concatenate((own, np.unique(of_system)[: -(-len(own) // SYSTEM_SHARE)]))


def _without(form: Any, hashes: Any) -> Any:
    """Return the shingles that are not part of the file's form."""
    np = numpy()
    if not len(form):
        return hashes
    at = np.minimum(np.searchsorted(form, hashes), len(form) - 1)
    return hashes[form[at] != hashes]


def digests(texts: Sequence[str]) -> tuple[Any, Any]:
    """Compute the band keys (uint64, texts x 16) and the sketches (uint8, texts x 128) of the texts. There
    must be at least one text. Raises `MissingExtra` if numpy or rensa is not installed."""
    return _sketched([_shingles(text) for text in texts])


def _sketched(hashes: Sequence[Any]) -> tuple[Any, Any]:
    np = numpy()
    offsets = np.cumsum([0, *map(len, hashes)], dtype=np.uint64)
    matrix = _rensa().RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(hashes), offsets, PERMUTATIONS, SEED
    )
    values = np.array(matrix.to_rows(), dtype=np.uint64)
    bands = values.reshape(len(hashes) * BANDS, PERMUTATIONS // BANDS)
    factors = np.array(
        [pow(0x9E3779B97F4A7C15, i + 1, 1 << 64) for i in range(bands.shape[1])], dtype=np.uint64
    )
    keys = (bands * factors).sum(axis=1, dtype=np.uint64).reshape(len(hashes), BANDS)
    return keys, (values & np.uint64(0xFF)).astype(np.uint8)


class SeenTexts:
    """Collection of texts for detecting near duplicates among new texts."""

    def __init__(self, threshold: float = 0.8) -> None:
        self._threshold = threshold
        self._sketches: list[Any] = []
        self._by_band: dict[tuple[int, int], list[int]] = {}

    def add(self, texts: Sequence[str]) -> list[bool]:
        """Add texts one by one, except near duplicates of texts that are already stored. Returns one value
        per text: True if it was skipped as a near duplicate."""
        if not texts:
            return []
        found: list[bool] = []
        keys, sketches = digests(texts)
        for i in range(len(texts)):
            sketch = sketches[i]
            own: list[int] = keys[i].tolist()
            bands = list(enumerate(own))
            candidates = {other for band in bands for other in self._by_band.get(band, ())}
            near = any((self._sketches[o] == sketch).mean() >= self._threshold for o in candidates)
            found.append(near)
            if not near:
                for band in bands:
                    self._by_band.setdefault(band, []).append(len(self._sketches))
                self._sketches.append(sketch)
        return found


def _shingles(text: str) -> Any:
    """Return hashes of every five consecutive words, or of five characters in scripts without spaces."""
    np = numpy()
    words: list[str] = text.casefold().split()
    if len(words) * 20 < len(text):
        words = [c for c in text.casefold() if not c.isspace()]
    hashes = np.array([xxh3_64_intdigest(word.encode()) for word in words] or [0], dtype=np.uint64)
    if len(hashes) < WORDS:
        return hashes.sum(keepdims=True, dtype=np.uint64)
    shingles = np.zeros(len(hashes) - WORDS + 1, dtype=np.uint64)
    for i in range(WORDS):
        shingles = shingles * np.uint64(0x100000001B3) + hashes[i : i + len(shingles)]
    return shingles


def clusters(signed: Signatures, threshold: float = 0.8) -> list[int]:
    """Group near duplicates into clusters. Returns one value for each row with a signature: the smallest row
    index in the row's cluster."""
    np = numpy()
    rows = len(signed.numbers)
    leader = list(range(rows))
    bands = np.frombuffer(bytes(signed.bands), dtype=np.uint64).reshape(rows, BANDS)
    sketches = np.frombuffer(bytes(signed.sketches), dtype=np.uint8).reshape(rows, PERMUTATIONS)
    # Only neighbors in the sorted order are compared, so ties are sorted by content, not by row order.
    content = (bands * np.arange(1, 2 * BANDS, 2, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
    for band in range(BANDS):
        keys = bands[:, band]
        order = np.lexsort((content, keys))
        same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        for start in range(0, len(same), 1 << 16):
            block = same[start : start + (1 << 16)]
            a, b = order[block], order[block + 1]
            alike = (sketches[a] == sketches[b]).mean(axis=1) >= threshold
            for x, y in zip(a[alike].tolist(), b[alike].tolist(), strict=True):
                join(leader, x, y)
    return [root(leader, i) for i in range(rows)]


def root(leader: list[int], i: int) -> int:
    """Return the smallest member of the set that contains `i`, and compress the path to it."""
    while leader[i] != i:
        leader[i] = leader[leader[i]]
        i = leader[i]
    return i


def join(leader: list[int], x: int, y: int) -> None:
    """Merge the sets of x and y."""
    a, b = root(leader, x), root(leader, y)
    leader[max(a, b)] = min(a, b)


def _rensa() -> Any:
    with needed("data", "finding near duplicates", "rensa"):
        import rensa  # pyright: ignore[reportMissingTypeStubs]
    return rensa
