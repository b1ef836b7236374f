"""What the JSON of each benchmark says of the machine that it ran on, and how busy others kept it meanwhile.

Imports nothing but the standard library until it is asked: some benchmarks run in an environment that has
nothing else, or measure what a process holds.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any


def about(*packages: str) -> dict[str, Any]:
    """The machine, its load as the benchmark begins, the day, and the versions of what is measured."""
    from orchestrate.local import machine

    return {
        "machine": f"{machine.cpu_name()}, {machine.cores()} cores",
        "load": round(machine.load(), 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "day": date.today().isoformat(),
    }


def write(file: Path, figures: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Meter:
    """Begun with `now`."""

    wall: float
    busy: float | None
    """CPU seconds of all processes since the machine began; `None` where that is not told."""
    own: float

    @classmethod
    def now(cls) -> Meter:
        return cls(time.monotonic(), _busy(), cpu_seconds())

    def took(self) -> dict[str, float]:
        """Seconds since, and CPU seconds of this process and of what it started."""
        return {"wall": time.monotonic() - self.wall, "cpu": cpu_seconds() - self.own}

    def others(self) -> float:
        """Cores that processes which are not ours took since."""
        now = Meter.now()
        if self.busy is None or now.busy is None:
            return 0.0
        theirs = (now.busy - self.busy) - (now.own - self.own)
        return round(max(0.0, theirs / (now.wall - self.wall)), 2)


def cpu_seconds() -> float:
    """Of this process and of all that it has started, whether they ended or still run."""
    used = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        times = resource.getrusage(who)
        used += times.ru_utime + times.ru_stime
    return used + sum(_running())


def _running() -> list[float]:
    try:
        import psutil
    except ImportError:  # in an environment of another contender, which starts nothing
        return []
    found: list[float] = []
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        ended = (times.children_user + times.children_system) if hasattr(times, "children_user") else 0.0
        found.append(times.user + times.system + ended)
    return found


def _busy() -> float | None:
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    user, nice, system, _, _, irq, soft, steal = (int(n) for n in line.split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    print(json.dumps(about()))
