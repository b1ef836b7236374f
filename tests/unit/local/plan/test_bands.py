"""Quotes of this machine against runs that really trained: what the first one teaches, and what then
holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.paths import TINY
from tests.unit.local.model.shortcuts.test_line import chats
from tests.unit.local.plan.conftest import OwnTime
from tests.unit.local.sessions import make_session

from orchestrate.costing import built_in
from orchestrate.data import TrainingData
from orchestrate.local.plan import throughput
from orchestrate.local.plan.throughput import estimate
from orchestrate.local.run import run_speed, worker
from orchestrate.local.run.session import Session
from orchestrate.providers.local.provider import LocalProvider
from orchestrate.settings.config import HostConfig
from orchestrate.spec import JobSpec
from orchestrate.types import Quote

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
RUNS: list[tuple[str, str, int, int]] = [
    ("qlora", "sft", 24, 2),
    ("qlora", "sft", 48, 1),
    ("lora", "sft", 32, 2),
    ("full", "sft", 24, 3),
    ("qlora", "dpo", 24, 2),
    ("qlora", "sft", 64, 1),
    ("lora", "dpo", 16, 3),
    ("qlora", "sft", 40, 2),
]
"""Adapter, method, rows, epochs."""


def as_pair(line: str) -> str:
    """As a host takes it."""
    asked, said = json.loads(line)["messages"]
    other = {**said, "content": "I would rather not say"}
    pair = {"input": {"messages": [asked]}, "preferred_output": [said], "non_preferred_output": [other]}
    return json.dumps(pair) + "\n"


class Machine:
    """One home, whose runs are quoted, trained and kept one after the other."""

    def __init__(self, home: Path) -> None:
        self.provider = LocalProvider(HostConfig(name="local", options={"home": str(home), "device": "cpu"}))
        self.paces = throughput.file_of(self.provider.home)
        self.folder = home
        self.ran = 0

    def session(self, adapter: str, method: str, rows: int, epochs: int) -> Session:
        self.ran += 1
        train = self.folder / f"{self.ran}.jsonl"
        chats(train, rows, None)
        if method == "dpo":
            train.write_text("".join(as_pair(line) for line in train.read_text().splitlines()))
        return make_session(
            self.provider.home,
            train,
            method={"type": method},
            adapter={"type": adapter},
            hyper={"epochs": epochs},
            ref=f"orc-{self.ran}",
            paces=str(self.paces),
        )

    def quote(self, session: Session) -> Quote:
        job = session.job
        given = {"model": str(TINY), "train": job.train, "adapter": job.adapter.type, "batch_size": 8}
        given |= {"method": job.method.word, "epochs": job.hyper.epochs}
        spec = JobSpec.parse({**given, "provider_options": {"local": {"threads": 1}}})
        data = TrainingData.open(job.train, None)
        return self.provider.quote(spec, data, self.provider.translate(spec), built_in())


def test_quotes_of_real_runs_hold(tmp_path: Path, own_time: OwnTime) -> None:
    """Of a band for nine in ten: three of eight may miss."""
    machine = Machine(tmp_path)
    told: list[tuple[bool, float]] = []
    for asked in RUNS:
        session = machine.session(*asked)
        quote = machine.quote(session)
        session.close()
        assert worker.main(str(session.run.path)) == 0
        state = session.run.state()
        assert state.status == "succeeded" and state.started_at and state.finished_at and quote.train_seconds
        off = (state.finished_at - state.started_at).total_seconds() / quote.train_seconds
        low, high = (float(usd / quote.expected_usd) for usd in (quote.low_usd, quote.high_usd))
        told.append((low <= off <= high, max(off, 1 / off)))
    assert len(throughput.read_pace(machine.paces)) == len(RUNS)
    assert sum(held for held, _ in told) >= len(told) - 3, told
    later = sorted(off for _, off in told[3:])
    assert later[len(later) // 2] < 2.0, told


def test_a_slow_machine_is_known_after_its_first_run(tmp_path: Path, own_time: OwnTime) -> None:
    """Ten times slower than such a machine is expected to be, for which each token takes time."""
    machine = Machine(tmp_path)
    told: list[tuple[float, float]] = []
    for n in range(5):
        session = machine.session("qlora", "sft", 16 + 4 * n, 1)
        honest = session.loop.objective.run

        def run(rows: Any, examples: Any, total: float, *, backward: bool, honest: Any = honest) -> Any:
            own_time.added_s += 4e-3 * sum(int(rows.lengths[i]) for i in examples)
            return honest(rows, examples, total, backward=backward)

        session.loop.objective.run = run  # type: ignore[method-assign]
        begun = own_time()
        session.loop.restore()
        session.loop.run()
        pace = run_speed.of(session, own_time() - begun)
        assert pace is not None
        before = estimate(machine.provider.home, pace.kind)
        off = pace.tokens / pace.seconds / before.tokens_per_second
        told.append((max(off, 1 / off), before.factor))
        throughput.add(machine.paces, pace)
    (first, wide), *later = told
    assert first > wide, told
    assert all(off < factor for off, factor in later), told
    assert later[-1][1] < later[0][1] < wide, told
