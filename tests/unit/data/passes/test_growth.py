"""A larger file takes as much more work and hardly more memory. Told by counts, not by clocks."""

from __future__ import annotations

import cProfile
import pstats
import random
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrate.data.dialects import canonical_line
from orchestrate.data.operations.check import CheckOptions, check
from orchestrate.data.passes.scan import ranges
from orchestrate.data.rows import ChatExample, ChatMessage

pytestmark = pytest.mark.slow

MB = 1 << 20
_PEAK = """
import re, resource, sys
from pathlib import Path
from orchestrate.data.operations.check import CheckOptions, check
report = check({"train": sys.argv[1]}, CheckOptions(tokenizer="o200k", workers=2))
# Of itself: what getrusage tells begins with the size of whoever started this process.
own = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(report.files[0].rows, own // 1024, workers // 1024)
"""


def write(file: Path, megabytes: int) -> int:
    """Rows of some 3 KB, each with problems to find, and all different. Returns how many."""
    r = random.Random(3)
    words = ["".join(r.choices("abcdefghijklmnopqrstuvwxyz", k=r.randint(2, 11))) for _ in range(20_000)]
    line = canonical_line
    rows = 0
    with file.open("wb") as out:
        while out.tell() < megabytes * MB:
            answer = f"{rows} ghp_{'a1B2' * 9} " + " ".join(r.choices(words, k=400))
            asked = ChatMessage(role="user", content=f"{rows} someone@mail.org")
            out.write(
                line(ChatExample(messages=[asked, ChatMessage(role="assistant", content=answer)])) + b"\n"
            )
            rows += 1
    return rows


def peak(file: Path) -> tuple[int, int, int]:
    """Rows, and MB of the parent and of the larger worker."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(file)], capture_output=True, text=True, check=True
    )
    rows, own, worker = map(int, done.stdout.split())
    return rows, own, worker


def calls(file: Path) -> int:
    """Of all functions, Python's and C's, while one process checks the file."""
    profile = cProfile.Profile()
    profile.runcall(check, {"train": str(file)}, CheckOptions(tokenizer="o200k", workers=1))
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]


def test_work_grows_as_the_file_does(tmp_path: Path) -> None:
    files = [tmp_path / f"{megabytes}.jsonl" for megabytes in (1, 3, 9)]
    rows = [write(file, int(file.stem)) for file in files]
    check({"train": str(files[0])}, CheckOptions(tokenizer="o200k", workers=1))  # loads what is loaded once
    small, middle, large = (calls(file) for file in files)
    assert middle - small > rows[1] - rows[0]
    assert (large - middle) / (middle - small) == pytest.approx(
        (rows[2] - rows[1]) / (rows[1] - rows[0]), rel=0.05
    )
    for file in files:
        cuts = list(ranges(str(file), file.stat().st_size))
        assert [a for a, _ in cuts] == [0, *(b for _, b in cuts[:-1])] and cuts[-1][1] == file.stat().st_size


def test_memory_is_bounded(tmp_path: Path) -> None:
    """600 MB for parent and two workers on 2 GB: the parent may keep 100 bytes a row, a worker nothing."""
    seen: list[tuple[int, int, int]] = []
    for megabytes in (30, 130):
        file = tmp_path / f"{megabytes}.jsonl"
        rows = write(file, megabytes)
        seen.append(peak(file))
        assert seen[-1][0] == rows
    (few, own, worker), (many, more, later) = seen
    assert later - worker < 60
    assert (more - own) * MB < 100 * (many - few) + 20 * MB
    assert more + (2000 - 130) * MB // 3000 * 100 // MB + 2 * later < 600
