"""--on ray: the answers of the local pool, on two workers."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from orchestrate.data.dialects import canonical_line
from orchestrate.data.passes.scan import CHUNK
from orchestrate.data.rows import ChatExample, ChatMessage

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")]

BAD = ("not json", '{"messages": []}', '{"prompt": "a", "completion": "b"}', "")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private home, as Ray writes a token into it, with a file of several ranges, good and bad rows."""
    folder = tmp_path_factory.mktemp("ray")
    r = random.Random(5)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    line = canonical_line
    rows: list[str] = []
    size = 0
    while size < 2.5 * CHUNK:
        texts = [" ".join(r.choices(words, k=r.randint(20, 900))) for _ in range(2)]
        if rows and r.random() < 0.05:
            rows.append(r.choice(rows))
        elif r.random() < 0.02:
            rows.append(r.choice(BAD))
        else:
            messages = [
                ChatMessage(role="user", content=texts[0]),
                ChatMessage(role="assistant", content=texts[1]),
            ]
            rows.append(line(ChatExample(messages=messages)).decode())
        size += len(rows[-1]) + 1
    (folder / "rows.jsonl").write_text("".join(f"{row}\n" for row in rows))
    return folder


def command(engine: str, *arguments: str) -> list[str]:
    options = ("--on", engine, "--workers", "2", "--json")
    return [sys.executable, "-m", "orchestrate.cli", "data", *arguments, *options]


def environment(home: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "HOME": str(home), "COLUMNS": "160", **more}


def run(home: Path, engine: str, *arguments: str, code: int = 0) -> Any:
    done = subprocess.run(
        command(engine, *arguments),
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and ("on Ray, 2 CPUs" in done.stderr) == (engine == "ray")
    return json.loads(done.stdout)


def test_check_is_the_same(home: Path) -> None:
    arguments = ("check", "rows.jsonl", "--near", "--tokenizer", "o200k")
    local, ray = (run(home, engine, *arguments, code=1) for engine in ("local", "ray"))
    assert ray == local
    codes = {p["code"] for p in ray["report"]["problems"]}
    assert {"invalid-json", "no-messages", "mixed-format", "duplicate"} <= codes


def test_inspect_and_split_are_the_same(home: Path) -> None:
    told: dict[str, list[Any]] = {"local": [], "ray": []}
    for engine, found in told.items():
        found.append(run(home, engine, "inspect", "rows.jsonl"))
        report = run(home, engine, "split", "rows.jsonl", "-o", f"{engine}.split")
        parts = [Path(part.pop("path")) for part in report["files"]]
        found += [report, [(home / part).read_bytes() for part in parts], [part.name for part in parts]]
    assert told["local"] == told["ray"]


def test_dedupe_is_the_same(home: Path) -> None:
    reports: list[dict[str, Any]] = []
    for engine in ("local", "ray"):
        reports.append(run(home, engine, "dedupe", "rows.jsonl", "--near", "-o", f"{engine}.deduped.jsonl"))
        reports[-1] = {k: v for k, v in reports[-1].items() if k not in ("output", "log")}
    assert reports[0] == reports[1] and reports[0]["exact"] > 10
    assert (home / "ray.deduped.jsonl").read_bytes() == (home / "local.deduped.jsonl").read_bytes()


def test_convert_is_the_same_by_commands_at_once_with_a_cluster_each(home: Path, tmp_path: Path) -> None:
    """A cluster of the other's would end with it, or not let this one in where it is another user's."""
    words = ("convert", str(home / "rows.jsonl"), "--to", "sharegpt", "--allow-loss", "-o")
    assert run(home, "local", *words, str(tmp_path / "local.jsonl"))["written"] > 1000
    started: list[subprocess.Popen[str]] = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        started.append(
            subprocess.Popen(
                command("ray", *words, str(tmp_path / f"{name}.jsonl")),
                cwd=home,
                env=environment(tmp_path / name),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in started:
        told, notes = process.communicate(timeout=300)
        assert process.returncode == 0, notes
        assert json.loads(told)["written"] > 1000
    names = ("first", "second", "local")
    first, second, local = ((tmp_path / f"{name}.jsonl").read_bytes() for name in names)
    assert first == second == local


def test_a_cluster_that_was_named_is_not_replaced_by_another(home: Path) -> None:
    done = subprocess.run(
        command("ray", "check", "rows.jsonl"),
        cwd=home,
        env=environment(home, RAY_ADDRESS="127.0.0.1:9"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 3, done.stderr
    assert "127.0.0.1:9" in done.stderr and "unset" in done.stderr and "Traceback" not in done.stderr


def test_errors_and_dead_workers_are_told(home: Path) -> None:
    """In one process of its own, so that the private home is Ray's."""
    script = """
import os, sys
from orchestrate.data import passes as pool
from orchestrate.data.passes.ray_engine import on_ray
from orchestrate.data.passes.scan import ScanTask, scan
from orchestrate.errors import DataError
with on_ray(2):
    assert list(pool.ordered(abs, range(-40, 0))) == list(range(40, 0, -1))
    for function, tasks, kind in ((scan, [ScanTask("gone", 0, 9, "openai-chat")], DataError),
                                  (os._exit, [7], pool.WorkerDied)):
        try:
            list(pool.ordered(function, tasks))
        except kind:
            continue
        sys.exit(f"no {kind}")
assert list(pool.ordered(abs, [-1])) == [1]
print("told")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout.endswith("told\n"), done.stdout + done.stderr
