"""Outcomes as they are handed in: in calls, in requests, in lines of JSON."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from orchestrate.ab.plan import wrong_value
from orchestrate.errors import DataError, UsageError
from orchestrate.types import ExperimentPlan, Record, decoding

_SHOWN = 5


class Given(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`{"user": "u1", "metric": "resolved", "value": true, "id": "ticket-7"}`. What has an id counts once,
    however often it is sent. `at` makes lines of files differ; an outcome counts when it is recorded."""

    user: Annotated[str, msgspec.Meta(min_length=1)] | int
    metric: str
    value: bool | int | float
    id: str | int | None = None
    at: str | float | None = None


class OutcomesTaken(Record, frozen=True, kw_only=True):
    """What became of outcomes that were handed in."""

    recorded: int = 0
    repeated: int = 0
    """Known already, by their ids."""
    unknown_users: int = 0
    """Of users who were never given a model."""
    after_end: int = 0
    """Recorded after the experiment had ended: not counted."""


def of_user(user: str | int) -> str:
    """As text, and as it is. Raises `UsageError` for an empty one."""
    text = str(user)
    if not text:
        raise UsageError("an outcome needs a user")
    return text


def checked(plan: ExperimentPlan, metric: str, value: float) -> float:
    """Raises `UsageError` for a metric that is not in the plan, and for a value that it cannot have."""
    planned = plan.metric(metric)
    if planned is None:
        names = ", ".join(one.name for one in plan.metrics)
        raise UsageError(f"{metric!r} is no metric of {plan.name}, which was planned with: {names}")
    try:
        number = float(value)
    except OverflowError as error:
        raise UsageError(f"{metric}: a number of this size cannot be averaged") from error
    if wrong := wrong_value(planned, number):
        raise UsageError(wrong)
    return number


def key_of(metric: str, id: str | int) -> str:
    """By which what is sent twice is known. An id may be shared by outcomes of several metrics."""
    return hashlib.sha256(f"{metric}\0{id}".encode("utf-8", "surrogatepass")).hexdigest()


def read(plan: ExperimentPlan, path: Path) -> Iterator[Given]:
    """The outcomes in a file of JSON lines, all of which are read before the first is given. A line without
    an id has one by its text and by how often that came before it, so that a file can be taken again, and
    when it has grown. Raises `DataError` with the lines that are wrong."""
    found: list[Given] = []
    wrong: list[str] = []
    seen: Counter[bytes] = Counter()
    decoder = decoding.decoder(Given)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given = decoder.decode(line)
            checked(plan, given.metric, given.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, UsageError) as error:
            wrong.append(f"line {number}: {error}")
            continue
        seen[line] += 1
        if given.id is None:
            text = hashlib.sha256(line).hexdigest()
            given = msgspec.structs.replace(given, id=f"line {text} {seen[line]}")
        found.append(given)
    if wrong:
        more = f"\n  and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
        told = "\n".join(f"  {one}" for one in wrong[:_SHOWN])
        raise DataError(
            f"{len(wrong):,} lines of {path} are no outcomes; none was recorded\n{told}{more}",
            fix='{"user": "u1", "metric": "resolved", "value": true}  a line',
        )
    return iter(found)
