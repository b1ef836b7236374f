"""What a worker does to its run directory, without a model: ten steps, a checkpoint at every second one. Goes
on from its newest checkpoint, and heeds `control`; before the step `hold_at` it waits for it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from orchestrate.local.plan import throughput
from orchestrate.local.plan.throughput import MeasuredPace, ThroughputKey
from orchestrate.local.run import RunDir, checkpoints, now
from orchestrate.local.run.checkpoints import Progress

STEPS = 10
PATIENCE_S = 400
SPEED = 123.0
"""Tokens per second, that it says it measured."""


def main(path: str, die_at: int, hold_at: int) -> None:
    run = RunDir(path)
    state = run.written_state()
    whole, _ = checkpoints.newest_complete(run.checkpoints)
    first = whole.progress.step if whole else 0
    run.repair(first)
    attempt = state.attempt + 1
    run.add_event(f"attempt {attempt} begins after step {first}", type="started")
    for step in range(first + 1, STEPS + 1):
        until = time.monotonic() + PATIENCE_S
        while not (word := run.asked()) and step == hold_at:
            if time.monotonic() > until:
                raise SystemExit("nobody asked")
            time.sleep(0.02)
        if word:
            status = {"pause": "paused", "cancel": "cancelled"}[word]
            state = msgspec.structs.replace(state, status=status, step=step - 1, updated_at=now())
            run.write_state(state)
            return
        run.add_metrics(step, {"train_loss": 1.0 / step, "attempt": float(attempt)})
        if step % 2 == 0:
            weights = f"weights of step {step}".encode()

            def fill(draft: Path, weights: bytes = weights) -> None:
                (draft / "adapter").mkdir()
                (draft / "adapter" / "adapter_model.safetensors").write_bytes(weights)

            checkpoints.save(run.checkpoints, Progress(step=step, total_steps=STEPS), fill)
        state = msgspec.structs.replace(
            state, status="running", step=step, total_steps=STEPS, attempt=attempt, updated_at=now()
        )
        run.write_state(state)
        if step == die_at and attempt == 1:
            raise SystemExit(9)
    if attempt == 1:
        kind = ThroughputKey(device="NVIDIA of some make", threads=1, parameters=8.2e9, precision="bf16")
        pace = MeasuredPace(kind=kind, at=now(), tokens=60 * SPEED, seconds=60, besides_seconds=5)
        throughput.add(Path(run.job().paces or ""), pace)
    (run.path / "adapter").mkdir()
    (run.path / "adapter" / "adapter_model.safetensors").write_bytes(b"the weights of the end")
    run.add_event("done", type="succeeded", step=STEPS)
    run.write_state(
        msgspec.structs.replace(
            state, status="succeeded", result="adapter", finished_at=now(), updated_at=now()
        )
    )


if __name__ == "__main__":
    main(sys.argv[-1], int(sys.argv[1]), int(sys.argv[2]))
