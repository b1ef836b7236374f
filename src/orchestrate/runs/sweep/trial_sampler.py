"""Choose the next trial, and which trials to stop, with Optuna's samplers and successive halving.

The stored trials are the only state. Each call rebuilds the study from them, so another process can continue
a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrate.core import needed
from orchestrate.runs.sweep.space import Settings, Space
from orchestrate.types import Trial, TrialState

if TYPE_CHECKING:
    from optuna import Study
    from optuna import Trial as OptunaTrial
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

SAMPLERS = ("grid", "random", "tpe")
_TRIES = 50
"""Maximum number of retries when a sampler proposes settings that were already tried."""
_FIRST_RUNG = 25
"""Percentage of its steps that a run completes before it is first compared with the others. The next
comparison is at twice this percentage."""


def next_settings(
    space: Space, sampler: str, seed: int, trials: Sequence[Trial], *, maximise: bool
) -> Settings | None:
    """Choose settings that have not been tried yet, or return `None` if none are left. `trials` contains all
    trials of the first round so far."""
    tried = {repr(sorted(trial.settings.items())) for trial in trials}
    if sampler == "grid":
        left = (s for s in space.combinations() if repr(sorted(s.items())) not in tried)
        return next(left, None)
    if not space.ranges and len(tried) >= space.size:
        return None
    for attempt in range(_TRIES):
        study = _study(space, _sampler(sampler, seed + 1000 * len(trials) + attempt), trials, maximise)
        settings = _settings(space, study.ask(_distributions(space)).params)
        if repr(sorted(settings.items())) not in tried:
            return settings
    # A sampler that has converged keeps proposing settings that were already tried.
    left = (s for s in space.combinations() if repr(sorted(s.items())) not in tried)
    return None if space.ranges else next(left, None)


def given_up(curves: Mapping[int, Mapping[float, float]], number: int) -> bool:
    """Return True if asynchronous successive halving (Li et al., 2020) would stop trial `number` early: at
    some step, its loss was in the worse half of the trials that reached that step. `curves` is {trial number:
    {percentage of steps completed: validation loss}}."""
    _quiet()
    import optuna

    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=_FIRST_RUNG, reduction_factor=2)
    study = optuna.create_study(direction="minimize", pruner=pruner)
    asked: dict[int, OptunaTrial] = {other: study.ask() for other in curves}
    order = [other for other in curves if other != number] + [number]
    last = max(curves[number], default=0.0)
    for step in sorted({step for curve in curves.values() for step in curve if step <= last}):
        for other in order:
            if step in curves[other]:
                asked[other].report(curves[other][step], int(step))
                if asked[other].should_prune() and other == number:
                    return True
    return False


def _study(space: Space, sampler: BaseSampler, trials: Sequence[Trial], maximise: bool) -> Study:
    _quiet()
    import optuna

    study = optuna.create_study(direction="maximize" if maximise else "minimize", sampler=sampler)
    distributions = _distributions(space)
    for trial in trials:
        done = trial.state is TrialState.SCORED
        running = trial.state is TrialState.OPEN
        state = optuna.trial.TrialState
        study.add_trial(
            optuna.trial.create_trial(
                state=state.COMPLETE if done else state.RUNNING if running else state.FAIL,
                params=_params(space, trial.settings),
                distributions=distributions,
                value=trial.score if done else None,
            )
        )
    return study


def _sampler(name: str, seed: int) -> BaseSampler:
    _quiet()
    import optuna

    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=5)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return Optuna's distributions. A choice is given by its index, because Optuna's values can't be lists
    or mappings."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(tuple(range(len(values)))) for name, values in space.choices.items()
    }
    for name, (low, high, log) in space.ranges.items():
        found[name] = FloatDistribution(low, high, log=log)
    return found


def _params(space: Space, settings: Settings) -> dict[str, Any]:
    places = {name: list(values).index(settings[name]) for name, values in space.choices.items()}
    return places | {name: settings[name] for name in space.ranges}


def _settings(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {name: values[params[name]] for name, values in space.choices.items()}
    for name, (low, high, _) in space.ranges.items():
        chosen[name] = min(max(float(f"{params[name]:.4g}"), low), high)
    return chosen


def _quiet() -> None:
    with needed("sweep", "hyperparameter sweeps", "optuna"):
        import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
