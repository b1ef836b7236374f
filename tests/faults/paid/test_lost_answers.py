"""Answers that are billed and lost: no command costs more than its limit, however often it is repeated, and
its journal counts all that the host bills."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import command
from tests.chat_host import ChatHost, Lost, chat_host, order_row
from tests.paths import BUNDLED

from orchestrate.costing.rates import completion_price
from orchestrate.data.operations.generate import Entry
from orchestrate.paid.journal import AnswerLog, Renewed, Sent
from orchestrate.store.store import Store

pytestmark = pytest.mark.slow

MODEL = "gpt-4.1-mini"
QUESTIONS = 6
COMMANDS = {
    name: [*words.split(), "--model", MODEL] if "record" not in words else words.split()
    for name, words in {
        "eval": "eval --test rows.jsonl --max-tokens 64",
        "judged": f"eval --test rows.jsonl --max-tokens 64 --metrics judge:{MODEL}",
        "record": f"record {MODEL} --prompts rows.jsonl --max-tokens 64",
        "judge": "data judge rows.jsonl --uncalibrated",
        "generate": "data generate seeds.jsonl -o new.jsonl --rows 20 --per-request 5 --max-tokens 300",
    }.items()
}
KILL = "kill"
EVENTS = ("answer", "answer", Lost(504), Lost(500), Lost(), Lost(None, 0.05), 429, 503, 400, KILL)


@dataclass
class Place:
    """A folder and a home, with a host in the place of OpenAI that does what its script says."""

    folder: Path
    host: ChatHost
    script: list[Any] = field(default_factory=list[Any])
    more: dict[str, str] = field(default_factory=dict[str, str])
    killed: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        (self.folder / "orchestrate.toml").write_text("[hosts.openai.options]\nretry_budget_s = 1.0\n")
        lines = [
            {"messages": [{"role": "user", "content": f"row {i}"}, {"role": "assistant", "content": f"{i}"}]}
            for i in range(QUESTIONS)
        ]
        (self.folder / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        seeds = (BUNDLED / "orders" / "train.jsonl").read_text().splitlines()[:10]
        (self.folder / "seeds.jsonl").write_text("".join(f"{line}\n" for line in seeds))
        self.host.writes = self.writes

    def writes(self, number: int, body: dict[str, Any]) -> Any:
        said = self.script[(number - 1) % len(self.script)] if self.script else "answer"
        if said == KILL:
            self.reached.set()
            self.killed.wait(60)
            return Lost()  # is billed at its most, once
        if said != "answer":
            return said
        if "criteria" in body["messages"][-1]["content"] or "answer to rate" in str(body["messages"]):
            return json.dumps({"reason": "", "scores": {"quality": 5}})
        if len(body["messages"]) == 1:
            return "yes"
        return "\n".join(order_row(5000 + number * 10 + i) for i in range(5))

    def run(self, name: str, *more: str) -> command.Ended:
        """Kills the command where the script says so."""
        self.killed.clear()
        self.reached.clear()
        with tempfile.TemporaryDirectory() as streams:
            paths = [Path(streams) / stream for stream in ("in", "out", "err")]
            paths[0].touch()
            process = command.start(
                command.orchestrate, [*COMMANDS[name], *more], cwd=self.folder, env=self.env, streams=paths
            )
            deadline = time.monotonic() + 240
            while process.is_alive() and not self.reached.is_set():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            if process.is_alive():
                process.kill()
            code = command.ended(process, 240)
            self.killed.set()
            return command.Ended(code, paths[1].read_bytes(), paths[2].read_bytes())

    @property
    def env(self) -> dict[str, str]:
        return {
            "ORCHESTRATE_HOME": str(self.folder / "home"),
            "HOME": str(self.folder),
            "OPENAI_API_KEY": "key-of-the-tests",
            "OPENAI_BASE_URL": self.host.url,
            "PATH": "/usr/bin:/bin",
            **self.more,
        }

    @property
    def billed(self) -> Decimal:
        price = completion_price(MODEL)
        assert price is not None
        return sum((price(*tokens) for tokens in list(self.host.billed)), Decimal(0))

    @property
    def counted(self) -> Decimal:
        """By the journals: what all answers cost, and the worst of all that was sent without one."""
        total = Decimal(0)
        logs = [*self.folder.glob("home/evaluations/answers/*.jsonl"), *self.folder.glob("*.generation")]
        for path in logs:
            log = AnswerLog(path, Entry)
            assert not any(isinstance(entry, Renewed) for entry in log.entries)
            asked = {q for entry in log.entries if isinstance(entry, Sent) for q in entry.questions}
            total += sum((cost.usd for cost in log.costs(asked).values()), Decimal(0))
        return total


@contextmanager
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="orchestrate-paid-"))
    try:
        with chat_host() as host:
            yield Place(folder, host)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", COMMANDS)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(
    script=st.lists(st.sampled_from(EVENTS), min_size=1, max_size=12),
    limit=st.sampled_from(["0.0005", "0.002", "0.01"]),
)
def test_no_command_costs_more_than_its_limit(name: str, script: list[Any], limit: str) -> None:
    with place() as here:
        here.script = script
        for _ in range(3):
            done = here.run(name, "--max-cost", limit, "--json")
            assert b"Defect" not in done.err and b"Traceback" not in done.err, done.err.decode()
            assert here.billed <= here.counted <= Decimal(limit), (script, done.err.decode())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_budget_holds_for_answers_too(name: str) -> None:
    """Every second answer is billed and lost, and no command has a limit of its own."""
    budget = "0.0015" if name == "generate" else "0.0003"
    with place() as here:
        here.script, here.more = ["answer", Lost(504)], {"ORCHESTRATE_BUDGET_USD": budget}
        ends = [here.run(name, "--yes", "--json") for _ in range(3)]
        assert all(b"Traceback" not in done.err and b"Defect" not in done.err for done in ends), ends
        assert ends[-1].code == 6, (ends[-1].code, ends[-1].err.decode())
        with Store.open(f"sqlite:///{here.folder}/home/runs.sqlite3") as store:
            counted = store.ledger.spending()
        assert counted.committed_usd == 0
        assert here.billed <= counted.spent_usd == here.counted <= Decimal(budget), ends[-1].err.decode()
