"""Values as people read them."""

from __future__ import annotations

import re
from decimal import Decimal

from orchestrate.types import Score

NOTHING = "-"
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
"""What a terminal or a reader's eye would act on: control characters but tab and line feed, in their 7- and
8-bit forms, marks that turn the direction of writing, and halves of characters, which cannot be written."""


def inert(text: str) -> str:
    """A text of others as it may go to a terminal: what would act there is replaced by a sign for it, one
    for one, so that the length stays (`\\r\\n` becomes one line feed)."""
    return _ACTING.sub(_sign, text.replace("\r\n", "\n"))


def _sign(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's picture of the control character
    return "\u2421" if code == 0x7F else "\ufffd"


def inert_json(text: str) -> str:
    """JSON text with the same characters in its escaped form, which means the same to whoever reads it."""
    return _ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def money(amount: Decimal | None) -> str:
    """`$12.50`; small sums with the digits that they have, `$0.0042`."""
    if amount is None:
        return NOTHING
    if amount == 0 or abs(amount) >= 1:
        return f"${amount:,.2f}"
    if abs(amount) >= Decimal("0.01"):
        return (
            f"${amount:.3f}".rstrip("0") if amount == amount.quantize(Decimal("0.001")) else f"${amount:.3f}"
        )
    return f"${amount:.5f}".rstrip("0").rstrip(".") or "$0"


def span(low: Decimal, high: Decimal) -> str:
    """`$1.00 to $2.00`, or one sum when both are the same."""
    first, last = money(low), money(high)
    return first if first == last else f"{first} to {last}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {whole % 60:02d}s" if minutes else f"{whole}s"


def count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def signed(share: float | None) -> str:
    """A relative error: `+3.2%`."""
    if share is None:
        return NOTHING
    return "0.0%" if abs(share) < 0.0005 else f"{share:+.1%}"


def loss(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def score(value: Score | None) -> str:
    return NOTHING if value is None else f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


def joined(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
