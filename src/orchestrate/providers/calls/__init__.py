"""Calls to hosts, and parsing of their responses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, DecimalException
from functools import lru_cache
from typing import Any, cast

from orchestrate.core import amounts
from orchestrate.settings import MASK as MASK
from orchestrate.settings import redact_text as redact_text
from orchestrate.types import Quote, QuoteLine

# Parsing of values in the hosts' JSON, which often deviates from the documented types.


NANO = Decimal(1_000_000_000)
_REF = re.compile(r"orc-[0-9a-z]{12}(?![0-9a-z])")
"""Pattern of the refs that `orchestrate.store` creates."""


def ref_in(*names: Any) -> str | None:
    """Find Orchestrate's ref in the names that a host stores for a job. If a name contains several refs, the
    last one counts, because earlier ones come from the user or an earlier job. Returns `None` if there is
    none."""
    found = (_REF.findall(name.lower()) for name in names if isinstance(name, str))
    return next((refs[-1] for refs in found if refs), None)


REF_LENGTH = 16


def suffix_room(most: int) -> int:
    """Return the maximum length of the user's suffix, given that suffix and ref together may have `most`
    characters."""
    return max(most - REF_LENGTH - 1, 0)


def suffix_tag(suffix: str | None, ref: str, most: int) -> str:
    """Append the ref to the user's suffix. Shortens the suffix so the result has at most `most`
    characters."""
    front = (suffix or "")[: max(most - len(ref) - 1, 0)].rstrip("-_.")
    return f"{front}-{ref}" if front else ref[:most]


def suffix_of(tag: str | None, ref: str | None) -> str | None:
    """Return the user's part of a suffix that `suffix_tag` built."""
    return ((tag or "").removesuffix(ref or "").rstrip("-") if ref else tag) or None


def tagged(ref: str, *names: Any) -> bool:
    """Return True if one of the names contains `ref` as a separate word, delimited by `-`, `_`, `.`, `/`, `:`
    or the start or end of the name."""
    word = re.compile(rf"(?:^|[-_./:]){re.escape(ref.lower())}(?:$|[-_./:])")
    return any(isinstance(name, str) and word.search(name.lower()) is not None for name in names)


def plain(answer: object) -> dict[str, Any]:
    """Convert an SDK object or mapping to a dict with the host's field names. Values are unchanged and may
    include secrets, so never store the result. To store a response, use `payload`."""
    if hasattr(answer, "to_dict"):
        answer = cast("Any", answer).to_dict(mode="json", warnings=False)
    return dict(cast("Mapping[str, Any]", answer)) if isinstance(answer, Mapping) else {}


def items(page: Any) -> list[dict[str, Any]]:
    """Return the entries of one page of an SDK's list, regardless of the field that holds them."""
    return [plain(entry) for entry in page._get_page_items()]  # the SDKs have no public name for it


def table(value: Any) -> dict[str, Any]:
    """Return the value if it is a dict, otherwise an empty dict."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def rows(value: Any) -> list[dict[str, Any]]:
    """Return the dicts in a list and drop all other entries. Returns an empty list if the value is not a
    list."""
    return (
        [table(v) for v in cast("list[Any]", value) if isinstance(v, dict)] if isinstance(value, list) else []
    )


def text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def metric(value: Any) -> float | None:
    """Parse a number from a JSON number or a string. It may be NaN or infinite, which shows that training
    diverged."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def number(value: Any) -> float | None:
    """Parse a finite number from a JSON number or a string."""
    found = metric(value)
    return found if found is not None and math.isfinite(found) else None


def integer(value: Any) -> int | None:
    found = number(value)
    return int(found) if found is not None else None


def money(value: Any) -> Decimal | None:
    """Parse US dollars written as a number or a string. Returns `None` for anything that can't be a price."""
    return _price(value, Decimal(1))


def nanos(value: Any) -> Decimal | None:
    """Convert billionths of a dollar to US dollars."""
    return _price(value, NANO)


def _price(value: Any, parts: Decimal) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = Decimal(str(value)) / parts
    except DecimalException:
        return None
    return found if found.is_finite() and 0 <= found <= amounts.MOST else None


def estimate_quote(
    provider: str,
    model: str,
    total: Decimal,
    source: str,
    *,
    note: str | None = None,
    tokens: int | None = None,
) -> Quote:
    """Build a quote from a host's own estimate for an entire job."""
    line = QuoteLine(
        component="training",
        quantity=Decimal(1),
        unit="usd_per_job",
        usd_per_unit=total,
        usd_low=total,
        usd=total,
        usd_high=total,
        note=note,
        source=source,
    )
    return Quote(
        provider=provider,
        model=model,
        lines=(line,),
        assumptions=(source,),
        low_usd=total,
        expected_usd=total,
        high_usd=total,
        billed_tokens=tokens,
    )


def when(value: Any) -> datetime | None:
    """Parse a UTC time from an ISO 8601 string, or from seconds, milliseconds or nanoseconds since 1970."""
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    if (seconds := number(value)) is not None:
        if seconds <= 0:
            return None
        while seconds > 1e11:  # 1e11 s is the year 5138, 1e11 ms is 1973
            seconds /= 1000
        return datetime.fromtimestamp(seconds, UTC)
    if not isinstance(value, str) or not value or value.startswith("0001-"):
        return None  # a zero time is how Go writes "not yet"
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


# Conversion of responses to plain dicts without secrets, which may be stored, logged and shown.


_SECRET_NAME = re.compile(
    r"(api|access|auth|secret|private|encryption|signing)_?(key|token)|password|passwd|credential|authorization"
    r"|bearer|^(secret|token|cookie)$|_secret$"
)


class Unreadable(ValueError):
    """Error for a response with an unexpected structure. Users see its message after `could not parse the
    response:`."""


class CutShort(Unreadable):
    """Error for a stream that ended before the model had finished. A proxy that times out closes a stream as
    if it were complete."""

    def __init__(self) -> None:
        super().__init__("the stream ended before the model had finished")


def payload(answer: object) -> dict[str, Any]:
    """Convert an SDK object or mapping to a plain JSON-ready dict without secrets. Returns an empty dict for
    anything else."""
    if hasattr(answer, "to_dict"):
        # Hosts send values that violate their own schema (OpenAI: `error: {}`). Users can't fix that, so
        # don't warn.
        answer = cast("Any", answer).to_dict(mode="json", warnings=False)
    return cast("dict[str, Any]", redact(answer)) if isinstance(answer, Mapping) else {}


def redact(value: Any) -> Any:
    """Remove secrets from a JSON value: values of fields with secret names, text that looks like a key, and
    query strings of signed URLs."""
    if isinstance(value, str):
        return redact_text(value)
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {k: MASK if v and _secret(k) else redact(v) for k, v in items}
    if isinstance(value, list | tuple):
        return [redact(v) for v in cast("list[Any]", value)]
    return value


@lru_cache(maxsize=4096)
def _secret(name: str) -> bool:
    """A host's answers have the same few names again and again."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
    return _SECRET_NAME.search(snake) is not None
