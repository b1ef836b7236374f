"""What a process of its own does in the tests that kill it: one submit. Also what those tests share."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path

from tests import command

from orchestrate.data import TrainingData
from orchestrate.providers import registry
from orchestrate.providers.base import Provider
from orchestrate.runs.submitting.repeats import Submission
from orchestrate.runs.submitting.submit import Submitter
from orchestrate.settings import config
from orchestrate.spec import JobSpec
from orchestrate.store.runs import Intent
from orchestrate.store.store import DEFAULT_TIMING, CrashPoint, Store, Timing, pass_by
from orchestrate.types import Quote, Run

BACKENDS = ("openai", "together", "fireworks", "local")
MODELS = {
    "openai": "gpt-4.1-mini-2025-04-14",
    "together": "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference",
    "fireworks": "accounts/fireworks/models/qwen3-8b",
    "local": "tiny-chat",
}
TIMING = {"kill": Timing(send_limit_s=60.0, lease_s=1.0), "stop": Timing(send_limit_s=2.0, lease_s=1.0)}
"""Of the child, by action: a busy machine must not count as one that slept, a stopped one must."""


class Killed(BaseException):
    """No handler of ours sees it, as none sees SIGKILL."""


def dies_at(point: str) -> CrashPoint:
    def reached(here: str) -> None:
        if here == point:
            raise Killed

    return reached


def write_rows(path: Path, count: int = 12) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} and {n}?"},
                {"role": "assistant", "content": f"It is {n + n}."},
            ]
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec_for(rows: Path) -> JobSpec:
    return JobSpec(model=MODELS, train=str(rows), epochs=1)


def backend(name: str, home: Path, env: Mapping[str, str]) -> Provider:
    settings = config.load(env={"ORCHESTRATE_KEYS": str(home / "none"), **env}, cwd=home, home=home)
    return registry.make(name, settings)


def submit(
    store: Store,
    provider: Provider,
    spec: JobSpec,
    data: TrainingData,
    *,
    run_id: str | None = None,
    quote: Quote | None = None,
    max_cost_usd: Decimal | None = None,
    budget_usd: Decimal | None = None,
    timing: Timing = DEFAULT_TIMING,
    reached: CrashPoint = pass_by,
) -> Run:
    """As `Submitter.submit`; with `run_id` an interrupted run goes on."""
    submitter = Submitter(store, provider, timing, reached, budget_usd)
    if run_id is not None:
        return submitter.resume(store.runs.get(run_id), data)
    translation = provider.translate(spec)
    return submitter.submit(
        Submission(spec=spec, translation=translation, data=data, quote=quote, max_cost_usd=max_cost_usd)
    )


def submit_once(arguments: list[str]) -> None:
    """`STORE_URL BACKEND ROWS MARKS POINT ACTION`: writes each point that it reaches into MARKS, and at
    POINT does ACTION to itself: `kill` (SIGKILL) or `stop` (SIGSTOP; whoever started it lets it go on)."""
    url, name, rows, marks, point, action = arguments

    def reached(here: str) -> None:
        with Path(marks).open("a") as file:
            file.write(f"{here}\n")
        if here == point:
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[action])

    home = Path(marks).parent
    with Store.open(url) as store:
        provider = backend(name, home, os.environ)
        submit(
            store,
            provider,
            spec_for(Path(rows)),
            TrainingData.open(rows),
            timing=TIMING[action],
            reached=reached,
        )


def leave(free: int, disk: Path) -> Path:
    """A ballast that leaves so many bytes of the disk."""
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * (shutil.disk_usage(disk).free - free))
    return ballast


def make_at_once(
    tmp_path: Path, url: str, *, processes: int, each: int, maker: Callable[[list[str]], None] | None = None
) -> list[int]:
    """So many processes that each make so many runs, started together; their exit codes."""
    log, start = tmp_path / "makers.log", tmp_path / "start"
    makers = [
        command.start(
            maker or make_runs,
            [url, str(each), str(start)],
            cwd=tmp_path,
            env=os.environ,
            streams=[Path(os.devnull), log, log],
        )
        for _ in range(processes)
    ]
    start.touch()
    return [command.ended(maker, 240) for maker in makers]


def make_runs(arguments: list[str]) -> None:
    """`STORE_URL COUNT START`: makes so many runs in the store, as soon as the file START is there."""
    url, count, start = arguments
    while not Path(start).exists():
        time.sleep(0.001)
    spec = JobSpec(model="m", train="rows.jsonl")
    with Store.open(url) as store:
        for _ in range(int(count)):
            store.runs.create(Intent(spec=spec, provider="paper", dataset_digest="d", host="here"))
