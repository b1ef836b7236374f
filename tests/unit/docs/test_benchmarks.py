"""The arithmetic of benchmarks whose figures are printed in docs/benchmarks.md, by hand."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from orchestrate.data.operations.score import RowScore, ScoredFile, Scores
from orchestrate.evaluation.learning_curve import Gain
from orchestrate.types import Trial, TrialState

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def suggestions() -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARKS / "suggestions.py"))


@pytest.fixture(scope="module")
def selection() -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARKS / "selection.py"))


def trials(*losses: float) -> list[Trial]:
    return [
        Trial(number=n, settings={"seed": n}, state=TrialState.SCORED, run_id=f"run-{n}", score=loss)
        for n, loss in enumerate(losses)
    ]


def test_a_gain_is_worse_only_beyond_the_noise_of_the_seeds(suggestions: dict[str, Any]) -> None:
    """By hand: the variance of 1.0, 1.2, 1.4 is 0.04, that of the others 0.04 and 0, so 0.08 / 3 for all; a
    mean of three has the standard error sqrt(0.08 / 9), a difference sqrt(2) of it; 90% are 1.645 of that."""
    groups = [
        ("default", {}, trials(1.0, 1.2, 1.4)),
        ("proposal", {"learning_rate": 1.0}, trials(1.1, 1.3, 1.5)),
        ("grid", {}, trials(3.0, 3.0, 3.0)),
    ]
    default, proposal, worse = suggestions["beside"](groups)
    assert default[2] == pytest.approx(1.2) and default[3].value == 0
    assert proposal[3].value == pytest.approx(-0.1)
    half = 1.645 * (2 * 0.08 / 9) ** 0.5
    assert (proposal[3].low, proposal[3].high) == pytest.approx((-0.1 - half, -0.1 + half))
    assert suggestions["verdict"](proposal[3]) == "within the noise"
    assert suggestions["verdict"](worse[3]) == "worse"
    better = Gain(rows_before=0, rows_after=0, value=1.0, low=0.5, high=1.5)
    assert suggestions["verdict"](better) == "better"
    assert suggestions["verdict"](Gain(rows_before=0, rows_after=0, value=1.0)) == "not known"


def test_the_grid_lies_around_the_proposal(suggestions: dict[str, Any]) -> None:
    assert suggestions["grid"]({"learning_rate": 2e-4, "adapter.r": 16}) == {
        "learning_rate": (6.7e-05, 6e-4, 2e-3),
        "adapter.r": (8, 32),
    }


def test_planted_answers_are_wrong_and_their_rows_known(selection: dict[str, Any]) -> None:
    lines = [
        json.dumps(
            {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": f"a{n}"}]}
        )
        for n in range(50)
    ]
    rows, wrong = selection["planted"](lines, 0.3, 1)
    changed = {n for n, (row, line) in enumerate(zip(rows, lines, strict=True), start=1) if row != line}
    assert changed == wrong and len(wrong) == 15
    assert selection["planted"](lines, 0.3, 1) == (rows, wrong)


def test_precision_and_recall_by_hand(selection: dict[str, Any]) -> None:
    """Of four rows the two most doubted are left out, one of which is wrong; two of three named ones are."""
    doubts = {1: 0.9, 2: 0.8, 3: 0.1, 4: 0.2}
    rows = {
        row: RowScore(row=row, loss=doubt, likely_label="x" if row != 3 else None)
        for row, doubt in doubts.items()
    }
    found = selection["found"](Scores(ScoredFile(scores_of="f", digest="d"), rows), {1, 4})
    assert found["loss"] == (0.5, 0.5, 2)
    assert found["label, as named"] == (pytest.approx(2 / 3), 1.0, 3)
    assert set(found) == {"loss", "label, as named"}
    both = selection["means"]([found, {"loss": selection["hits"]({1}, {1})}])
    assert both["loss"] == (0.75, 0.75, 2) or both["loss"] == (0.75, 0.75, 1)
