"""An experiment: assignments, outcomes, evidence, and decisions by the rule."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import msgspec
from msgspec.structs import replace

from orchestrate.ab.evidence import evidence, ratio_p, units
from orchestrate.ab.plan import alphas, decide, required, wrong_value
from orchestrate.errors import DataError, UsageError
from orchestrate.store.experiments import NewOutcome
from orchestrate.store.store import Store
from orchestrate.text import count
from orchestrate.types import (
    Arm,
    ExperimentPhase,
    ExperimentPlan,
    ExperimentRecord,
    ExperimentReport,
    Exposure,
    Record,
    decoding,
)

# A salted hash of the user id gives the key under which a user is stored, and a place between 0 and 1 that
# determines the user's model.
#
# A user whose place is below the tuned model's share gets the tuned model, so users keep it while the share
# grows. Each experiment has its own salt, so a user's places in two experiments are independent. The store
# contains no user ids.


class Person(NamedTuple):
    key: str
    """The key under which the store records the user."""
    place: float
    """Position of the user in the split, from 0 (inclusive) to 1 (exclusive)."""


def new_salt() -> str:
    return secrets.token_hex(16)


def person(salt: str, user: str) -> Person:
    """Derive a user's stored key and split position from the user id. Any string is a valid user id and is
    used unchanged: not trimmed, case-folded or normalized."""
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
    """Assign a user to an arm in a new phase. `last` is the user's previous assignment, and `last_share` is
    the tuned model's traffic share in that earlier phase."""
    chance = phase.share
    if last is not None and last_share is not None:
        # Users of the tuned model keep it. A larger share moves some users of the base to the tuned model.
        rest = (phase.share - last_share) / (1 - last_share) if last_share < 1 else 0.0
        chance = 1.0 if last.arm == "tuned" else rest
    arm = arm_at(who.place, phase.share)
    return Exposure(user=who.key, phase=phase.number, arm=arm, chance=chance, at=at)


_SHOWN = 5


class Given(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An outcome, such as `{"user": "u1", "metric": "resolved", "value": true, "id": "ticket-7"}`. Outcomes
    with the same metric and id count once. The time of an outcome is the time at which it was recorded. `at`
    is only used to tell apart lines that are otherwise identical."""

    user: Annotated[str, msgspec.Meta(min_length=1)] | int
    metric: str
    value: bool | int | float
    id: str | int | None = None
    at: str | float | None = None


class OutcomesTaken(Record, frozen=True, kw_only=True):
    """Number of recorded outcomes, and number of ignored outcomes for each reason."""

    recorded: int = 0
    repeated: int = 0
    """Number of outcomes with an id that was already recorded."""
    unknown_users: int = 0
    """Number of outcomes from users who were never assigned a model."""
    after_end: int = 0
    """Number of outcomes ignored because the experiment had ended."""


def of_user(user: str | int) -> str:
    """Return the user id as text. Raises `UsageError` if it is empty."""
    text = str(user)
    if not text:
        raise UsageError("an outcome needs a user id")
    return text


def checked(plan: ExperimentPlan, metric: str, value: float) -> float:
    """Convert an outcome's value to a number. Raises `UsageError` if the plan does not include the metric, or
    if the metric does not allow the value."""
    planned = plan.metric(metric)
    if planned is None:
        names = ", ".join(one.name for one in plan.metrics)
        raise UsageError(f"{metric!r} is not a metric of {plan.name}. Its metrics: {names}")
    try:
        number = float(value)
    except OverflowError as error:
        raise UsageError(f"{metric}: this number is too large to average") from error
    if wrong := wrong_value(planned, number):
        raise UsageError(wrong)
    return number


def key_of(metric: str, id: str | int) -> str:
    """Hash an outcome's metric and id into the key that identifies duplicates. Outcomes of different metrics
    may share an id."""
    return hashlib.sha256(f"{metric}\0{id}".encode("utf-8", "surrogatepass")).hexdigest()


def read(plan: ExperimentPlan, path: Path) -> Iterator[Given]:
    """Read and check all outcomes in a JSON Lines file, and return an iterator over them.

    A line without an id gets one derived from its text and from the number of identical lines before it. If
    you append to a file and read it again, earlier outcomes therefore get the same ids and count once.

    Raises `UsageError` if the file cannot be read. Raises `DataError`, which shows the first invalid lines,
    if any line is invalid.
    """
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
        examples = "\n".join(f"  {one}" for one in wrong[:_SHOWN])
        raise DataError(
            f"{path} contains {count(len(wrong), 'invalid outcome')}, so nothing was recorded\n"
            f"{examples}{more}",
            fix='write one outcome per line:  {"user": "u1", "metric": "resolved", "value": true}',
        )
    return iter(found)


_FRESH_S = 1.0
"""Maximum delay, in seconds, before this process notices a phase that another process started."""
_REMEMBERED = 200_000
"""Maximum number of users in the cache of assignments. The cache avoids reading the store for each
request."""
_AT_ONCE = 500
"""Number of outcomes per transaction."""
_LONGEST = 64
"""Maximum length of an event's name, in characters."""
_STATES: Mapping[str, Literal["shipped", "rolled back", "stopped"]] = {
    "ship": "shipped",
    "roll back": "rolled back",
    "stop": "stopped",
}


class Assignment(NamedTuple):
    arm: Arm
    phase: int
    counted: bool
    """True if outcomes still count as evidence. False once the experiment has ended."""


class Experiment:
    """A running experiment. Safe to use from several threads, and from several processes that share a store.
    Use it as a context manager to close the store that `open` or `begin` opened."""

    def __init__(self, store: Store, record: ExperimentRecord, *, owns_store: bool = False) -> None:
        self.plan, self.id, self._record = record.plan, record.id, record
        self._store, self._kept, self._owns_store = store, store.experiments, owns_store
        self._phases: tuple[ExperimentPhase, ...] = ()
        self._read_at = float("-inf")
        self._seen: dict[str, Exposure] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, name: str, store: Store | str | None = None) -> Self:
        """Open an existing experiment by name or id. `store` is a store or its URL (default: the configured
        store). Raises `UsageError` unless exactly one experiment matches, and `StoreError` if the store
        cannot be used."""
        opened = _opened(store)
        try:
            return cls(opened, opened.experiments.get(name), owns_store=opened is not store)
        except BaseException:
            if opened is not store:
                opened.close()
            raise

    @classmethod
    def begin(cls, plan: ExperimentPlan, store: Store | str | None = None) -> Self:
        """Start a new experiment, or continue the one that has this plan. Raises `UsageError` if an
        experiment with this name has a different plan, because a plan can't change after the start."""
        required(plan)
        opened = _opened(store)
        try:
            return cls(opened, _begun(opened, plan), owns_store=opened is not store)
        except BaseException:
            if opened is not store:
                opened.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._owns_store:
            self._store.close()

    # -- phases --------------------------------------------------------------------------------------------

    def phases(self, *, fresh: bool = True) -> tuple[ExperimentPhase, ...]:
        """Return the phases, oldest first. With `fresh=False`, may return a cached list that is up to a
        second old."""
        with self._lock:
            if fresh or time.monotonic() - self._read_at > _FRESH_S:
                found = tuple(self._kept.phases(self.id))
                if len(found) != len(self._phases):
                    self._seen.clear()
                self._phases, self._read_at = found, time.monotonic()
            return self._phases

    def _enter(
        self,
        verb: Literal["ramp", "ship", "roll back", "stop"],
        share: float,
        why: str,
        *,
        seen: ExperimentPhase | None = None,
    ) -> bool:
        """Start a phase after the last one, or after the phase that the decision was based on. Returns
        `False` if another process was first."""
        last = seen or self.phases()[-1]
        phase = ExperimentPhase(
            number=last.number + 1,
            share=share,
            at=self._kept.clock.now(),
            verb=verb,
            why=why,
            actor=self._store.database.actor,
        )
        done = (verb == "stop" or not last.over) and self._kept.add_phase(self.id, phase)
        self.phases()
        return done

    def stop(self, arm: Arm = "base", why: str = "stopped manually") -> bool:
        """End the experiment and serve the model of `arm` to all users. After the end, you can call this
        again with the other arm to switch all users to the other model. Returns `False` and changes nothing
        if the experiment has already ended with `arm`, or if another process started a new phase first."""
        last, share = self.phases()[-1], 1.0 if arm == "tuned" else 0.0
        if last.over and last.share == share:
            return False
        return self._enter("stop", share, f"{why}. All users get the {arm} model", seen=last)

    # -- users ---------------------------------------------------------------------------------------------

    def assign(self, user: str | int) -> Assignment:
        """Assign a user to a model. A user's model changes only when the tuned model's traffic share changes.
        If the share grows, some users switch from the base to the tuned model. If it drops to 0, all users
        get the base. From now on, the user's outcomes count, unless the experiment has ended."""
        phase = self.phases(fresh=False)[-1]
        if phase.over:
            return Assignment("tuned" if phase.share == 1 else "base", phase.number, False)
        given = self._expose(person(self._record.salt, of_user(user)), phase)
        return Assignment(given.arm, given.phase, True)

    def guess(self, user: str | int) -> Assignment:
        """Return the model that the cached phases assign to the user, without accessing the store. `observed`
        ignores measurements for an assignment from this method."""
        last = self._phases[-1] if self._phases else None
        share = 0.0 if last is None else last.share
        arm = arm_at(person(self._record.salt, of_user(user)).place, share)
        return Assignment(arm, 0 if last is None else last.number, False)

    def _expose(self, who: Person, phase: ExperimentPhase) -> Exposure:
        known = self._seen.get(who.key)
        if known is not None and known.phase == phase.number:
            return known
        last = self._kept.last_exposure(self.id, who.key)
        if last is None or last.phase < phase.number:
            shares = {p.number: p.share for p in self._phases}
            before = None if last is None else shares[last.phase]
            last = exposed(who, phase, self._kept.clock.now(), last, before)
            self._kept.expose(self.id, last)
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen[who.key] = last
        return last

    # -- outcomes ------------------------------------------------------------------------------------------

    def record(
        self, user: str | int, metric: str, value: float, *, id: str | int | None = None
    ) -> OutcomesTaken:
        """Record an outcome of a user. Outcomes with the same id count once. Raises `UsageError` if the plan
        does not include the metric, or if the metric does not allow the value."""
        return self.record_all([Given(user, metric, value, id)])

    def record_all(self, given: Iterable[Given]) -> OutcomesTaken:
        """Record several outcomes. If any outcome is invalid, records nothing and raises the same errors as
        `record`."""
        rows = [(one, checked(self.plan, one.metric, one.value)) for one in given]
        if self.phases(fresh=False)[-1].over:
            return self._count_ignored(OutcomesTaken(after_end=len(rows)))
        found: list[NewOutcome] = []
        last: dict[str, int | None] = {}
        for one, value in rows:
            key = person(self._record.salt, of_user(one.user)).key
            if key not in last:
                exposure = self._kept.last_exposure(self.id, key)
                last[key] = None if exposure is None else exposure.phase
            if (phase := last[key]) is not None:
                id = None if one.id is None else key_of(one.metric, one.id)
                found.append(NewOutcome(key, phase, one.metric, value, id))
        parts = range(0, len(found), _AT_ONCE)
        new = sum(self._kept.record(self.id, found[start : start + _AT_ONCE]) for start in parts)
        unknown = len(rows) - len(found)
        return self._count_ignored(
            OutcomesTaken(recorded=new, repeated=len(found) - new, unknown_users=unknown)
        )

    def record_files(self, paths: Iterable[str | Path]) -> OutcomesTaken:
        """Record the outcomes in JSON Lines files, one `{"user": "u1", "metric": "resolved", "value": true}`
        per line. You can record a file again after it has grown. If lines are invalid, raises `DataError`
        with a list of them, and records nothing from any file."""
        return self.record_all([one for path in paths for one in read(self.plan, Path(path))])

    def observed(self, user: str | int, at: Assignment, values: Mapping[str, float]) -> None:
        """Record what was measured for one response, such as its latency, as `{metric: value}`. Ignores
        metrics that are not in the plan."""
        if not at.counted:
            return
        key = person(self._record.salt, of_user(user)).key
        planned = {name: value for name, value in values.items() if self.plan.metric(name)}
        found = [NewOutcome(key, at.phase, n, checked(self.plan, n, v), None) for n, v in planned.items()]
        self._kept.record(self.id, found)

    def count(self, what: str, more: int = 1) -> None:
        """Count an event that is not a metric, such as a failover. `what` is the event's name, and `more` is
        how often it occurred. The report shows the totals. Raises `UsageError` unless the name has 1 to 64
        characters."""
        if not 0 < len(what) <= _LONGEST or "\0" in what:
            raise UsageError(f"event names must be 1 to {_LONGEST} characters long, without NUL")
        self._kept.count(self.id, what, more)

    def _count_ignored(self, taken: OutcomesTaken) -> OutcomesTaken:
        lost = {
            "from users who were never assigned a model": taken.unknown_users,
            "after the end": taken.after_end,
        }
        for name, number in lost.items():
            if number:
                self.count(f"outcomes {name}, not counted", number)
        return taken

    # -- report --------------------------------------------------------------------------------------------

    def report(self) -> ExperimentReport:
        """Evaluate the outcomes so far and return a report. The statistics stay valid no matter how often you
        check them."""
        now = self._kept.clock.now()
        phases, exposures = self.phases(), self._kept.exposures(self.id)
        phase, alpha = phases[-1], alphas(self.plan)
        shown = tuple(
            evidence(metric, units(metric, exposures, self._kept.outcomes(self.id, metric.name), now), a)
            for metric in self.plan.metrics
            for a in (alpha[metric.name],)
        )
        split = ratio_p(exposures)
        users = Counter({arm: len({e.user for e in exposures if e.arm == arm}) for arm in ("base", "tuned")})
        decision = decide(
            self.plan,
            phase,
            shown,
            now=now,
            in_phase=Counter(e.arm for e in exposures if e.phase == phase.number),
            users=len({e.user for e in exposures}),
            ratio_p=split,
        )
        return ExperimentReport(
            id=self.id,
            created_at=self._record.created_at,
            at=now,
            plan=self.plan,
            phases=phases,
            state=_STATES.get(phase.verb, "running"),
            share=phase.share,
            users=dict(users),
            sample_ratio_p=split,
            evidence=shown,
            decision=decision,
            counts=self._kept.counts(self.id),
        )

    def step(self) -> ExperimentReport:
        """Apply the rule's current decision and return the resulting report. If several processes call this
        method at the same time, only one of them acts."""
        seen = self.report()
        verb, share, why = seen.decision.verb, seen.decision.share, seen.decision.why
        if verb == "hold" or verb == "stop" or not self._enter(verb, share, why, seen=seen.phases[-1]):
            return seen
        return replace(self.report(), applied=True)


def _opened(store: Store | str | None) -> Store:
    if isinstance(store, Store):
        return store
    if store is None:
        from orchestrate.settings import config

        settings = config.load()
        settings.make_home()
        store = settings.store_url
    return Store.open(store)


def _begun(store: Store, plan: ExperimentPlan) -> ExperimentRecord:
    kept = store.experiments
    known = kept.named(plan.name)
    if known is None:
        now = kept.clock.now()
        record = ExperimentRecord(id=kept.new_id(), created_at=now, salt=new_salt(), plan=plan)
        first = ExperimentPhase(
            number=1,
            share=plan.rule.stages[0] / 100,
            at=now,
            verb="start",
            why="the plan's first stage",
            actor=store.database.actor,
        )
        if kept.add(record, first):
            return record
        known = kept.get(plan.name)  # another process was first
    if known.plan != plan:
        raise UsageError(
            f"{plan.name} was started with a different plan, and a plan cannot be changed after the start",
            fix=f"use another plan name, or continue with  orchestrate ab serve {plan.name}",
        )
    return known
