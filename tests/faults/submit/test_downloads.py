"""A download killed at any moment leaves no artefact or a whole one, and the next one completes it."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import pytest
from tests import command
from tests.faults.downloading import download_once
from tests.faults.submitting import backend, spec_for, submit, write_rows
from tests.paths import ROOT

from orchestrate import sandbox
from orchestrate.data import TrainingData
from orchestrate.runs.syncing.sweep import refresh
from orchestrate.store.store import Store
from orchestrate.types import JobStatus, Run

pytestmark = pytest.mark.slow


def content(folder: Path) -> dict[str, str]:
    """The artefact's own files; a hidden name is somebody's unfinished work."""
    if not folder.exists():
        return {}
    files = [f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(".")]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}


@pytest.mark.parametrize("name", ["together", "fireworks"])
def test_a_killed_download_leaves_nothing_or_a_whole_artefact(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    rows = write_rows(tmp_path / "rows.jsonl")
    with sandbox.running(train=False, speed=50) as hosts, Store.open(f"sqlite:///{home}/r.sqlite3") as store:
        provider = backend(name, home, hosts.env)
        run: Run = submit(store, provider, spec_for(rows), TrainingData.open(str(rows)))
        deadline = time.monotonic() + 240
        hosts.skip(3600)
        while not run.status.terminal and time.monotonic() < deadline:
            time.sleep(0.2)
            run = refresh(store, provider, run)
        assert run.status is JobStatus.SUCCEEDED
        provider.close()

        def download(dest: Path, moment: int) -> command.Ended:
            arguments = [name, str(home), run.job_id or "", run.job_kind or "", str(dest), str(moment)]
            env = {**os.environ, **hosts.env}
            return command.run(arguments, cwd=ROOT, env=env, program=download_once)

        first = download(tmp_path / "whole" / "model", 0)
        assert first.code == 0, first.err
        whole, moments = content(tmp_path / "whole" / "model"), int(first.out)
        assert any(file.endswith(".safetensors") for file in whole)
        assert moments >= 3
        for moment in range(1, moments + 1):
            dest = tmp_path / f"killed-{moment}" / "model"
            assert download(dest, moment).code == -signal.SIGKILL
            assert content(dest) in ({}, whole), f"half an artefact after moment {moment}"
            again = download(dest, 0)
            assert again.code == 0, again.err
            assert content(dest) == whole
