"""Quotes of this machine against what runs took: fitted to finished ones, with a band that holds."""

from __future__ import annotations

import math
import random
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.paths import TINY
from tests.unit.local.model.shortcuts.test_line import chats
from tests.unit.local.plan.conftest import OwnTime
from tests.unit.local.sessions import make_session

from orchestrate.costing import built_in
from orchestrate.data import TrainingData
from orchestrate.local.plan import throughput
from orchestrate.local.plan.throughput import Bench, MeasuredPace, ThroughputKey, estimate
from orchestrate.local.run import RunDir, worker
from orchestrate.providers.local.provider import LocalProvider
from orchestrate.settings.config import HostConfig
from orchestrate.spec import JobSpec

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SMALL = ThroughputKey(device="cpu", threads=1, parameters=3e7, precision="bf16")
START = datetime(2026, 11, 1, tzinfo=UTC)


def ran(
    home: Path, kind: ThroughputKey, speed: float, besides: float = 20.0, seconds: float = 100.0
) -> MeasuredPace:
    """A run of this kind at so many tokens per second, as its worker keeps it."""
    told = estimate(home, kind)
    count = len(throughput.read_pace(throughput.file_of(home)))
    pace = MeasuredPace(
        kind=kind,
        at=START + timedelta(hours=count),
        tokens=speed * seconds,
        seconds=seconds,
        besides_seconds=besides,
        told=told.tokens_per_second,
        told_by=told.told_by,
    )
    throughput.add(throughput.file_of(home), pace)
    return pace


def bench(parameters: int, speed: float, threads: int = 1) -> Bench:
    return Bench(
        device="cpu",
        threads=threads,
        model="m",
        parameters=parameters,
        tokens_per_second=speed,
        operations_per_second=speed * 4 * parameters,
        measured_on=date(2026, 11, 1),
    )


def test_what_is_known_better_counts_for_more(tmp_path: Path) -> None:
    modelled = estimate(tmp_path, SMALL)
    assert modelled.source.startswith(
        "estimated for 1 CPU thread (to measure the speed:"
    ) and modelled.besides.value == pytest.approx(10)
    throughput.remember(tmp_path, bench(30_000_000, 1500.0))
    measured = estimate(tmp_path, SMALL)
    assert measured.tokens_per_second == pytest.approx(1500, rel=0.3)
    assert measured.source == "measured on this machine with m on 2026-11-01"
    assert measured.factor < modelled.factor
    far = estimate(tmp_path, ThroughputKey(device="cpu", threads=1, parameters=3e9))
    # Two decades away the measurement, 15, counts no more than what is expected of a core, 5.
    assert 7 < far.tokens_per_second < 11 and far.factor > measured.factor
    for _ in range(3):
        ran(tmp_path, SMALL, 3000.0, besides=25.0)
    fitted = estimate(tmp_path, SMALL)
    assert fitted.tokens_per_second == pytest.approx(3000, rel=0.2)
    assert fitted.source == "fitted to 3 finished runs on this machine (most recent: 2026-11-01)"
    assert fitted.besides.value == pytest.approx(25, rel=0.2)
    assert fitted.factor < measured.factor
    # All weights take half as long again; nothing carries over to another device or precision.
    full = estimate(
        tmp_path, ThroughputKey(device="cpu", threads=1, parameters=3e7, adapter="full", precision="bf16")
    )
    assert full.tokens_per_second == pytest.approx(fitted.tokens_per_second / 1.5, rel=0.2)
    for other in ({"device": "NVIDIA L4"}, {"precision": "fp32"}):
        kind = ThroughputKey(
            **{"device": "cpu", "threads": 1, "parameters": 3e7, "precision": "bf16", **other}
        )
        assert "finished run" not in estimate(tmp_path, kind).source


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    first = ran(tmp_path, SMALL, 1000.0)
    with throughput.file_of(tmp_path).open("ab") as out:
        out.write(b'{"kind": 3}\n{"ki')
    assert throughput.read_pace(throughput.file_of(tmp_path)) == [first]
    assert throughput.read_pace(tmp_path / "none") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": replace(SMALL, parameters=0.0)},
        {"kind": replace(SMALL, threads=0)},
        {"told": -1.0, "told_by": "runs"},
        {"tokens": 1e308, "seconds": 1e-10},
        {"at": START.replace(tzinfo=None)},
    ],
)
def test_a_line_that_says_what_cannot_be_ends_no_quote(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """As one that came with a run from elsewhere."""
    first = ran(tmp_path, SMALL, 1000.0)
    told = estimate(tmp_path, SMALL)
    throughput.add(throughput.file_of(tmp_path), replace(first, **wrong))
    assert throughput.read_pace(throughput.file_of(tmp_path)) == [first]
    assert estimate(tmp_path, SMALL) == told


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.45])
def test_nine_quotes_in_ten_hold(tmp_path: Path, noise: float) -> None:
    """On made-up machines of any speed, whose load comes and goes, with models of several sizes."""
    chance = random.Random(f"{noise}")
    held = count = 0
    widths: list[float] = []
    for number in range(25):
        home = tmp_path / str(number)
        home.mkdir()
        machine = math.log(throughput.CPU_THREAD_OPERATIONS) + chance.gauss(0, throughput.UNMEASURED)
        load = 0.0
        for _ in range(12):
            load = 0.5 * load + chance.gauss(0, 0.7 * noise)
            size = chance.choice([2e7, 3e7, 1e8])
            kind = ThroughputKey(device="cpu", threads=1, parameters=size, precision="bf16")
            log = machine + load + chance.gauss(0, 0.5 * noise) + 0.08 * math.log10(size / 3e7)
            told = estimate(home, kind)
            speed = math.exp(log) / kind.operations
            held += 1 / told.factor <= speed / told.tokens_per_second <= told.factor
            count += 1
            ran(home, kind, speed)
            widths.append(told.factor)
    # Where load comes in waves, the runs after the first are off together, and the band learns it with them.
    assert held / count >= (0.8 if noise > 0.4 else 0.9)
    # A band that always holds because it is wide would be none.
    last = sorted(w for i, w in enumerate(widths) if i % 12 >= 8)
    assert last[len(last) // 2] < math.exp(1.645 * (noise + 0.2))


@pytest.fixture
def provider(tmp_path: Path) -> LocalProvider:
    return LocalProvider(HostConfig(name="local", options={"home": str(tmp_path), "device": "cpu"}))


@pytest.mark.slow
def test_a_finished_run_is_what_the_next_quote_is_fitted_to(tmp_path: Path, provider: LocalProvider) -> None:
    train = chats(tmp_path / "t.jsonl", 24)
    given = {"model": str(TINY), "train": str(train), "adapter": "qlora", "epochs": 1, "batch_size": 8}
    spec = JobSpec.parse({**given, "provider_options": {"local": {"threads": 1}}})
    data = TrainingData.open(str(train), None)
    told = provider.translate(spec)
    before = provider.quote(spec, data, told, built_in())
    assert any("estimated for 1 CPU thread" in line for line in before.assumptions)
    session = make_session(
        provider.home,
        train,
        method={"type": "sft"},
        ref="orc-a",
        paces=str(throughput.file_of(provider.home)),
    )
    run: RunDir = session.run
    assert worker.main(str(run.path)) == 0
    assert run.state().status == "succeeded"
    (pace,) = throughput.read_pace(throughput.file_of(provider.home))
    state = run.state()
    assert pace.tokens == session.loop.train.tokens * 2 and pace.seconds == pytest.approx(state.seconds)
    assert state.started_at is not None and state.finished_at is not None
    whole = (state.finished_at - state.started_at).total_seconds()
    assert 0 < pace.seconds < pace.seconds + pace.besides_seconds <= whole
    assert pace.told_by == "model" and pace.kind.threads == 1 and pace.kind.method == "sft"
    after = provider.quote(spec, data, told, built_in())
    assert any("fitted to 1 finished run on this machine" in line for line in after.assumptions)
    assert after.train_seconds is not None and before.train_seconds is not None


@pytest.mark.slow
def test_the_live_estimate_begins_with_a_measurement(tmp_path: Path, own_time: OwnTime) -> None:
    """A layer that takes time for each token stands for a slow machine."""
    session = make_session(
        tmp_path,
        chats(tmp_path / "t.jsonl", 32),
        method={"type": "sft"},
        hyper={"epochs": 2, "batch_size": 8, "micro_batch": 4},
    )
    loop, run = session.loop, session.run
    honest = loop.objective.run
    seen: list[tuple[float, float]] = []

    def slow(rows: Any, examples: Any, total: float, *, backward: bool) -> Any:
        own_time.added_s += 1e-2 * sum(int(rows.lengths[i]) for i in examples)
        return honest(rows, examples, total, backward=backward)

    def watch() -> str | None:
        seen.append((run.state().eta_seconds or 0.0, own_time()))
        return None

    loop.objective.run = slow  # type: ignore[method-assign]
    loop.asked = watch
    first: list[float] = []
    report = loop.report

    def told(*args: Any, **kwargs: Any) -> None:
        report(*args, **kwargs)
        first.append(run.state().eta_seconds or 0.0)

    loop.report = told  # type: ignore[method-assign]
    begun = own_time()
    loop.run()
    took = own_time() - begun
    assert loop.work.measured and run.state().step == 8
    assert took / 2 < first[0] < took * 2
    assert first[-1] == 0.0


@pytest.mark.slow
def test_a_measurement_at_the_start_changes_no_bit(tmp_path: Path) -> None:
    data = chats(tmp_path / "t.jsonl", 16)
    measured, silent = (
        make_session(tmp_path, data, method={"type": "sft"}, adapter={"dropout": 0.2}, ref=ref)
        for ref in ("a", "b")
    )
    silent.loop.objective.divisible = False  # type: ignore[misc]
    for session in (measured, silent):
        session.loop.restore()
        session.loop.run()
    assert measured.loop.work.measured and not silent.loop.work.measured
    curves = [[p.values["train_loss"] for p in s.run.metrics()] for s in (measured, silent)]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_a_method_that_reads_first_counts_what_it_reads(tmp_path: Path) -> None:
    from tests.unit.local.sessions import pairs

    from orchestrate.local.run import run_speed

    session = make_session(
        tmp_path, pairs(tmp_path / "p.jsonl", 16), method={"type": "dpo"}, hyper={"epochs": 1}
    )
    session.loop.run()
    pace = run_speed.of(session, 60.0)
    rows = session.loop.train.tokens
    assert pace is not None and pace.kind.method == "dpo"
    assert pace.tokens == pytest.approx(rows + rows / 3)
    assert pace.seconds > session.loop.progress.seconds
    assert pace.besides_seconds == pytest.approx(60.0 - pace.seconds)
