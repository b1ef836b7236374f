"""How code of others is run on this machine: as far from everything of the user as the kernel allows.

Three ways, the first that works here is used: bubblewrap (a file system with Python alone, no network; user,
process and mount namespaces of its own); the same by util-linux's `unshare`; else only a clean environment
and limits.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Way = Literal["bubblewrap", "namespaces", "limits only"]
WAYS: tuple[Way, ...] = ("bubblewrap", "namespaces", "limits only")
_ROOM_BYTES = 64 << 20
_TRIAL_SECONDS = 20.0
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives")
_TOLD: dict[Way, str] = {
    "bubblewrap": "confined by bubblewrap: no network, no other process, no file but Python's own",
    "namespaces": "confined by namespaces: no network, no other process, no file but Python's own",
    "limits only": "NOT confined: this system offers neither bubblewrap nor namespaces, so the code has "
    "your rights, files and network; only its environment is empty and its time, memory and files limited",
}
_NEW_ROOT = """
set -e
mount -t tmpfs -o size=64m none "$1" && cd "$1" && shift
mkdir proc dev tmp old
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p ".$1"; elif [ -e "$1" ]; then mkdir -p ".${1%/*}"; : > ".$1"; fi
  [ ! -e "$1" ] || { mount --rbind "$1" ".$1"; mount -o remount,bind,ro ".$1"; }
  shift
done
shift
for name in null zero urandom; do : > dev/$name; mount --bind /dev/$name dev/$name; done
mount -t proc proc proc
pivot_root . old
cd /tmp
umount -l /old
exec setpriv --no-new-privs --inh-caps=-all --ambient-caps=-all --bounding-set=-all "$@"
"""
"""What bubblewrap does, in words of the shell."""


@dataclass(frozen=True)
class Isolation:
    way: Way

    @property
    def told(self) -> str:
        """For the user: what holds the code back."""
        return _TOLD[self.way]

    def command(self, script: Path, folder: Path) -> list[str]:
        """What to start for `script`, which uses the standard library alone; `folder` is an empty one."""
        if self.way == "bubblewrap":
            return [*_bubblewrap(script), sys.executable, "-I", "/script.py"]
        if self.way == "namespaces":
            source = script.read_text(encoding="utf-8")
            return [*_namespaces(folder), "--", sys.executable, "-I", "-c", source]
        return [sys.executable, "-I", str(script)]

    def environment(self) -> dict[str, str]:
        """All that the code finds in its environment."""
        kept = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = "/usr/sbin:/usr/bin:/sbin:/bin" if os.name == "posix" else os.environ.get("PATH", "")
        return {**kept, **single, "PATH": path, "LANG": "C.UTF-8", "HOME": "/nonexistent"}


@cache
def isolation() -> Isolation:
    """The best way that works here, found by trying."""
    return next(found for found in map(Isolation, WAYS) if works(found))


def works(found: Isolation) -> bool:
    """Whether a script runs this way on this machine."""
    if found.way == "limits only":
        return True
    tools = ("bwrap",) if found.way == "bubblewrap" else ("unshare", "setpriv", "mount", "pivot_root", "sh")
    if sys.platform != "linux" or not all(shutil.which(tool) for tool in tools):
        return False
    script = Path(__file__).with_name("grader_process.py")
    with tempfile.TemporaryDirectory(prefix="grader-") as folder:
        try:
            tried = subprocess.run(
                found.command(script, Path(folder)),
                env=found.environment(),
                input=b'"def grade(sample, item): return 1"\n',
                capture_output=True,
                timeout=_TRIAL_SECONDS,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return False
    return tried.returncode == 0 and tried.stdout == b"{}\n"


def _python() -> Sequence[str]:
    """The folders of this Python and of its packages."""
    found = {sys.base_prefix, sys.base_exec_prefix, sys.prefix, str(Path(sys.executable).resolve().parent)}
    return sorted(folder for folder in found if folder not in ("/", str(Path.home())))


def _bubblewrap(script: Path) -> list[str]:
    words = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
    words += ["--cap-drop", "ALL", "--size", str(_ROOM_BYTES), "--tmpfs", "/tmp", "--proc", "/proc"]  # noqa: S108
    words += ["--dev", "/dev"]
    for folder in (*_SYSTEM, *_python()):
        words += ["--ro-bind-try", folder, folder]
    # The root is a file system in memory too: read-only, so that it cannot be filled.
    return [*words, "--ro-bind", str(script), "/script.py", "--remount-ro", "/", "--chdir", "/tmp"]  # noqa: S108


def _namespaces(folder: Path) -> list[str]:
    sh, unshare = shutil.which("sh") or "sh", shutil.which("unshare") or "unshare"
    flags = ["--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--mount", "--kill-child"]
    return [unshare, *flags, sh, "-c", _NEW_ROOT, "sh", str(folder), *_SYSTEM, *_python()]
