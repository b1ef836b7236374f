"""A search of settings over a host: each trial once, within the budget, and gone on with after a kill."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from tests.faults.shop import Shop
from tests.faults.submit.test_lost_keys import backed_up
from tests.faults.submitting import MODELS, write_rows
from tests.faults.world import CREATE

from orchestrate import JobSpec, Orchestrator
from orchestrate.costing import RateBook
from orchestrate.errors import OverBudget, UsageError
from orchestrate.providers.openai.provider import OpenAIProvider
from orchestrate.runs.sweep import space, sweeps, trials
from orchestrate.runs.sweep.sweeps import SweepOrder
from orchestrate.runs.sweep.trials import Searching
from orchestrate.settings import config
from orchestrate.store import Clock, Uptime
from orchestrate.store.database import LeaseHeld, LeaseLost
from orchestrate.store.store import Store
from orchestrate.types import JobStatus, MetricPoint, Search, SubmitPhase, Trial, TrialState

GRID = space.parse(["epochs=1,2,3"], [])


def validation(shop: Shop) -> str:
    file = shop.folder / "valid.jsonl"
    file.write_bytes(write_rows(file, 10).read_bytes().replace(b"What is", b"Say what is"))
    return str(file)


def begun(shop: Shop, order: SweepOrder | None = None, **fields: Any) -> Search:
    spec = shop.spec.model_copy(update={"validation": validation(shop)})
    return sweeps.begin(shop.ft, spec, ["openai"], order or SweepOrder(space=GRID, **fields))


def ended(shop: Shop, run_id: str, loss: float | None) -> None:
    """As the store has it once its host has said so."""
    store = shop.ft.store
    if loss is not None:
        store.history.add_metrics(run_id, [MetricPoint(step=5, values={"valid_loss": loss})])
    store.runs.apply(run_id, lambda run: msgspec.structs.replace(run, status=JobStatus.SUCCEEDED))
    store.runs.close(run_id)


def test_trials_are_made_in_turn_scored_and_ranked(shop: Shop) -> None:
    search = begun(shop, max_parallel=2)
    carried = Searching(shop.ft, search)
    carried.turn()
    assert [trial.note for trial in carried.trials] == [None, None]
    first, second = carried.trials
    assert (shop.sent(), [t.state for t in carried.trials]) == (2, [TrialState.OPEN] * 2)
    ended(shop, first.run_id or "", 1.5)
    carried.turn()
    assert [t.state.value for t in carried.trials] == ["scored", "open", "open"]
    ended(shop, second.run_id or "", 0.5)
    ended(shop, carried.trials[2].run_id or "", None)
    carried.turn()
    assert [t.state.value for t in carried.trials] == ["scored", "scored", "failed"]
    assert carried.trials[2].note == "the host reported no validation loss"
    assert [t.settings["epochs"] for t in carried.ranked()] == [2, 1]
    backend, text = carried.best_spec() or ("", "")
    assert backend == "openai"
    assert "epochs: 2" in text
    runs = [shop.ft.run(trial.run_id or "").record for trial in carried.trials]
    assert {run.tags["sweep"] for run in runs} == {search.id}
    assert [run.spec["epochs"] for run in runs] == [1, 2, 3]


def test_a_trial_that_diverged_has_no_score(shop: Shop) -> None:
    """An earlier loss is not that of its weights, unless the host says that it kept the best ones."""
    search = begun(shop, max_parallel=3)
    carried = Searching(shop.ft, search)
    carried.turn()
    diverged, kept, fine = (trial.run_id or "" for trial in carried.trials)
    for run_id, loss in ((diverged, 0.1), (kept, 0.2)):
        shop.ft.store.history.add_metrics(run_id, [MetricPoint(step=2, values={"valid_loss": loss})])
    last = {"valid_loss": math.nan, "result_valid_loss": 0.2}
    shop.ft.store.history.add_metrics(kept, [MetricPoint(step=5, values=last)])
    ended(shop, diverged, math.inf)
    ended(shop, kept, None)
    ended(shop, fine, 0.5)
    Searching(shop.ft, search).turn()  # also in a process that continues the sweep
    assert [(t.state.value, t.score) for t in carried.trials] == [
        ("failed", None),
        ("scored", 0.2),
        ("scored", 0.5),
    ]
    assert (carried.trials[0].note or "").startswith("diverged: its last validation loss")
    assert [trial.run_id for trial in carried.ranked()] == [kept, fine]


def test_what_diverges_is_stopped_early(shop: Shop) -> None:
    carried = Searching(shop.ft, begun(shop, prune=True, max_parallel=1))
    carried.turn()
    run_id = carried.trials[0].run_id or ""
    shop.ft.store.runs.apply(run_id, lambda run: msgspec.structs.replace(run, total_steps=10))
    shop.ft.store.history.add_metrics(run_id, [MetricPoint(step=3, values={"valid_loss": math.nan})])
    carried.turn()
    assert carried.trials[0].state is TrialState.PRUNED
    assert "not a finite number" in (carried.trials[0].note or "")


def test_the_same_search_again_goes_on_and_makes_nothing_twice(shop: Shop) -> None:
    one = begun(shop, max_parallel=3)
    Searching(shop.ft, one).turn()
    again = begun(shop, max_parallel=1)
    assert again.id == one.id
    Searching(shop.ft, again).turn()
    assert shop.sent() == 3
    assert begun(shop, SweepOrder(space=space.parse(["epochs=1,2"], []))).id != one.id


def test_a_kill_between_trial_and_run_sends_it_once(shop: Shop) -> None:
    search = begun(shop)
    carried = Searching(shop.ft, search)
    carried.turn()
    [trial] = carried.trials
    # As it was written down before the answer came.
    shop.ft.store.searches.change(search.id, 0, lambda now: msgspec.structs.replace(now, run_id=None))
    carried.turn()
    assert (carried.trials[0].run_id, shop.sent()) == (trial.run_id, 1)


def test_no_trial_is_made_that_could_go_above_the_limit(shop: Shop) -> None:
    price = sweeps.price(shop.ft, begun(shop))
    assert price.expected_usd <= price.high_usd
    search = begun(shop, max_parallel=3, max_cost_usd=price.high_usd / 2)
    carried = Searching(shop.ft, search)
    carried.turn()
    assert 0 < (sent := shop.sent()) < 3
    assert "the sweep's remaining limit" in (carried.waits or "") and carried.stopped is None
    assert carried.spent_usd() <= price.high_usd / 2
    for trial in carried.trials:
        ended(shop, trial.run_id or "", 1.0)
    carried._later = 0.0
    carried.turn()
    assert "the sweep's remaining limit" in (carried.stopped or ""), "nobody is under way any more"
    assert shop.sent() == sent


def test_the_price_of_a_grid_is_the_sum_of_its_quotes(shop: Shop) -> None:
    search = begun(shop)
    quotes = [
        shop.ft.quote(
            shop.spec.model_copy(update={"epochs": n, "validation": search.spec["validation"]}), "openai"
        )[0]
        for n in (1, 2, 3)
    ]
    price = sweeps.price(shop.ft, search)
    assert price.high_usd == sum((quote.high_usd for quote in quotes), Decimal(0))
    assert price.expected_usd == sum((quote.counted_usd for quote in quotes), Decimal(0))


def high_usd(shop: Shop, search: Search, settings: Any) -> Decimal:
    prepared = sweeps.prepared_trial(shop.ft, search, dict(settings), "openai", 1.0)
    return prepared.offer("openai").quote.high_usd or Decimal(0)


def rates(count: int) -> str:
    return f"learning_rate_multiplier={','.join(f'{n}e-2' for n in range(1, count + 1))}"


def test_the_price_of_a_grid_covers_what_comes_late_in_it(shop: Shop) -> None:
    """All combinations with one epoch come before those with ten."""
    search = begun(shop, SweepOrder(space=space.parse(["epochs=1,10", rates(40)], [])))
    each = [high_usd(shop, search, settings) for settings in space.of(search).combinations()]
    assert sweeps.price(shop.ft, search).high_usd == sum(each, Decimal(0))


@pytest.mark.parametrize(
    ("grid", "ranges"), [(["epochs=1,10", rates(150)], []), ([rates(3)], ["epochs=1:10"])]
)
def test_the_price_of_a_space_is_that_of_its_most_expensive_settings(
    shop: Shop, grid: list[str], ranges: list[str]
) -> None:
    order = SweepOrder(space=space.parse(grid, ranges), sampler="random", trials=3)
    search = begun(shop, order)
    most = high_usd(shop, search, {"epochs": 10, "learning_rate_multiplier": 0.01})
    assert sweeps.price(shop.ft, search).high_usd == 3 * most


def test_a_price_with_an_open_end_is_said_before_the_start(shop: Shop) -> None:
    spec = JobSpec(model="qwen3.5-2b", train=str(shop.rows), validation=validation(shop), packing=False)
    search = sweeps.begin(shop.ft, spec, ["together"], SweepOrder(space=GRID))
    price = sweeps.price(shop.ft, search)
    assert price.high_usd > 0
    assert [why.partition(": ")[0] for why in price.unpriced] == [f"together epochs={n}" for n in (1, 2, 3)]
    assert "the quote does not include" in price.unpriced[0]


def test_a_sweep_of_a_sandbox_is_not_continued_at_the_real_host(shop: Shop) -> None:
    """Nor are its scores shown as those of the host."""
    tried = begun(shop)
    Searching(shop.ft, tried).turn()
    env = {
        **shop.env,
        "OPENAI_BASE_URL": "https://openai.example/v1",
        "OPENAI_API_KEY": "sk-proj-0123456789abcdefghij",
    }
    settings = config.load(env=env, cwd=shop.folder, home=shop.settings.home)
    with Orchestrator(settings) as real:
        spec = JobSpec.parse(tried.spec)
        search = sweeps.begin(real, spec, ["openai"], SweepOrder(space=GRID))
        assert (tried.sandbox, search.sandbox) == (True, False) and search.id != tried.id
        assert Searching(real, search).trials == []


@pytest.mark.slow
def test_survivors_of_a_share_are_trained_again_on_all_rows(shop: Shop) -> None:
    write_rows(shop.rows, 60)
    search = begun(shop, share=0.5, max_parallel=3)
    assert search.survivors == 1
    carried = Searching(shop.ft, search)
    carried.turn()
    for number, loss in enumerate((3.0, 1.0, 2.0)):
        ended(shop, carried.trials[number].run_id or "", loss)
    carried.turn()
    *small, full = carried.trials
    assert [trial.share for trial in small] == [0.5] * 3
    assert (full.share, full.parent, full.settings) == (1.0, 1, {"epochs": 2})
    record = shop.ft.run(full.run_id or "").record
    assert record.dataset_digest == search.digest
    assert shop.ft.run(small[0].run_id or "").record.dataset_digest != search.digest
    ended(shop, full.run_id or "", 5.0)
    carried.turn()
    assert [trial.number for trial in carried.ranked()] == [3, 1, 2, 0], "in full before a share"
    assert len(carried.trials) == 4


def test_what_falls_behind_is_cancelled(shop: Shop) -> None:
    search = begun(shop, prune=True, max_parallel=3)
    carried = Searching(shop.ft, search)
    carried.turn()
    store = shop.ft.store
    for trial, loss in zip(carried.trials, (1.0, 2.0, 3.0), strict=True):
        run_id = trial.run_id or ""
        store.runs.apply(run_id, lambda run: msgspec.structs.replace(run, total_steps=10))
        store.history.add_metrics(run_id, [MetricPoint(step=3, values={"valid_loss": loss})])
    carried.turn()
    assert [t.state.value for t in carried.trials] == ["open", "pruned", "pruned"]
    for trial in carried.trials[1:]:
        status = shop.ft.run(trial.run_id or "").record.status
        assert status in (JobStatus.CANCELLING, JobStatus.CANCELLED)


def test_changed_data_stop_the_search(shop: Shop) -> None:
    carried = Searching(shop.ft, begun(shop))
    write_rows(shop.rows, 14)
    carried.turn()
    assert (carried.stopped, shop.sent()) == ("the training data changed after the sweep started", 0)


def test_two_at_once_do_not_carry_out_one_search(shop: Shop) -> None:
    search = begun(shop)
    with shop.ft.store.leases.hold(search.id), pytest.raises(LeaseHeld):
        Searching(shop.ft, search).run(lambda: None, threading.Event())


class Later(Clock):
    """A minute ahead, when the lease of a suspended process has expired."""

    def uptime(self) -> Uptime:
        up = super().uptime()
        return Uptime(up.boot, up.seconds + 60)


def taken_over(shop: Shop, search: Search, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """Let another process take the sweep over, and store its first trial, while this one prepares its own."""
    theirs = Trial(number=0, settings={"epochs": 3})

    def suspended(*args: Any) -> Any:
        monkeypatch.setattr(trials, "prepared_trial", sweeps.prepared_trial)
        with Store.open(f"sqlite:///{shop.ft.store.place}", clock=Later()) as other:
            lease = other.leases.acquire(search.id, 30)
            assert lease is not None and other.searches.propose(search.id, theirs, lease=lease)
        return sweeps.prepared_trial(*args)

    monkeypatch.setattr(trials, "prepared_trial", suspended)
    return theirs


def test_a_process_that_was_suspended_starts_no_trial_under_the_number_of_another(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run would have been scored as that of the other process's settings."""
    search, stop = begun(shop), threading.Event()
    theirs = taken_over(shop, search, monkeypatch)
    with pytest.raises(LeaseLost, match="another process has taken over"):
        Searching(shop.ft, search).run(lambda: None, stop, lambda _: stop.set() if shop.sent() else None)
    assert (shop.ft.store.searches.trials(search.id), shop.sent()) == ([theirs], 0)


@pytest.mark.parametrize("moment", ["before the run is stored", "during the upload"])
def test_a_process_that_was_suspended_sends_no_trial_that_its_successor_gave_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    search, stop = begun(shop), threading.Event()
    at, name = {"before": (trials.submission, "of"), "during": (OpenAIProvider, "upload")}[moment.split()[0]]
    normal: Callable[..., Any] = getattr(at, name)

    def suspended(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(at, name, normal)
        with Store.open(f"sqlite:///{shop.ft.store.place}", clock=Later()) as other:
            lease = other.leases.acquire(search.id, 30)
            failed = functools.partial(msgspec.structs.replace, state=TrialState.FAILED)
            other.searches.change(search.id, 0, failed, lease=lease)
        return normal(*args, **options)

    monkeypatch.setattr(at, name, suspended)
    with pytest.raises(LeaseLost, match="another process has taken over"):
        Searching(shop.ft, search).run(lambda: None, stop, lambda _: stop.set() if shop.sent() else None)
    [trial] = shop.ft.store.searches.trials(search.id)
    assert (trial.state, shop.sent()) == (TrialState.FAILED, 0)


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (SweepOrder(space=GRID, sampler="best"), "--sampler must be"),
        (SweepOrder(space=space.parse([], ["epochs=1:3"])), "a grid search cannot use ranges"),
        (SweepOrder(space=GRID, share=0.0), "above 0"),
        (
            SweepOrder(space=GRID, survivors=2),
            "--survivors trains the best trials again on all rows, so it needs --first-share",
        ),
        (SweepOrder(space=GRID, target="loss"), "--target must be"),
        (SweepOrder(space=GRID, target="eval:nothing"), "unknown metric"),
        (
            SweepOrder(space=GRID, target="eval:length"),
            "cannot be a target, because neither higher nor lower is better",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(shop: Shop, order: SweepOrder, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        begun(shop, order)
    assert told in str(caught.value)
    assert shop.ft.store.searches.all() == []


def test_a_loss_needs_validation_data(shop: Shop) -> None:
    with pytest.raises(UsageError, match="needs validation data"):
        sweeps.begin(shop.ft, shop.spec, ["openai"], SweepOrder(space=GRID))


def test_the_command_asks_for_agreement_and_shows_what_there_is(shop: Shop) -> None:
    words = [f"--model={MODELS['openai']}", "--train", str(shop.rows), "--validation", validation(shop)]
    words += ["-p", "openai", "--grid", "epochs=1,2"]
    assert isinstance(shop.type("sweep", *words).exception, UsageError)
    assert shop.sent() == 0
    assert isinstance(shop.type("sweep", *words, "--grid", "provider=openai").exception, UsageError)
    assert msgspec.json.decode(shop.type("sweep", "--list", "--json").stdout) == [], "it was not agreed to"
    begun(shop)
    [listed] = msgspec.json.decode(shop.type("sweep", "--list", "--json").stdout)
    assert listed["trials"] == 3
    assert shop.type("sweep", "--show", "last").exit_code == 1, "it has no score yet"


def test_your_own_price_counts_in_each_command_that_submits(shop: Shop) -> None:
    data = ["--train", str(shop.rows), "--validation", validation(shop), "-p", "openai", "--yes"]
    data += [f"--model={MODELS['openai']}"]
    used, unused = f"openai:sft@{MODELS['openai']}=0", "openai:dpo=1"
    dry = [*data, "--dry-run", "--json"]
    commands = (["sweep", *dry, "--grid", "epochs=1,2"], ["data", "curve", *dry], ["queue", "add", *data])
    for words in commands:
        assert "does not affect" in str(shop.type(*words, "--rate", unused).exception)
        free = shop.type(*words, "--rate", used, "--max-cost", "0.000001")
        assert free.exit_code == 0, free.output
        assert isinstance(shop.type(*words, "--max-cost", "0.000001").exception, OverBudget)
    shop.ft.submit(shop.spec, "openai")
    again = ["rerun", "last", "--dry-run", "--again", "--yes", "--max-cost", "0.000001"]
    assert shop.type(*again, "--rate", used).exit_code == 0
    assert isinstance(shop.type(*again).exception, OverBudget)


def turned(carried: Searching) -> list[Any]:
    carried._later = 0.0  # a while later
    carried.turn()
    return carried.trials


def test_a_lost_answer_is_a_run_that_counts_and_not_a_failed_trial(shop: Shop, hosts: Any) -> None:
    """Its job may train and bill; `sync` settles it."""
    write_rows(shop.rows, 21)  # which the host has not yet
    hosts.fault("openai", "lost_request", method="POST", path=CREATE["openai"])
    search = begun(shop)
    carried = Searching(shop.ft, search)
    [trial] = turned(carried)
    assert (trial.state, trial.note) == (TrialState.OPEN, None)
    run = shop.ft.run(trial.run_id or "").record
    assert run.phase is SubmitPhase.OUTCOME_UNKNOWN
    assert carried.spent_usd() == trial.high_usd > 0
    assert [t.number for t in turned(carried)] == [0], "it takes the room of one"


def test_what_was_lost_and_never_made_is_sent_again(shop: Shop) -> None:
    search = begun(shop)
    carried = Searching(shop.ft, search)
    [trial] = turned(carried)
    store, run_id = shop.ft.store, trial.run_id or ""
    # As it is settled when no job of it is found.
    unsent = {"phase": SubmitPhase.UPLOADED, "status": JobStatus.SUBMITTING, "job_id": None}
    store.runs.apply(run_id, lambda run: msgspec.structs.replace(run, **unsent))
    [trial] = turned(carried)
    assert (trial.run_id, trial.state) == (run_id, TrialState.OPEN)
    assert shop.ft.run(run_id).record.phase is SubmitPhase.SUBMITTED
    found = shop.count("openai")
    assert (found["runs"], found["lost"], found["doubled"]) == (1, 0, 0)


def test_a_host_that_is_busy_costs_no_trial(shop: Shop, hosts: Any) -> None:
    write_rows(shop.rows, 22)
    hosts.fault("openai", "rate_limit", method="POST", path="files", retry_after=500.0, count=0)
    carried = Searching(shop.ft, begun(shop))
    [trial] = turned(carried)
    assert trial.state is TrialState.OPEN and trial.run_id is None and carried.waits
    hosts.clear_faults()
    carried.turn()
    assert carried.trials == [trial], "it is asked again later"
    [trial] = turned(carried)
    assert (trial.state, shop.sent(), carried.waits) == (TrialState.OPEN, 1, None)
    assert shop.ft.run(trial.run_id or "").record.phase is SubmitPhase.SUBMITTED


def test_a_trial_that_fails_while_it_waits_for_its_host_leaves_no_run_behind(shop: Shop, hosts: Any) -> None:
    """Else what it might cost is taken from the budget for ever."""
    write_rows(shop.rows, 25)
    hosts.fault("openai", "rate_limit", method="POST", path=CREATE["openai"], retry_after=500.0, count=0)
    carried = Searching(shop.ft, begun(shop, SweepOrder(space=space.parse(["epochs=1"], []))))
    turned(carried)
    assert carried.waits
    hosts.clear_faults()
    shop.rows.unlink()
    [trial] = turned(carried)
    assert trial.state is TrialState.FAILED
    assert [run.record.status for run in shop.ft.runs()] == [JobStatus.CANCELLED]


def test_a_backup_from_before_a_second_try_makes_no_second_job(shop: Shop, hosts: Any) -> None:
    write_rows(shop.rows, 24)
    search = begun(shop)
    restore = backed_up(shop)
    hosts.fault("openai", "rate_limit", method="POST", path=CREATE["openai"], retry_after=500.0, count=0)
    carried = Searching(shop.ft, search)
    [trial] = turned(carried)
    assert trial.run_id is None and carried.waits
    hosts.clear_faults()
    [trial] = turned(carried)
    first = shop.ft.run(trial.run_id or "").record
    restore()
    [trial] = turned(Searching(shop.ft, search))
    assert shop.ft.run(trial.run_id or "").record.job_id == first.job_id
    found = shop.count("openai")
    assert (found["runs"], found["jobs"], found["lost"]) == (1, 1, 0)


def test_what_its_host_refuses_is_a_failed_trial_and_the_others_go_on(shop: Shop, hosts: Any) -> None:
    write_rows(shop.rows, 23)
    hosts.fault("openai", "error", method="POST", path=CREATE["openai"], status=400)
    search = begun(shop, max_parallel=2)
    carried = Searching(shop.ft, search)
    turned(carried)
    assert [t.state.value for t in turned(carried)] == ["failed", "open", "open"]
    assert "failed" in (carried.trials[0].note or "")
    assert carried.spent_usd() == sum(t.high_usd for t in carried.trials[1:])


def test_a_search_that_was_stopped_ends_with_what_was_only_written_down(shop: Shop) -> None:
    """As a process was killed before the run was made: it waits for the next command, which may have more
    money, and does not hold up this one."""
    search = begun(shop)
    quote = sweeps.prepared_trial(shop.ft, search, {"epochs": 1}, "openai", 1.0).offer("openai").quote
    shop.ft.store.searches.propose(search.id, Trial(number=0, settings={"epochs": 1}))
    poor = Searching(shop.ft, msgspec.structs.replace(search, max_cost_usd=quote.high_usd / 2))
    [trial] = poor.run(lambda: None, threading.Event(), pause_s=0)
    assert "the sweep's remaining limit" in (poor.stopped or "")
    assert (trial.state, trial.run_id, shop.sent()) == (TrialState.OPEN, None, 0)
    rich = Searching(shop.ft, msgspec.structs.replace(search, max_cost_usd=quote.high_usd))
    [trial] = turned(rich)
    assert trial.run_id and shop.sent() == 1


def test_a_trial_without_a_price_is_above_every_limit(shop: Shop) -> None:
    """Of a large grid only the first are priced before it begins."""
    carried = Searching(shop.ft, begun(shop, max_cost_usd=Decimal(100)))
    shop.ft.rates = RateBook(())
    carried.turn()
    assert "cannot be enforced" in (carried.stopped or "")
    assert (carried.trials, shop.sent()) == ([], 0)


def test_a_share_of_other_data_stops_the_search_too(shop: Shop) -> None:
    write_rows(shop.rows, 60)
    carried = Searching(shop.ft, begun(shop, share=0.5))
    write_rows(shop.rows, 61)
    carried.turn()
    assert (carried.stopped, shop.sent()) == ("the training data changed after the sweep started", 0)


def test_a_grid_of_a_million_is_not_begun_unasked_and_costs_no_memory(shop: Shop) -> None:
    wide = space.parse([f"{name}={','.join(map(str, range(1, 101)))}" for name in ("epochs", "seed")], [])
    huge = space.Space({f"n{n}": tuple(range(100)) for n in range(20)}, {})
    assert huge.size == 100**20 and next(huge.combinations())["n19"] == 0
    with pytest.raises(UsageError, match="10,000 combinations, and each one is a run"):
        begun(shop, SweepOrder(space=wide))
    assert begun(shop, SweepOrder(space=wide, trials=2)).trials == 2
    with pytest.raises(UsageError, match="combinations"):
        begun(shop, SweepOrder(space=huge))
