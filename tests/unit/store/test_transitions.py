"""The pure transition core, by its rules and by a state machine with crashes, duplicates and late answers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrate.store import transitions
from orchestrate.store.transitions import UNSENT, UNSETTLED, ImpossibleTransition
from orchestrate.types import Job, JobError, JobHandle, JobStatus, Run, SubmitPhase

T0 = datetime(2026, 11, 25, tzinfo=UTC)
WHO = st.sampled_from(["a", "b"])
FATES = st.sampled_from(["answered", "lost", "late", "never-arrived", "refused", "too-late", "crash"])


def a_run(**values: object) -> Run:
    return Run(
        **{
            "id": "run-000000000000",
            "ref": "orc-000000000000",
            "provider": "paper",
            "model": "m",
            "spec": {},
            "spec_hash": "",
            "dataset_digest": "",
            "host": "here",
            "phase": SubmitPhase.INTENT,
            "status": JobStatus.SUBMITTING,
            "created_at": T0,
            "updated_at": T0,
            **values,
        }
    )


def a_job(status: JobStatus, job_id: str = "job-1", **values: object) -> Job:
    handle = JobHandle(provider="paper", job_id=job_id, ref="orc-000000000000")
    return Job(handle=handle, status=status, raw_status=status.value, **values)


def submitted(status: JobStatus = JobStatus.RUNNING, **values: object) -> Run:
    return a_run(
        phase=SubmitPhase.SUBMITTED, status=status, raw_status=status.value, job_id="job-1", **values
    )


@pytest.mark.parametrize("ended", [s for s in JobStatus if s.terminal])
@pytest.mark.parametrize("said", list(JobStatus))
def test_an_ended_run_stays_as_it_ended(ended: JobStatus, said: JobStatus) -> None:
    run = submitted(ended, finished_at=T0)
    after = transitions.observed(run, a_job(said), T0)
    assert after is run


def test_the_same_ending_may_bring_facts_that_were_missing_and_changes_none() -> None:
    run = submitted(JobStatus.SUCCEEDED, finished_at=T0, tuned_model="ft:one")
    late = a_job(JobStatus.SUCCEEDED, tuned_model="ft:two", trained_tokens=7, early_stopped=True)
    after = transitions.observed(run, late, T0)
    assert (after.tuned_model, after.trained_tokens, after.early_stopped) == ("ft:one", 7, True)


def test_a_repeated_answer_changes_nothing() -> None:
    job = a_job(JobStatus.RUNNING, step=3, percent=1.5)
    once = transitions.observed(submitted(JobStatus.QUEUED), job, T0)
    assert (once.status, once.step) == (JobStatus.RUNNING, 3)
    assert transitions.observed(once, job, T0 + timedelta(hours=1)) is once


def test_why_a_run_was_paused_is_over_when_it_goes_on() -> None:
    full = submitted(JobStatus.PAUSED, error=JobError(message="the disk is full"))
    assert transitions.observed(full, a_job(JobStatus.PAUSED, step=2), T0).error is not None
    assert transitions.observed(full, a_job(JobStatus.RUNNING), T0).error is None
    failed = a_job(JobStatus.FAILED, error=JobError(message="no memory"))
    assert transitions.observed(full, failed, T0).error == JobError(message="no memory")


@pytest.mark.parametrize(
    ("was", "said", "taken"),
    [
        ("running", "queued", True),  # Fireworks queues again
        ("running", "paused", True),
        ("paused", "running", True),
        ("running", "validating", False),
        ("queued", "submitting", False),
        ("finalizing", "running", False),
        ("cancelling", "running", False),
        ("cancelling", "cancelled", True),
        ("cancelling", "succeeded", True),  # it ended before the host took the wish
        ("running", "unknown", True),
        ("unknown", "validating", True),
        ("validating", "submitting", True),
    ],
)
def test_which_steps_backwards_are_believed(was: str, said: str, taken: bool) -> None:
    run = submitted(JobStatus(was))
    after = transitions.observed(run, a_job(JobStatus(said), step=1), T0)
    assert after.status is JobStatus(said if taken else was)
    assert (after.step == 1) is taken, "nothing of an old answer is taken"


def test_an_unknown_word_is_kept_raw_and_ends_nothing() -> None:
    job = Job(handle=a_job(JobStatus.UNKNOWN).handle, status=JobStatus.UNKNOWN, raw_status="vanished")
    after = transitions.observed(submitted(), job, T0)
    assert (after.status, after.raw_status, after.finished_at) == (JobStatus.UNKNOWN, "vanished", None)


def test_another_job_is_never_taken_for_this_run() -> None:
    with pytest.raises(ImpossibleTransition):
        transitions.observed(submitted(), a_job(JobStatus.RUNNING, job_id="job-2"), T0)
    with pytest.raises(ImpossibleTransition):
        transitions.submitted(submitted(), a_job(JobStatus.RUNNING, job_id="job-2").handle, T0)


STEPS: dict[str, tuple[Callable[[Run], Run], set[SubmitPhase]]] = {
    "uploaded": (lambda run: transitions.uploaded(run, T0), {SubmitPhase.INTENT, SubmitPhase.UPLOADED}),
    "submitting": (lambda run: transitions.submitting(run, T0), {SubmitPhase.UPLOADED}),
    "outcome_unknown": (lambda run: transitions.outcome_unknown(run, T0), set(UNSETTLED)),
    "not_made": (lambda run: transitions.not_made(run, T0), set(UNSETTLED)),
    "refused": (
        lambda run: transitions.refused(run, JobError(message="no"), T0),
        {*UNSENT, SubmitPhase.SUBMITTING},
    ),
    "withdrawn": (lambda run: transitions.withdrawn(run, T0), set(UNSENT)),
    "cancelling": (lambda run: transitions.cancelling(run, T0), {SubmitPhase.SUBMITTED}),
}
"""Each step of the protocol but the one to a job, and the phases from which it leads."""


@pytest.mark.parametrize("phase", list(SubmitPhase))
@pytest.mark.parametrize("step", STEPS)
def test_each_step_leads_from_its_phases_only(step: str, phase: SubmitPhase) -> None:
    take, phases = STEPS[step]
    job_id = "job-1" if phase is SubmitPhase.SUBMITTED else None
    if phase in phases:
        take(a_run(phase=phase, job_id=job_id))
    else:
        with pytest.raises(ImpossibleTransition):
            take(a_run(phase=phase, job_id=job_id))


@pytest.mark.parametrize("ended", [s for s in JobStatus if s.terminal])
@pytest.mark.parametrize("step", STEPS)
def test_no_step_leads_from_an_end(step: str, ended: JobStatus) -> None:
    take, phases = STEPS[step]
    for phase in phases:
        run = a_run(phase=phase, status=ended, job_id="job-1" if phase is SubmitPhase.SUBMITTED else None)
        try:
            assert take(run) is run
        except ImpossibleTransition:
            continue


def test_a_withdrawn_run_cannot_be_sent_but_its_job_can_still_be_adopted() -> None:
    run = transitions.withdrawn(a_run(phase=SubmitPhase.UPLOADED), T0)
    assert run.status is JobStatus.CANCELLED
    with pytest.raises(ImpossibleTransition):
        transitions.submitting(run, T0)
    handle = a_job(JobStatus.RUNNING).handle
    assert transitions.submitted(run, handle, T0).phase is SubmitPhase.SUBMITTED


BACKWARDS = {
    JobStatus.QUEUED: {JobStatus.SUBMITTING, JobStatus.VALIDATING},
    JobStatus.RUNNING: {JobStatus.SUBMITTING, JobStatus.VALIDATING},
    JobStatus.PAUSED: {JobStatus.SUBMITTING, JobStatus.VALIDATING},
    JobStatus.FINALIZING: {s for s in JobStatus if not s.terminal}
    - {JobStatus.FINALIZING, JobStatus.CANCELLING, JobStatus.UNKNOWN},
    JobStatus.CANCELLING: {s for s in JobStatus if not s.terminal}
    - {JobStatus.CANCELLING, JobStatus.UNKNOWN},
}
"""Where a job cannot have gone from a status: an answer that says so is an old one."""


class Protocol(RuleBasedStateMachine):
    """One run, a host that may lose answers and show jobs late, and two processes that may die at every step.

    What is written is `run`; what a process knows is its position. A POST lands at once, later but within the
    settle time, or not at all. There are no leases here: the core alone must not let two processes send.
    Whether there are cancels and crashes at all is drawn first: else hardly a run would come as far as a job.
    """

    def __init__(self) -> None:
        super().__init__()
        self.run = a_run()
        self.positions: dict[str, str | None] = {"a": "intent", "b": "intent"}
        self.jobs: list[str] = []
        self.in_flight = 0
        self.shown = 0
        self.settled = False
        self.unproven = False
        """A POST was sent, and nobody knows yet whether it made a job."""
        self.answers: list[Job] = []
        self.cancels = self.crashes = False

    @initialize(
        rough=st.sampled_from([(), ("cancels",), ("crashes",), ("cancels", "crashes")]), sent=st.booleans()
    )
    def what_happens_at_all(self, rough: tuple[str, ...], sent: bool) -> None:
        self.cancels, self.crashes = "cancels" in rough, "crashes" in rough
        if sent:  # two go on at once with a run whose data are on the host
            self.run = transitions.uploaded(self.run, T0)
            self.positions = {"a": "uploaded", "b": "uploaded"}

    def apply(self, after: Run) -> None:
        before, self.run = self.run, after
        assert not before.status.terminal or after.status is before.status, "an end does not stick"
        assert after.status not in BACKWARDS.get(before.status, ()), f"{before.status} -> {after.status}"
        assert before.job_id in (None, after.job_id), "a run changed its job"
        for fact in ("tuned_model", "trained_tokens") if before.status.terminal else ():
            assert getattr(before, fact) in (None, getattr(after, fact)), "a fact of an ended run changed"
        if after.job_id is not None:
            self.unproven = False

    # -- processes that submit

    @rule(steps=st.lists(st.tuples(WHO, FATES), min_size=1, max_size=8))
    def processes_take_turns(self, steps: list[tuple[str, str]]) -> None:
        for who, fate in steps:
            self.step(who, fate)

    @rule(who=WHO, fates=st.lists(FATES, min_size=1, max_size=4))
    def a_process_goes_on(self, who: str, fates: list[str]) -> None:
        for fate in fates:
            self.step(who, fate)

    def step(self, who: str, fate: str) -> None:
        """One write or one request of a process, in whatever state the others have left the run."""
        position, then = self.positions[who], None
        if position is None and self.run.phase in UNSENT:
            then = "uploaded" if self.run.phase is SubmitPhase.UPLOADED else "intent"
        elif fate == "crash" and self.crashes:
            then = None
        elif position == "intent":
            then = self.attempt(lambda: transitions.uploaded(self.run, T0), "uploaded")
        elif position == "uploaded":
            then = self.attempt(lambda: transitions.submitting(self.run, T0), "submitting")
        elif position == "submitting" and fate == "too-late":
            then = self.attempt(lambda: transitions.not_made(self.run, T0), "uploaded")
        elif position == "submitting":
            then = self.post(fate)
        elif position == "answered":
            handle = a_job(JobStatus.QUEUED, self.jobs[-1]).handle
            then = self.attempt(lambda: transitions.submitted(self.run, handle, T0), None)
        elif position == "lost":
            then = self.attempt(lambda: transitions.outcome_unknown(self.run, T0), None)
        self.positions[who] = then
        if then == "submitting":
            self.settled = False

    def post(self, fate: str) -> str | None:
        assert not self.unproven, "a POST before the last one was settled"
        assert self.run.job_id is None, "a POST for a run that has its job"
        if fate == "refused":
            error = JobError(message="no")
            return self.attempt(lambda: transitions.refused(self.run, error, T0), None)
        self.unproven = True
        if fate in ("answered", "lost", "crash"):
            self.jobs.append(f"job-{len(self.jobs) + 1}")
        self.in_flight += fate == "late"
        return "answered" if fate == "answered" else "lost"

    # -- time and the host

    @precondition(lambda self: self.jobs or self.in_flight or self.run.phase in UNSETTLED)
    @rule(what=st.sampled_from(["arrives", "listed", "settle time", "adopted"]))
    def time_passes(self, what: str) -> None:
        match what:
            case "arrives" if self.in_flight:
                self.the_late_request_arrives()
            case "listed":
                self.shown = len(self.jobs)
            case "settle time":
                self.settle_time_passes()
            case "adopted":
                self.sweep_adopts_by_ref()
            case _:
                pass

    def the_late_request_arrives(self) -> None:
        self.in_flight -= 1
        self.jobs.append(f"job-{len(self.jobs) + 1}")

    def settle_time_passes(self) -> None:
        """By its length, no process still sends, all that was sent has arrived, and the list shows it."""
        while self.in_flight:
            self.the_late_request_arrives()
        self.shown = len(self.jobs)
        for who, position in self.positions.items():
            if position in ("submitting", "answered", "lost"):
                self.positions[who] = None
        self.settled = self.run.phase in UNSETTLED

    # -- a process that settles, cancels and looks

    @precondition(lambda self: self.run.phase in UNSETTLED)
    @rule()
    def settle(self) -> None:
        found = self.jobs[: self.shown]
        if found:
            self.apply(transitions.submitted(self.run, a_job(JobStatus.QUEUED, found[0]).handle, T0))
        elif self.settled:
            self.apply(transitions.not_made(self.run, T0))
            self.unproven = False
        else:
            self.apply(transitions.outcome_unknown(self.run, T0))

    def sweep_adopts_by_ref(self) -> None:
        if self.jobs[: self.shown] and self.run.job_id is None:
            self.apply(transitions.submitted(self.run, a_job(JobStatus.QUEUED, self.jobs[0]).handle, T0))

    @precondition(lambda self: self.run.job_id is not None)
    @rule()
    def a_proxy_doubled_the_request(self) -> None:
        """The job that is tracked stays; the other one is for an alarm, and its answers are not the run's."""
        twin, before = a_job(JobStatus.FAILED, "job-of-a-proxy"), self.run
        self.attempt(lambda: transitions.submitted(self.run, twin.handle, T0), None)
        self.attempt(lambda: transitions.observed(self.run, twin, T0), None)
        assert self.run is before

    @precondition(lambda self: self.cancels)
    @rule()
    def cancel(self) -> None:
        if self.run.phase is SubmitPhase.SUBMITTED:
            self.apply(transitions.cancelling(self.run, T0))
        else:
            self.attempt(lambda: transitions.withdrawn(self.run, T0), None)

    @precondition(lambda self: self.run.job_id is not None)
    @rule(status=st.sampled_from(list(JobStatus)), tokens=st.none() | st.integers(0, 3))
    def the_host_says(self, status: JobStatus, tokens: int | None) -> None:
        job = a_job(status, str(self.run.job_id), trained_tokens=tokens)
        self.answers.append(job)
        self.apply(transitions.observed(self.run, job, T0))
        again = transitions.observed(self.run, job, T0)
        assert again is self.run, "a duplicate changed something"

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def an_old_answer_comes_late(self, data: st.DataObject) -> None:
        self.apply(transitions.observed(self.run, data.draw(st.sampled_from(self.answers)), T0))

    def attempt(self, step: Callable[[], Run], then: str | None) -> str | None:
        """A process whose write is refused gives up; one that is behind must not be able to do harm."""
        try:
            after = step()
        except ImpossibleTransition:
            return None
        self.apply(after)
        return then

    # -- what must hold

    @invariant()
    def never_two_jobs(self) -> None:
        assert len(self.jobs) + self.in_flight <= 1

    @invariant()
    def no_job_is_lost(self) -> None:
        if self.jobs and self.run.job_id is None:
            assert self.run.phase in UNSETTLED, f"a job exists, and the run is {self.run.phase}"

    @invariant()
    def the_run_is_its_job(self) -> None:
        assert self.run.job_id is None or self.run.job_id in self.jobs
        assert (self.run.job_id is not None) == (self.run.phase is SubmitPhase.SUBMITTED)


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)


@pytest.mark.slow
class TestProtocolInALongSearch(Protocol.TestCase):
    settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
