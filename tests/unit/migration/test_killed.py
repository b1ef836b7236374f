"""A migration whose process is killed at each step of its submit, and two that are carried out at once."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests import command
from tests.faults.world import SETTLED
from tests.unit.migration.test_migrating import order, quiet, written
from tests.unit.migration.test_migrating import runs as runs

from orchestrate import Orchestrator, RunHandle
from orchestrate.errors import OrchestrateError, OutcomeUnknown
from orchestrate.migration.account import PreparedPlan
from orchestrate.migration.migrations import PreparedMigration
from orchestrate.runs import submit as submission
from orchestrate.runs.syncing.sweep import sync
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config
from orchestrate.store.store import POINTS, Timing
from orchestrate.types import MIGRATED_FROM, SubmitPhase


def killed(arguments: list[str]) -> None:
    """RUN and the point at which it ends itself."""
    old, point = arguments

    def reached(here: str) -> None:
        if here == point:
            os.kill(os.getpid(), signal.SIGKILL)

    made: Any = submission.submitter
    timing = Timing(send_limit_s=60.0, lease_s=1.0)
    submission.submitter = lambda *args: dataclasses.replace(made(*args), timing=timing, reached=reached)
    with Orchestrator(config.load(env=dict(os.environ), cwd=Path.cwd())) as ft:
        PreparedMigration(ft, old, order("together")).submit("together")


def submitted(ft: Orchestrator, old: RunHandle) -> RunHandle:
    """By the same command again, until it is there."""
    deadline = time.monotonic() + 240
    while True:
        sync(ft.store, ft.provider, timing=SETTLED)
        try:
            found = PreparedMigration(ft, ft.run(old.id), order("together")).submit("together")
        except OrchestrateError as error:
            assert error.retryable or isinstance(error, OutcomeUnknown), error
            assert time.monotonic() < deadline, error
            time.sleep(0.1)
            continue
        if found.record.phase is SubmitPhase.SUBMITTED:
            return found


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_migration_killed_at_each_step_is_one_job(
    ft: Orchestrator,
    old: RunHandle,
    own_env: dict[str, str],
    tmp_path: Path,
    point: str,
    record_property: Any,
) -> None:
    ended = command.run([old.id, point], cwd=tmp_path, env=own_env, program=killed)
    assert ended.code == -signal.SIGKILL, ended.err.decode()
    found = submitted(ft, old)
    new = ft.store.runs.matching(tags={MIGRATED_FROM: old.id})
    jobs = [job.handle.job_id for job in ft.provider("together").list()]
    record_property(
        "jobs",
        {
            "fault": "kill -9 of migrate",
            "where": "together",
            "runs": len(new),
            "jobs": len(jobs),
            "alarms": 0,
            "lost": int(not jobs),
            "doubled": max(0, len(jobs) - 1),
        },
    )
    assert [run.id for run in new] == [found.id] and jobs == [found.record.job_id]


@pytest.mark.slow
def test_two_who_carry_out_one_plan_at_once_submit_each_once(
    ft: Orchestrator, runs: list[RunHandle], sandbox: Sandbox, own_env: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "plan.yaml"
    written(ft, path)

    def carry(number: int) -> None:
        with Orchestrator(config.load(env=own_env, cwd=tmp_path)) as own:
            prepared = PreparedPlan(own, path, order())
            prepared.run(tmp_path / f"reports{number}", quiet)

    before = len(list(ft.provider("openai").list()))
    with ThreadPoolExecutor(3) as pool:
        both = [pool.submit(carry, n) for n in range(2)]
        while not all(one.done() for one in both):
            sandbox.skip(3600)
            time.sleep(0.1)
    for one in both:
        one.result()
    new = [run for old in runs for run in ft.store.runs.matching(tags={MIGRATED_FROM: old.id})]
    assert len(new) == 3 and len(list(ft.provider("openai").list())) == before + 3
