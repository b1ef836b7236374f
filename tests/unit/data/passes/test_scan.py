"""Many processes and many ranges give what one pass gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.cells import first

from orchestrate.data import Dataset
from orchestrate.data.dataset_reader import first_lines
from orchestrate.data.operations.check import CheckOptions, check
from orchestrate.data.passes import WorkerDied, ordered
from orchestrate.data.passes import scan as scanning
from orchestrate.data.passes.scan import ScanTask, Total, pieces, ranges, scan
from orchestrate.errors import DataError

ROWS = 3000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of many lengths, some bad, some repeated, some with tools."""
    path = tmp_path_factory.mktemp("engine") / "rows.jsonl"
    with path.open("w") as out:
        for i in range(ROWS):
            messages = [
                {"role": "user", "content": f"question {i % 2900} " + "x" * (i % 97)},
                {"role": "assistant", "content": f"answer {i % 2900} " + "y " * (i % 53)},
            ]
            if i % 211 == 0:
                out.write("{broken\n")
            elif i % 307 == 0:
                out.write("\n")
            else:
                out.write(json.dumps({"messages": messages}) + "\n")
    return path


def _total(path: Path, step: int) -> Total:
    total = Total()
    task = ScanTask(str(path), 0, 0, "openai-chat", (), ("o200k",), True, True)
    for start, end in ranges(str(path), path.stat().st_size, step):
        total.add(scan(replace(task, start=start, end=end)))
    return total


@pytest.mark.parametrize("step", first([100, 77_777, 1, 5_000], 2))
def test_ranges_of_any_size_tell_the_same(file: Path, step: int) -> None:
    whole, parts = _total(file, 1 << 30), _total(file, step)
    assert parts.sha256.hexdigest() == whole.sha256.hexdigest()
    assert (parts.rows, parts.lines) == (whole.rows, ROWS)
    assert parts.numbers == whole.numbers and parts.prompts == whole.prompts
    assert parts.lengths["o200k"].tokens == whole.lengths["o200k"].tokens
    assert [(p.code, p.row) for p in parts.problems] == [(p.code, p.row) for p in whole.problems]
    assert (parts.masks, parts.counts, parts.roles) == (whole.masks, whole.counts, whole.roles)
    assert parts.first_rows == whole.first_rows


@pytest.mark.slow
def test_two_processes_tell_what_one_tells(file: Path, tmp_path: Path) -> None:
    big = tmp_path / "big.jsonl"
    big.write_bytes(file.read_bytes() * 40)
    one, two = (check({"train": str(big)}, CheckOptions(tokenizer="o200k", workers=n)) for n in (1, 2))
    assert big.stat().st_size > 16 << 20
    assert one == two and one.files[0].lines == 40 * ROWS


def test_examples_and_row_numbers(file: Path) -> None:
    data = Dataset.open(file)
    numbered = list(data.numbered())
    assert len(numbered) == data.rows
    bad = {p.row for p in data.problems}
    assert {n for n, _ in numbered} == set(range(1, ROWS + 1)) - bad


# -- the pool
# --------------------------------------------------------------------------------------------------


def test_results_come_in_order() -> None:
    assert list(ordered(abs, [-3, 2, -1, 0, 5], workers=2)) == [3, 2, 1, 0, 5]


def test_an_error_in_a_worker_is_raised_here() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(ordered(int, ["1", "2", "x", "4"], workers=2))


def test_a_worker_that_dies_is_told() -> None:
    with pytest.raises(WorkerDied, match="exit code"):
        list(ordered(os._exit, [3, 3], workers=2))


def test_a_killed_worker_is_told_too() -> None:
    """As the system kills one when memory runs out."""
    with pytest.raises(WorkerDied, match="exit code 137"):
        list(ordered(signal.raise_signal, [signal.SIGKILL] * 2, workers=2))


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    lines=st.lists(st.text(st.sampled_from("ab \u20ac\r\0"), max_size=30), min_size=1, max_size=12),
    ended=st.booleans(),
    marked=st.booleans(),
    piece=st.integers(1, 40),
)
def test_lines_come_whole_whatever_is_read_at_a_time(
    lines: list[str], ended: bool, marked: bool, piece: int, tmp_path: Path
) -> None:
    content = "\n".join(lines).encode() + (b"\n" if ended else b"")
    mark = b"\xef\xbb\xbf" if marked else b""
    path = tmp_path / "lines.txt"
    path.write_bytes(mark + content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "PIECE", max(piece, len(mark)))
        read = [line for some in pieces(str(path), 0, len(mark + content)) for line in some]
    *ended_lines, rest = content.split(b"\n")
    assert read == [line + b"\n" for line in ended_lines] + [rest] * bool(rest)


def test_numbers_of_any_size_have_a_digest(tmp_path: Path) -> None:
    digests: list[str] = []
    for name, most in (("a", 10**30), ("b", 10**30), ("c", 10**30 + 1)):
        parameters = {"type": "object", "properties": {"n": {"type": "integer", "maximum": most}}}
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        (tmp_path / name).write_text(json.dumps({"messages": messages, "tools": [tool]}) + "\n")
        data = Dataset.open(str(tmp_path / name))
        assert data.rows == 1
        digests.append(data.digest)
    assert digests[0] == digests[1] != digests[2]


def test_leaving_early_ends_the_workers() -> None:
    results = ordered(abs, list(range(1000)), workers=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("forks", [True, False])
def test_workers_begin_with_what_was_made_ready(forks: bool, tmp_path: Path) -> None:
    """Once for all where workers are forks; in each where they are started by themselves."""
    (tmp_path / "there.py").write_text(
        "import os, time\nby = None\n"
        "def ready():\n    global by\n    by = os.getpid()\n"
        "def work(task):\n    time.sleep(0.02)\n    return by, os.getpid()\n"
    )
    script = (
        "from orchestrate.data import passes as pool\nimport there\n"
        f"pool.FORKS = pool.FORKS and {forks}\n"
        "got = list(pool.ordered(there.work, range(40), 2, there.ready))\n"
        "assert there.by is None and None not in {by for by, _ in got}\n"
        "print(any(by == worker for by, worker in got), len({by for by, _ in got}) == 1)\n"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.stderr == ""
    if sys.platform == "linux":
        assert done.stdout.startswith("False True" if forks else "True")


@pytest.mark.slow
def test_the_callers_script_is_not_run_again(tmp_path: Path) -> None:
    """A script without a main guard, as most are, opens a large file: what it does besides happens once."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "%s"}\n' % ("word " * 200) * 30_000)
    script = tmp_path / "script.py"
    script.write_text(
        "from orchestrate.data import Dataset\n"
        f"open({str(tmp_path / 'log')!r}, 'a').write('ran\\n')\n"
        f"print(Dataset.open({str(data)!r}).rows)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "30000\n" and (tmp_path / "log").read_text() == "ran\n"


def test_a_file_that_goes_between_two_passes_is_an_error_of_the_data(tmp_path: Path) -> None:
    """As when it is deleted while a job is made of it."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    sniffed = first_lines(str(path))
    assert next(sniffed).startswith(b'{"prompt"')
    path.unlink()
    for again in (pieces(str(path), 0, 9), ranges(str(path), 99, 9), first_lines(str(path))):
        with pytest.raises(DataError, match=r"cannot read .*rows.jsonl: No such file"):
            next(again)
