"""One verdict: what an evaluation found, joined with all else that the store knows of the same model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from msgspec.structs import replace
from tests.reviewing import answered, desk_of
from typer.testing import CliRunner

from orchestrate import JobSpec, Orchestrator
from orchestrate.cli import app
from orchestrate.evaluation.regression import Regression, judged
from orchestrate.evaluation.scoring import paired
from orchestrate.evaluation.verdict import Demand, verdicts
from orchestrate.reports.records import ComparisonSummary
from orchestrate.runs.evaluation.regression import KIND
from orchestrate.settings import config
from orchestrate.store.runs import Intent
from orchestrate.types import (
    Checkpoint,
    Contender,
    Evaluation,
    JobStatus,
    Measure,
    MetricUsed,
    Rating,
    Score,
    Verdict,
)

RIGHT = MetricUsed(name="exact_match", kind="right-or-wrong")
START = datetime(2026, 11, 20, 9, tzinfo=UTC)
BASE = Contender(name="base tiny", kind="base", model="tiny", provider="local", served_by="here")


@pytest.fixture
def ft(tmp_path: Path) -> Iterator[Orchestrator]:
    with Orchestrator(config.load(home=tmp_path / "home")) as found:
        yield found


@pytest.fixture
def run_id(ft: Orchestrator) -> str:
    spec = JobSpec(model="tiny-chat", train="t.jsonl")
    return ft.store.runs.create(Intent(spec=spec, provider="local", dataset_digest="d", host="here")).id


def tuned(run_id: str, checkpoint: str | None = None) -> Contender:
    name = f"{run_id}@{checkpoint}" if checkpoint else run_id
    return replace(BASE, name=name, kind="tuned", run_id=run_id, checkpoint=checkpoint)


def evaluated(
    ft: Orchestrator,
    one: Contender,
    gained: int,
    lost: int = 0,
    *,
    id: str = "eval-1",
    demand: Demand = Demand(),  # noqa: B008  frozen
    parity: bool = False,
) -> None:
    """An evaluation of 100 rows, in the store."""
    values = [(1.0, 0.0)] * gained + [(0.0, 1.0)] * lost + [(1.0, 1.0)] * (100 - gained - lost)
    apart = paired(RIGHT, values, [str(i) for i in range(100)], one.name, BASE.name, alone=True)
    ft.store.history.add_evaluation(
        Evaluation(
            id=id,
            created_at=START + timedelta(minutes=len(ft.store.history.evaluations())),
            dataset="t.jsonl",
            dataset_digest="d",
            items=100,
            items_digest="e" * 64,
            contenders=(one, BASE),
            metrics=(RIGHT,),
            measures=(
                Measure(contender=one.name, metric=RIGHT.name, score=Score(value=1, low=0.96, high=1, n=100)),
            ),
            differences=(apart,),
            verdicts=tuple(verdicts(RIGHT, [], [apart], demand, [one.name])),
            parity=parity,
        )
    )


def regressed(ft: Orchestrator, one: Contender, *results: tuple[str, int, int]) -> None:
    """What probes of 100 items found: (name, gained, lost)."""
    found = []
    for probe, gained, lost in results:
        values = [(1.0, 0.0)] * gained + [(0.0, 1.0)] * lost + [(1.0, 1.0)] * (100 - gained - lost)
        apart = paired(RIGHT, values, [str(i) for i in range(100)], one.name, BASE.name, alone=True)
        able = Score(value=0.9, low=0.85, high=0.95, n=100)
        found.append(judged(probe, probe, RIGHT, able, able, apart, 0.1))
    regression = Regression(
        run_id=one.run_id or "", created_at=START, tuned=one, base=BASE, results=tuple(found)
    )
    ft.store.history.add_record(one.run_id or "", KIND, regression)


def verdict(ft: Orchestrator, run_id: str) -> Verdict:
    [found] = ft.evaluations(run_id)[-1].verdicts
    return found


def chosen(ft: Orchestrator, run_id: str) -> str | None:
    """By `compare`, of the run as it will have ended."""
    return answer(ft, run_id).run


def answer(ft: Orchestrator, run_id: str) -> ComparisonSummary:
    return ft.compare([replace(ft.store.runs.get(run_id), status=JobStatus.SUCCEEDED)]).answer


def test_what_was_forgotten_stops_a_better_model(ft: Orchestrator, run_id: str) -> None:
    one = tuned(run_id)
    evaluated(ft, one, gained=20)
    assert verdict(ft, run_id).decision == "ship"
    regressed(ft, one, ("languages", 0, 40), ("arithmetic", 0, 0))
    found = verdict(ft, run_id)
    assert found.decision == "do not ship" and any("languages" in reason for reason in found.reasons)
    assert chosen(ft, run_id) is None
    # Kept since: of each probe the newest result holds, and another probe's does not hide it.
    regressed(ft, one, ("arithmetic", 0, 0))
    assert verdict(ft, run_id).decision == "do not ship" and chosen(ft, run_id) is None
    regressed(ft, one, ("languages", 0, 0))
    assert verdict(ft, run_id).decision == "ship" and chosen(ft, run_id) == run_id


def test_what_is_open_is_not_shipped(ft: Orchestrator, run_id: str) -> None:
    evaluated(ft, tuned(run_id), gained=20)
    regressed(ft, tuned(run_id), ("languages", 0, 9))
    assert verdict(ft, run_id).decision == "not enough evidence"


def test_another_checkpoint_is_another_model(ft: Orchestrator, run_id: str) -> None:
    evaluated(ft, tuned(run_id), gained=20)
    regressed(ft, tuned(run_id, "step-10"), ("languages", 0, 40))
    assert verdict(ft, run_id).decision == "ship"
    assert ft.compare([run_id]).runs[0].regression is None
    evaluated(ft, tuned(run_id, "step-10"), gained=20, id="eval-2")
    assert verdict(ft, run_id).decision == "do not ship"


def ended(ft: Orchestrator, run_id: str, **changed: object) -> None:
    """The run has succeeded after 38 steps, with checkpoints of two of them."""
    kept = [Checkpoint(id=f"step-{step:08d}", step=step) for step in (19, 38)]
    ft.store.history.set_checkpoints(run_id, kept)
    spec = ft.store.runs.get(run_id).spec
    ft.store.runs.apply(
        run_id,
        lambda run: replace(run, status=JobStatus.SUCCEEDED, step=38, spec={**spec, **changed}),
    )


@pytest.mark.parametrize("named", ["38", "step-00000038"])
def test_the_last_steps_checkpoint_is_the_run(ft: Orchestrator, run_id: str, named: str) -> None:
    ended(ft, run_id)
    regressed(ft, tuned(run_id), ("languages", 0, 40))
    evaluated(ft, tuned(run_id, named), gained=20)
    found = verdict(ft, run_id)
    assert found.decision == "do not ship" and any("languages" in reason for reason in found.reasons)


def test_what_the_last_steps_checkpoint_forgot_the_run_forgot(ft: Orchestrator, run_id: str) -> None:
    ended(ft, run_id)
    regressed(ft, tuned(run_id, "38"), ("languages", 0, 40))
    evaluated(ft, tuned(run_id), gained=20)
    assert verdict(ft, run_id).decision == "do not ship" and chosen(ft, run_id) is None


def test_a_checkpoint_of_a_run_that_forgot_is_to_be_measured(ft: Orchestrator, run_id: str) -> None:
    ended(ft, run_id)
    regressed(ft, tuned(run_id), ("languages", 0, 40))
    evaluated(ft, tuned(run_id, "19"), gained=20)
    found = verdict(ft, run_id)
    assert found.decision == "not enough evidence"
    assert any("not measured for this checkpoint" in reason for reason in found.reasons)
    # Measured by the other name of the same weights.
    regressed(ft, tuned(run_id, "step-00000019"), ("languages", 0, 0))
    assert verdict(ft, run_id).decision == "ship"


def test_a_checkpoint_beside_one_that_kept_all_is_told(ft: Orchestrator, run_id: str) -> None:
    ended(ft, run_id)
    regressed(ft, tuned(run_id), ("languages", 0, 0))
    evaluated(ft, tuned(run_id, "19"), gained=20)
    found = verdict(ft, run_id)
    assert found.decision == "ship" and any("not measured" in reason for reason in found.reasons)


def test_with_the_best_weights_the_last_step_is_another_model(ft: Orchestrator, run_id: str) -> None:
    ended(ft, run_id, keep_best=True)
    regressed(ft, tuned(run_id), ("languages", 0, 40))
    evaluated(ft, tuned(run_id, "38"), gained=20)
    assert verdict(ft, run_id).decision == "not enough evidence"


@pytest.mark.parametrize(("lost", "decision"), [(0, "ship"), (4, "not enough evidence"), (30, "do not ship")])
def test_parity_with_the_model_it_replaces_counts(
    ft: Orchestrator, run_id: str, lost: int, decision: str
) -> None:
    evaluated(ft, tuned(run_id), 0, lost, id="eval-1", demand=Demand(margin=-0.05), parity=True)
    evaluated(ft, tuned(run_id), gained=20, id="eval-2")
    found = verdict(ft, run_id)
    assert found.decision == decision and any("eval-1" in reason for reason in found.reasons)
    assert (chosen(ft, run_id) == run_id) == (decision == "ship")
    assert ("eval-1" in answer(ft, run_id).sentence) == (decision != "ship")


@pytest.mark.parametrize(("choice", "decision"), [("right", "do not ship"), ("left", "ship")])
def test_people_who_prefer_the_base_stop_it(
    ft: Orchestrator, run_id: str, tmp_path: Path, choice: Literal["left", "right"], decision: str
) -> None:
    evaluated(ft, tuned(run_id), gained=20)
    rows = answered(*((f"{i}?", f"mine {i}", f"its {i}") for i in range(20)), names=(run_id, BASE.name))
    desk = desk_of(ft.store, tmp_path / "r", rows, names=(run_id, BASE.name), run_ids=(run_id,))
    ratings = [
        Rating(
            review=desk.review.id,
            task=task.id,
            rater="ann",
            choice=choice,
            left=run_id,
            right=BASE.name,
            at=START,
        )
        for task in desk.tasks
    ]
    ft.store.reviews.rate(*ratings)
    found = verdict(ft, run_id)
    assert found.decision == decision and any(desk.review.id in reason for reason in found.reasons)


def test_a_model_that_was_proved_to_be_another_does_not_ship(ft: Orchestrator, run_id: str) -> None:
    evaluated(ft, replace(tuned(run_id), proof="failed: answers"), gained=20)
    assert verdict(ft, run_id).decision == "do not ship"


def test_joining_twice_says_nothing_twice(ft: Orchestrator, run_id: str) -> None:
    from orchestrate.runs.evaluation.verdicts import joined

    evaluated(ft, tuned(run_id), gained=20)
    regressed(ft, tuned(run_id), ("languages", 0, 40))
    once = ft.evaluations(run_id)
    assert joined(ft, once) == once and len(once[0].verdicts[0].reasons) == 2


def test_show_tells_the_verdict(ft: Orchestrator, run_id: str, tmp_path: Path) -> None:
    evaluated(ft, tuned(run_id), gained=20)
    regressed(ft, tuned(run_id), ("languages", 0, 40))
    home = str(tmp_path / "home")
    shown = CliRunner().invoke(app, ["--home", home, "show", run_id, "--offline"])
    assert "do not ship (eval-1)" in " ".join(shown.output.split())
    told = CliRunner().invoke(app, ["--home", home, "show", run_id, "--offline", "--json"])
    [verdict] = json.loads(told.stdout)["evaluations"][0]["verdicts"]
    assert verdict["decision"] == "do not ship"
