"""Detect this machine's hardware without torch."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from orchestrate import settings
from orchestrate.core.files import opener, private_folder
from orchestrate.types import Record

ANSWER_S = 10.0
"""Seconds to wait for the driver's tool."""
_QUIET_S = 60.0
"""Seconds in which a tool that did not answer is not asked again."""
_HUNG: list[tuple[subprocess.Popen[str], float]] = []
_log = logging.getLogger(__name__)


class Gpu(Record, frozen=True, kw_only=True):
    name: str
    memory_bytes: int
    unified: bool = False
    """True if the driver reports no memory for this GPU, as for one that shares the system's memory (DGX
    Spark, Jetson). `memory_bytes` is then the system's."""


def mark(folder: Path) -> str:
    """Return a folder's random id, creating it on the first call. The id distinguishes folders that have the
    same path on different machines. If the id cannot be read or written, returns the folder's path."""
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


class GpuLoad(Record, frozen=True, kw_only=True):
    """Temperature, utilization and memory use of a GPU, as recorded in a run's metrics. `None` for what the
    driver does not report: utilization of a card that is cut into slices (MIG), use of unified memory."""

    gpu_temperature_c: float | None = None
    gpu_use_percent: float | None = None
    gpu_memory_bytes: float | None = None


class GpuMonitor:
    """Measures a GPU's load now and then, in a thread: `nvidia-smi` never returns if the driver hangs, and
    training must not wait for it."""

    def __init__(self, measure: Callable[[], GpuLoad], seconds: float = 15.0) -> None:
        self._measure, self._seconds = measure, seconds
        self._found = SimpleQueue[GpuLoad]()
        self._measuring, self._due = False, time.monotonic()

    def poll(self) -> dict[str, float]:
        """Return the values of a measurement that ended since the last call, and start one if it is due.
        Never blocks."""
        found = GpuLoad()
        with suppress(Empty):
            found = self._found.get_nowait()
            self._measuring = False
        if not self._measuring and time.monotonic() >= self._due:
            self._measuring, self._due = True, time.monotonic() + self._seconds
            Thread(target=lambda: self._found.put(self._measure()), name="gpu-load", daemon=True).start()
        return {name: value for name, value in found.to_dict().items() if value is not None}


def visible() -> list[str] | None:
    """List the GPUs named in CUDA_VISIBLE_DEVICES. Returns `None` if the variable is not set, in which case
    all GPUs are visible."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]


@cache
def gpus() -> tuple[Gpu, ...]:
    """List the NVIDIA GPUs that this process may use, in CUDA's order, without the memory that the driver
    reserves for itself. Returns an empty list if there are none. A MIG slice is listed with its own
    memory."""
    found: list[Gpu] = []
    # Drivers of before 2022 don't report what they reserve.
    for (name, mib, *more), part in _cards("name,memory.total,memory.reserved") or _cards(
        "name,memory.total"
    ):
        size = _less_reserved(mib, *more) if part is None else part
        unified = part is None and not size
        found.append(Gpu(name=name, memory_bytes=memory_bytes() if unified else size, unified=unified))
    return tuple(found)


@cache
def capability() -> float | None:
    """Return the compute capability of the first GPU (8.0 for an A100), or `None` if the driver does not
    report it."""
    try:
        return float(_cards("compute_cap")[0][0][0])
    except (IndexError, ValueError):  # drivers of before 2022
        return None


def gpu_load(index: int = 0) -> GpuLoad:
    """Measure the load of a GPU. `index` is its position among the GPUs that this process can see."""
    rows = _cards("temperature.gpu,utilization.gpu,memory.used")[index : index + 1]
    for (temperature, use, mib), part in rows:
        used = None if part is not None else _number(mib)  # the card's says nothing about one of its slices
        return GpuLoad(
            gpu_temperature_c=_number(temperature),
            gpu_use_percent=_number(use),
            gpu_memory_bytes=None if used is None else used * (1 << 20),
        )
    return GpuLoad()


def _number(cell: str) -> float | None:
    """Read a number of the driver's tool, with or without a unit. `None` for `[N/A]` and its like."""
    first = cell.partition(" ")[0]
    return float(first) if first.isdecimal() else None


def _less_reserved(total: str, reserved: str = "") -> int:
    """Return the bytes of a GPU's memory that processes can use, or 0 if the driver does not report it."""
    size = _number(total)
    return 0 if size is None else int(size - (_number(reserved) or 0)) << 20


def _cards(fields: str) -> list[tuple[list[str], int | None]]:
    """Return the fields of each GPU that CUDA gives to this process, in its order, and the bytes of a slice
    (MIG). The driver's tool itself ignores CUDA_VISIBLE_DEVICES. If the variable is not set and every card is
    cut into slices, as in a container that was given one, CUDA gives a process the first slice only (NVIDIA's
    MIG user guide)."""
    asked = _ask(f"--query-gpu=index,uuid,{fields}", "--format=csv,noheader,nounits")
    rows = [[cell.strip() for cell in line.split(",")] for line in asked if line.strip()]
    names = visible()
    slices = mig_slices() if names is None or any(name.startswith("MIG-") for name in names) else {}
    if names is None:
        if {uuid for _, uuid, *_ in rows} != {card for card, _ in slices.values()} or not slices:
            return [(cells, None) for _, _, *cells in rows]
        names = [next(iter(slices))]
    found: list[tuple[list[str], int | None]] = []
    for name in names:
        card, size = slices.get(name, (name, None))
        fitting = [cells for index, uuid, *cells in rows if card == index or uuid.startswith(card)]
        if len(fitting) != 1:  # CUDA passes over this one and all behind it
            break
        found.append((fitting[0], size))
    return found


@cache
def mig_slices() -> dict[str, tuple[str, int]]:
    """Map each slice (MIG) by name to the card's own name and the slice's bytes."""
    found: dict[str, tuple[str, int]] = {}
    card = ""
    lines = _ask("-L")
    sizes = _slice_sizes() if any(line.lstrip().startswith("MIG ") for line in lines) else {}
    for line in lines:
        uuid = line.rpartition("UUID: ")[2].strip(" )")
        if line.startswith("GPU "):
            card = uuid
        elif (words := line.split()) and words[0] == "MIG":  # MIG 1g.10gb Device 0: (UUID: MIG-...)
            gib = words[1].rpartition(".")[2].partition("gb")[0]  # also of a part of a slice, 1c.3g.20gb
            named = int(gib) << 30 if gib.isdecimal() else 0  # the memory of 1g.10gb is 9.5 GiB
            found[uuid] = card, sizes.get((card, words[3].rstrip(":"))) or named
    return found


def _slice_sizes() -> dict[tuple[str, str], int]:
    """Map each slice (MIG), by its card's name and its number on the card, to its bytes. Only the driver's
    complete report has them."""
    from xml.etree import ElementTree as xml  # late: few cards have slices

    try:
        report = xml.fromstring("\n".join(_ask("-q", "-x")))  # noqa: S314  from the driver
    except xml.ParseError:
        return {}
    return {
        (card.findtext("uuid", ""), one.findtext("index", "")): _less_reserved(
            one.findtext("fb_memory_usage/total", ""), one.findtext("fb_memory_usage/reserved", "")
        )
        for card in report.iter("gpu")
        for one in card.iter("mig_device")
    }


def driver_hangs() -> bool:
    """Return whether the driver's tool did not answer lately."""
    return any(child.poll() is None or time.monotonic() < until for child, until in _HUNG)


def _ask(*asked: str) -> list[str]:
    """Return the output lines of the driver's tool. Empty if it is missing, fails, or does not answer."""
    if driver_hangs():
        return []
    try:
        child = subprocess.Popen(
            ["nvidia-smi", *asked],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=settings.of_child(),
        )
    except OSError:
        return []
    try:
        said, _ = child.communicate(timeout=ANSWER_S)
    except BaseException as error:
        child.kill()  # without waiting, because a process that hangs in the driver does not end
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        if child.stdout is not None:
            child.stdout.close()
        _HUNG[:] = [(child, time.monotonic() + _QUIET_S)]
        _log.warning(
            "nvidia-smi did not answer within %g seconds, so no GPU is found here. The GPU's driver may "
            "hang: try nvidia-smi yourself, and reboot the machine if it does not answer",
            ANSWER_S,
        )
        return []
    return said.splitlines() if child.returncode == 0 else []


def cores() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float:
    """Return the system's load average over the last minute, or 0 if the system does not report it."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


def memory_bytes() -> int:
    """Return the size of main memory in bytes, or the container's memory limit if that is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        limit = "max"
    return min(total, int(limit)) if limit.isdigit() else total


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_multiplies_bf16() -> bool:
    """Return whether the CPU has bf16 instructions (AVX512-BF16, AMX or Arm's bf16 extension), according to
    the Linux kernel. On other CPUs, torch multiplies bf16 numbers one at a time, which was 70 times slower
    than fp32 in a measurement with AVX2."""
    known = {*_cpuinfo("flags").split(), *_cpuinfo("Features").split()}
    return not known.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


@cache
def cpu_has_amx() -> bool:
    """Return whether the CPU has matrix instructions for bf16 (Intel's AMX), according to the Linux
    kernel."""
    return "amx_bf16" in _cpuinfo("flags").split()


def _cpuinfo(key: str) -> str:
    """Read the fields of the first core. Empty if Linux does not report them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((v.strip() for k, _, v in (line.partition(":") for line in lines) if k.strip() == key), "")
