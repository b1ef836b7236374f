"""A repeat is recognised by the time that has passed, whatever the wall clock says meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from orchestrate.store import Clock, Uptime
from orchestrate.store.gateway import CreateKey
from orchestrate.store.store import Store
from orchestrate.types import GatewayJob


class Set(Clock):
    """A machine whose wall clock is set by hand, while time passes."""

    set_by, passed, boot = timedelta(0), 0.0, "one"

    def now(self) -> datetime:
        return super().now() + self.set_by + timedelta(seconds=self.passed)

    def uptime(self) -> Uptime:
        return Uptime(self.boot, super().uptime().seconds + self.passed)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/runs.sqlite3", clock=Set()) as found:
        yield found


def take(store: Store, id: str, retries: int = 0) -> str:
    up = store.clock.uptime()
    job = GatewayJob(
        id=id,
        key="ann",
        project="p",
        created_at=store.clock.now(),
        asked={},
        tuned=f"ft:m:o::{id}",
        backend="local",
        spec={},
        boot=up.boot,
        uptime_s=up.seconds,
    )
    return store.gateway_jobs.take(job, CreateKey("ann", "digest", retries), lambda use: None)[0].id


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_is_set_makes_no_job_twice(store: Store, hours: int) -> None:
    take(store, "first")
    store.clock.set_by = timedelta(hours=hours)  # type: ignore[attr-defined]
    assert take(store, "again", retries=1) == "first"


@pytest.mark.parametrize("boot", ["one", "two"], ids=["up", "started again"])
def test_after_an_hour_a_repeat_is_of_another_request(store: Store, boot: str) -> None:
    take(store, "first")
    store.clock.passed, store.clock.boot = 3700.0, boot  # type: ignore[attr-defined]
    assert take(store, "second", retries=1) == "second"
    assert take(store, "third", retries=2) == "second", "the newest"


def test_within_the_hour_a_restart_of_the_machine_forgets_nothing(store: Store) -> None:
    take(store, "first")
    store.clock.passed, store.clock.boot = 600.0, "two"  # type: ignore[attr-defined]
    assert take(store, "again", retries=1) == "first"
