"""What the tests of one place send to it, and how they wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from tests.paths import TINY
from tests.sending import create, upload

from orchestrate.data import TrainingData
from orchestrate.providers.local.away import AwayProvider
from orchestrate.spec import JobSpec
from orchestrate.types import JobStatus

REF = "orc-0123456789ab"


def spec(rows: Path, **more: Any) -> JobSpec:
    values: dict[str, Any] = {"model": str(TINY), "train": str(rows), "adapter": "lora", "epochs": 1}
    return JobSpec.parse(values | more)


def submit(found: AwayProvider, asked: JobSpec, ref: str = REF) -> Any:
    data = TrainingData.open(asked.train, asked.validation)  # type: ignore[arg-type]
    return create(found, asked, upload(found, asked, data), ref)


def killed_and_brought_home(found: AwayProvider, asked: JobSpec, host: Any, home: Path) -> None:
    """Train 48 steps on `host` in real processes; its machine dies on the way."""

    def wait(ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not ready():
            logs = [path.read_text()[-1500:] for path in host.folder.glob("*.log")]
            assert time.monotonic() < deadline, logs
            time.sleep(0.3)

    handle = submit(found, asked)
    wait(lambda: (found.get(handle).step or 0) >= 5)
    [first] = host.jobs
    host.kill(first)
    wait(lambda: found.get(handle).status is JobStatus.PAUSED)
    assert found.recover(handle)
    wait(lambda: found.get(handle).status.terminal)
    job = found.get(handle)
    assert job.status is JobStatus.SUCCEEDED and job.step == 48
    steps = [point.step for point in found.metrics(handle) if "train_loss" in point.values]
    assert steps == sorted(set(steps)) and steps[-1] == 48
    [resumed] = [event for event in found.events(handle) if event.type == "resumed"]
    assert (resumed.step or 0) > 0
    artifact = found.download(handle, home / "tuned")
    assert (home / "tuned" / "adapter_model.safetensors").is_file()
    passport = msgspec.json.decode((home / "tuned" / "passport.json").read_bytes())
    assert passport["ref"] == REF and artifact.kind == "adapter" and len(host.jobs) == 2
