"""Scores of text against the expected text: 1 is right, 0 wrong, in between where there are grades."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from orchestrate.errors import UsageError

Compare = Callable[[str, str], float]
"""(expected, answer) -> score in 0..1"""


def exact_match(expected: str, answer: str) -> float:
    """The same text, white space at the ends aside."""
    return float(expected.strip() == answer.strip())


def normalized(text: str) -> str:
    """Without case, punctuation, repeated white space, and differences of Unicode form."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(" " if unicodedata.category(c)[0] in "PZC" else c for c in plain).split())


def normalized_match(expected: str, answer: str) -> float:
    """The same words in the same order: case, punctuation and white space aside."""
    return float(normalized(expected) == normalized(answer))


def contains(expected: str, answer: str) -> float:
    """The expected text occurs in the answer, case aside."""
    return float(expected.strip().casefold() in answer.casefold())


def matcher(pattern: str) -> Compare:
    """Whether a pattern occurs in the answer; what it captures as `answer` must be the expected text. Raises
    `UsageError`."""
    try:
        found = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UsageError(
            f"{pattern!r} is not a regular expression: {error}", fix="see docs of Python's re"
        ) from error

    def match(expected: str, answer: str) -> float:
        hit = found.search(answer)
        if hit is None:
            return 0.0
        named = hit.groupdict().get("answer")
        return 1.0 if named is None else normalized_match(expected, named)

    return match


def token_f1(expected: str, answer: str) -> float:
    """Harmonic mean of word precision and recall, as in SQuAD: case and punctuation aside."""
    want, got = Counter(words(expected)), Counter(words(answer))
    return _f1((want & got).total(), want.total(), got.total(), empty=float(want == got))


def rouge(n: int) -> Compare:
    """F1 of the runs of `n` words that both texts have (ROUGE-1, ROUGE-2), without stemming."""

    def score(expected: str, answer: str) -> float:
        want, got = (_runs(words(text), n) for text in (expected, answer))
        return _f1((want & got).total(), want.total(), got.total())

    return score


def rouge_l(expected: str, answer: str) -> float:
    """F1 of the longest row of words that both texts have in the same order, others between them or not."""
    want, got = words(expected), words(answer)
    return _f1(common_subsequence(want, got), len(want), len(got))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest one, by the bits of long integers (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(a) - row.bit_count()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _runs(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))


def _f1(shared: int, of_expected: int, of_answer: int, empty: float = 0.0) -> float:
    if not of_expected or not of_answer:
        return empty
    return 2 * shared / (of_expected + of_answer)
