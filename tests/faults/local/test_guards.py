"""The guards of the engine, each through a worker: no number, no room on the disk, damaged files.

Where the process of the worker is not what is looked at, it works in the tests' own, which is warm."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.faults.local.test_workers import (  # noqa: F401  fixtures
    curve,
    files,
    finish,
    home,
    job,
    kill,
    small,
    wait,
    work,
)
from tests.workers import Nursery

from orchestrate.local import LocalJob, RunDir, launch, resume
from orchestrate.local.run.launcher import start_worker, worker_environment
from orchestrate.local.space import DiskFull, disk_is_full, require
from orchestrate.providers import rundirs as reading

MB = 1_000_000
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def changed(base: LocalJob, ref: str, **hyper: Any) -> LocalJob:
    others = {k: hyper.pop(k) for k in ("train", "validation") if k in hyper}
    changed_hyper = msgspec.structs.replace(base.hyper, **hyper)
    return msgspec.structs.replace(base, ref=ref, hyper=changed_hyper, **others)


def events(run: RunDir, kind: str) -> list[str]:
    return [e.message for e in run.events() if e.type == kind]


@pytest.mark.slow
def test_numbers_that_run_away_stop_the_run_with_a_reason(job: LocalJob, home: Path) -> None:  # noqa: F811
    wild = {"learning_rate": 1e30, "schedule": "constant", "evals": 1, "recovery_seconds": 600.0}
    run, _ = RunDir.make(home, changed(job, "nan", **wild))
    work(run)
    state = run.state()
    assert state.status == "failed" and state.error is not None
    assert "is not finite" in state.error.message and "lower the learning rate" in state.error.message
    step = re.search(r"step (\d+):", state.error.message)
    assert step is not None and 1 < int(step.group(1)) <= 20, (
        "the first step ran with weights that are numbers"
    )
    assert state.step == len(run.metrics()) == int(step.group(1)) - 1


@pytest.mark.slow
def test_a_row_whose_loss_leaps_out_is_skipped_and_named(job: LocalJob, home: Path, tmp_path: Path) -> None:  # noqa: F811
    """One row in 20 is noise; the others are alike, so that the mean soon lies far below it."""
    path = tmp_path / "noise.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for i in range(20):
            answer = "".join(chr(0x4E00 + 37 * k) for k in range(30)) if i == 7 else "red"
            messages = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": messages}) + "\n")
    quick = {"epochs": 2, "batch_size": 1, "recovery_seconds": 600.0}
    noisy = changed(job, "spike", spike_factor=3.0, train=str(path), validation=None, **quick)
    run, _ = RunDir.make(home, noisy)
    work(run)
    assert run.state().status == "succeeded"
    skipped = events(run, "skipped")
    assert skipped and all("the loss jumped to" in m for m in skipped)
    assert len(run.metrics()) == 40


@pytest.mark.slow
def test_a_disk_that_fills_up_pauses_the_run_and_nothing_is_lost(
    small: LocalJob,  # noqa: F811
    home: Path,  # noqa: F811
    nursery: Nursery,
) -> None:
    """No file may grow beyond what the metrics have by then: neither they nor a checkpoint can be written."""
    whole = launch(changed(small, "whole"), home, nursery.start)
    assert finish(whole) == "succeeded", whole.log.read_text()
    full = launch(changed(small, "full"), home, nursery.mortal(7, fate="disk full"))
    assert finish(full) == "paused", full.log.read_text()
    wait(lambda: not full.alive())
    state = full.state()
    assert state.error is not None and state.error.code == "disk_full"
    assert "orchestrate resume full" in state.error.message
    assert resume(full, nursery.again)
    assert finish(full) == "succeeded", full.log.read_text()
    assert full.state().error is None
    assert curve(full) == curve(whole)
    name = "adapter/adapter_model.safetensors"
    assert (full.path / name).read_bytes() == (whole.path / name).read_bytes()


@pytest.mark.slow
def test_too_little_memory_costs_time_and_changes_no_batch(
    job: LocalJob,  # noqa: F811
    home: Path,  # noqa: F811
    tmp_path: Path,
    nursery: Nursery,
) -> None:
    """A worker that may grow by 150 MB, until it has noticed, goes through 4096 tokens of a step in smaller
    parts. It keeps to them when it is killed and goes on with all the memory there is: to the bit as one that
    was never in need."""
    chance, path = random.Random(0), tmp_path / "long.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for _ in range(48):
            said = " ".join(chance.choices(["red", "green", "blue"], k=100))
            messages = [{"role": "user", "content": "Say"}, {"role": "assistant", "content": said}]
            out.write(json.dumps({"messages": messages}) + "\n")
    tight = changed(job, "tight", epochs=2, batch_size=12, evals=1, train=str(path), validation=None)
    run = launch(tight, home, lambda run: start_worker(run, in_need))
    wait(lambda: len(run.metrics()) >= 3 or run.state().terminal)
    kill(run)
    assert resume(run, nursery.again), run.log.read_text()
    assert finish(run) == "succeeded", run.log.read_text()
    memory = [e for e in run.events() if e.type == "memory"]
    assert [e.step for e in memory] == [0] * len(memory) != []
    (resumed,) = (e for e in run.events() if e.type == "resumed")
    tokens = resumed.data["tokens_at_once"]
    assert f"at most {tokens} tokens per forward pass" in memory[-1].message and tokens < 4096
    from orchestrate.local.run.session import Session  # torch loads here

    there, _ = RunDir.make(home, msgspec.structs.replace(tight, ref="in parts"))
    session = Session(there, tight, lambda: None, lambda _: None)
    assert session.loop.max_tokens == 4096
    session.loop.max_tokens = tokens
    session.loop.restore()
    session.loop.run()
    assert curve(run) == curve(there)
    assert {p.values["tokens"] for p in run.metrics()} == {p.values["tokens"] for p in there.metrics()}


def in_need(run: RunDir, log: int) -> int:
    worker = subprocess.Popen(
        [sys.executable, "-c", IN_NEED, str(run.path)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env=worker_environment(run.job().threads),
    )
    threading.Thread(target=worker.wait, daemon=True).start()  # when it ends before the test does
    return worker.pid


IN_NEED = """
import resource, sys
from pathlib import Path
from orchestrate.local.run import worker
from orchestrate.local.run import RunDir
told = RunDir.add_event
def add_event(run, message, *, type="message", **more):
    told(run, message, type=type, **more)
    # RLIMIT_DATA counts VmData. What it is short of later on would be other, slower kernels.
    written = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024
    if (most := {"started": written + 150_000_000, "memory": resource.RLIM_INFINITY}.get(type)) is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
RunDir.add_event = add_event
raise SystemExit(worker.main(sys.argv[1]))
"""


@pytest.mark.slow
def test_garbage_in_the_newest_checkpoint_costs_some_steps_only(
    small: LocalJob,  # noqa: F811
    home: Path,  # noqa: F811
    nursery: Nursery,
) -> None:
    whole = launch(changed(small, "whole"), home, nursery.start)
    assert finish(whole) == "succeeded", whole.log.read_text()
    hurt = launch(changed(small, "hurt"), home, nursery.mortal(12))
    assert finish(hurt) == "interrupted"
    checkpoints = sorted(hurt.checkpoints.glob("step-*"))
    assert len(checkpoints) >= 2
    state = checkpoints[-1] / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1000] + bytes(1000))
    (hurt.path / "status.json").write_bytes(b"\x00garbage")
    (hurt.path / "events.jsonl").write_bytes((hurt.path / "events.jsonl").read_bytes() + b"\xff{")
    assert resume(hurt, nursery.again)
    assert finish(hurt) == "succeeded", hurt.log.read_text()
    assert any(
        f"skipped the damaged checkpoint {checkpoints[-1].name}" in m for m in events(hurt, "checkpoint")
    )
    assert events(hurt, "resumed") == [f"continuing from step {int(checkpoints[-2].name[5:])} of 20"]
    assert curve(hurt) == curve(whole)


@pytest.mark.slow
def test_the_disk_is_looked_at_before_the_first_step(job: LocalJob, home: Path) -> None:  # noqa: F811
    with pytest.raises(DiskFull, match=r"95 MiB free, but .* need 111 MiB"):
        require(100 * MB - 1, result=20 * MB, checkpoint=40 * MB, kept=3)
    assert require(10_000 * MB, result=20 * MB, checkpoint=40 * MB, kept=3) is None
    warning = require(150 * MB, result=20 * MB, checkpoint=40 * MB, kept=3)
    assert warning is not None and "3 checkpoints" in warning
    # More checkpoints than any disk holds: the worker says so and goes on.
    wide = msgspec.structs.replace(job, adapter=msgspec.structs.replace(job.adapter, r=64))
    run, _ = RunDir.make(home, changed(wide, "many", epochs=400_000, checkpoints=2_000_000, evals=1))

    def cancel() -> None:
        wait(lambda: len(run.metrics()) >= 1 or run.state().terminal)
        run.ask("cancel")

    with ThreadPoolExecutor(1) as pool:
        cancelling = pool.submit(cancel)
        work(run)
        cancelling.result()
    assert run.state().status == "cancelled", run.state().error
    assert any("2,000,000 checkpoints need" in m for m in events(run, "disk"))


@pytest.mark.slow
def test_a_worker_that_is_stopped_or_stuck_is_told(job: LocalJob, home: Path) -> None:  # noqa: F811
    run = launch(changed(job, "still", epochs=10_000, evals=1), home)
    wait(lambda: run.state().step >= 1 or run.state().terminal)
    assert reading.job(run).error is None, run.log.read_text()
    pid = json.loads((run.path / "worker.json").read_bytes())["pid"]
    os.kill(pid, signal.SIGSTOP)
    long_ago = time.time() - 3600
    os.utime(run.path / "worker.json", (long_ago, long_ago))  # an hour passes
    told = reading.job(run)
    assert told.raw_status == "running" and run.alive() and not resume(run)
    assert told.error is not None and told.error.code == "no_heartbeat", told.error
    assert "not reported for 1h 00m" in told.error.message and str(run.log) in told.error.message
    os.kill(pid, signal.SIGCONT)
    wait(lambda: reading.job(run).error is None)
    os.kill(pid, signal.SIGSTOP)
    stuck, status = run.written_state(), run.path / "status.json"
    os.utime(status, (long_ago, long_ago))
    told = reading.job(run)
    assert told.error is not None and told.error.code == "no_progress", told.error
    assert "no step has finished in the last 1h 00m" in told.error.message
    # A step that takes ten minutes may take an hour with its evaluation.
    run.write_state(msgspec.structs.replace(stuck, seconds=600.0 * stuck.step))
    os.utime(status, (long_ago, long_ago))
    assert reading.job(run).error is None
    os.kill(pid, signal.SIGCONT)
    run.ask("cancel")
    assert finish(run) == "cancelled"


def test_only_want_of_room_is_a_full_disk() -> None:
    assert disk_is_full(OSError(28, "No space left on device"))
    assert not disk_is_full(PermissionError(13, "no"))
    try:
        raise ValueError("outer") from OSError(122, "quota")
    except ValueError as error:
        assert disk_is_full(error)
