"""Format values for display."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from orchestrate.types import Quote, Score

NOTHING = "-"
SANDBOX_MARK = " (sandbox)"
"""Follows the name of a backend or host that is a sandbox."""
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
"""Matches characters that could control a terminal or mislead a reader:

- 7- and 8-bit control characters, except tab and line feed
- marks that change the text direction
- lone surrogates, which cannot be encoded
"""


def inert(text: str) -> str:
    """Make external text safe for a terminal. Replaces each character that could control the terminal with
    one visible character. A carriage return followed by a line feed becomes a single line feed."""
    return _ACTING.sub(_sign, text.replace("\r\n", "\n"))


def _sign(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's picture of the control character
    return "\u2421" if code == 0x7F else "\ufffd"


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with all its texts changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [map_texts(item, change) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {change(key): map_texts(item, change) for key, item in cast("dict[str, Any]", value).items()}
    return value


def encodable(value: Any) -> Any:
    """Make the texts of a JSON value encodable as UTF-8. Joins surrogate pairs that were escaped separately,
    and replaces unpaired surrogates with U+FFFD."""
    return map_texts(value, lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def inert_json(text: str) -> str:
    """Escape, in JSON text, the characters that `inert` would replace. The parsed value stays the same."""
    return _ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_LOOKALIKES = {
    **{
        "█": "#",
        "━": "=",
        "─": "-",
        "·": ".",
        "→": "->",
        "…": "...",
        "’": "'",
        "≠": "!=",
        "›": ">",
        "✓": "v",
        "✗": "x",
    },
    **dict(zip("▁▂▃▄▅▆▇", "__--==#", strict=True)),
}


def lookalike(error: UnicodeError) -> tuple[str, int]:
    """Handle `codecs` errors: replace a character that the terminal's encoding lacks with a lookalike. If
    there is no lookalike, escape the character as in JSON."""
    return _written(error, _LOOKALIKES)


def escaped(error: UnicodeError) -> tuple[str, int]:
    """Handle `codecs` errors in JSON: escape the character, which preserves the meaning."""
    return _written(error, {})


def _written(error: UnicodeError, replacements: Mapping[str, str]) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    absent = error.object[error.start : error.end]
    return "".join(replacements.get(c) or json.dumps(c)[1:-1] for c in absent), error.end


def money(usd: Decimal | None) -> str:
    """Format an amount, such as `$1,234.50`. Below a dollar, shows at least three decimals and two
    significant digits, such as `$0.0042`. Rounds up, whereas `limit` rounds down. As a result, an amount
    above a limit never looks equal to it."""
    return NOTHING if usd is None else _rounded(usd, ROUND_CEILING)


def limit(usd: Decimal) -> str:
    """Format a limit or a remaining amount. Like `money`, but rounds down."""
    return _rounded(usd, ROUND_FLOOR)


def rate(usd: Decimal) -> str:
    """Format a unit price without rounding, such as `$8.00` or `$0.0375`."""
    rounded, _, part = f"{usd.copy_abs():,f}".partition(".")
    return f"{'-' if usd < 0 else ''}${rounded}.{part.rstrip('0').ljust(2, '0')}"


def _rounded(usd: Decimal, rounding: str) -> str:
    size = usd.copy_abs()
    places = 2 if size >= 1 or not size else max(3, 1 - size.adjusted())
    with localcontext(prec=max(28, len(usd.as_tuple().digits) + places + 2)):
        shown = usd.quantize(Decimal(1).scaleb(-places), rounding=rounding)
    return rate(shown)


def span(low: Decimal, high: Decimal) -> str:
    """Format a range such as `$1.00 to $2.00`, or one amount if both ends are equal."""
    first, last = money(low), money(high)
    return first if first == last else f"{first} to {last}"


def quoted(quote: Quote) -> str:
    """Format a quote, such as `$3.00 expected, $2.90 to $3.10`, or say why there is no price."""
    price = quote.price
    if price is None:
        return f"no known price: {quote.why_none}"
    known = span(price.low_usd, price.high_usd)
    if quote.undecided:
        return f"{known}: {quote.undecided}"
    words = f"{money(price.expected_usd)} expected, {known}"
    words += f" or more, because the quote does not include {quote.open_end}" if quote.open_end else ""
    return words if quote.ends_usd is None else f"{words}; the machine stops at {limit(quote.ends_usd)}"


def rates_apart(rates: Mapping[str, float | None]) -> str | None:
    """Return a note saying that `learning_rate_multiplier` results in different learning rates on these
    backends. Returns `None` if the rates differ by at most 5%."""
    known = {name: rate for name, rate in rates.items() if rate}
    low, high = (min(known.values()), max(known.values())) if known else (0.0, 0.0)
    if high <= low * 1.05:
        return None
    each = joined([f"{rate:g} on {name}" for name, rate in known.items()])
    return (
        f"learning_rate_multiplier results in different learning rates: {each} (factor {high / low:.3g}). "
        "Each host multiplies its own base rate. Set learning_rate to use the same rate everywhere."
    )


def duration(seconds: float | None) -> str:
    """Format a duration, such as `0.4s`, `42s`, `3m 05s`, `1h 02m` or `2.5 days`."""
    if seconds is None:
        return NOTHING
    seconds = max(0.0, seconds)
    if round(seconds, 1) < 10:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    rounded = round(seconds)
    hours, minutes = divmod(rounded // 60, 60)
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rounded % 60:02d}s" if minutes else f"{rounded}s"


def size(amount: int) -> str:
    """Format a number of bytes, such as `512 bytes`, `20 MiB` or `3.4 GiB`."""
    if amount < 1 << 10:
        return count(amount, "byte")
    for unit, power in (("KiB", 10), ("MiB", 20)):
        if round(amount / (1 << power)) < 1 << 10:
            return f"{amount / (1 << power):.0f} {unit}"
    return f"{amount / (1 << 30):,.1f}".removesuffix(".0") + " GiB"


def count(value: float | None, one: str = "", many: str = "") -> str:
    """Format a number, such as `12,345`, or a number with a noun, such as `3 epochs`. `many` is the noun's
    irregular plural."""
    if value is None:
        return NOTHING
    number = f"{value:,.0f}"
    return f"{number} {one if number == '1' else many or one + 's'}" if one else number


def signed(share: float | None) -> str:
    """Format a relative error, such as `+3.2%`."""
    if share is None:
        return NOTHING
    return "0.0%" if abs(share) < 0.0005 else f"{share:+.1%}"


def loss(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def score(value: Score | None) -> str:
    return NOTHING if value is None else f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


def meant(word: str, known: Iterable[str]) -> str:
    """Return a suggestion for a misspelled name, such as ` (did you mean openai?)`, or an empty string."""
    from difflib import get_close_matches

    close = get_close_matches(word.lower(), list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def among(word: str, known: Iterable[str]) -> str:
    """Return a suggestion for an unknown name, and the list of known names."""
    names = list(known)
    return f"{meant(word, names)}; known: {', '.join(names)}"


def joined(names: list[str]) -> str:
    """Join names, such as `a`, `a and b`, or `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def left_out(settings: Mapping[str, Mapping[str, object]]) -> str:
    """Describe the settings that the specs of recovered runs cannot hold, by name. `settings` is
    {run id: {name: value}}."""
    runs = Counter(name for found in settings.values() for name in found)
    named = ", ".join(f"{name} ({count(n, 'run')})" for name, n in runs.most_common())
    return f"a spec cannot hold these settings of the host, so rerun and migrate do not repeat them: {named}"
