"""How the process of a submitted recipe ends."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from orchestrate.errors import HostUnavailable, StoreError
from orchestrate.local.job import AdapterSettings, LocalJob, Supervised
from orchestrate.local.run import RunDir, now
from orchestrate.sessions import worker

# pyright: reportPrivateUsage=false


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "paused"),
        (StoreError("no disk space"), "paused"),
        (HostUnavailable("tinker", "gone"), "paused"),
        (ZeroDivisionError(), "failed"),
    ],
)
def test_only_what_resuming_would_meet_again_ends_it_for_good(
    tmp_path: Path, error: Exception, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error

    job = LocalJob(
        ref="orc-1",
        model="m",
        model_name="m",
        train="t",
        method=Supervised(),
        adapter=AdapterSettings(type="lora", r=4),
        spec={},
        created_at=now(),
    )
    run, _ = RunDir.make(tmp_path, job)
    monkeypatch.setattr(worker, "_drive", failing)
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    monkeypatch.setenv("ORCHESTRATE_HOME", str(tmp_path / "home"))
    with run.lock():  # of another process, which drives it meanwhile
        worker.main(str(run.path))
        assert run.written_state().status == "queued"
    worker.main(str(run.path))
    assert run.written_state().status == status
