"""Score text against the expected text: 1 is right, 0 is wrong, and some metrics return values in between."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib.metadata import version
from typing import Any, cast

import msgspec

from orchestrate.core import needed
from orchestrate.errors import UsageError
from orchestrate.evaluation import Answer, Item, Mark
from orchestrate.evaluation.metrics.base import Totals
from orchestrate.types import MetricUsed

# Split text into what metrics compare: words, numbers, and the characters of scripts without spaces.
#
# A number keeps its sign, point and exponent here: -5 is not 5, and 1.5 is not "1 5".

_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−﹣－"), "-") | {ord("⁄"): "/", ord("∕"): "/"}
_CURRENCY = "[$€£¥₩₹₽]"
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)")
_PLUS = re.compile(rf"(?<![\w)\]+])\+(?={_CURRENCY}?\.?\d)")
_BARE_POINT = re.compile(r"(?<![\w.])(?=\.\d)")
_IN_NUMBER = re.compile(rf"(?<=\d)[-.:/^](?=\d)|(?<=\de)[-+](?=\d)|(?<![\w)\]-])-(?={_CURRENCY}?\d)")
_NUMBER = re.compile(r"(?:(?<![\w)\]-])-)?\d+(?:\.\d+)?(?:e[-+]?\d+(?!\w))?")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
"""Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana and Han."""
_ARTICLES = frozenset(("a", "an", "the"))
_ASCII_PUNCTUATION = frozenset(string.punctuation)


def folded(text: str) -> str:
    """Normalize case, Unicode forms and the spelling of numbers: "1,000" becomes 1000, ".5" becomes 0.5, and
    "+5" becomes 5."""
    apart = "".join(_apart(c) if not c.isascii() else c for c in text)
    plain = unicodedata.normalize("NFKC", apart).casefold()
    plain = unicodedata.normalize("NFKC", plain).translate(_DASHES)
    plain = _THOUSANDS.sub(lambda found: found.group().replace(",", ""), plain)
    return _BARE_POINT.sub("0", _PLUS.sub("", plain))


def normalized(text: str) -> str:
    """Normalize a text and drop punctuation and repeated white space. Keep the punctuation if the text
    contains nothing else."""
    return " ".join(_kept(text, lambda c: " " if unicodedata.category(c)[0] == "P" else c)) or text.strip()


def squad_tokens(text: str) -> list[str]:
    """Split a text as SQuAD's evaluation does, without punctuation and English articles. Differences from
    SQuAD: numbers keep their sign, decimal point and exponent. Punctuation and marks of all scripts are
    recognized. Scripts without spaces are split into characters. A text that consists only of punctuation or
    articles keeps them, and is only split at white space."""

    def removed(c: str) -> str:
        return "" if c in _ASCII_PUNCTUATION or unicodedata.category(c)[0] == "P" else c

    found = [token for word in _kept(text, removed) for token in _unspaced(word)]
    return [token for token in found if token not in _ARTICLES] or found or text.split()


def rouge_tokens(text: str) -> list[str]:
    """Split a text into runs of letters and digits, like rouge-score, but with support for all scripts."""
    plain = folded(text)
    spaced = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in plain)
    return [token for word in spaced.split() for token in _unspaced(word)]


def word_count(text: str) -> float:
    """Estimate the number of words. In scripts without spaces, two characters count as one word."""
    tokens = rouge_tokens(text)
    return sum(0.5 if _UNSPACED.match(token) else 1.0 for token in tokens)


def numbers(text: str) -> Iterator[Decimal]:
    """Yield the numbers in a text, in order."""
    for found in _NUMBER.finditer(folded(text)):
        value = _decimal(found.group())
        if value is not None:
            yield value


def number(text: str) -> Decimal | None:
    """Parse the text as a number. Returns `None` for any other text. A trailing period is allowed."""
    plain = folded(text.strip()).removesuffix(".")
    return _decimal(plain) if _NUMBER.fullmatch(plain) else None


def _decimal(written: str) -> Decimal | None:
    try:
        return Decimal(written)
    except InvalidOperation:  # an exponent of twenty digits
        return None


def _apart(c: str) -> str:
    """Keep 10² from becoming 102, and 2½ from becoming 21/2, when Unicode forms are folded."""
    form = unicodedata.decomposition(c)
    if form.startswith("<super>") and unicodedata.category(c) == "No":
        return f"^{c}"
    return f" {c}" if form.startswith("<fraction>") else c


def _kept(text: str, replace: Callable[[str], str]) -> list[str]:
    """Return the words of a folded text. `replace` gets each character but those of a number's spelling."""
    plain = folded(text)
    inside = {found.start() for found in _IN_NUMBER.finditer(plain)}
    found: list[str] = []
    for place, c in enumerate(plain):
        category = unicodedata.category(c)
        if place in inside:
            found.append(c)
        elif category != "Cf":  # joiners and soft hyphens
            apart = category[0] in "ZC" or (c == "," and plain[place - 1 : place + 2 : 2].isdecimal())
            found.append(" " if apart else replace(c))
    return "".join(found).split()


def _unspaced(word: str) -> list[str]:
    """Split a word of a script without spaces into characters, each with its combining marks."""
    if not _UNSPACED.search(word):
        return [word]
    found: list[str] = []
    alone = True
    for c in word:
        mark = unicodedata.category(c)[0] == "M"
        unspaced = _UNSPACED.match(c) is not None
        if found and (mark or not (alone or unspaced)):
            found[-1] += c
        else:
            found.append(c)
        if not mark:
            alone = unspaced
    return found


# The fields are `Any` because sacrebleu's public types lack the methods used here.
@dataclass(frozen=True)
class Overlap:
    """A metric from sacrebleu. N-gram counts are summed over all answers, as in a corpus-level score."""

    used: MetricUsed
    corpus: Any
    sentence: Any
    """True to use sacrebleu's effective order, so short answers get a BLEU score too."""

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        return [Mark(self.sentence.sentence_score(a.text, [i.expected]).score / 100) for i, a in pairs]

    def parts(self, item: Item, answer: Answer, mark: Mark) -> Totals | None:
        del mark
        [found] = self.corpus._extract_corpus_statistics([answer.text], [[item.expected]])  # pyright: ignore[reportPrivateUsage]
        return [float(n) for n in found]

    def total(self, sums: Totals) -> float:
        found = self.corpus._compute_score_from_stats([round(n) for n in sums])  # pyright: ignore[reportPrivateUsage]
        return float(found.score) / 100


def overlap(used: MetricUsed) -> Overlap:
    """Build the `bleu` or `chrf` metric. Raises `MissingExtra` if sacrebleu is not installed."""
    with needed("eval", used.name, "sacrebleu"):
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    corpus = BLEU() if used.name == "bleu" else CHRF()
    sentence = BLEU(effective_order=True) if used.name == "bleu" else corpus
    detail = {"sacrebleu": version("sacrebleu")}
    return Overlap(msgspec.structs.replace(used, detail=detail), corpus, sentence)


Compare = Callable[[str, str], float]
"""Function that compares the expected answer with an answer, and returns a score from 0 to 1."""


def nfc(text: str) -> str:
    """Convert a text to Unicode form NFC, because the same letter can be written as one code point or two."""
    return unicodedata.normalize("NFC", text)


def caseless(text: str) -> str:
    """Return a text for comparisons that ignore case and white space at the ends."""
    return nfc(nfc(text.strip()).casefold())  # folding case can undo NFC


def exact_match(expected: str, answer: str) -> float:
    """Return 1 if both texts are the same, and 0 otherwise. Leading and trailing white space and the Unicode
    form (NFC or NFD) don't matter."""
    return float(nfc(expected.strip()) == nfc(answer.strip()))


def normalized_match(expected: str, answer: str) -> float:
    """Return 1 if both texts have the same words and numbers in the same order, and 0 otherwise. Case,
    punctuation and white space don't matter."""
    return float(normalized(expected) == normalized(answer))


def contains(expected: str, answer: str) -> float:
    """Return 1 if the expected text occurs in the answer, ignoring case and Unicode form, and 0 otherwise."""
    return float(caseless(expected) in caseless(answer))


_MOST_TRIED = 40
LONGEST_SEARCH = 2.0
"""Time limit in seconds for searching one answer for a pattern."""


def matcher(pattern: str) -> Compare:
    """Build a comparison that checks whether a pattern occurs in the answer. If the pattern has a group named
    `answer`, the group's text must match the expected text or be the same number. Raises `UsageError` if the
    pattern is invalid. The comparison raises `UsageError` if a search takes too long."""
    import regex  # pyright: ignore[reportMissingTypeStubs]

    try:
        re.compile(pattern, re.DOTALL)
        found = cast("Any", regex).compile(pattern, regex.DOTALL)
    except (re.error, regex.error) as error:
        raise UsageError(
            f"{pattern!r} is not a valid regular expression: {error}",
            fix="see the documentation of Python's re",
        ) from error

    def search(answer: str) -> Any:
        try:
            return found.search(answer, timeout=LONGEST_SEARCH)
        except TimeoutError:
            raise UsageError(
                f"regex:{pattern} takes more than {LONGEST_SEARCH:g} s on an answer of "
                f"{len(answer):,} characters",
                fix="avoid nested repetitions and alternatives with the same prefix. Answers received so far "
                "are stored",
            ) from None

    # Try the pattern before any answer is paid for. Catastrophic backtracking usually shows on a few dozen
    # repetitions of one character.
    for character in sorted({c for c in pattern if c.isalnum()} | {"a", "0", " "})[:_MOST_TRIED]:
        search(character * 64 + "\0")

    def match(expected: str, answer: str) -> float:
        hit = search(answer)
        if hit is None:
            return 0.0
        named = hit.groupdict().get("answer")
        return 1.0 if named is None else float(same_text_or_number(expected, named))

    return match


def same_text_or_number(expected: str, answer: str) -> bool:
    """Compare texts exactly, except for leading and trailing white space. Compare numbers by value: 1,000
    equals 1000.0."""
    want, got = nfc(expected.strip()), nfc(answer.strip())
    if want == got:
        return True
    values = number(want), number(got)
    return values[0] is not None and values[0] == values[1]


def token_f1(expected: str, answer: str) -> float:
    """Compute SQuAD's token F1. `squad_tokens` lists the differences."""
    want, got = Counter(squad_tokens(expected)), Counter(squad_tokens(answer))
    return _f1((want & got).total(), want.total(), got.total(), empty=float(want == got))


def rouge(n: int) -> Compare:
    """Build a comparison that returns the F1 of shared word n-grams (ROUGE-1, ROUGE-2), without stemming."""

    def score(expected: str, answer: str) -> float:
        want, got = (_runs(rouge_tokens(text), n) for text in (expected, answer))
        return _f1((want & got).total(), want.total(), got.total())

    return score


def rouge_l(expected: str, answer: str) -> float:
    """Return ROUGE-L: the F1 score of the longest common subsequence of words."""
    want, got = rouge_tokens(expected), rouge_tokens(answer)
    return _f1(common_subsequence(want, got), len(want), len(got))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, computed with bit operations on long integers
    (Hyyrö 2004)."""
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
