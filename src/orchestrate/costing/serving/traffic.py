"""What a tuned model is asked."""

from __future__ import annotations

import re
from decimal import Decimal

from orchestrate.errors import UsageError
from orchestrate.types import Record

DAYS_PER_MONTH = Decimal(365) / 12


class Traffic(Record, frozen=True, kw_only=True):
    """Requests to the tuned model, and the tokens of one."""

    requests_per_day: Decimal
    input_tokens: int
    output_tokens: int

    @classmethod
    def parse(cls, words: str) -> Traffic:
        """`20k req/day, 900 in, 150 out`. Raises `UsageError`."""
        asked = " ".join(words.lower().replace("_", "").split())
        found = _TRAFFIC.match(asked) if len(asked) <= _LONGEST else None
        if found is None:
            raise UsageError(
                f"--traffic {words!r} is not understood", fix='write it as "20k req/day, 900 in, 150 out"'
            )
        per_day = {"second": 86_400, "minute": 1440, "hour": 24, "day": 1, "month": 1 / DAYS_PER_MONTH}
        unit = next(value for name, value in per_day.items() if name.startswith(found["per"]))
        return cls(
            requests_per_day=_number(found["requests"]) * unit,
            input_tokens=int(_number(found["input"])),
            output_tokens=int(_number(found["output"])),
        )

    @property
    def requests_per_month(self) -> Decimal:
        return self.requests_per_day * DAYS_PER_MONTH


_LONGEST = 200
_N = r"[\d.,]*\d ?[km]?"
_TRAFFIC = re.compile(
    rf"^(?P<requests>{_N}) ?(?:req\w*|calls?)? ?(?:/|per|a) ?"
    r"(?P<per>s|sec|second|min|minute|h|hour|d|day|month)\b"
    rf"[ ,;]+(?P<input>{_N}) ?(?:tok\w* ?)?in\w*[ ,;]+(?P<output>{_N}) ?(?:tok\w* ?)?out\w*$"
)


def _number(text: str) -> Decimal:
    text = text.replace(",", "").replace(" ", "")
    factor = {"k": 1000, "m": 1_000_000}.get(text[-1:], 1)
    return Decimal(text.rstrip("km")) * factor
