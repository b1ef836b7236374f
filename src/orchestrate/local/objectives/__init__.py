"""Training objectives, with one module per kind of loss, and graders for reinforcement fine-tuning."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Literal

# Run untrusted code on this machine, isolated as strictly as the kernel allows.


Way = Literal["bubblewrap", "namespaces", "limits only"]
WAYS: tuple[Way, ...] = ("bubblewrap", "namespaces", "limits only")
_ROOM_BYTES = 64 << 20
_TRIAL_SECONDS = 20.0
_AS_NOBODY = ("--reuid=65534", "--regid=65534", "--clear-groups")
_WITHOUT_RIGHTS = ("--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all")
_READ_ONLY = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi", "mtrr", "driver", "pressure")
_HIDDEN = ("kcore", "keys", "key-users", "timer_list", "sched_debug", "latency_stats", "kmsg", "kpagecount")
"""Files in `/proc` to hide from the code. Some are hidden by container runtimes too (moby: oci/defaults.go).
The others are protected only by file modes, which don't apply to root."""
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives")
_DESCRIPTIONS: dict[Way, str] = {
    "bubblewrap": "sandboxed by bubblewrap: no network, no other processes, no files except Python's own",
    "namespaces": "sandboxed by namespaces: no network, no other processes, no files except Python's own",
    "limits only": "NOT sandboxed: this system has neither bubblewrap nor namespaces, so the code runs with "
    "your permissions and can use your files and network. It gets none of your environment variables, "
    "and its time, memory and file sizes are limited",
}
_NEW_ROOT = """
set -e
mount -t tmpfs -o size=64m none "$1" && cd "$1" && shift
mkdir proc dev tmp old
chmod 1777 tmp
as_nobody="$1" && shift
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p ".$1"; elif [ -e "$1" ]; then mkdir -p ".${1%/*}"; : > ".$1"; fi
  [ ! -e "$1" ] || { mount --rbind "$1" ".$1"; mount -o remount,bind,ro ".$1"; }
  shift
done
shift
for name in null zero urandom; do : > dev/$name; mount --bind /dev/$name dev/$name; done
mount -t proc proc proc
for name in $READ_ONLY; do
  [ ! -e "proc/$name" ] || { mount --bind "proc/$name" "proc/$name"; mount -o remount,bind,ro "proc/$name"; }
done
for name in $HIDDEN; do [ ! -e "proc/$name" ] || mount --bind dev/null "proc/$name"; done
pivot_root . old
cd /tmp
umount -l /old
exec setpriv $as_nobody $WITHOUT_RIGHTS "$@"
"""
"""Shell script that sets up the same sandbox as bubblewrap."""


@dataclass(frozen=True)
class Isolation:
    way: Way
    as_nobody: bool = False
    """True to run the code as the user nobody. Requires root."""

    @property
    def description(self) -> str:
        """How the grader's code is isolated, as shown to the user."""
        return _DESCRIPTIONS[self.way]

    def command(self, script: Path, folder: Path) -> list[str]:
        """Return the command that runs `script` in isolation. The script may only use the standard library.
        `folder` must be an empty folder."""
        if self.way == "bubblewrap":
            return [*_bubblewrap(script, self.as_nobody), sys.executable, "-I", "/script.py"]
        if self.way == "namespaces":
            source = script.read_text(encoding="utf-8")
            return [*_namespaces(folder, self.as_nobody), "--", sys.executable, "-I", "-c", source]
        return [sys.executable, "-I", str(script)]

    def environment(self) -> dict[str, str]:
        """Return the complete set of environment variables for the code."""
        kept = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = "/usr/sbin:/usr/bin:/sbin:/bin" if os.name == "posix" else os.environ.get("PATH", "")
        return {**kept, **single, "PATH": path, "LANG": "C.UTF-8", "HOME": "/nonexistent"}


@cache
def isolation() -> Isolation:
    """Try each kind of isolation, and return the strongest one that works on this machine."""
    return next(filter(works, candidates()))


def candidates() -> Iterator[Isolation]:
    """Yield all kinds of isolation, strongest first."""
    for way in WAYS:
        if way != "limits only" and hasattr(os, "geteuid") and os.geteuid() == 0:
            yield Isolation(way, as_nobody=True)
        yield Isolation(way)


def works(found: Isolation) -> bool:
    """Return whether a script can run with this isolation on this machine."""
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
    """Return the folders of this Python and of its packages."""
    found = {sys.base_prefix, sys.base_exec_prefix, sys.prefix, str(Path(sys.executable).resolve().parent)}
    return sorted(folder for folder in found if folder not in ("/", str(Path.home())))


def _bubblewrap(script: Path, as_nobody: bool) -> list[str]:
    words = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session"]
    # In a separate user namespace, root could not switch to another user.
    spaces = ["ipc", "pid", "net", "uts", "cgroup-try"] if as_nobody else ["all"]
    words += [f"--unshare-{name}" for name in spaces]
    words += ["--cap-drop", "ALL", "--perms", "1777", "--size", str(_ROOM_BYTES), "--tmpfs", "/tmp"]  # noqa: S108
    words += ["--proc", "/proc", "--dev", "/dev"]
    words += _flat(["--ro-bind", f"/proc/{name}", f"/proc/{name}"] for name in _there(_READ_ONLY))
    words += _flat(["--ro-bind", "/dev/null", f"/proc/{name}"] for name in _there(_HIDDEN))
    # bubblewrap would create the parent folders with access only for their owner.
    above = sorted({str(parent) for folder in _python() for parent in Path(folder).parents} - {"/", "/tmp"})  # noqa: S108
    words += _flat(["--perms", "0755", "--dir", parent] for parent in above)
    for folder in (*_SYSTEM, *_python()):
        words += ["--ro-bind-try", folder, folder]
    # The root is an in-memory file system too. It is read-only, so that it cannot be filled.
    words += ["--ro-bind", str(script), "/script.py", "--remount-ro", "/", "--chdir", "/tmp"]  # noqa: S108
    if not as_nobody:
        return words
    words += _flat(["--cap-add", f"CAP_{name}"] for name in ("SETUID", "SETGID", "SETPCAP"))
    return [*words, "setpriv", *_AS_NOBODY, *_WITHOUT_RIGHTS]


def _there(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if Path("/proc", name).exists())


def _flat(words: Iterable[list[str]]) -> Iterator[str]:
    return chain.from_iterable(words)


def _namespaces(folder: Path, as_nobody: bool) -> list[str]:
    sh, unshare = shutil.which("sh") or "sh", shutil.which("unshare") or "unshare"
    users = ["--map-users=0,0,65536", "--map-groups=0,0,65536"] if as_nobody else ["--map-root-user"]
    flags = ["--user", *users, "--net", "--ipc", "--pid", "--fork", "--mount", "--kill-child"]
    script = _NEW_ROOT.replace("$WITHOUT_RIGHTS", " ".join(_WITHOUT_RIGHTS))
    script = script.replace("$READ_ONLY", " ".join(_READ_ONLY)).replace("$HIDDEN", " ".join(_HIDDEN))
    user = " ".join(_AS_NOBODY) if as_nobody else ""
    return [unshare, *flags, sh, "-c", script, "sh", str(folder), user, *_SYSTEM, *_python()]
