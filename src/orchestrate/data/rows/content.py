"""Find unwanted content in training data: secrets, personal data, damaged text, refusals, placeholders.

First, a filter over the texts of many rows finds candidates: hyperscan if it is installed, otherwise a search
for the patterns' literals. Then the exact pattern, and its checksum if it has one, confirms each candidate in
its text. The results are therefore the same with and without hyperscan.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

from orchestrate.core.files import write_whole
from orchestrate.data.rows import problem
from orchestrate.types import Problem

# Repair UTF-8 that was decoded as Windows-1252 or Latin-1.


_BYTES = {chr(byte): byte for byte in range(0x80, 0x100)} | {
    char: byte for byte in range(0x80, 0xA0) for char in bytes([byte]).decode("cp1252", "ignore")
}
"""Maps each Windows-1252 or Latin-1 character to its byte."""


def _of(first: int, last: int) -> str:
    return "".join(char for char, byte in _BYTES.items() if first <= byte <= last)


_TWO, _THREE, _FOUR, _NEXT = _of(0xC2, 0xDF), _of(0xE0, 0xEF), _of(0xF0, 0xF4), _of(0x80, 0xBF)
_CLOSING = "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u203a\xa0\xbb\xae\u2122"
"""Characters that may also follow a letter in undamaged text, such as closing quotes."""
_INSIDE = "".join(char for char in _NEXT if char not in _CLOSING)
_ANY = f"[{_TWO}][{_NEXT}]|[{_THREE}][{_NEXT}]{{2}}|[{_FOUR}][{_NEXT}]{{3}}"
_RUN = rf"(?:{_ANY}){{2,}}|[{_TWO}](?:[{_INSIDE}]|[{_CLOSING}](?=\w))|\xe2[{_NEXT}]{{2}}|\xf0[{_NEXT}]{{3}}"
_DAMAGED = rf"\xc3(?:[{_INSIDE}]|[{_CLOSING}](?=\w))|\xe2(?:[{_NEXT}]{{2}}|\u20ac)"
LEADS = bytes({char.encode()[0] for char in _NEXT})
"""First UTF-8 bytes of the characters that continuation bytes (0x80 to 0xBF) become when they are decoded as
Windows-1252 or Latin-1."""


@cache
def _compiled_marks(pattern: str) -> re.Pattern[str]:
    """Compile on first use, because compiling takes longer than most commands run."""
    return re.compile(pattern)


def is_damaged(text: str) -> bool:
    return _compiled_marks(_DAMAGED).search(text) is not None


def repaired(text: str) -> str:
    """Fix characters that were decoded with the wrong encoding. Decodes the entire text again if possible,
    otherwise each damaged part separately. Undamaged parts are left unchanged."""
    if "\xc3" not in text and "\xe2" not in text:
        return text
    try:
        return text.encode("cp1252").decode()
    except UnicodeError:
        return _compiled_marks(_RUN).sub(_decoded, text) if is_damaged(text) else text


def _decoded(run: re.Match[str]) -> str:
    try:
        return bytes(_BYTES[char] for char in run.group()).decode()
    except UnicodeDecodeError:
        return run.group()


def holds_both(text: str) -> bool:
    """Return whether the text contains the same word both damaged and correctly spelled. Such a text is
    probably about encoding errors."""
    words = {word for word in re.findall(r"\w*[^\x00-\x7f\s]+\w*", text) if "\xc3" in word or "\xe2" in word}
    right = {repaired(word) for word in words} - words
    return any(word in text for word in right if any(map(str.isalpha, word)))


_ABOUT = (
    r"mojibake|utf-?8|utf-?16|latin-?1|iso[- ]?8859|cp-?125[0-9]|windows-125[0-9]|unicode|charset"
    r"|character set|encod(?:e|ed|ing|ings)\b|decod(?:e|ed|ing)\b|codec"
)


def is_about_encodings(text: str) -> bool:
    """Return whether a row mentions encodings. Damaged text in such a row may be intentional."""
    return _compiled_marks(f"(?i){_ABOUT}").search(text) is not None


# One hyperscan automaton for many patterns, cached on disk: compiling takes as long as checking a few
# megabytes, while loading the compiled automaton takes a millisecond.

_log = logging.getLogger(__name__)

_DIGEST = 32
"""Length in bytes of the checksum at the start of a cache file. The checksum is the sha256 of the rest of the
file."""


def automaton(expressions: Sequence[bytes], flags: Sequence[int], folder: Path | None) -> Any:
    """Compile a hyperscan database. Match ids are the indices of the expressions.

    The database is cached in `folder`. It is recompiled if the cached file is damaged or was built for a
    different hyperscan version or processor. Raises `ImportError` if hyperscan is not installed."""
    import hyperscan  # pyright: ignore[reportMissingTypeStubs]

    api = cast("Any", hyperscan)
    file = None if folder is None else place(expressions, flags, folder)
    if file is not None and (kept := _read(file, api)) is not None:
        return kept
    made = api.Database()
    made.compile(
        expressions=list(expressions), ids=[*range(len(flags))], elements=len(flags), flags=list(flags)
    )
    if file is not None:
        content = bytes(api.dumpb(made))
        with suppress(OSError):  # without write access, later runs are only slower
            file.parent.mkdir(
                mode=0o700, exist_ok=True
            )  # only in an existing home: a task may run on another machine
            write_whole(file, hashlib.sha256(content).digest() + content, private=True)
    return made


def place(expressions: Sequence[bytes], flags: Sequence[int], folder: Path) -> Path:
    """Return the cache file for these expressions and the installed hyperscan version. Raises `ImportError`
    if hyperscan is not installed."""
    import hyperscan  # pyright: ignore[reportMissingTypeStubs]

    version = cast("Any", hyperscan).__version__
    of = repr((version, list(expressions), list(flags))).encode()
    return folder / f"{hashlib.sha256(of).hexdigest()[:40]}.patterns"


def _read(file: Path, api: Any) -> Any:
    """Load a cached automaton. Returns `None` if the file is missing or unusable."""
    try:
        content = file.read_bytes()
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            raise ValueError("the cache file is damaged")
        return api.loadb(content[_DIGEST:], mode=api.HS_MODE_BLOCK)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, api.HyperscanError) as error:
        _log.debug("recompiling the patterns: %s: %s", file, error)
        return None


def _luhn(digits: bytes) -> bool:
    """Return whether digits are a payment card number, by length, first digit and check digit."""
    numbers = [d - 48 for d in digits if 48 <= d <= 57]
    if not 13 <= len(numbers) <= 19 or len(set(numbers)) < 2 or numbers[0] not in (3, 4, 5, 6):
        return False
    doubled = sum(sum(divmod(2 * n, 10)) for n in numbers[-2::-2])
    return (doubled + sum(numbers[-1::-2])) % 10 == 0


def _iban(text: bytes) -> bool:
    """Return whether a text is a valid IBAN (ISO 13616): with its first four characters moved to the end,
    the number is 1 modulo 97."""
    compact = text.replace(b" ", b"").decode()
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _real_address(text: bytes) -> bool:
    """Return whether an email address is real, and neither from documentation nor a password in a URL."""
    nobody = rb"@(?:[\w-]+\.)*(?:example|test|invalid|localhost)\b"
    return b"://" not in text and not re.search(nobody, text.lower())


def _real_password(text: bytes) -> bool:
    """Return whether a password is real, and not a placeholder from documentation or templates."""
    word = text.removesuffix(b"@").rpartition(b":")[2].lower()
    return word not in (b"password", b"passwd", b"pass", b"changeme") and word[:1] not in (
        b"$", b"{", b"<", b"[", b"%", b"*",
    ) and word.strip(b"x.") != b""  # fmt: skip


def _real_number(text: bytes) -> bool:
    """Return whether a phone number is real. 555-0100 to 555-0199 are reserved for fiction."""
    return re.search(rb"555[-. ]01\d\d$", text) is None


@dataclass(frozen=True)
class Pattern:
    code: str
    what: str
    regex: bytes
    literals: tuple[bytes, ...] = ()
    """Literals to search for. Every match contains one of them. They are lower case if the regex ignores
    case. Without literals, the search uses the regex itself."""
    confirm: Callable[[bytes], bool] | None = None
    before: bytes | None = None
    """Pattern for text that must precede a match of `regex` and is part of the reported match. Keeping it out
    of `regex` lets `regex` start with a rare byte, which makes the search much faster."""
    sieve: bytes | None = None
    """Pattern that hyperscan searches for instead of `regex`, because hyperscan is slow for many simultaneous
    patterns with word boundaries. Every match of `regex` contains it, but little other text does."""

    @property
    def caseless(self) -> bool:
        return self.regex.startswith(b"(?i)")


_KEYS: tuple[tuple[str, bytes, tuple[bytes, ...]], ...] = (
    ("an API key (sk-)", rb"\bsk-(?:ant-|proj-|or-)?[A-Za-z0-9_-]{20,}", (b"sk-",)),
    ("an AWS access key", rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", (b"AKIA", b"ASIA")),
    (
        "a GitHub token",
        rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
        (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_"),
    ),
    ("a GitLab token", rb"\bglpat-[A-Za-z0-9_-]{20,}", (b"glpat-",)),
    ("a Slack token", rb"\bxox[abprs]-[A-Za-z0-9-]{10,}", (b"xox",)),
    ("a Google API key", rb"\bAIza[0-9A-Za-z_-]{35}", (b"AIza",)),
    ("a Hugging Face token", rb"\bhf_[A-Za-z0-9]{30,}", (b"hf_",)),
    ("a Stripe key", rb"\b[sr]k_live_[A-Za-z0-9]{20,}", (b"k_live_",)),
    ("a private key", rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----", (b"-----BEGIN ",)),
    ("a JSON web token", rb"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}", (b"eyJ",)),
)

PATTERNS: tuple[Pattern, ...] = (
    *(Pattern("secret", what, regex, literals) for what, regex, literals in _KEYS),
    Pattern(
        "secret",
        "a password in a URL",
        rb"://[^\s/:@\"'<>]{0,64}:[^\s/@\"'<>]{2,128}@",
        (b"://",),
        _real_password,
        sieve=rb"://[^\s/:@\"'<>]{0,64}:[^\s/@\"'<>]{2}",
    ),
    Pattern(
        "personal-data",
        "an e-mail address",
        rb"@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}",
        (b"@",),
        _real_address,
        before=rb"(?:://[^\s/@]{0,32}:)?[A-Za-z0-9._%+-]{1,64}\Z",
        sieve=rb"[A-Za-z0-9._%+-]@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2}",
    ),
    Pattern(
        "personal-data",
        "a payment card number",
        rb"(?<!\d[.,])\b\d(?:[ -]?\d){12,18}\b",  # digits after a decimal point are not a card number
        confirm=_luhn,
        sieve=rb"(?:\b|[\xd9-\xdb][\x00-\xff]{1,4})[3-6](?:[ -]?\d){12}",
    ),
    Pattern(
        "personal-data",
        "an IBAN",
        rb"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
        confirm=_iban,
        sieve=rb"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2}",
    ),
    Pattern(
        "personal-data", "a US social security number", rb"\b(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b"
    ),
    Pattern(
        "personal-data",
        "a phone number",
        rb"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){2,4}\b",
    ),
    Pattern(
        "personal-data",
        "a US phone number",
        rb"(?<![\w.-])(?:1[ .-])?"
        rb"(?:\([2-9]\d\d\) ?[2-9]\d\d[ .-]|[2-9]\d\d-[2-9]\d\d-|[2-9]\d\d\.[2-9]\d\d\.)\d{4}(?![\w-]|\.\d)",
        confirm=_real_number,
        sieve=rb"[2-9]\d\d(?:\) ?|-|\.)[2-9]\d\d[ .-]\d{4}",
    ),
    Pattern("replacement-character", "U+FFFD", "\ufffd".encode(), ("\ufffd".encode(),)),
    Pattern(
        "mojibake",
        "UTF-8 text decoded as Latin-1",
        rb"\xc3[\x83\xa2](?:[\xc2-\xf4][\x80-\xbf]{1,3})+\w?",
        tuple(bytes([0xC3, first, second]) for first in (0x83, 0xA2) for second in LEADS),
        lambda text: is_damaged(text.decode("utf-8", "replace")),
    ),
    Pattern("control-character", "a NUL character", rb"\x00", (b"\x00",)),
    Pattern(
        "refusal",
        "a refusal",
        rb"(?i)\bas an ai(?: language)? (?:model|assistant)\b"
        rb"|\bI(?:'|\xe2\x80\x99| a)m sorry, (?:but )?I"
        rb"(?: can(?:'|\xe2\x80\x99)t| can ?not|(?:'|\xe2\x80\x99| a)m (?:unable|not able))"
        rb"|\bI can(?:(?:'|\xe2\x80\x99)t|not) (?:assist|help) (?:you )?with (?:that|this)\b",
        (
            b"n ai ",
            b"m sorry, ",
            b"t assist ",
            b"t help ",
        ),  # short: longer lists make hyperscan take twice as long
    ),
    Pattern(
        "placeholder",
        "a placeholder",
        rb"(?i)\[(?:insert|your)[ _][^\]]{1,40}\]|lorem ipsum|<(?:insert|your)[ _-][^>]{1,40}>",
        (b"[insert", b"[your", b"orem ipsum", b"<your", b"<insert"),
    ),
)


def confirmed(text: bytes, patterns: list[int], answers: bytes | None = None) -> list[Problem]:
    """Return a problem for each pattern that matches exactly. `text` is the row as a model sees it, and
    `answers` is the part that the model learns."""
    found: list[Problem] = []
    for number in patterns:
        pattern = PATTERNS[number]
        learnt = pattern.code == "refusal" and answers is not None
        match = next(_matches(answers if learnt else text, number), None)  # type: ignore[arg-type]
        if match is not None:
            found.append(problem(pattern.code, f"{pattern.what} ({shown(match, pattern.code)})"))
    return found


def _matches(text: bytes, number: int) -> Iterator[bytes]:
    pattern = PATTERNS[number]
    for match in _compiled(number).finditer(text):
        matched = match.group()
        if pattern.before is not None:
            head = re.search(pattern.before, text[max(0, match.start() - 64) : match.start()])
            if head is None:
                continue
            matched = head.group() + matched
        if pattern.confirm is None or pattern.confirm(matched):
            yield matched


def shown(found: bytes, code: str) -> str:
    """Return enough of the match for a user to find it, without revealing a secret."""
    text = found.decode("utf-8", "replace")
    if code in ("secret", "personal-data"):
        return f"{text[:4]}... {len(text)} characters"
    return text[:40]


@lru_cache(maxsize=64)
def _compiled(number: int) -> re.Pattern[bytes]:
    return re.compile(PATTERNS[number].regex)


def _sieve(pattern: Pattern) -> bytes:
    """Return the regex without word boundaries and lookaheads, and with a shorter last repetition.
    Hyperscan would report each additional byte, and compiles long repetitions slowly."""
    loose = re.sub(rb"\(\?![^)]*\)|\\b", b"", pattern.regex)
    return pattern.sieve or re.sub(
        rb"\{(\d+)(?:,\d*)?\}(?=\)?$|\|)", lambda last: b"{%d}" % min(10, int(last[1])), loose
    )


def candidates(block: bytes, starts: list[int], folder: Path | None = None) -> set[tuple[int, int]]:
    """Return all (text index, pattern index) pairs that may match, including false positives. `block`
    contains the texts, separated by one byte, and `starts` contains the offset of each text. `folder` caches
    the compiled patterns."""
    found: set[tuple[int, int]] = set()
    database = _database(folder)
    if database is not None:

        def hit(number: int, _start: int, end: int, _flags: int, _context: object) -> None:
            found.add((bisect_right(starts, end - 1) - 1, number))

        database.scan(block, match_event_handler=hit, scratch=_scratch(database))
        return found
    return plain_candidates(block, starts)


_own = threading.local()

_FEW_BYTES = 1 << 20
"""Number of bytes that each thread searches before it uses the automaton. Building the automaton takes as
long as searching about twice as many bytes without it."""


def sifted(block: bytes, starts: list[int], folder: Path | None = None) -> set[tuple[int, int]]:
    """Find candidate pairs as `candidates` does. Each thread searches its first `_FEW_BYTES` bytes without
    hyperscan, unless the automaton is already loaded or cached."""
    seen = getattr(_own, "seen", 0) + len(block)
    if _loaded or seen > _FEW_BYTES or _kept(folder):
        return candidates(block, starts, folder)
    _own.seen = seen
    return plain_candidates(block, starts)


def _scratch(database: Any) -> Any:
    """Return this thread's scratch space. Two scans must not share one at the same time."""
    if getattr(_own, "database", None) is not database:
        import hyperscan  # pyright: ignore[reportMissingTypeStubs]

        _own.database, _own.scratch = database, cast("Any", hyperscan).Scratch(database)
    return _own.scratch


def plain_candidates(block: bytes, starts: list[int]) -> set[tuple[int, int]]:
    """Find candidate pairs as `candidates` does, but without hyperscan."""
    found: set[tuple[int, int]] = set()
    for number, pattern in enumerate(PATTERNS):
        for position in _positions(block, pattern):
            found.add((bisect_right(starts, position) - 1, number))
    return found


def _positions(block: bytes, pattern: Pattern) -> Iterator[int]:
    if not pattern.literals:
        yield from (match.end() - 1 for match in re.finditer(_sieve(pattern), block))
    block = block.lower() if pattern.caseless else block
    for literal in pattern.literals:
        at = block.find(literal)
        while at >= 0:
            yield at
            at = block.find(literal, at + 1)


@lru_cache(maxsize=1)
def _filters() -> tuple[list[bytes], list[int]]:
    """Return the expressions of the automaton and their flags."""
    expressions: list[bytes] = []
    for pattern in PATTERNS:
        # Regexes of other codes are slow and rarely more selective than their literals.
        searchable = pattern.code in ("secret", "personal-data")
        literals = b"|".join(b"".join(b"\\x%02x" % byte for byte in each) for each in pattern.literals)
        expressions.append(_sieve(pattern) if searchable else literals)
    return expressions, [int(pattern.caseless) for pattern in PATTERNS]


_loaded: list[Any] = []
"""This process's automaton, after it was loaded or compiled."""


def _database(folder: Path | None) -> Any:
    """Return the filter as one automaton, or `None` without hyperscan."""
    if not _loaded:
        try:
            _loaded.append(automaton(*_filters(), folder))
        except ImportError:
            _loaded.append(None)
    return _loaded[0]


@lru_cache(maxsize=1)
def _kept(folder: Path | None) -> bool:
    """Return whether the cache contains the automaton."""
    try:
        return folder is not None and place(*_filters(), folder).is_file()
    except ImportError:
        return False
