"""Experiments in the store, on SQLite and Postgres: several processes, and kills."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from tests import command

from orchestrate.ab import Experiment
from orchestrate.ab.experiment import Given
from orchestrate.store.store import Store
from orchestrate.types import DecisionRule, ExperimentPlan, ExperimentReport, PlannedMetric

PLAN = ExperimentPlan(
    name="bot",
    base="b",
    tuned="t",
    metrics=(PlannedMetric(name="ok", role="primary"), PlannedMetric(name="s", kind="number")),
    rule=DecisionRule(stages=(50, 75, 100), min_users=2, min_hours=0),
)
USERS = [f"user {n}" for n in range(40)]


def test_processes_that_begin_at_once_begin_one(store: Store, store_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: Experiment.begin(PLAN, store), range(8)))
    assert len({one.id for one in found}) == 1 and len(found[0].phases()) == 1
    with Experiment.open("bot", store_url) as again:
        assert again.plan == PLAN
        assert [again.assign(u) for u in USERS] == [found[0].assign(u) for u in USERS]


def told(experiment: Experiment) -> None:
    """Without outcomes of both models the rule would hold still."""
    for user in USERS:
        experiment.assign(user)
        experiment.record(user, "ok", 1, id=user)


def test_a_decision_about_a_phase_that_has_ended_changes_nothing(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Experiment.begin(PLAN, store)
    told(mine)
    with Experiment.open("bot", store_url) as other:
        late = other.report()
        assert mine.step().applied
        monkeypatch.setattr(Experiment, "report", lambda one: late)
        assert not other.step().applied
    assert [p.share for p in mine.phases()] == [0.5, 0.75]


def test_two_that_decide_at_once_make_one_step(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen the first phase before either of them ends it."""
    mine = Experiment.begin(PLAN, store)
    both, looked, report = Barrier(2), set[int](), Experiment.report

    def together(one: Experiment) -> ExperimentReport:
        seen = report(one)
        if id(one) not in looked:
            looked.add(id(one))
            both.wait(240)
        return seen

    told(mine)
    with Experiment.open("bot", store_url) as other:
        arms = {user: mine.assign(user).arm for user in USERS}
        monkeypatch.setattr(Experiment, "report", together)
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda one: one.step(), (mine, other)))
        assert sorted(len(r.phases) for r in done)[-1] == 2 and sum(r.applied for r in done) >= 1
        assert [p.share for p in mine.phases()] == [p.share for p in other.phases()] == [0.5, 0.75]
        for user, arm in arms.items():
            now = {mine.assign(user).arm, other.assign(user).arm}
            assert len(now) == 1 and (arm == "base" or now == {"tuned"})
    seen = store.experiments.exposures(mine.id)
    assert len(seen) == len({(e.user, e.phase) for e in seen}) == 2 * len(USERS)


def test_outcomes_are_counted_once_from_many_threads(store: Store) -> None:
    experiment = Experiment.begin(PLAN, store)
    for user in USERS:
        experiment.assign(user)
    given = [Given(user, "s", 1.5, id=f"{user} {n}") for user in USERS[:10] for n in range(2)]
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(experiment.record_all, [given] * 4))
        list(pool.map(lambda _: experiment.count("x"), range(20)))
    assert sum(one.recorded for one in taken) == 20 and sum(one.repeated for one in taken) == 60
    report = experiment.report()
    assert sum(report.evidence[1].users.values()) == 10 and report.counts["x"] == 20


def assigning(arguments: list[str]) -> None:
    """Gives users their models and records, until it is killed; says what is certain."""
    url, begin = arguments
    with Experiment.open("bot", url) as experiment:
        for n in range(int(begin), 100_000):
            arm = experiment.assign(f"person {n}").arm
            experiment.record(f"person {n}", "ok", 1, id=n)
            print(f"person {n} {arm}", flush=True)


@pytest.mark.slow
def test_killed_processes_lose_nothing_that_they_said(store: Store, store_url: str, tmp_path: Path) -> None:
    experiment = Experiment.begin(PLAN, store)
    outs = [tmp_path / "one", tmp_path / "two"]
    (tmp_path / "in").touch()
    running = [
        command.start(
            assigning,
            [store_url, str(50_000 * n)],
            cwd=tmp_path,
            env=dict(os.environ),
            streams=[tmp_path / "in", out, tmp_path / f"err {n}"],
        )
        for n, out in enumerate(outs)
    ]
    until = time.monotonic() + 240
    while min(out.read_text().count("\n") if out.exists() else 0 for out in outs) < 15:
        assert time.monotonic() < until
        time.sleep(0.05)
    for process in running:
        process.kill()
        process.join()
    said = [
        line.rsplit(" ", 1) for out in outs for line in out.read_text().splitlines() if line.count(" ") == 2
    ]
    arms = {"base", "tuned"}
    certain = [(user, arm) for user, arm in said if arm in arms]
    assert len(certain) >= 30
    for user, arm in certain:
        assert experiment.assign(user).arm == arm
        assert experiment.record(user, "ok", 1, id=user.removeprefix("person ")).repeated == 1
    counted = sum(experiment.report().evidence[0].users.values())
    assert len(certain) <= counted <= len(certain) + 4
    assert store.verify() == []
