"""Which trial comes next and which is given up, held against Optuna by itself and the rule by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrate.runs.sweep.space import Space
from orchestrate.runs.sweep.trial_sampler import given_up, next_settings
from orchestrate.types import Trial, TrialState

SPACE = Space({"r": (8, 16), "template": (["a"], ["b"], ["c"])}, {})
WIDE = Space({"r": (8, 16, 32)}, {"learning_rate": (1e-5, 1e-2, True)})


def carried_out(
    space: Space, sampler: str, count: int, score: Callable[[Any], float], seed: int = 0
) -> list[Trial]:
    trials: list[Trial] = []
    while len(trials) < count:
        chosen = next_settings(space, sampler, seed, trials, maximise=False)
        if chosen is None:
            break
        state = TrialState.SCORED
        trials.append(Trial(number=len(trials), settings=dict(chosen), state=state, score=score(chosen)))
    return trials


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_every_choice_is_tried_once_and_then_nothing(sampler: str) -> None:
    trials = carried_out(SPACE, sampler, 100, lambda s: float(s["r"]))
    found = sorted(repr(sorted(trial.settings.items())) for trial in trials)
    assert found == sorted(repr(sorted(s.items())) for s in SPACE.combinations())


def test_a_grid_goes_in_the_order_in_which_it_was_written() -> None:
    trials = carried_out(SPACE, "grid", 100, lambda _: 0.0)
    expected = list(itertools.product((8, 16), (["a"], ["b"], ["c"])))
    assert [(t.settings["r"], t.settings["template"]) for t in trials] == expected


def far(chosen: Any) -> float:
    """0 at the best learning rate and rank."""
    return abs(math.log10(chosen["learning_rate"]) + 3.3) + (0.5 if chosen["r"] != 16 else 0.0)


@pytest.mark.slow
def test_tpe_finds_what_is_better_than_chance_does() -> None:
    """The mean over seeds, of the best of 24 trials."""

    def best(sampler: str) -> float:
        runs = [carried_out(WIDE, sampler, 24, far, seed) for seed in range(6)]
        return sum(min(t.score or 0.0 for t in trials) for trials in runs) / len(runs)

    assert best("tpe") < best("random")


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_goes_on_in_another_process_as_if_nothing_had_happened(sampler: str) -> None:
    whole = carried_out(WIDE, sampler, 9, far, 3)
    kept = [Trial.from_json(trial.to_json()) for trial in whole[:5]]
    assert next_settings(WIDE, sampler, 3, kept, maximise=False) == whole[5].settings


def test_ranges_are_kept_and_what_runs_or_failed_is_known() -> None:
    trials = carried_out(WIDE, "tpe", 8, far)
    states = [TrialState.OPEN, TrialState.FAILED, TrialState.PRUNED]
    more = [Trial(number=8 + n, settings=trials[n].settings, state=s) for n, s in enumerate(states)]
    chosen = next_settings(WIDE, "tpe", 0, [*trials, *more], maximise=True)
    assert chosen is not None
    assert 1e-5 <= chosen["learning_rate"] <= 1e-2
    assert chosen["r"] in (8, 16, 32)


def test_the_better_half_goes_on_at_each_rung() -> None:
    """By hand: at 25% three of six are in the better half, at 50% one of the three that came as far."""
    losses = {0: 1.0, 1: 1.1, 2: 1.2, 3: 1.3, 4: 1.4, 5: 1.5}
    at_rung = {n: {10.0: loss, 25.0: loss} for n, loss in losses.items()}
    assert [n for n in losses if given_up(at_rung, n)] == [3, 4, 5]
    later = {n: {25.0: loss, 50.0: loss} if n < 3 else {25.0: loss} for n, loss in losses.items()}
    assert [n for n in (0, 1, 2) if given_up(later, n)] == [1, 2]
    assert not given_up({0: {10.0: 9.0}, 1: {10.0: 1.0}}, 0), "before the first rung nobody is"
    assert not given_up({0: {}}, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=9, unique=True))
def test_nobody_is_given_up_who_is_in_the_better_half(losses: list[float]) -> None:
    curves = {n: {25.0: loss} for n, loss in enumerate(losses)}
    kept = sorted(losses)[: max(1, len(losses) // 2)]
    assert [n for n in curves if not given_up(curves, n)] == [n for n in curves if losses[n] in kept]


def test_optuna_by_itself_decides_the_same() -> None:
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=25, reduction_factor=2)
    study = optuna.create_study(direction="minimize", pruner=pruner)
    losses = [1.0, 3.0, 2.0, 5.0, 4.0]
    asked = [study.ask() for _ in losses]
    for trial, loss in zip(asked, losses, strict=True):
        trial.report(loss, 25)
        last = trial.should_prune()
    assert given_up({n: {25.0: loss} for n, loss in enumerate(losses)}, 4) == last
