"""Names of runs, and the tag that a job carries on its host.

A run's id is `run-` and 12 characters: 8 of the time (milliseconds, so that ids sort by age) and 4 random.
The ref is the same with `orc-` in front: 16 characters of `[a-z0-9-]`, beginning with a letter, which fits a
Fireworks job id and leaves 23 characters and a hyphen of Together's 40-character suffix to the user.

The ref of a run that was asked for under an idempotency key is made of what was asked instead, and its id of
the ref: a store that was lost or restored knows neither, and gives both again.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import datetime

RUN_PREFIX = "run-"
REF_PREFIX = "orc-"
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u to misread
_EPOCH_MS = 1_735_689_600_000  # 2025-01-01; eight characters last until 2059
REF_PATTERN = re.compile(rf"{REF_PREFIX}[{_ALPHABET}]{{12}}")


def new_run_id(at: datetime) -> str:
    return new_id(RUN_PREFIX, at)


def new_id(prefix: str, at: datetime, mark: int | None = None) -> str:
    """`mark`, a hash, takes the place of chance: then the same time in seconds and mark give the same id."""
    age_ms = max(0, int(at.timestamp() * 1000) - _EPOCH_MS) % 32**8
    if mark is not None:
        age_ms = max(0, age_ms - age_ms % 1000 + mark // 32**4 % 1000)
    return (
        prefix + _base32(age_ms, 8) + _base32(secrets.randbelow(32**4) if mark is None else mark % 32**4, 4)
    )


def derived_ref(facts: str) -> str:
    """Always the same ref for the same facts, by 60 bits of their hash."""
    return REF_PREFIX + _base32(int(hashlib.sha256(facts.encode()).hexdigest(), 16) % 32**12, 12)


def ref_of(run_id: str) -> str:
    return REF_PREFIX + run_id.removeprefix(RUN_PREFIX)


def run_id_of(ref: str) -> str:
    return RUN_PREFIX + ref.removeprefix(REF_PREFIX)


def _base32(number: int, width: int) -> str:
    digits: list[str] = []
    for _ in range(width):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
