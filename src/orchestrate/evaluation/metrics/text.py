"""Scores of text against the expected text: 1 is right, 0 wrong, in between where there are grades."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from orchestrate.errors import UsageError
from orchestrate.evaluation.metrics.words import normalized, number, rouge_tokens, squad_tokens

Compare = Callable[[str, str], float]
"""(expected, answer) -> score in 0..1"""


def exact_match(expected: str, answer: str) -> float:
    """The same text, white space at the ends aside."""
    return float(expected.strip() == answer.strip())


def normalized_match(expected: str, answer: str) -> float:
    """The same words and numbers in the same order: case, punctuation and white space aside."""
    return float(normalized(expected) == normalized(answer))


def contains(expected: str, answer: str) -> float:
    """The expected text occurs in the answer, case aside."""
    return float(expected.strip().casefold() in answer.casefold())


def matcher(pattern: str) -> Compare:
    """Whether a pattern occurs in the answer. What it captures as `answer` must be the expected text, or the
    same number. Raises `UsageError`."""
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
        return 1.0 if named is None else float(same_text_or_number(expected, named))

    return match


def same_text_or_number(expected: str, answer: str) -> bool:
    """Compare exactly, white space at the ends aside; two numbers by value, so 1,000 and 1000.0 are equal."""
    want, got = (unicodedata.normalize("NFC", text.strip()) for text in (expected, answer))
    if want == got:
        return True
    values = number(want), number(got)
    return values[0] is not None and values[0] == values[1]


def token_f1(expected: str, answer: str) -> float:
    """Compute SQuAD's F1 of tokens; `squad_tokens` says where it differs."""
    want, got = Counter(squad_tokens(expected)), Counter(squad_tokens(answer))
    return _f1((want & got).total(), want.total(), got.total(), empty=float(want == got))


def rouge(n: int) -> Compare:
    """F1 of the runs of `n` words that both texts have (ROUGE-1, ROUGE-2), without stemming."""

    def score(expected: str, answer: str) -> float:
        want, got = (_runs(rouge_tokens(text), n) for text in (expected, answer))
        return _f1((want & got).total(), want.total(), got.total())

    return score


def rouge_l(expected: str, answer: str) -> float:
    """F1 of the longest row of words that both texts have in the same order, others between them or not."""
    want, got = rouge_tokens(expected), rouge_tokens(answer)
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


def _runs(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))


def _f1(shared: int, of_expected: int, of_answer: int, empty: float = 0.0) -> float:
    if not of_expected or not of_answer:
        return empty
    return 2 * shared / (of_expected + of_answer)
