"""A worker away from here: what it reports, how it goes on, and how it ends itself. Its engine is a small one
that treats the run directory as the real one does; `test_training_away` has the real one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from tests.paths import ROOT
from tests.unit.places.depots import S3

from orchestrate.core.files import write_whole
from orchestrate.local import Hyper, LocalJob, RunDir
from orchestrate.local.job import AdapterSettings, Supervised
from orchestrate.local.run import checkpoints, now
from orchestrate.local.run.checkpoints import Progress
from orchestrate.places import lease
from orchestrate.places import storage as mirror
from orchestrate.places.base import WorkerLimits
from orchestrate.places.lease import Watchdog
from orchestrate.places.manifest import environment, write_manifest
from orchestrate.places.remote import SILENT, TrainingAttempt
from orchestrate.places.storage import RunStorage
from orchestrate.types import ArtifactFile

ENGINE = str(Path(__file__).parent / "engine.py")


def engine(die_at: int = 0, hold_at: int = 0) -> list[str]:
    return [sys.executable, ENGINE, str(die_at), str(hold_at)]


@pytest.fixture
def job(tmp_path: Path) -> LocalJob:
    return job_at(tmp_path)


def job_at(folder: Path) -> LocalJob:
    (folder / "train.jsonl").write_text('{"messages": []}\n')
    return LocalJob(
        ref="orc-a",
        model="someone/some-model",
        model_name="some-model",
        train=str(folder / "train.jsonl"),
        method=Supervised(),
        adapter=AdapterSettings(type="lora", r=8),
        hyper=Hyper(epochs=1),
        created_at=now(),
    )


def errand(url: str, folder: Path, **more: object) -> TrainingAttempt:
    values = {"engine": engine(), "report_s": 0.05, "grace_s": 5.0, "end": lambda code: None} | more
    folder.mkdir(exist_ok=True)
    return TrainingAttempt(RunStorage(url), "orc-a", folder, **values)  # pyright: ignore[reportArgumentType]


def wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def meanwhile(away: TrainingAttempt, happens: Callable[[], object]) -> None:
    """Once its engine holds before step 5."""
    threading.Thread(target=lambda: (wait(lambda: away.run.state().step == 4), happens())).start()


@pytest.mark.slow
def test_a_reader_sees_what_the_worker_wrote(url: str, job: LocalJob, tmp_path: Path) -> None:
    depot = RunStorage(url)
    order = write_manifest(depot, job, WorkerLimits())
    away = errand(url, tmp_path / "there")
    assert away.manifest == order and away.work() == 0

    here, stored = RunDir(tmp_path / "here"), depot.run("orc-a")
    here.path.mkdir()
    assert mirror.look(here, stored)
    assert here.events() == away.run.events() and here.metrics() == away.run.metrics()
    assert [point.step for point in here.metrics()] == list(range(1, 11))
    assert here.state() == away.run.state() and here.state().status == "succeeded"
    assert [one.path.name for one in checkpoints.listed(here.checkpoints)] == [
        one.path.name for one in checkpoints.listed(away.run.checkpoints)
    ]
    assert not (here.path / "adapter").exists()
    mirror.bring(here, stored, here.path / "adapter")
    assert (here.path / "adapter" / "adapter_model.safetensors").read_bytes() == b"the weights of the end"
    last = checkpoints.listed(here.checkpoints)[-1]
    mirror.bring(here, stored, last.weights)
    assert checkpoints.verify(last.path) is not None
    assert not here.alive()  # it has said that it ends


@pytest.mark.slow
def test_killed_it_goes_on_from_its_newest_checkpoint_in_another_attempt(
    url: str, job: LocalJob, tmp_path: Path
) -> None:
    """And the reader gets each step once, though the second attempt trains one again."""
    write_manifest(RunStorage(url), job, WorkerLimits())
    here, stored = RunDir(tmp_path / "here"), RunStorage(url).run("orc-a")
    here.path.mkdir()
    assert errand(url, tmp_path / "first", engine=engine(die_at=5)).work() == 1
    mirror.look(here, stored)
    assert here.state().status == "interrupted" and here.metrics()[-1].step == 5
    assert errand(url, tmp_path / "second").work() == 0
    assert mirror.look(here, stored, 1)
    told = {point.step: point.values["attempt"] for point in here.metrics()}
    assert len(here.metrics()) == len(told) == 10
    assert told[4] == 1 and told[5] == 2, "step 5 came after the newest checkpoint"
    assert "begins after step 4" in " ".join(event.message for event in here.events())
    assert here.state().status == "succeeded" and lease.attempts(stored) == 2


@pytest.mark.parametrize(
    ("word", "end"), [("pause", "paused"), pytest.param("cancel", "cancelled", marks=pytest.mark.slow)]
)
def test_it_heeds_what_it_is_asked(word: str, end: str, job: LocalJob, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/depot"
    write_manifest(RunStorage(url), job, WorkerLimits())
    stored = RunStorage(url).run("orc-a")
    away = errand(url, tmp_path / "there", engine=engine(hold_at=5))
    meanwhile(away, lambda: stored.write("control", word.encode()))
    assert away.work() == 0
    assert b'"status":"%s"' % end.encode() in (stored.read("status.json") or b"")


def test_of_two_workers_the_older_ends_itself(job: LocalJob, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/depot"
    write_manifest(RunStorage(url), job, WorkerLimits())
    first, codes = errand(url, tmp_path / "first", engine=engine(hold_at=1)), list[int]()
    thread = threading.Thread(target=lambda: codes.append(first.work()))
    thread.start()
    wait(lambda: RunStorage(url).read("runs/orc-a/pulse.json") is not None)
    assert errand(url, tmp_path / "second").work() == 0
    thread.join(240)
    assert codes == [1]
    told = RunDir(tmp_path / "here")
    told.path.mkdir()
    mirror.look(told, RunStorage(url).run("orc-a"))
    assert told.state().status == "succeeded" and len(told.metrics()) == 10


@pytest.mark.slow
def test_at_its_limit_it_pauses_the_run_and_says_why(job: LocalJob, tmp_path: Path) -> None:
    """A dollar at 3600 dollars per hour is one second, of all attempts together."""
    url, clock = f"file://{tmp_path}/depot", Clock()
    limits = WorkerLimits(max_usd=Decimal(1), usd_per_hour=Decimal(3600))
    write_manifest(RunStorage(url), job, limits)
    away = errand(url, tmp_path / "there", engine=engine(hold_at=5), clock=clock)
    meanwhile(away, lambda: clock.pass_(1.0))
    assert away.work() == 0
    state = away.run.state()
    assert state.status == "paused" and 0 < state.step < 10
    assert state.error is not None and state.error.code == "limit" and "$1.00" in state.error.message
    again = errand(url, tmp_path / "again", engine=engine(hold_at=5))
    assert again.lease.earlier_s >= 1.0
    assert again.work() == 0 and again.run.metrics()[-1].step == state.step, "no time was left"
    write_manifest(RunStorage(url), job, WorkerLimits())
    assert errand(url, tmp_path / "more").work() == 0


def test_a_machine_that_is_taken_away_leaves_a_checkpoint_and_a_run_that_goes_on(
    job: LocalJob, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/depot"
    write_manifest(RunStorage(url), job, WorkerLimits())
    away = errand(url, tmp_path / "there", engine=engine(hold_at=5))
    meanwhile(away, away.preempted.set)
    assert away.work() == 1
    here = RunDir(tmp_path / "here")
    here.path.mkdir()
    mirror.look(here, RunStorage(url).run("orc-a"))
    assert here.state().status == "interrupted", "nobody paused it"
    assert errand(url, tmp_path / "next").work() == 0


class Clock:
    at = 1000.0

    def pass_(self, seconds: float) -> None:
        self.at += seconds

    def __call__(self) -> float:
        return self.at


def test_when_the_switch_is_thrown() -> None:
    """By hand: $30 at $2.50 per hour are 12 hours, of which earlier attempts used 5."""
    clock = Clock()
    limits = WorkerLimits(max_hours=20, max_usd=Decimal(30), usd_per_hour=Decimal("2.5"), silence_s=600)
    assert limits.seconds == 12 * 3600
    switch = Watchdog(limits, earlier_s=5 * 3600, clock=clock)
    clock.at += 599
    assert switch.due() is None
    clock.at += 1
    assert switch.due() is not None and switch.due()[0] == "silence"  # pyright: ignore[reportOptionalSubscript]
    switch.reported()
    assert limits.working_s(5 * 3600) == 12 * 3600 - 600
    clock.at = 1000.0 + 7 * 3600 - 601
    switch.reported()
    assert switch.due() is None
    clock.at += 1
    found = switch.due()
    assert found is not None and found[0] == "limit" and "$30.00" in found[1]
    assert Watchdog(WorkerLimits(), clock=clock).due() is None


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["frozen", pytest.param("gone", marks=pytest.mark.slow)])
def test_cut_off_from_its_store_it_ends_itself_and_its_engine(
    cut: str, job: LocalJob, tmp_path: Path
) -> None:
    """The store takes connections and answers nothing, or is not there: the first hangs whoever asks it."""
    store = S3(tmp_path)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in store.env.items():
                patch.setenv(name, value)
            depot = RunStorage("s3://runs/cut")
            order = write_manifest(depot, job, WorkerLimits(silence_s=60))
            worker = subprocess.Popen(
                [sys.executable, "-c", CUT, str(tmp_path), *engine(hold_at=5)],
                env={**os.environ, **environment(depot, order), "PYTHONPATH": str(ROOT / "src")},
            )
        pid = tmp_path / "orc-a" / "engine.pid"
        wait(lambda: pid.exists() and len(RunDir(tmp_path / "orc-a").metrics()) > 1)
        if cut == "frozen":
            store.freeze()
        else:
            store.process.kill()
        wait(lambda: silent(worker, tmp_path))
        assert worker.returncode == SILENT
        wait(lambda: not _lives(int(pid.read_text())))
    finally:
        store.close()


def silent(worker: subprocess.Popen[bytes], folder: Path) -> bool:
    """Whether it has ended; else hours pass by its clock."""
    passed = float((folder / "clock").read_text()) if (folder / "clock").exists() else 0.0
    write_whole(folder / "clock", str(passed + 3600).encode())
    return worker.poll() is not None


CUT = """
import os, sys
from contextlib import suppress
from pathlib import Path
from orchestrate.places.storage import RunStorage
from orchestrate.places.remote import TrainingAttempt
folder, *engine = sys.argv[1:]
note = 'echo $$ > "$4/engine.new"; mv "$4/engine.new" "$4/engine.pid"; exec "$0" "$@"'
depot = RunStorage(os.environ["ORCHESTRATE_DEPOT"])
def clock():
    with suppress(FileNotFoundError):
        return float(Path(folder, "clock").read_text())
    return 0.0
engine = ["/bin/sh", "-c", note, *engine]
errand = TrainingAttempt(depot, "orc-a", Path(folder), engine=engine, report_s=0.2, clock=clock)
os._exit(errand.work())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode != 0,
    reason="no network namespace can be made here",
)
def test_cut_off_from_the_network_it_ends_itself_and_its_engine(tmp_path: Path) -> None:
    """The store and the worker in a network of their own, whose only interface goes down on the way."""
    done = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", NETWORK, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    code, lives, reports = done.stdout.split()[-3:]
    assert (int(code), lives) == (SILENT, "False") and int(reports) > 0


NETWORK = """
import fcntl, os, socket, struct, subprocess, sys
from pathlib import Path


def loopback(up):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x49 if up else 0x48))


loopback(True)
from tests.unit.places import test_remote as tests
from tests.unit.places.depots import S3

folder = Path(sys.argv[1])
store = S3(folder)
os.environ.update(store.env)
depot = tests.RunStorage("s3://runs/cut")
(folder / "train.jsonl").write_text("{}")
order = tests.write_manifest(depot, tests.job_at(folder), tests.WorkerLimits(silence_s=60))
worker = subprocess.Popen(
    [sys.executable, "-c", tests.CUT, str(folder), *tests.engine(hold_at=5)],
    env={**os.environ, **tests.environment(depot, order)},
)
pid = folder / "orc-a" / "engine.pid"
tests.wait(lambda: pid.exists() and len(tests.RunDir(folder / "orc-a").metrics()) > 1)
tests.wait(lambda: depot.read("runs/orc-a/pulse.json") is not None)
loopback(False)
tests.wait(lambda: tests.silent(worker, folder))
code = worker.returncode
tests.wait(lambda: not tests._lives(int(pid.read_text())))
loopback(True)
print(code, tests._lives(int(pid.read_text())), len(depot.read("runs/orc-a/pulse.json") or b""))
store.close()
"""


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_checkpoint_to_go_on_from_is_there_at_every_moment(job: LocalJob, tmp_path: Path) -> None:
    """Also where the engine removes each one sooner than it can be sent."""
    depot = Slow(f"file://{tmp_path}/depot")
    run, stored = RunDir(tmp_path / "run"), depot.run("orc-a")
    run.path.mkdir()
    reporter, kept = mirror.Reporter(run, stored), list[str]()
    for step in range(1, 6):
        checkpoints.save(run.checkpoints, Progress(step=step, total_steps=9, kept=False), _fill)
        depot.meanwhile = lambda: checkpoints.prune(run.checkpoints)
        if step > 1:
            depot.meanwhile = lambda step=step: (
                checkpoints.save(run.checkpoints, Progress(step=step + 90, total_steps=9, kept=False), _fill),
                checkpoints.prune(run.checkpoints),
            )
        reporter.report()
        kept = [name for name in stored.folders() if stored.manifest(name) is not None]
        assert kept, step
        assert stored.fetch_folder(kept[-1], tmp_path / f"back-{step}")
        assert checkpoints.verify(tmp_path / f"back-{step}") is not None
        for path in run.checkpoints.glob("step-*"):
            shutil.rmtree(path)


class Slow(RunStorage):
    """Something else happens while a file is sent."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def keep(self, path: Path, under: str = "blobs") -> ArtifactFile:
        self.meanwhile()
        return super().keep(path, under)


def _fill(draft: Path) -> None:
    (draft / "adapter").mkdir()
    (draft / "adapter" / "adapter_model.safetensors").write_bytes(b"w" * 100)
    (draft / "state.safetensors").write_bytes(b"s" * 100)


@pytest.mark.slow
def test_an_engine_ends_with_whoever_watches_it(tmp_path: Path) -> None:
    """Killed, a watcher can end nothing: its engine sees that the line is cut."""
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCHER, sys.executable, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert watcher.stdout is not None
    pid = int(watcher.stdout.readline())
    assert _lives(pid)
    os.kill(watcher.pid, signal.SIGKILL)
    watcher.wait()
    watcher.stdout.close()
    wait(lambda: not _lives(pid))


WATCHER = """
import subprocess, sys, time
code = (
    "import time; from orchestrate.core import child; child.end_with_input(); time.sleep(300)"
)
worker = subprocess.Popen([sys.argv[1], "-c", code], stdin=subprocess.PIPE)
time.sleep(1)
print(worker.pid, flush=True)
time.sleep(300)
"""


def test_the_order_has_what_was_sent_by_content(job: LocalJob, tmp_path: Path) -> None:
    depot = RunStorage(f"file://{tmp_path}/depot")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    job = msgspec.structs.replace(job, model=str(tmp_path / "model"))
    first = write_manifest(depot, job, WorkerLimits())
    blobs = depot.names("blobs")
    assert write_manifest(depot, job, WorkerLimits(max_hours=1)).code == first.code
    assert depot.names("blobs") == blobs and len(blobs) == 3
