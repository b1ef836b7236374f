"""Answers of models on this machine are used again until one of the files that they came from changes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.paths import TINY

from orchestrate import JobSpec, Orchestrator
from orchestrate.runs.evaluation.held_out import EvaluationOrder, PreparedEvaluation
from orchestrate.settings import config
from orchestrate.types import Sampling


def rows(path: Path, first: int, last: int) -> str:
    found = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "yes"}]}
        for i in range(first, last)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def flip(path: Path) -> None:
    """Change the file in place, and set its time back, as some tools that copy do."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.slow
def test_an_edited_adapter_is_asked_anew_and_its_base_only_if_it_reads_what_changed(tmp_path: Path) -> None:
    own = {"ORCHESTRATE_HOME": str(tmp_path / "home"), "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}
    spec = JobSpec(model=str(TINY), train=rows(tmp_path / "t.jsonl", 0, 8), epochs=1)
    order = EvaluationOrder(test=rows(tmp_path / "h.jsonl", 10, 13), sampling=Sampling(max_tokens=4))
    with Orchestrator(config.load(env=own, cwd=tmp_path)) as ft:
        run = ft.submit(spec, "local")
        run.wait(poll_s=0.1)

        def kept() -> list[int]:
            with PreparedEvaluation(ft, [run], order) as prepared:
                return [one.kept for one in prepared.plan().asked]

        assert kept() == [0, 0]
        with PreparedEvaluation(ft, [run], order) as prepared:
            prepared.run()
        assert kept() == [3, 3]
        [adapter] = (tmp_path / "home").glob("local/runs/*/adapter")
        flip(adapter / "adapter_model.safetensors")
        assert kept() == [0, 3]
        with (adapter / "chat_template.jinja").open("a") as template:
            template.write("{# new #}")
        assert kept() == [0, 0], "a base answers with the template of its adapter"
