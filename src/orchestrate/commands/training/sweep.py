"""The command `sweep`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import HostOutput, Output, command
from orchestrate.commands.terminal.console import (
    confirm,
    ended_by_signal,
    err,
    filled,
    mark_sandbox,
    note,
    of_flags,
    orchestrator,
    out,
    table,
    warn,
)
from orchestrate.commands.terminal.options import AimOptions, SpecOptions
from orchestrate.core.amounts import amount
from orchestrate.core.files import write_whole
from orchestrate.errors import UsageError
from orchestrate.paid.consent import require_consent
from orchestrate.paid.limits import require_within
from orchestrate.runs import watch as watching
from orchestrate.text import SANDBOX_MARK, count, money
from orchestrate.types import Search, Trial, TrialState

if TYPE_CHECKING:
    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.runs.sweep.space import Space
    from orchestrate.runs.sweep.sweeps import Price
    from orchestrate.runs.sweep.trials import Searching
    from orchestrate.spec import JobSpec


@dataclass(frozen=True, kw_only=True)
class SpaceOptions:
    """Options for the search space and the search method."""

    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="NAME=V1,V2", help="Values to try for a setting, or for provider; repeatable."
        ),
    ] = None
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range", metavar="NAME=LOW:HIGH[:log]", help="Sample a setting from this range; repeatable."
        ),
    ] = None
    suggest: Annotated[
        bool,
        typer.Option(
            "--suggest", help="Vary rank and learning rate around the values that plan --suggest proposes."
        ),
    ] = False
    sampler: Annotated[str, typer.Option(metavar="NAME", help="Search method: grid, random or tpe.")] = "grid"
    trials: Annotated[
        int,
        typer.Option(
            min=0,
            help="Maximum number of trials. Default: all combinations for a grid search, otherwise 20.",
            show_default=False,
        ),
    ] = 0
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Stop a run early if its loss is worse than the median."),
    ] = False
    seed: Annotated[
        int, typer.Option(min=0, help="Seed for the random and tpe samplers and for data subsets.")
    ] = 0
    first_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Fraction of the training rows for a cheaper first round."),
    ] = 1.0
    survivors: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of best trials to train again on all rows. Default: a third.",
            show_default=False,
        ),
    ] = 0


@dataclass(frozen=True, kw_only=True)
class SweepOutput:
    """Options for output."""

    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the best spec to this file.")
    ] = None
    show: Annotated[
        str | None,
        typer.Option(
            "--show", metavar="SWEEP", help="Show the trials of this sweep ('last' for the newest)."
        ),
    ] = None
    listed: Annotated[bool, typer.Option("--list", help="List all sweeps, newest first.")] = False


class SweepPlan(TypedDict):
    """What a dry run prints."""

    search: Search
    expected_usd: Decimal
    high_usd: Decimal
    unpriced: list[str]
    """Combinations without a price, each with the reason."""


@command
def sweep(
    context: typer.Context,
    *,
    spec_options: SpecOptions,
    vary: SpaceOptions,
    aim: AimOptions,
    seen: SweepOutput,
    provider: Annotated[
        str | None,
        typer.Option(
            "--provider", "-p", help="Backend, unless --grid varies it.", autocompletion=completion.backend
        ),
    ] = None,
) -> Iterator[HostOutput[list[Trial]] | Output[list[Search]] | Output[SweepPlan]]:
    """Try several settings within one budget and rank them. Each trial is a run.

    If you interrupt the command, its runs continue. To resume the sweep, repeat the command."""
    with orchestrator(context, rates=aim.rate) as ft:
        if seen.listed:
            yield Output(ft.store.searches.all(), _list)
            return
        from orchestrate.runs.sweep import trials

        if seen.show is not None:
            yield from _end(
                trials.Searching(ft, ft.store.searches.get(seen.show)), seen.output, labeled=False
            )
            return
        search = _search(ft, spec_options, vary, aim, provider)
        if planned := begin(ft, search, aim):
            yield planned
            return
        carried = trials.Searching(ft, search)
        carry_out(ft, carried)
        yield from _end(carried, seen.output, labeled=True)


def _search(
    ft: Orchestrator, spec_options: SpecOptions, vary: SpaceOptions, aim: AimOptions, provider: str | None
) -> Search:
    from orchestrate.runs.sweep import space, sweeps

    if vary.suggest:
        if vary.grid or vary.ranges or provider is None:
            raise UsageError(
                "--suggest chooses the settings: use it with --provider and without --grid or --range"
            )
        spec, varied = _suggested(ft, spec_options.read(provider), provider)
    else:
        spec, varied = None, space.parse(vary.grid or (), vary.ranges or ())
    if (provider is None) == (space.PROVIDER not in varied.choices):
        raise UsageError("name one backend: --provider NAME, or vary it: --grid provider=A,B")
    order = sweeps.SweepOrder(
        space=varied,
        sampler=vary.sampler,
        trials=vary.trials,
        target=aim.target,
        test=aim.test,
        share=vary.first_share,
        survivors=vary.survivors,
        prune=vary.prune,
        max_parallel=aim.max_parallel,
        max_cost_usd=amount(aim.max_cost, "--max-cost"),
        seed=vary.seed,
    )
    spec = spec or spec_options.read(provider or "all")
    return sweeps.plan(ft, spec, ft.backends(provider) if provider else [], order)


def _suggested(ft: Orchestrator, spec: JobSpec, provider: str) -> tuple[JobSpec, Space]:
    """Return the spec with the proposed settings, and the neighboring values to try."""
    from orchestrate.runs.sweep import space
    from orchestrate.spec import JobSpec

    backends = ft.backends(provider)
    if len(backends) != 1:
        raise UsageError("--suggest supports only one backend", fix="--provider NAME")
    [found] = ft.suggest(spec, backends)
    if not found.choices:
        raise UsageError(f"no settings to vary for {provider}: {'; '.join(found.left_out)}")
    fixed = {name: value for name, value in found.values.items() if name not in found.choices}
    fixed.pop("adapter.alpha", None)  # it follows the rank
    for one in found.settings:
        note(f"{one.name} {one.value:g}: {one.reason} ({one.source})")
    plain = spec.on(backends[0]).asked()
    if "learning_rate" in found.choices:
        plain.pop("learning_rate_multiplier", None)
    return JobSpec.parse(space.applied(plain, fixed)), space.Space(found.choices)


def begin(
    ft: Orchestrator, search: Search, aim: AimOptions, priced: Search | None = None
) -> Output[SweepPlan] | None:
    """Store a sweep once the user agrees to its price, which may be that of an equal one (`priced`). In a dry
    run, return the plan instead."""
    from orchestrate.runs.sweep import sweeps

    sweeps.require_used(ft, priced or search, of_flags(aim.rate))
    price = sweeps.price(ft, priced or search)
    _agree(price, search, yes=aim.yes or aim.dry_run)
    if aim.dry_run:
        return Output(SweepPlan(search=search, **price._asdict()), lambda _: _list([search]))
    ft.store.searches.add(search)
    return None


def _agree(price: Price, search: Search, *, yes: bool) -> None:
    """Require confirmation of the sweep's total price before anything is sent."""
    mark_sandbox(search.sandbox)
    again = f", then {search.survivors} on all rows" if search.survivors else ""
    err.print(
        f"{search.id}: {count(search.trials, 'trial')}{again}; {money(price.expected_usd)} "
        f"expected, at most {money(price.high_usd)}; evaluations cost extra"
    )
    if price.unpriced:
        first, *others = price.unpriced
        more = f", and {count(len(others), 'other combination')}" if others else ""
        warn(f"price unknown: {first}{more}")
    limit_usd = search.max_cost_usd
    require_within(
        "sweep",
        price.expected_usd,
        limit_usd,
        unknown=price.unpriced[0] if price.unpriced else None,
        unknown_fix="leave out --max-cost",
        figure="the expected cost",
        fix="use fewer trials or a higher limit",
    )
    require_consent(
        price.high_usd,
        partial(confirm, "Start?", yes=yes),
        otherwise="not started",
        unpriced=bool(price.unpriced),
        limited=limit_usd is not None,
    )


def carry_out(ft: Orchestrator, carried: Searching) -> None:
    shown, waited, why = dict[int, Trial](), list[str](), dict[str, int]()
    watcher = watching.watcher(ft)
    watcher.feed = None  # this command does not submit the queue's runs

    def report(trials: list[Trial]) -> None:
        for problem in watcher.problems:
            warn(problem)
        if carried.waits and carried.waits not in waited:
            waited.append(carried.waits)
            warn(f"the next trial is waiting: {carried.waits}")
        for trial in trials:
            before = shown.get(trial.number)
            if before is None or (before.state, before.run_id) != (trial.state, trial.run_id):
                state = _state(trial)
                if (
                    trial.state is TrialState.FAILED
                    and (first := why.setdefault(state, trial.number)) != trial.number
                ):
                    state = f"failed as trial {first}"
                note(f"trial {trial.number} ({_settings(trial)}): {state}")
                shown[trial.number] = trial

    with ended_by_signal() as stop:
        carried.run(watcher.turn, stop, report)
    if stop.is_set():
        note("interrupted. Runs continue. To resume the sweep, run the same command again")
        raise typer.Exit(130)


def _end(carried: Searching, output: Path | None, *, labeled: bool) -> Iterator[HostOutput[list[Trial]]]:
    trials, ranked = carried.trials, carried.ranked()
    if output is not None and (best := carried.best_spec()) is not None:
        backend, text = best
        write_whole(output, text.encode())
        note(f"to submit the best spec: orchestrate submit {output} -p {backend}")
    view, inside = partial(_show, carried=carried, ranked=ranked), carried.search.sandbox
    yield HostOutput(trials, view, 0 if ranked else 1, sandbox=inside, labeled=labeled)
    if carried.stopped:
        warn(carried.stopped)


def _show(trials: list[Trial], carried: Searching, ranked: list[Trial]) -> None:
    rest = [trial for trial in trials if trial not in ranked]
    names = sorted({name for trial in trials for name in trial.settings})
    ordered = [*ranked, *rest]
    columns: dict[str, list[str]] = {
        "trial": [str(trial.number) for trial in ordered],
        **{name: [_value(trial.settings.get(name)) for trial in ordered] for name in names},
        carried.search.target: [_score(trial) for trial in ordered],
        "rows": [f"{trial.share:.0%}" for trial in ordered],
        "run": [trial.run_id or "" for trial in ordered],
        "about": [trial.note or "" if trial.state is not TrialState.SCORED else "" for trial in ordered],
    }
    for name in ("rows", "about"):
        if len(set(columns[name])) == 1 and columns[name][0] in ("", "100%"):
            del columns[name]
    out.print(filled(columns, right=("trial", "rows"), fold=("about",)))
    if len(ranked) > 1:
        note(_how_sure(carried, ranked))


def _how_sure(carried: Searching, ranked: list[Trial]) -> str:
    first, *others = [trial for trial in ranked if trial.share == ranked[0].share]
    text = f"the best score of {count(len(others) + 1, 'trial')} on the same rows is an optimistic estimate. "
    close = [trial for trial in others if _overlap(first, trial)]
    if close:
        text += f"{count(len(close), 'other trial')} scored within the best trial's interval. "
    return text + f"To confirm the result on other rows: orchestrate eval {first.run_id} --test FILE"


def _overlap(one: Trial, other: Trial) -> bool:
    bounds = (one.score_low, one.score_high, other.score)
    return None not in bounds and bounds[0] <= bounds[2] <= bounds[1]  # type: ignore[operator]


def _score(trial: Trial) -> str:
    if trial.score is None:
        return trial.state.value
    interval = ""
    if trial.score_low is not None and trial.score_high is not None:
        interval = f" [{trial.score_low:.3f}, {trial.score_high:.3f}]"
    return f"{trial.score:.4g}{interval}"


def _state(trial: Trial) -> str:
    if trial.state is TrialState.OPEN:
        return f"run {trial.run_id}" if trial.run_id else "is being submitted"
    return _score(trial) if trial.state is TrialState.SCORED else f"{trial.state.value}: {trial.note}"


def _settings(trial: Trial) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in trial.settings.items())


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def _list(searches: list[Search]) -> None:
    from orchestrate.spec import JobSpec

    if not searches:
        note("no sweeps yet: orchestrate sweep --help")
        return
    shown = table("sweep", "model", "varies", "target", "trials", right=("trials",), fold=("model", "varies"))
    for search in searches:
        varies = ", ".join([*search.choices, *search.ranges])
        model = ", ".join(dict.fromkeys(map(JobSpec.parse(search.spec).model_for, search.providers)))
        shown.add_row(
            search.id + SANDBOX_MARK * search.sandbox, model, varies, search.target, str(search.trials)
        )
    out.print(shown)
