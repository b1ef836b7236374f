"""UTF-8 that was read as Windows-1252 or Latin-1 -> the text that it was."""

from __future__ import annotations

import re
from functools import cache

_BYTES = {chr(byte): byte for byte in range(0x80, 0x100)} | {
    char: byte for byte in range(0x80, 0xA0) for char in bytes([byte]).decode("cp1252", "ignore")
}
"""The byte that each character was, in either encoding."""


def _of(first: int, last: int) -> str:
    return "".join(char for char, byte in _BYTES.items() if first <= byte <= last)


_TWO, _THREE, _FOUR, _NEXT = _of(0xC2, 0xDF), _of(0xE0, 0xEF), _of(0xF0, 0xF4), _of(0x80, 0xBF)
_CLOSING = "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u203a\xa0\xbb\xae\u2122"
"""Marks that follow on a letter in texts that are whole, such as a quotation in capitals."""
_INSIDE = "".join(char for char in _NEXT if char not in _CLOSING)
_ANY = f"[{_TWO}][{_NEXT}]|[{_THREE}][{_NEXT}]{{2}}|[{_FOUR}][{_NEXT}]{{3}}"
_RUN = rf"(?:{_ANY}){{2,}}|[{_TWO}](?:[{_INSIDE}]|[{_CLOSING}](?=\w))|\xe2[{_NEXT}]{{2}}|\xf0[{_NEXT}]{{3}}"
_DAMAGED = rf"\xc3(?:[{_INSIDE}]|[{_CLOSING}](?=\w))|\xe2(?:[{_NEXT}]{{2}}|\u20ac)"
LEADS = bytes({char.encode()[0] for char in _NEXT})
"""The first bytes, in UTF-8, of what follows on the first character of a damaged one."""


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """With the first text that may be damaged: compiling takes longer than most commands' whole work."""
    return re.compile(pattern)


def is_damaged(text: str) -> bool:
    return _compiled(_DAMAGED).search(text) is not None


def repaired(text: str) -> str:
    """As a whole, else run by run: beside the damage a text may hold what was never damaged. What is not
    exactly such a run stays as it is."""
    if "\xc3" not in text and "\xe2" not in text:
        return text
    try:
        return text.encode("cp1252").decode()
    except UnicodeError:
        return _compiled(_RUN).sub(_decoded, text) if is_damaged(text) else text


def _decoded(run: re.Match[str]) -> str:
    try:
        return bytes(_BYTES[char] for char in run.group()).decode()
    except UnicodeDecodeError:
        return run.group()


def holds_both(text: str) -> bool:
    """Whether a damaged word is there in its right form too: the damage is what the text is about."""
    words = {word for word in re.findall(r"\w*[^\x00-\x7f\s]+\w*", text) if "\xc3" in word or "\xe2" in word}
    right = {repaired(word) for word in words} - words
    return any(word in text for word in right if any(map(str.isalpha, word)))


_ABOUT = (
    r"mojibake|utf-?8|utf-?16|latin-?1|iso[- ]?8859|cp-?125[0-9]|windows-125[0-9]|unicode|charset"
    r"|character set|encod(?:e|ed|ing|ings)\b|decod(?:e|ed|ing)\b|codec"
)


def is_about_encodings(text: str) -> bool:
    """Whether a row speaks of encodings: what looks damaged in it may be what it is about."""
    return _compiled(f"(?i){_ABOUT}").search(text) is not None
