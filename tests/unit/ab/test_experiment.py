"""Who gets which model, what is recorded, and what the rule does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from orchestrate.ab import ABMiddleware, Experiment, ask, read_plan
from orchestrate.ab import launch as experiments
from orchestrate.ab.experiment import Given, arm_at, exposed, person
from orchestrate.ab.plan import recorded_sometimes, required
from orchestrate.errors import DataError, UsageError
from orchestrate.reports import experiments as pages
from orchestrate.store import Clock
from orchestrate.store.store import Store
from orchestrate.types import DecisionRule, ExperimentPlan, ExperimentReport, Exposure, PlannedMetric

RESOLVED = PlannedMetric(name="resolved", role="primary")
FAILED = PlannedMetric(name="failed", role="guardrail", better="lower")
LATENCY = PlannedMetric(name="latency_s", kind="number", better="lower")
PLAN = ExperimentPlan(
    name="bot",
    base="http://127.0.0.1:1/v1=base",
    tuned="http://127.0.0.1:2/v1=tuned",
    metrics=(RESOLVED, FAILED, LATENCY),
    rule=DecisionRule(stages=(50, 80, 100), min_users=20, min_hours=1),
)


class Later(Clock):
    """The machine's clock, moved on by a test."""

    def __init__(self) -> None:
        self.hours = 0.0

    def now(self) -> datetime:
        return datetime(2026, 11, 1, tzinfo=UTC) + timedelta(hours=self.hours)


@pytest.fixture
def clock() -> Later:
    return Later()


@pytest.fixture
def store(tmp_path: Path, clock: Later) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/runs.sqlite3", clock=clock) as opened:
        yield opened


def given_models(experiment: Experiment, store: Store, number: int) -> dict[str, list[str]]:
    """Users by arm; all of them in one write."""
    arms: dict[str, list[str]] = {"base": [], "tuned": []}
    [phase] = experiment.phases()
    seen: list[Exposure] = []
    for user in (f"user {n}" for n in range(number)):
        seen.append(exposed(person(experiment._record.salt, user), phase, store.clock.now()))
        arms[seen[-1].arm].append(user)
    store.experiments.expose(experiment.id, *seen)
    return arms


def told(experiment: Experiment, arms: dict[str, list[str]], **rates: float) -> None:
    rng = random.Random(1)
    lines = [Given(u, "resolved", rng.random() < rates[arm]) for arm, users in arms.items() for u in users]
    if any(metric.name == "failed" for metric in experiment.plan.metrics):
        lines += [Given(u, "failed", False) for users in arms.values() for u in users]
    rng.shuffle(lines)
    experiment.record_all(lines)


# -- users -------------------------------------------------------------------------------------------------


@given(st.text(st.characters(), min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_any_text_is_a_user_who_keeps_the_tuned_model_as_the_share_grows(
    user: str, one: float, other: float
) -> None:
    who = person("salt", user)
    assert who == person("salt", user) and 0 <= who.place < 1 and len(who.key) == 32
    low, high = sorted((one, other))
    if arm_at(who.place, low) == "tuned":
        assert arm_at(who.place, high) == "tuned"


def test_users_are_shared_out_evenly_and_anew_in_each_experiment() -> None:
    users = [f"u{n}" for n in range(20_000)]
    places = [[person(salt, user).place for user in users] for salt in ("one", "other")]
    for mine in places:
        assert sum(place < 0.1 for place in mine) == pytest.approx(2000, abs=200)
    both = sum(a < 0.1 and b < 0.1 for a, b in zip(*places, strict=True))
    assert both == pytest.approx(200, abs=70), "independent"


HOSTILE = [
    "'; DROP TABLE exposures; --",
    "a\0b",
    "\ud800",
    "é",
    "e\u0301",
    " ",
    "\u202eevil",
    "x" * 100_000,
    "0",
]


def test_hostile_ids_are_users_like_others(store: Store) -> None:
    experiment = Experiment.begin(PLAN, store)
    for user in [*HOSTILE, 7]:
        arm = experiment.assign(user).arm
        assert experiment.assign(user).arm == arm
        assert experiment.record(user, "resolved", 1, id=user).recorded == 1
        assert experiment.record(user, "resolved", 1, id=user).repeated == 1
    assert sum(experiment.report().users.values()) == len(HOSTILE) + 1
    with pytest.raises(UsageError, match="user"):
        experiment.assign("")


def test_no_id_of_a_user_is_in_the_store(store: Store, tmp_path: Path) -> None:
    experiment = Experiment.begin(PLAN, store)
    experiment.assign("anna@example.org")
    experiment.record("anna@example.org", "resolved", True, id="ticket of anna@example.org")
    store.close()
    assert not any(b"anna@" in path.read_bytes() for path in tmp_path.iterdir())


# -- outcomes ----------------------------------------------------------------------------------------------


def test_what_cannot_be_an_outcome_is_refused(store: Store) -> None:
    experiment = Experiment.begin(PLAN, store)
    experiment.assign("u")
    for metric, value in (
        ("resolved", 0.5),
        ("latency_s", float("nan")),
        ("latency_s", 10**400),
        ("what", 1),
    ):
        with pytest.raises(UsageError, match=metric):
            experiment.record("u", metric, value)
    assert experiment.record("nobody", "resolved", 1).unknown_users == 1
    assert experiment.report().counts == {
        "outcomes from users who were never assigned a model, not counted": 1
    }


def test_a_file_of_outcomes_can_be_taken_again_when_it_has_grown(store: Store, tmp_path: Path) -> None:
    experiment = Experiment.begin(PLAN, store)
    given_models(experiment, store, 3)
    file = tmp_path / "outcomes.jsonl"
    line = '{"user": "user 1", "metric": "latency_s", "value": 1.5, "at": "2026-11-01T10:00:00Z"}\n'
    file.write_text(line + line + '\n{"user": "user 2", "metric": "resolved", "value": true, "id": "t1"}\n')
    assert experiment.record_files([file]).recorded == 3
    file.write_text(file.read_text() + line)
    taken = experiment.record_files([file])
    assert (taken.recorded, taken.repeated) == (1, 3)


def test_one_wrong_line_and_none_is_recorded(store: Store, tmp_path: Path) -> None:
    experiment = Experiment.begin(PLAN, store)
    given_models(experiment, store, 3)
    file = tmp_path / "outcomes.jsonl"
    good = '{"user": "user 1", "metric": "resolved", "value": true}\n'
    bad = [
        "[]",
        "{",
        '{"user": "u"}',
        good.replace("true", "2"),
        good.replace("resolved", "x"),
        '{"user": ""}',
        "\udcff",
    ]
    file.write_text(good + "\n".join(bad), errors="surrogateescape")
    with pytest.raises(DataError, match="line 2") as raised:
        experiment.record_files([file])
    assert "contains 7 invalid outcomes, so" in str(raised.value)
    assert "and 2 more" in raised.value.message
    assert experiment.report().evidence[0].users == {"base": 0, "tuned": 0}


# -- the rule ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_ramps_and_ships_what_is_better(store: Store, clock: Later) -> None:
    experiment = Experiment.begin(PLAN, store)
    assert experiment.step().decision.why == "each arm needs 20 users in the 50% stage (fewest so far: 0)"
    arms = given_models(experiment, store, 300)
    told(experiment, arms, base=0.2, tuned=0.7)
    assert "hours" in experiment.step().decision.why
    clock.hours = 2
    ramped = experiment.step()
    assert (ramped.applied, ramped.share, ramped.state) == (True, 0.8, "running")
    assert all(experiment.assign(u).arm == "tuned" for u in arms["tuned"]), "who has it keeps it"
    moved = sum(experiment.assign(u).arm == "tuned" for u in arms["base"])
    assert moved / len(arms["base"]) == pytest.approx(0.6, abs=0.2)
    clock.hours = 4
    shipped = experiment.step()
    assert (shipped.state, shipped.share) == ("shipped", 1.0) and "resolved is better" in shipped.phases[
        -1
    ].why
    assert experiment.assign("anybody").arm == "tuned" and not experiment.assign("anybody").counted
    assert experiment.record("user 1", "resolved", 1).after_end == 1
    assert experiment.step().applied is False and "ended" in experiment.step().decision.why


@pytest.mark.parametrize("metric", ["resolved", "failed"])
def test_it_rolls_back_what_is_worse(store: Store, metric: str) -> None:
    """At once, before users and hours are enough."""
    experiment = Experiment.begin(replace(PLAN, rule=replace(PLAN.rule, min_users=10_000)), store)
    arms = given_models(experiment, store, 300)
    for arm, rate in (("base", 0.7), ("tuned", 0.2)):
        good = [n % 10 < rate * 10 for n in range(len(arms[arm]))]
        values = [value == (metric == "resolved") for value in good]
        experiment.record_all([Given(u, metric, v) for u, v in zip(arms[arm], values, strict=True)])
    back = experiment.step()
    assert (back.state, back.share, back.applied) == ("rolled back", 0.0, True)
    assert metric in back.phases[-1].why and "worse" in back.phases[-1].why
    assert {experiment.assign(u).arm for u in arms["tuned"]} == {"base"}


@pytest.mark.slow
def test_a_clock_that_was_set_back_decides_nothing_and_is_told(store: Store, clock: Later) -> None:
    """Who gets which model, and what is known, does not hang on the time of day."""
    experiment = Experiment.begin(PLAN, store)
    arms = given_models(experiment, store, 1200)
    clock.hours = -9000
    told(experiment, arms, base=0.2, tuned=0.9)
    assert {arm: {experiment.assign(u).arm for u in users} for arm, users in arms.items()} == {
        "base": {"base"},
        "tuned": {"tuned"},
    }
    held = experiment.step()
    assert held.decision.verb == "hold" and "this machine's clock (2025-10-" in held.decision.why
    clock.hours = 24 * 365 * 10
    assert experiment.step().phases[-1].verb == "ramp"
    clock.hours = 2
    assert experiment.report().phases[-1].verb == "ramp"


@pytest.mark.slow
def test_a_worsening_within_its_margin_is_borne(store: Store, clock: Later) -> None:
    borne = replace(RESOLVED, margin=0.3)
    rule = replace(PLAN.rule, goal="not worse", stages=(50, 100))
    experiment = Experiment.begin(replace(PLAN, metrics=(borne,), rule=rule), store)
    told(experiment, given_models(experiment, store, 1200), base=0.50, tuned=0.45)
    clock.hours = 2
    assert experiment.report().decision.verb == "ship"
    worse = Experiment.begin(replace(PLAN, name="worse", metrics=(borne,), rule=rule), store)
    told(worse, given_models(worse, store, 1200), base=0.9, tuned=0.3)
    assert worse.report().decision.verb == "roll back"


def test_a_goal_that_is_not_reached_in_time_is_given_up(store: Store) -> None:
    rule = replace(PLAN.rule, most_users=100)
    experiment = Experiment.begin(replace(PLAN, rule=rule), store)
    told(experiment, given_models(experiment, store, 120), base=0.5, tuned=0.5)
    assert "not shown to be better after 120 users" in experiment.step().phases[-1].why


def test_lost_outcomes_of_an_arm_stop_the_rule(store: Store, clock: Later) -> None:
    experiment = Experiment.begin(PLAN, store)
    arms = given_models(experiment, store, 400)
    told(experiment, {"base": arms["base"], "tuned": arms["tuned"][::3]}, base=0.2, tuned=0.9)
    clock.hours = 2
    held = experiment.step()
    assert (
        held.decision.verb == "hold"
        and "the two arms record resolved at different rates (p =" in held.decision.why
    )
    assert any("the arms do NOT report outcomes equally often (p =" in note for note in pages.notes(held))


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["resolved", "escalated"])
@pytest.mark.parametrize("most_users", [None, 100])
def test_nothing_ramps_while_outcomes_of_a_deciding_metric_come_from_one_arm(
    store: Store, clock: Later, metric: str, most_users: int | None
) -> None:
    """A guardrail that is recorded only when it happens, as often as the tuned model makes it happen."""
    escalated = PlannedMetric(name="escalated", role="guardrail", better="lower")
    rule = replace(PLAN.rule, most_users=most_users)
    experiment = Experiment.begin(replace(PLAN, metrics=(RESOLVED, escalated, FAILED), rule=rule), store)
    arms = given_models(experiment, store, 400)
    alike = "resolved" if metric == "escalated" else "escalated"
    rng = random.Random(3)
    experiment.record_all(Given(u, alike, rng.random() < 0.5) for users in arms.values() for u in users)
    experiment.record_all(Given(u, metric, True) for u in [*arms["base"][::20], *arms["tuned"][::2]])
    clock.hours = 2
    held = experiment.step()
    assert (held.decision.verb, held.applied, held.share) == ("hold", False, 0.5)
    assert f"the two arms record {metric} at different rates" in held.decision.why
    bad = {"base": 0.02, "tuned": 0.6}
    experiment.record_all(
        Given(u, "failed", n % 50 < bad[arm] * 50) for arm, users in arms.items() for n, u in enumerate(users)
    )
    back = experiment.step()
    assert (back.state, back.applied) == ("rolled back", True) and "failed" in back.phases[-1].why


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["resolved", "failed"])
@pytest.mark.parametrize("arms_with_outcomes", [(), ("base",)])
def test_nothing_ramps_before_a_deciding_metric_has_outcomes_of_both_arms(
    store: Store, clock: Later, metric: str, arms_with_outcomes: tuple[str, ...]
) -> None:
    """An application that never records a guardrail shows no harm by it."""
    experiment = Experiment.begin(replace(PLAN, metrics=(RESOLVED, FAILED)), store)
    arms = given_models(experiment, store, 200)
    other = "resolved" if metric == "failed" else "failed"
    users = [user for each in arms.values() for user in each]
    random.Random(1).shuffle(users)
    experiment.record_all(Given(user, other, False) for user in users)
    experiment.record_all(Given(u, metric, False) for arm in arms_with_outcomes for u in arms[arm][:2])
    clock.hours = 2
    held = experiment.step()
    assert (held.decision.verb, held.applied, held.share) == ("hold", False, 0.5)
    assert metric in held.decision.why
    experiment.record_all(Given(user, metric, False) for user in users)
    ramped = experiment.step()
    assert ramped.applied and ramped.share == 0.8, ramped.decision.why


def test_a_metric_of_which_a_missing_outcome_says_nothing_is_named_at_the_start() -> None:
    settled = PlannedMetric(name="e", role="guardrail", better="lower", of_user="any", window_h=1, absent=0)
    shown = PlannedMetric(name="shown")
    for metrics, names in (
        ((RESOLVED, FAILED, LATENCY), ["resolved"]),
        ((RESOLVED, replace(FAILED, name="escalated")), ["resolved", "escalated"]),
        ((replace(settled, role="primary"), replace(settled, name="f"), shown), []),
    ):
        assert recorded_sometimes(replace(PLAN, metrics=metrics)) == names


def test_it_is_stopped_with_either_model(store: Store) -> None:
    experiment = Experiment.begin(PLAN, store)
    assert experiment.stop("tuned") and not experiment.stop("tuned")
    assert experiment.assign("u").arm == "tuned" and experiment.report().state == "stopped"


def test_there_is_a_way_back_to_the_base_after_it_has_shipped(store: Store, clock: Later) -> None:
    plan = replace(PLAN, rule=replace(PLAN.rule, stages=(50, 100)))
    experiment = Experiment.begin(plan, store)
    told(experiment, given_models(experiment, store, 400), base=0.2, tuned=0.9)
    clock.hours = 2
    report = experiment.step()
    assert (report.phases[-1].verb, experiment.assign("u").arm) == ("ship", "tuned")
    with pytest.raises(UsageError, match="has already ended"):
        experiments.stop(experiment, "tuned")
    back = experiments.stop(experiment, "base")
    assert back.share == 0 and experiment.assign("u").arm == "base"
    assert [phase.verb for phase in back.phases][-2:] == ["ship", "stop"]
    assert experiments.stop(experiment, "tuned").share == 1, "and forth"


def test_what_was_written_down_is_not_changed_afterwards(store: Store) -> None:
    experiment = Experiment.begin(PLAN, store)
    assert Experiment.begin(PLAN, store).id == experiment.id
    assert Experiment.open("bot", store).id == Experiment.open(experiment.id, store).id == experiment.id
    with pytest.raises(UsageError, match="different plan"):
        Experiment.begin(replace(PLAN, rule=replace(PLAN.rule, alpha=0.2)), store)
    with pytest.raises(UsageError, match="no experiment matches"):
        Experiment.open("other", store)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "../x"}, "name"),
        ({"tuned": " "}, "tuned"),
        ({"rule": {"stages": [10, 5, 100]}}, "stages"),
        ({"rule": {"stages": [10, 50]}}, "stages"),
        ({"rule": {"alpha": 0}}, "alpha"),
        ({"rule": {"goal": "not worse"}}, "margin"),
        ({"rule": {"most_users": 3}}, "most_users"),
        ({"metrics": []}, "primary"),
        ({"metrics": [{"name": "m", "role": "primary", "of_user": "mean"}]}, "of_user"),
        ({"metrics": [{"name": "m", "role": "primary", "of_user": "any"}]}, "window_h"),
        ({"metrics": [{"name": "m", "role": "primary", "absent": 0}]}, "window_h"),
        ({"metrics": [{"name": "m", "role": "primary", "absent": 3, "window_h": 1}]}, "absent"),
        ({"metrics": [{"name": "m", "role": "primary"}, {"name": "m"}]}, "twice"),
        ({"metrics": [{"name": "m", "role": "primary", "margin": 0.1}]}, "margin"),
        ({"metrics": [{"name": "m", "role": "primary"}, {"name": "g", "margin": 5}]}, "below 1, got 5"),
        ({"metric": []}, "metric"),
        ({"key_variables": {"treatment": "X"}}, "treatment"),
    ],
)
def test_a_wrong_plan_says_what_is_wrong(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    import yaml

    good = {
        "name": "x",
        "base": "http://b/v1=b",
        "tuned": "http://t/v1=t",
        "metrics": [{"name": "m", "role": "primary"}],
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(good))
    assert required(read_plan(path)).primary.name == "m"
    path.write_text(yaml.safe_dump(good | change))
    with pytest.raises(UsageError, match=word):
        read_plan(path)


# -- in an application -------------------------------------------------------------------------------------


def test_the_middleware_gives_arms_and_records_what_came_of_them(store: Store) -> None:
    experiment = Experiment.begin(PLAN, store)

    async def home(request: Request) -> JSONResponse:
        given = getattr(request.state, "ab", None)
        return JSONResponse({"arm": given and given.arm}, 503 if given and given.arm == "tuned" else 200)

    def user(scope: Any) -> str | None:
        return dict(scope["headers"]).get(b"x-user", b"").decode() or None

    app = ABMiddleware(Starlette(routes=[Route("/", home)]), experiment, user)

    async def all_of_them() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            named = [(await client.get("/", headers={"x-user": f"user {n}"})).json() for n in range(40)]
            return [*named, (await client.get("/")).json()]

    *found, nobody = asyncio.run(all_of_them())
    assert [one["arm"] for one in found] == [experiment.assign(f"user {n}").arm for n in range(40)]
    assert nobody == {"arm": None}
    _, failed, latency = experiment.report().evidence
    assert failed.values == {"base": 0.0, "tuned": 1.0} and sum(latency.users.values()) == 40


def test_a_call_that_fails_is_answered_by_the_base_and_counts_as_the_tuned_models(store: Store) -> None:
    experiment = Experiment.begin(PLAN, store)
    arms = given_models(experiment, store, 20)

    def broken() -> str:
        raise TimeoutError

    for users in arms.values():
        assert {ask(experiment, user, lambda: "base", broken) for user in users} == {"base"}
    assert ask(experiment, arms["tuned"][0], broken, lambda: "tuned") == "tuned"
    with pytest.raises(TimeoutError):
        ask(experiment, arms["base"][0], broken, lambda: "tuned")
    report = experiment.report()
    assert report.counts == {"the base answered in place of the tuned model": len(arms["tuned"])}
    assert report.evidence[1].values == {"base": 0.0, "tuned": 1.0}, "first answers"


# -- the report --------------------------------------------------------------------------------------------


def test_the_report_is_a_page_a_table_and_json(store: Store, tmp_path: Path) -> None:
    hostile = PlannedMetric(name="a b", role="guardrail")
    experiment = Experiment.begin(replace(PLAN, tuned="<script>=x", metrics=(RESOLVED, hostile)), store)
    told(experiment, given_models(experiment, store, 200), base=0.2, tuned=0.8)
    experiment.count("<script>alert(1)</script>\x1b[2J")
    report = experiment.report()
    page = pages.save(report, tmp_path / "r.html").read_text()
    assert page.count("<figure") == 1 and page.count("<svg") == 2, "once for a page, once for a phone"
    assert "resolved" in page and "<script>" not in page and "\x1b" not in page
    table = pages.save(report, tmp_path / "r.txt").read_text()
    assert "running at 50%" in table and "better" in table and "\x1b" not in table
    kept = pages.save(report, tmp_path / "r.json").read_bytes()
    assert ExperimentReport.from_json(kept) == report and b"salt" not in kept
    with pytest.raises(UsageError, match="must end in"):
        pages.save(report, tmp_path / "r.pdf")
