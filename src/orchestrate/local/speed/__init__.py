"""Measure how fast this machine trains, to predict the speed of later runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec

from orchestrate.errors import RunFailed
from orchestrate.local.plan.throughput import Bench, remember
from orchestrate.local.run.launcher import require_packages, worker_environment


def measure(
    home: Path,
    *,
    model: Path | None = None,
    threads: int | None = None,
    device: str | None = None,
    seconds: float = 20.0,
) -> Bench:
    """Train for about `seconds` in a separate process and save the measured speed for later quotes. Raises
    `MissingExtra` if the training packages are not installed. If the measurement fails, raises `RunFailed`
    with the process's message and keeps earlier measurements."""
    require_packages("measuring this machine")
    request = {
        "model": str(model) if model else None,
        "threads": threads,
        "device": device,
        "seconds": seconds,
    }
    out = subprocess.run(
        [sys.executable, "-P", "-m", "orchestrate.local.speed.bench", json.dumps(request)],
        capture_output=True,
        text=True,
        env=worker_environment(threads),
        check=False,
    )
    if out.returncode != 0:
        raise RunFailed(f"the measurement failed:\n{out.stderr[-2000:].strip()}", fix="orchestrate doctor")
    answer = msgspec.json.decode(out.stdout.splitlines()[-1])
    if "error" in answer:
        raise RunFailed(f"the measurement failed: {answer['error']}", fix=answer["fix"])
    bench = Bench.from_dict(answer)
    remember(home, bench)
    return bench
