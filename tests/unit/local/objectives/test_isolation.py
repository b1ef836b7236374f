"""What a grader's code can reach, by real attempts, in each way of keeping it apart."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrate.local.objectives import WAYS, Isolation, Way, candidates, works
from orchestrate.local.objectives.graders import Grade, Grader

ITEM: dict[str, Any] = {}
ATTEMPTS = """
import glob, json, os, socket
def tried(what):
    try:
        return what()
    except Exception as error:
        return None
def environ():
    found = b""
    for file in glob.glob("/proc/[0-9]*/environ"):
        found += tried(lambda: open(file, "rb").read()) or b""
    return b"sk-from-the-environment" in found
def connected(place):
    with socket.create_connection(place, timeout=2):
        return True
def grade(sample, item):
    found = {
        "environ": environ(),
        "own": dict(os.environ),
        "file": tried(lambda: open(item["file"]).read()),
        "written": tried(lambda: open(item["file"] + ".new", "w").write("x")),
        "python": tried(lambda: open(os.__file__, "a").write("")),
        "network": tried(lambda: connected(tuple(item["place"]))),
        "processes": len(glob.glob("/proc/[0-9]*")),
        "killed": tried(lambda: os.kill(item["pid"], 0) is None),
    }
    raise ValueError(json.dumps(found))
"""


@pytest.fixture(params=list(candidates()), ids=lambda found: f"{found.way}{', nobody' * found.as_nobody}")
def way(request: pytest.FixtureRequest) -> Isolation:
    found: Isolation = request.param
    if not works(found):
        pytest.skip(f"this machine has no {found.way}")
    return found


def code(source: str) -> dict[str, str]:
    return {"type": "python", "source": source}


PARENT = """
import json, os, sys
from orchestrate.local.objectives.graders import Grader
from orchestrate.local.objectives import Isolation
way, as_nobody, source, item = json.loads(sys.argv[1])
isolation = Isolation(way, as_nobody)
with Grader({"type": "python", "source": source}, isolation=isolation, seconds=240) as grader:
    print(grader.grade(["x"], [{**item, "pid": os.getpid()}])[0].error)
"""


def attempts(way: Isolation, item: dict[str, Any], source: str = ATTEMPTS) -> dict[str, Any]:
    """What the code found that is graded by a process with a key in its environment."""
    env = {**os.environ, "OPENAI_API_KEY": "sk-from-the-environment"}
    words = [sys.executable, "-c", PARENT, json.dumps([way.way, way.as_nobody, source, item])]
    said = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    assert said.startswith("ValueError: "), said
    return json.loads(said.removeprefix("ValueError: "))


def test_nothing_of_the_user_can_be_reached(way: Isolation, tmp_path: Path) -> None:
    secret = tmp_path / ".ssh" / "id_ed25519"
    secret.parent.mkdir()
    secret.write_text("a private key")
    with socket.create_server(("127.0.0.1", 0)) as server:
        # A connection needs no `accept`: the system takes it for a server that listens.
        found = attempts(way, {"file": str(secret), "place": list(server.getsockname())})
    assert set(found["own"]) <= {
        "PATH", "LANG", "HOME", "PWD", "LC_CTYPE", "SHLVL", "_", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS", "OLDPWD",
    }  # fmt: skip
    if way.way == "limits only":
        assert "NOT sandboxed" in way.description and "your permissions" in way.description
        return
    assert not found["environ"], "of this process, its parent"
    assert found["file"] is None and found["written"] is None and found["network"] is None
    assert found["python"] is None, "what the user's next program runs is not writable"
    assert found["processes"] <= 6 and not found["killed"]


WRITES = """
import json, os, stat
def grade(sample, item):
    written, seen = [], 0
    for top in ("/proc", "/sys", "/dev", "/etc", "/usr", "/"):
        for folder, below, names in os.walk(top):
            skipped = ("proc", "sys", "dev", "usr", "tmp") if folder == "/" else ("self", "thread-self")
            below[:] = [name for name in below if name not in skipped and not name.isdigit()]
            for path in (os.path.join(folder, name) for name in names):
                seen += 1
                try:
                    opened = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                except OSError:
                    continue
                if stat.S_ISREG(os.fstat(opened).st_mode):  # not the devices and pipes that are its own
                    written.append(path)
                os.close(opened)
    told = [line.split() for line in open("/proc/self/status") if line.startswith(("Cap", "NoNewPrivs"))]
    found = {"written": written[:20], "seen": seen, "uid": os.getuid(), "status": told}
    raise ValueError(json.dumps(found))
"""


@pytest.mark.slow
def test_no_setting_of_the_kernel_and_no_file_can_be_written(way: Isolation) -> None:
    """As root outside too, who passes the file modes of `/proc/sys/kernel/core_pattern` and its like: what is
    written there is run outside. Opened for writing, never written."""
    if way.way == "limits only":
        pytest.skip("nothing holds it back, as is told")
    found = attempts(way, {}, WRITES)
    assert found["seen"] > 1000 and found["written"] == []
    assert (found["uid"] == 65534) == way.as_nobody or os.geteuid() != 0
    status = {name.rstrip(":"): int(value, 16) for name, value in found["status"]}
    assert status == dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0) | {"NoNewPrivs": 1}


@pytest.mark.slow
def test_what_takes_all_there_is_is_ended_and_told(way: Isolation) -> None:
    source = (
        "import os, signal, sys, time\n"
        "def grade(sample, item):\n"
        "    said = sample['output_text']\n"
        "    if said == 'memory': return len(bytearray(64 << 30))\n"
        "    if said == 'disk':\n"
        "        with open('big', 'wb') as file:\n"
        "            for _ in range(300): file.write(bytes(1 << 20))\n"
        "    if said == 'hang': time.sleep(1000)\n"
        "    if said == 'stop': os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    if said == 'flood':\n"
        "        while True: [os.write(fd, b'x' * 9999) for fd in (3, 4, 5) if open_(fd)]\n"
        "    return 1\n"
        "def open_(fd):\n"
        "    try: os.fstat(fd); return True\n"
        "    except OSError: return False\n"
    )
    cases = (
        (3, ["hang", "good", "stop", "good"]),
        (240, ["memory", "good", "disk", "good", "flood", "good"]),
    )
    errors = dict[str, Grade]()
    for seconds, said in cases:
        with Grader(code(source), isolation=way, seconds=seconds) as grader:
            errors |= zip(said, grader.grade(said, [ITEM] * len(said)), strict=True)
    assert errors.pop("good") == Grade(1.0)
    if way.way == "namespaces":
        assert errors.pop("stop") == Grade(1.0), "the first process of a namespace cannot stop itself"
    assert all(g.score == 0 and g.error for g in errors.values()), errors
    assert "MemoryError" in str(errors["memory"].error)
    assert "channel reserved for results" in str(errors["flood"].error)


def test_forged_answers_end_the_process(way: Isolation) -> None:
    source = (
        "import os, sys\n"
        "def grade(sample, item):\n"
        "    for name in os.listdir('/proc/self/fd'):\n"
        "        fd = int(name)\n"
        "        if fd > 2:\n"
        "            try: os.write(fd, b'[[[\\n')\n"
        "            except OSError: pass\n"
        "    return 1\n"
    )
    with Grader(code(source), isolation=way, seconds=240) as grader:
        [grade] = grader.grade(["x"], [ITEM])
    assert grade.score == 0 and "channel reserved for results" in str(grade.error)


@pytest.mark.slow
def test_processes_that_the_code_leaves_behind_end_with_the_grader(way: Isolation) -> None:
    # Bounded: the number of processes is not limited for root, and a real bomb would take the machine along.
    source = (
        "import os, time\n"
        "def grade(sample, item):\n"
        "    for _ in range(50):\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(600)\n"
        "    time.sleep(600)\n"
    )
    with Grader(code(source), isolation=way, seconds=1) as grader:
        [grade] = grader.grade(["x"], [ITEM])
    assert grade.score == 0 and grade.error


@pytest.mark.parametrize("named", WAYS)
def test_each_way_is_told(named: Way) -> None:
    told = Isolation(named).description
    assert ("NOT sandboxed" in told) == (named == "limits only")
