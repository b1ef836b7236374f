"""What a program or a notebook sees of a mistake: the problems and the next step, and specs by their file."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest

from orchestrate import JobSpec, JobStatus, LoRA, Orchestrator
from orchestrate.errors import DataError, MissingKey, OrchestrateError, SpecError, UsageError
from orchestrate.settings import config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    said = {"role": "assistant", "content": "yes"}
    rows = [{"messages": [{"role": "user", "content": f"is {n} even?"}, said]} for n in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "finetune.yaml").write_text("model: qwen3.5-9b\ntrain: train.jsonl\nepochs: 2\n")
    return tmp_path


def opened(folder: Path) -> Orchestrator:
    env = {"ORCHESTRATE_HOME": str(folder / "home"), "ORCHESTRATE_KEYS": str(folder / "keys.toml")}
    return Orchestrator(config.load(env=env, cwd=folder))


def shown(error: OrchestrateError) -> str:
    return "".join(traceback.format_exception(error))


def test_a_spec_file_is_taken_wherever_a_spec_is(folder: Path) -> None:
    path = folder / "finetune.yaml"
    spec = JobSpec.load(path)
    assert spec == JobSpec.load(str(path)) and spec.train == str(folder / "train.jsonl")
    with opened(folder) as ft:
        assert ft.quote(path, "together") == ft.quote(spec, "together") == ft.quote(str(path), "together")
        assert ft.plan(path, "together") == ft.plan(spec, "together")
        assert ft.check(path, "together") == ft.check(spec, "together")
        assert ft.data(path).digest == ft.prepare(path, "together").data.digest
        with pytest.raises(MissingKey):
            ft.submit(path, "together")
        with pytest.raises(SpecError, match="there is no spec at"):
            ft.quote(folder / "other.yaml", "together")
        values = {"model": "qwen3.5-9b", "train": str(folder / "train.jsonl"), "epochs": 2}
        assert ft.quote(values, "together") == ft.quote(spec, "together")
        with pytest.raises(SpecError, match="epochss: unknown field"):
            ft.quote({**values, "epochss": 1}, "together")
        with pytest.raises(SpecError, match="got int"):
            ft.quote(3, "together")  # pyright: ignore[reportArgumentType]


def test_a_status_is_named_by_its_word(folder: Path) -> None:
    with opened(folder) as ft:
        assert ft.runs(status="succeeded") == ft.runs(status=JobStatus.SUCCEEDED) == []
        with pytest.raises(UsageError, match="succeded"):
            ft.runs(status="succeded")


def test_a_traceback_has_the_problems_and_what_to_do(folder: Path) -> None:
    rows = (folder / "train.jsonl").read_text() + 2 * (json.dumps({"messages": []}) + "\n")
    (folder / "train.jsonl").write_text(rows)
    with opened(folder) as ft:
        with pytest.raises(MissingKey) as missing:
            ft.submit(folder / "finetune.yaml", "together")
        with pytest.raises(DataError) as refused:
            ft.submit(folder / "finetune.yaml", "local")
    assert missing.value.fix and missing.value.fix in shown(missing.value)
    told = shown(refused.value)
    assert len(refused.value.problems) > 1 and "local would reject this: " in told
    for problem in refused.value.problems:
        assert problem.message in told and (problem.fix or "") in told
    assert str(folder / "train.jsonl") in told and "row 13" in told
    refused.value.add_note("while the night's jobs were made")
    assert "while the night's jobs" in shown(refused.value)
    assert "the night" not in str(refused.value)


def test_a_mistake_in_python_is_told_as_one_in_a_file() -> None:
    with pytest.raises(SpecError, match="epochss: unknown field \\(did you mean epochs"):
        JobSpec(model="m", train="t.jsonl", epochss=3)  # pyright: ignore[reportCallIssue]
    with pytest.raises(SpecError, match="rank: unknown field"):
        LoRA(rank=8)  # pyright: ignore[reportCallIssue]
    with pytest.raises(SpecError) as both:
        JobSpec.parse({"model": "m", "train": "t", "adapter": {"type": "lora", "rank": 8}, "epochs": "three"})
    assert [line.split(":")[0].strip() for line in both.value.errors] == ["adapter.rank", "epochs"]
