"""Records are read in several threads at once, from the first time on."""

from __future__ import annotations

import subprocess
import sys

FIRST_USES = """
import sys, threading
import msgspec
from orchestrate.types import decoding

sys.setswitchinterval(1e-6)
kinds = []
for number in range(150):  # each is read for the first time once
    inner = msgspec.defstruct("Inner", [("a", int), ("b", str)])
    kinds.append(msgspec.defstruct("Outer", [("x", inner), ("y", str)]))
barrier = threading.Barrier(6)


def read():
    for kind in kinds:
        barrier.wait()
        assert decoding.convert({"x": {"a": 1, "b": "b"}, "y": "y"}, kind).x.a == 1
        assert decoding.decode('{"x": {"a": 1, "b": "b"}, "y": "y"}', type=kind).x.b == "b"


threads = [threading.Thread(target=read) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_the_first_use_of_a_record_may_be_that_of_several_threads() -> None:
    """In a process of its own: what would go wrong ends it."""
    done = subprocess.run([sys.executable, "-c", FIRST_USES], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
