"""How fast this machine trains: measured by `orchestrate local bench`, or modelled from what it has.
Torch-free.

A frozen base needs about 4 operations per weight and token (forward 2, gradient of the activations 2), a
fully trained one 6; attention and the adapter are within the band. So one number, operations per second in a
training step, carries over from the measured model to others of like size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import msgspec

from orchestrate.errors import RunFailed
from orchestrate.files import private_folder, write_whole
from orchestrate.local import machine
from orchestrate.local.run.launching import require_packages, worker_environment
from orchestrate.types import Record

CPU_THREAD_OPERATIONS = 6e10
"""Per second and thread, in a step of the tiny model: seen on a server core of 2023 with AVX-512, 6-13e10."""
GPU_OPERATIONS = {
    "H200": 4e14,
    "H100": 3.5e14,
    "A100": 1.4e14,
    "L40S": 1.2e14,
    "4090": 7e13,
    "3090": 3e13,
    "A10": 4e13,
    "L4": 4e13,
    "T4": 1.5e13,
}
"""Per second: about 35 to 45% of each card's dense bf16 peak as its maker states it."""
OTHER_GPU_OPERATIONS = 3e13
UNKNOWN_PARAMETERS = 8e9


class Bench(Record, frozen=True, kw_only=True):
    """One measurement."""

    device: str
    threads: int
    model: str
    parameters: int
    tokens_per_second: float
    operations_per_second: float
    peak_bytes: int | None = None
    """Most that tensors held in the largest step, as the allocator counted."""
    planned_bytes: int | None = None
    """The same by the memory plan; `None` for a model that it does not know."""
    resident_bytes: int | None = None
    """Most main memory of the process: libraries, and what loading needed, too."""
    measured_on: date


class Throughput(Record, frozen=True, kw_only=True):
    """`band` is the relative half-width of the estimate."""

    tokens_per_second: float
    source: str
    band: float


def operations_per_token(parameters: float, *, full: bool) -> float:
    return (6 if full else 4) * parameters


def bench_file(home: Path) -> Path:
    return home / "bench.json"


def read(home: Path) -> list[Bench]:
    try:
        return msgspec.json.decode(bench_file(home).read_bytes(), type=list[Bench])
    except (OSError, msgspec.MsgspecError):
        return []


def remember(home: Path, bench: Bench) -> None:
    """Kept beside earlier ones; the same model on the same device and threads is replaced."""
    key = (bench.device, bench.threads, bench.model)
    kept = [b for b in read(home) if (b.device, b.threads, b.model) != key]
    private_folder(home)
    write_whole(bench_file(home), msgspec.json.format(msgspec.json.encode([*kept, bench])))


def measure(
    home: Path,
    *,
    model: Path | None = None,
    threads: int | None = None,
    device: str | None = None,
    seconds: float = 20.0,
) -> Bench:
    """Trains for about `seconds` in a process of its own and remembers the result for later quotes.

    Raises `MissingExtra`, or `RunFailed` with what the process said; what was measured before stays.
    """
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


def estimate(
    home: Path,
    *,
    parameters: float | None,
    full: bool = False,
    threads: int | None = None,
    device: str | None = None,
) -> Throughput:
    """Tokens per second of training on this machine."""
    size = parameters or UNKNOWN_PARAMETERS
    gpu = next(iter(machine.gpus()), None) if device != "cpu" else None
    name = gpu.name if gpu else "cpu"
    work = operations_per_token(size, full=full)
    fits = [b for b in read(home) if b.device == name and (gpu or b.threads == (threads or machine.cores()))]
    if fits:
        # Utilisation grows with the model: the measurement nearest in size tells most.
        nearest = min(fits, key=lambda b: abs(_log_ratio(size, b.parameters)))
        away = abs(_log_ratio(size, nearest.parameters))
        return Throughput(
            tokens_per_second=nearest.operations_per_second / work,
            source=f"measured on this machine with {nearest.model} on {nearest.measured_on}",
            band=min(0.7, 0.15 + 0.1 * away),
        )
    if gpu is not None:
        speed = next((v for key, v in GPU_OPERATIONS.items() if key in gpu.name), OTHER_GPU_OPERATIONS)
        return Throughput(
            tokens_per_second=speed / work,
            source=f"modelled for {gpu.name}; orchestrate local bench measures it",
            band=0.6,
        )
    count = threads or machine.cores()
    return Throughput(
        tokens_per_second=CPU_THREAD_OPERATIONS * count / work,
        source=f"modelled for {count} CPU threads; orchestrate local bench measures it",
        band=0.6,
    )


def _log_ratio(a: float, b: float) -> float:
    import math

    return math.log10(max(a, 1.0) / max(b, 1.0))
