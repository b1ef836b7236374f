"""The run directory: one maker, torn files, dead and foreign workers. No torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrate.core.files import write_whole
from orchestrate.errors import RunFailed, UsageError
from orchestrate.local import run as process
from orchestrate.local.job import (
    AdapterSettings,
    Hyper,
    LocalJob,
    Method,
    Preferences,
    Reinforcement,
    Supervised,
)
from orchestrate.local.run import JobState, RunDir, now, read_lines, runs
from orchestrate.types import JobStatus


def job(ref: str = "orc-1", **changes: object) -> LocalJob:
    base = LocalJob(
        ref=ref,
        model="m",
        model_name="m",
        train="t.jsonl",
        method=Supervised(),
        adapter=AdapterSettings(type="qlora"),
        created_at=now(),
    )
    return msgspec.structs.replace(base, **changes)


@pytest.mark.parametrize(
    ("written", "method"),
    [
        ({"type": "sft", "train_on_inputs": False}, Supervised(train_on_inputs=False)),
        (
            {"type": "dpo", "loss": "dpo", "beta": 0.1, "normalize_by_length": False, "rpo_alpha": None},
            Preferences(loss="dpo", beta=0.1, normalize_by_length=False),
        ),
        (
            {"type": "dpo", "loss": "kto", "beta": 1, "desirable_weight": 1.0, "undesirable_weight": 2},
            Preferences(loss="kto", beta=1.0, desirable_weight=1.0, undesirable_weight=2.0),
        ),
        (
            {"type": "rft", "grader": {"type": "python", "source": ""}, "samples_per_prompt": 8},
            Reinforcement(grader={"type": "python", "source": ""}, samples_per_prompt=8),
        ),
    ],
)
def test_the_job_of_an_earlier_version_is_read(
    tmp_path: Path, written: dict[str, Any], method: Method
) -> None:
    """The file as that version wrote it, its method a plain table of what the spec had set."""
    run, _ = RunDir.make(tmp_path, job())
    file = run.path / "job.json"
    earlier = {**json.loads(file.read_bytes()), "method": written, "hyper": {"epochs": 2, "batch_size": 4}}
    file.write_text(json.dumps(earlier))
    found = run.job()
    assert (found.method, found.hyper) == (method, Hyper(epochs=2, batch_size=4))
    assert msgspec.json.decode(found.to_json(), type=LocalJob) == found
    file.write_text(json.dumps({**earlier, "method": {"type": "of another time"}}))
    with pytest.raises(RunFailed, match="this version of Orchestrate cannot read"):
        run.job()


def test_of_many_that_make_one_ref_one_makes_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: RunDir.make(tmp_path, job(seed=n))[1], range(16)))
    assert made.count(True) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["orc-1"]
    assert RunDir(tmp_path / "orc-1").state().status == "queued"


@pytest.mark.parametrize("ref", ["", ".", "..", "../x", "a/b", ".hidden"])
def test_a_ref_cannot_leave_the_folder(tmp_path: Path, ref: str) -> None:
    with pytest.raises(UsageError):
        RunDir.make(tmp_path, job(ref))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"ref": 3}', b"\xff\xfe"])
def test_a_job_file_that_is_garbage_is_named(tmp_path: Path, content: bytes) -> None:
    run, _ = RunDir.make(tmp_path, job())
    (run.path / "job.json").write_bytes(content)
    with pytest.raises(RunFailed, match=r"cannot read the job in .*job\.json"):
        run.job()


def test_a_torn_last_line_is_not_shown_and_is_cut(tmp_path: Path) -> None:
    run, _ = RunDir.make(tmp_path, job())
    for step in (1, 2, 3):
        run.add_metrics(step, {"train_loss": 1.0 / step})
        run.add_event(f"step {step}")
    for name in ("metrics.jsonl", "events.jsonl"):
        with (run.path / name).open("ab") as out:
            out.write(b'{"step": 4, "val')
    assert [p.step for p in run.metrics()] == [1, 2, 3]
    assert [e.message for e in run.events()] == ["step 1", "step 2", "step 3"]
    run.repair(last_step=2)
    run.add_metrics(3, {"train_loss": 9.0})
    run.add_event("again")
    assert [(p.step, p.values["train_loss"]) for p in run.metrics()] == [(1, 1.0), (2, 0.5), (3, 9.0)]
    assert [e.id for e in run.events()] == ["1", "2", "3", "4"]


def test_a_metric_that_is_not_finite_is_named(tmp_path: Path) -> None:
    run, _ = RunDir.make(tmp_path, job())
    run.add_metrics(1, {"train_loss": 1.0, "valid_loss": float("nan")})
    [point] = run.metrics()
    assert (point.values, point.not_finite) == ({"train_loss": 1.0}, ("valid_loss",))


def test_a_line_of_garbage_hides_only_itself(tmp_path: Path) -> None:
    run, _ = RunDir.make(tmp_path, job())
    run.add_event("one")
    with (run.path / "events.jsonl").open("ab") as out:
        out.write(b"\x00\xff not json\n")
    run.add_event("three")
    assert [(e.id, e.message) for e in run.events()] == [("1", "one"), ("3", "three")]
    assert [e.id for e in run.events(after="1")] == ["3"]


def test_a_status_file_that_is_garbage_reads_as_interrupted(tmp_path: Path) -> None:
    run, _ = RunDir.make(tmp_path, job())
    (run.path / "status.json").write_bytes(b'{"status": "runn')
    assert run.state().status == "interrupted"


@pytest.mark.slow
def test_a_reader_never_sees_half_a_status(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_whole(path, JobState(status="running", updated_at=now()).to_json())
    code = (
        "import sys; from pathlib import Path\n"
        "from orchestrate.core.files import write_whole\n"
        "from orchestrate.local.run import JobState, now\n"
        "for n in range(300): write_whole(Path(sys.argv[1]), JobState(status='running', updated_at=now(), "
        "stage='x' * (n % 7 * 1000)).to_json())"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    reads = 0
    while writer.poll() is None:
        JobState.from_json(path.read_bytes())
        reads += 1
    assert writer.returncode == 0
    assert reads > 10
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_a_living_process_counts_only_with_its_own_start_time(tmp_path: Path) -> None:
    path = tmp_path / "worker.json"
    write_whole(path, process.me().to_json())
    assert process.process_alive(path)
    write_whole(path, msgspec.structs.replace(process.me(), started="1").to_json())
    assert not process.process_alive(path), "another process with a used-again id"


def test_a_process_that_nobody_reaped_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    begun = process.started(child.pid)
    assert begun is not None
    worker = msgspec.structs.replace(process.me(), pid=child.pid, started=begun)
    write_whole(tmp_path / "worker.json", worker.to_json())
    assert process.process_alive(tmp_path / "worker.json")
    child.kill()
    deadline = time.monotonic() + 240
    while process.process_alive(tmp_path / "worker.json") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.process_alive(tmp_path / "worker.json")
    child.communicate()


def test_a_worker_on_another_machine_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / "worker.json"
    write_whole(path, msgspec.structs.replace(process.me(), machine="elsewhere").to_json())
    assert process.process_alive(path)
    old = time.time() - 3600
    os.utime(path, (old, old))
    assert not process.process_alive(path)


def test_a_dead_worker_without_an_end_is_interrupted_and_an_ended_one_is_not(tmp_path: Path) -> None:
    run, _ = RunDir.make(tmp_path, job())
    write_whole(run.path / "worker.json", msgspec.structs.replace(process.me(), started="1").to_json())
    run.write_state(JobState(status="running", step=5, total_steps=10, updated_at=now()))
    assert run.state().status == "interrupted"
    assert run.state().step == 5
    for status in ("succeeded", "failed", "cancelled", "paused"):
        run.write_state(JobState(status=status, updated_at=now()))
        assert run.state().status == status


def test_a_pause_never_replaces_a_cancel(tmp_path: Path) -> None:
    run, _ = RunDir.make(tmp_path, job())
    run.ask("pause")
    assert run.asked() == "pause"
    run.ask("cancel")
    run.ask("pause")
    assert run.asked() == "cancel"
    run.ask(None)
    assert run.asked() is None


def test_two_workers_cannot_hold_one_job(tmp_path: Path) -> None:
    run, _ = RunDir.make(tmp_path, job())
    with run.lock() as first:
        assert first
        other = RunDir(run.path)
        with other.lock() as second:
            assert not second
    with run.lock() as again:
        assert again


def test_all_jobs_newest_first_and_nothing_else(tmp_path: Path) -> None:
    assert runs(tmp_path / "none") == []
    for n, ref in enumerate(("a", "b", "c")):
        run, _ = RunDir.make(tmp_path, job(ref))
        os.utime(run.path / "job.json", (n, n))
    (tmp_path / "other").mkdir()
    (tmp_path / ".a.1.2").mkdir()
    assert [r.ref for r in runs(tmp_path)] == ["c", "b", "a"]


def test_the_words_are_the_design_words() -> None:
    from orchestrate.local.run import STATUSES

    assert STATUSES["interrupted"] is JobStatus.PAUSED
    assert {w for w, s in STATUSES.items() if s.terminal} == {"succeeded", "failed", "cancelled"}


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, orchestrate.local.run, orchestrate.local.run.launcher, "
        "orchestrate.local.answers.generation, "
        "orchestrate.local.model.files, orchestrate.local.plan.throughput, "
        "orchestrate.providers.local\n"
        "import json\n"
        "print(json.dumps([m for m in ('torch', 'transformers', 'numpy', 'peft') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == []


def test_lines_are_read_up_to_the_last_line_feed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert read_lines(path) == []
    path.write_bytes(b"a\nb\nc")
    assert read_lines(path) == [b"a", b"b"]
