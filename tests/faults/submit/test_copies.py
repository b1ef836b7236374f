"""Any mix of submits, kills, resumes, syncs, cancels, switched keys and copied stores: each run's job is made
once, in its own account, and known at the end."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.faults.paper_host import Paper, PaperHost
from tests.faults.submitting import Killed, submit

from orchestrate.errors import InvalidRequest, OrchestrateError, OutcomeUnknown, RateLimited
from orchestrate.runs.submitting.repeats import Submission, SubmitRequest
from orchestrate.runs.submitting.submit import Submitter, cancel
from orchestrate.runs.syncing.recovery import recover
from orchestrate.runs.syncing.sweep import sync
from orchestrate.spec import JobSpec
from orchestrate.store.store import POINTS, Store, Timing
from orchestrate.store.transitions import UNSETTLED
from orchestrate.types import Run

SPEC = JobSpec(model="m", train="rows.jsonl")
DATA: Any = Paper()
AT_ONCE = Timing(send_limit_s=60.0, requests=0, margin_s=-60.0, lease_s=5.0, patience_s=1.0)
"""Settled at once: nothing is under way when a process is dead, and the host shows what it has."""
MEMORY = Path("/dev/shm")
"""Where a write that waits for the disk waits for nothing."""
ACCOUNTS = ("one", "two")
FATES = {
    "well": {},
    "lost": {"lost": True},
    "lost, and not shown": {"lost": True, "down": True},
    "refused": {"refused": True},
    "refused and done": {"after": InvalidRequest("paper", "no", status=400, code="odd")},
    "busy and done": {"after": RateLimited("paper", "busy", status=429, retry_after_s=0.0)},
    "not sent": {"raises": OutcomeUnknown("paper", "r", "reset")},
    "no list": {"lost": True, "no_list": True},
}
WHO = st.sampled_from(ACCOUNTS)
KEYS = st.sampled_from(["told", "first key", "second key"])
DEATHS = st.sampled_from([None, *POINTS])
COPY = st.integers(0, 1)


class Copies(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.stores = [self.store(0)]
        self.sent_from: dict[str, str] = {}
        """The account that each run was submitted to, by its ref."""

    def store(self, number: int) -> Store:
        return Store.open(f"sqlite:///{self.path(number)}")

    def path(self, number: int) -> Path:
        return self.folder / f"store-{number}" / "runs.sqlite3"

    def host(self, owner: str, key: str = "told", **faults: Any) -> PaperHost:
        fingerprint = "" if key == "told" else f"{owner}, {key}"
        return PaperHost(self.folder / "host", owner=owner, key=fingerprint, timeout_s=0.0, **faults)

    def pick(self, copy: int) -> Store:
        return self.stores[copy % len(self.stores)]

    @rule(
        copy=COPY,
        who=WHO,
        key=KEYS,
        fate=st.sampled_from(sorted(FATES)),
        dies=st.sampled_from([None, *POINTS]),
    )
    def a_submit(self, copy: int, who: str, key: str, fate: str, dies: str | None) -> None:
        def reached(point: str) -> None:
            if point == dies:
                raise Killed

        store, host = self.pick(copy), self.host(who, key, **FATES[fate])
        with contextlib.suppress(OrchestrateError, Killed):
            submit(store, host, SPEC, DATA, reached=reached, timing=AT_ONCE)
        self.sent_from[store.runs.get("last").ref] = who

    @rule(copy=COPY, who=WHO, fate=st.sampled_from(sorted(FATES)), dies=DEATHS)
    def a_submit_with_a_key(self, copy: int, who: str, fate: str, dies: str | None) -> None:
        def reached(point: str) -> None:
            if point == dies:
                raise Killed

        store, host, key = self.pick(copy), self.host(who, **FATES[fate]), f"nightly-of-{who}"
        asked = Submission(spec=SPEC, translation=host.translate(SPEC), data=DATA, idempotency_key=key)
        self.sent_from[str(SubmitRequest(SPEC, DATA.digest, host, key).ref)] = who
        with contextlib.suppress(OrchestrateError, Killed):
            Submitter(store, host, AT_ONCE, reached).submit(asked)

    @initialize(who=WHO, key=KEYS, fate=st.sampled_from(sorted(FATES)), dies=DEATHS)
    def the_first_submit(self, who: str, key: str, fate: str, dies: str | None) -> None:
        self.a_submit(0, who, key, fate, dies)

    @rule(copy=COPY, who=WHO, key=KEYS, which=st.integers(0, 20))
    def a_resume(self, copy: int, who: str, key: str, which: int) -> None:
        store = self.pick(copy)
        if runs := store.runs.matching():
            with contextlib.suppress(OrchestrateError):
                Submitter(store, self.host(who, key), AT_ONCE).resume(runs[which % len(runs)], DATA)

    @rule(copy=COPY, who=WHO, key=KEYS, which=st.integers(0, 20))
    def a_cancel(self, copy: int, who: str, key: str, which: int) -> None:
        store = self.pick(copy)
        if runs := store.runs.matching():
            with contextlib.suppress(OrchestrateError):
                cancel(store, self.host(who, key), runs[which % len(runs)], timing=AT_ONCE)

    @rule(copy=COPY, who=WHO, key=KEYS, fate=st.sampled_from(["well", "no list"]))
    def a_sync(self, copy: int, who: str, key: str, fate: str) -> None:
        sync(self.pick(copy), lambda _: self.host(who, key, **FATES[fate]), timing=AT_ONCE)

    @rule(to_the_second=st.booleans())
    def the_store_is_copied(self, to_the_second: bool) -> None:
        """Onto another machine, or back from it as from a backup."""
        source, target = (0, 1) if to_the_second else (1, 0)
        if source >= len(self.stores):
            return
        with sqlite3.connect(self.path(source)) as there:
            if target < len(self.stores):
                self.stores[target].close()
            shutil.rmtree(self.path(target).parent, ignore_errors=True)
            self.path(target).parent.mkdir()
            with sqlite3.connect(self.path(target)) as copy:
                there.backup(copy)
            copy.close()
        there.close()
        self.stores[target : target + 1] = [self.store(target)]

    @invariant()
    def each_job_is_made_once_and_in_its_own_account(self) -> None:
        jobs = self.host("one").jobs()
        refs = [job["ref"] for job in jobs]
        assert len(refs) == len(set(refs)), "a job was made twice"
        assert all(self.sent_from.get(job["ref"], job["owner"]) == job["owner"] for job in jobs)

    def teardown(self) -> None:
        """With a key of each account at hand every store comes to know the jobs of all its runs. A run of
        another key, without a job and without a file by which the account could be known waits for it."""
        for store in self.stores:
            for who in ACCOUNTS:
                recover(store, [self.host(who)])
                sync(store, lambda _, who=who: self.host(who), timing=AT_ONCE)
        jobs = {job["ref"]: job["id"] for job in self.host("one").jobs()}
        for store in self.stores:
            runs: list[Run] = store.runs.matching()
            assert {run.ref: run.job_id for run in runs if run.job_id} == jobs, "a job was lost"
            left = [run for run in runs if run.phase in UNSETTLED]
            assert not [run for run in left if run.account in ACCOUNTS], "not settled by its own account"
            for who in ACCOUNTS if left else ():
                for key in ("first key", "second key"):
                    sync(store, lambda _, who=who, key=key: self.host(who, key), timing=AT_ONCE)
            assert not [run for run in store.runs.matching() if run.phase in UNSETTLED]
            store.close()
        shutil.rmtree(self.folder)


TestCopies = Copies.TestCase
TestCopies.settings = settings(max_examples=8, stateful_step_count=8, deadline=None)


@pytest.mark.slow
class TestCopiesInALongSearch(Copies.TestCase):
    settings = settings(max_examples=20, stateful_step_count=8, deadline=None)
