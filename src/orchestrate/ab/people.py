"""Users as an experiment knows them: a hash, and a place between 0 and 1 that says which model they get.

A user whose place is below the share gets the tuned model, so that who has it keeps it while the share grows.
The salt is the experiment's own: places in two experiments have nothing to do with each other, and nobody
who reads the store can tell who a user is.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from typing import NamedTuple

from orchestrate.types import Arm, ExperimentPhase, Exposure


class Person(NamedTuple):
    key: str
    """By which the store knows the user."""
    place: float
    """At least 0, below 1."""


def new_salt() -> str:
    return secrets.token_hex(16)


def person(salt: str, user: str) -> Person:
    """Any text is a user, byte for byte: nothing is trimmed, folded or normalised."""
    digest = hashlib.sha256(f"{salt}\0".encode() + user.encode("utf-8", "surrogatepass")).digest()
    return Person(digest[8:24].hex(), (int.from_bytes(digest[:8], "big") >> 11) / 2**53)


def arm_at(place: float, share: float) -> Arm:
    return "tuned" if place < share else "base"


def exposed(
    who: Person,
    phase: ExperimentPhase,
    at: datetime,
    last: Exposure | None = None,
    last_share: float | None = None,
) -> Exposure:
    """What a user is given in a phase that is new to them. `last`: what they had before, in a phase with the
    share `last_share`."""
    chance = phase.share
    if last is not None and last_share is not None:
        # Of those who had the base, the larger share takes some; who had the tuned model keeps it.
        rest = (phase.share - last_share) / (1 - last_share) if last_share < 1 else 0.0
        chance = 1.0 if last.arm == "tuned" else rest
    arm = arm_at(who.place, phase.share)
    return Exposure(user=who.key, phase=phase.number, arm=arm, chance=chance, at=at)
