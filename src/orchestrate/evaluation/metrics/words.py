"""Split text into what metrics compare: words, numbers, and the characters of scripts without spaces.

A number keeps its sign, point and exponent here: -5 is not 5, and 1.5 is not "1 5".
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation

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
"""Thai, Lao, Myanmar, Khmer, kana and Han: no spaces between words."""
_ARTICLES = frozenset(("a", "an", "the"))
_ASCII_PUNCTUATION = frozenset(string.punctuation)


def folded(text: str) -> str:
    """Fold case and Unicode forms, and spell numbers one way: "1,000" as 1000, ".5" as 0.5, "+5" as 5."""
    apart = "".join(_apart(c) if not c.isascii() else c for c in text)
    plain = unicodedata.normalize("NFKC", apart).casefold()
    plain = unicodedata.normalize("NFKC", plain).translate(_DASHES)
    plain = _THOUSANDS.sub(lambda found: found.group().replace(",", ""), plain)
    return _BARE_POINT.sub("0", _PLUS.sub("", plain))


def normalized(text: str) -> str:
    """Fold a text and drop punctuation and repeated white space. A text of nothing else stays as it is."""
    return " ".join(_kept(text, lambda c: " " if unicodedata.category(c)[0] == "P" else c)) or text.strip()


def squad_tokens(text: str) -> list[str]:
    """Split a text as SQuAD's evaluation does, after dropping punctuation and English articles. Differences:
    numbers keep sign, point and exponent, punctuation and marks of all scripts are known, scripts without
    spaces split into characters, and a text of nothing but punctuation or articles stays as it is."""

    def removed(c: str) -> str:
        return "" if c in _ASCII_PUNCTUATION or unicodedata.category(c)[0] == "P" else c

    found = [token for word in _kept(text, removed) for token in _unspaced(word)]
    return [token for token in found if token not in _ARTICLES] or found or text.split()


def rouge_tokens(text: str) -> list[str]:
    """Split a text into runs of letters and digits, as rouge-score does, in all scripts."""
    plain = folded(text)
    spaced = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in plain)
    return [token for word in spaced.split() for token in _unspaced(word)]


def word_count(text: str) -> float:
    """Estimate the number of words. In scripts without spaces two characters count as one."""
    tokens = rouge_tokens(text)
    return sum(0.5 if _UNSPACED.match(token) else 1.0 for token in tokens)


def numbers(text: str) -> Iterator[Decimal]:
    """Yield the numbers in a text, in order."""
    for found in _NUMBER.finditer(folded(text)):
        value = _decimal(found.group())
        if value is not None:
            yield value


def number(text: str) -> Decimal | None:
    """Return the number that a text is; `None` for any other text. A closing point is allowed."""
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
