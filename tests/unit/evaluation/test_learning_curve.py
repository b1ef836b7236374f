"""What more rows are worth: the intervals hold what is true as often as they say."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from orchestrate.evaluation.learning_curve import LEVEL, Law, Measured, measured_gain, speeds_up
from orchestrate.runs.sweep import curve
from orchestrate.types import Trial, TrialState

_ROWS = (125, 250, 500, 1000)


def lost(rows: float, floor: float, scale: float, power: float) -> float:
    return floor + scale * (rows / 1000) ** -power


def share_held(curves: int, error: float | None, noise: float) -> tuple[float, float]:
    """How often the interval holds the true worth of 1,000 rows more, and of the second half of the rows."""
    chance = random.Random(7)
    more = half = 0
    for seed in range(curves):
        floor, scale = chance.uniform(0, 0.25), chance.uniform(0.02, 0.3)
        power = math.exp(chance.uniform(math.log(0.05), math.log(1.5)))
        points = [Measured(n, lost(n, floor, scale, power) + chance.gauss(0, noise), error) for n in _ROWS]
        law = Law(points, seed=seed)
        for after, counted in ((2000, "more"), (1000, "half")):
            before = after // 2
            gain = law.gain(before, after)
            true = lost(before, floor, scale, power) - lost(after, floor, scale, power)
            held = (gain.low or 0.0) <= true <= (gain.high or 0.0)
            more, half = more + (held and counted == "more"), half + (held and counted == "half")
    return more / curves, half / curves


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "noise"), [(0.015, 0.015), (0.03, 0.03), (None, 0.015)], ids=["known", "large", "unknown"]
)
def test_the_interval_holds_the_truth_at_its_rate(error: float | None, noise: float) -> None:
    for rate in share_held(400, error, noise):
        assert rate == pytest.approx(LEVEL, abs=0.06)  # three standard errors of 400 curves are 0.045


def test_without_noise_the_law_is_found() -> None:
    points = [Measured(n, lost(n, 0.1, 0.2, 0.5), 1e-4) for n in _ROWS]
    gain = Law(points).gain(1000, 2000)
    assert gain.value == pytest.approx(0.2 * (1 - 2**-0.5), rel=0.05)
    assert gain.low is not None and gain.high is not None and 0 < gain.low < gain.value < gain.high


def test_flat_scores_promise_little() -> None:
    gain = Law([Measured(n, 0.2, 0.01) for n in _ROWS]).gain(1000, 2000)
    assert gain.low is not None and gain.high is not None
    assert 0 <= gain.low < 0.002 and gain.high < 0.03


def test_two_sizes_are_no_curve() -> None:
    with pytest.raises(ValueError, match="three data sizes"):
        Law([Measured(100, 0.5, 0.01), Measured(200, 0.4, 0.01), Measured(200, 0.42, 0.01)])


def test_a_score_that_speeds_up_is_told() -> None:
    assert speeds_up([Measured(n, y, 0.01) for n, y in zip(_ROWS, (0.9, 0.88, 0.8, 0.5), strict=True)])
    assert not speeds_up([Measured(n, lost(n, 0.1, 0.2, 0.5), 0.01) for n in _ROWS])


def test_a_measured_step_has_the_errors_of_both() -> None:
    gain = measured_gain(Measured(500, 0.30, 0.03), Measured(1000, 0.25, 0.04))
    assert (gain.value, gain.low, gain.high) == pytest.approx(
        (0.05, 0.05 - 1.645 * 0.05, 0.05 + 1.645 * 0.05)
    )
    assert measured_gain(Measured(500, 0.3, None), Measured(1000, 0.25, 0.04)).low is None


def trials(scores: Sequence[float]) -> SimpleNamespace:
    """A search that has ended, with these scores of 100 answers each by growing shares."""
    shares = [2.0 ** -(len(scores) - 1 - k) for k in range(len(scores))]
    found = [
        Trial(
            number=k,
            settings={"share": share},
            state=TrialState.SCORED,
            score=score,
            score_low=score - 0.02,
            score_high=score + 0.02,
        )
        for k, (share, score) in enumerate(zip(shares, scores, strict=True))
    ]
    search = SimpleNamespace(id="sweep-1", target="eval:exact_match", choices={"share": shares})
    runs = SimpleNamespace(of_ids=lambda _: [])
    ft = SimpleNamespace(store=SimpleNamespace(runs=runs))
    return SimpleNamespace(search=search, maximise=True, trials=found, ft=ft)


def test_rows_that_did_harm_are_no_curve() -> None:
    worse = curve.curve(trials([0.5, 0.6, 0.8, 0.7]), 1000, 1000)  # type: ignore[arg-type]
    assert worse.more is None and worse.half is not None and (worse.half.high or 0.0) < 0
    [said] = curve.summary(worse)
    assert "scored worse" in said
    better = curve.curve(trials([0.5, 0.6, 0.7, 0.75]), 1000, 1000)  # type: ignore[arg-type]
    assert better.more is not None and better.more.value > 0 and len(curve.summary(better)) == 2
