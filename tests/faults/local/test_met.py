"""Two processes that somebody else has brought together, with a folder each, as on two machines."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.faults.local.test_processes import of
from tests.faults.local.test_workers import files, home, job  # noqa: F401  fixtures

from orchestrate.local import LocalJob, RunDir

pytestmark = pytest.mark.slow

WORK = """
import sys
from pathlib import Path
from orchestrate.local.run import helper, parallel, worker

folder, rank, meeting = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
parallel.join(meeting, rank, 2)
met = parallel.Met(rank, 2)
if rank:
    helper.assist(helper.Silent(folder), met)
else:
    worker.main(folder, met)
    assert met.released
"""


def test_the_others_are_let_go_when_the_first_pauses_and_when_it_ends(
    job: LocalJob,  # noqa: F811
    tmp_path: Path,
) -> None:
    """With a share of every weight each, so that both restore the checkpoint, from their own folders."""
    short = msgspec.structs.replace(job.hyper, epochs=1)
    job = of(msgspec.structs.replace(job, hyper=short), 2, sharded=True)
    first, other = (RunDir.make(tmp_path / name, job)[0] for name in ("first", "other"))
    first.ask("pause")
    meet(first, other, tmp_path / "one")
    assert first.state().status == "paused" and first.state().step == 1

    first.ask(None)
    shutil.copytree(first.checkpoints, other.checkpoints)
    meet(first, other, tmp_path / "two")
    assert first.state().status == "succeeded", first.log.read_text()
    assert [point.step for point in first.metrics()] == list(range(1, 6))
    assert [event.step for event in first.events() if event.type == "resumed"] == [1]
    assert not other.metrics() and not other.events() and not (other.path / "adapter").exists()


def meet(first: RunDir, other: RunDir, meeting: Path) -> None:
    words = [sys.executable, "-c", WORK]
    started = [
        subprocess.Popen([*words, str(run.path), str(rank), str(meeting)])
        for rank, run in enumerate((first, other))
    ]
    assert [process.wait(540) for process in started] == [0, 0]
