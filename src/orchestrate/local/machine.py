"""What this machine has, asked without torch."""

from __future__ import annotations

import os
import platform
import secrets
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

from orchestrate import settings
from orchestrate.core.files import opener, private_folder
from orchestrate.types import Record


class Gpu(Record, frozen=True, kw_only=True):
    name: str
    memory_bytes: int


def mark(folder: Path) -> str:
    """A random word that stays with a folder, made with the first call: it tells folders of one name on two
    machines apart. Where nothing can be written it is the folder's name."""
    file = folder / "mark"
    try:
        private_folder(folder)
        draft = folder / f".mark.{os.getpid()}.{secrets.token_hex(4)}"
        if not file.exists():
            with open(draft, "x", encoding="ascii", opener=opener) as out:
                out.write(secrets.token_hex(8))
            with suppress(FileExistsError):
                os.link(draft, file)  # whole or not at all, and the first one stays
            draft.unlink()
        return file.read_text(encoding="ascii")
    except OSError:
        return str(folder)


class Load(Record, frozen=True, kw_only=True):
    """Of the GPU in use, for the metrics."""

    gpu_temperature_c: float
    gpu_use_percent: float
    gpu_memory_bytes: float


@cache
def gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs as the driver's own tool lists them; empty when there is none."""
    rows = _ask("name,memory.total")
    return tuple(Gpu(name=name, memory_bytes=int(float(mib)) << 20) for name, mib in rows)


@cache
def capability() -> float | None:
    """Compute capability of the first GPU (8.0 for an A100); `None` where the driver does not tell it."""
    try:
        return float(_ask("compute_cap")[0][0])
    except (IndexError, ValueError):  # drivers of before 2022
        return None


def gpu_load(index: int = 0) -> Load | None:
    rows = _ask("temperature.gpu,utilization.gpu,memory.used")
    try:
        temperature, use, mib = (float(v) for v in rows[index])
    except (IndexError, ValueError):
        return None
    return Load(gpu_temperature_c=temperature, gpu_use_percent=use, gpu_memory_bytes=mib * (1 << 20))


def _ask(fields: str) -> list[list[str]]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        env = settings.of_child()
        out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=env).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in out.splitlines() if line.strip()]


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float:
    """Processes that want a core, as the last minute was; 0 where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


def memory_bytes() -> int:
    """Main memory, or what the container may use of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        limit = "max"
    return min(total, int(limit)) if limit.isdigit() else total


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_multiplies_bf16() -> bool:
    """By instructions of its own (AVX512-BF16, AMX, or ARM's), as the Linux kernel lists them. Elsewhere
    torch multiplies bf16 number by number: 70 times slower than 32 bits where it was measured (AVX2)."""
    known = {*_cpuinfo("flags").split(), *_cpuinfo("Features").split()}
    return not known.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def _cpuinfo(key: str) -> str:
    """Of the first core; empty where Linux does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((v.strip() for k, _, v in (line.partition(":") for line in lines) if k.strip() == key), "")
