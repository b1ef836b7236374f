"""What programs that people use call, in their order and with their habits; only the base URL is changed."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path
from typing import Any

import openai as sdk
import pytest
from openai import OpenAI
from tests.unit.gateway.conftest import ASKED, ended, rows


@pytest.fixture
def data(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(rows(mark=request.node.name))
    return path


@pytest.mark.slow
def test_dspy(openai: OpenAI, data: Path) -> None:
    """Its provider for OpenAI: polls the job and its newest event, and deletes the file at the end."""
    with data.open("rb") as file:
        uploaded = openai.files.create(file=file, purpose="fine-tune")
    job = openai.fine_tuning.jobs.create(
        model=ASKED, training_file=uploaded.id, hyperparameters={"n_epochs": 2, "batch_size": "auto"}
    )
    known = {"validating_files", "queued", "running", "succeeded", "failed", "cancelled"}
    assert openai.fine_tuning.jobs.retrieve(job.id).status in known
    assert openai.fine_tuning.jobs.list_events(job.id, limit=1).data[0].message
    assert ended(openai, job.id).fine_tuned_model.startswith(f"ft:{ASKED}")
    assert openai.files.retrieve(uploaded.id).id == uploaded.id
    assert openai.files.delete(uploaded.id).deleted


@pytest.mark.slow
def test_litellm(openai: OpenAI, data: Path) -> None:
    """Numbers as text, lists by pages; it knows a tuned model by the beginning of its name."""
    uploaded = openai.files.create(file=("train.jsonl", data.read_bytes()), purpose="fine-tune")
    texts: Any = {"n_epochs": "3", "learning_rate_multiplier": "2.0"}
    job = openai.fine_tuning.jobs.create(
        model=ASKED, training_file=uploaded.id, hyperparameters=texts, suffix="lite"
    )
    assert (job.hyperparameters.n_epochs, job.hyperparameters.learning_rate_multiplier) == (3, 2.0)
    [newest] = openai.fine_tuning.jobs.list(limit=1).data
    assert newest.created_at == job.created_at  # in whole seconds: another may be of the same one
    assert job.id not in [one.id for one in openai.fine_tuning.jobs.list(after=job.id, limit=5).data]
    assert "ft:gpt-4" in ended(openai, job.id).fine_tuned_model


@pytest.mark.slow
def test_llamaindex(openai: OpenAI, data: Path) -> None:
    """Its engine asks again after each `BadRequestError`, for ever, while the file is being processed."""
    uploaded = openai.files.create(file=("train.jsonl", data.read_bytes()), purpose="fine-tune")
    for model, file in ((ASKED, "file-none"), ("gpt-none", uploaded.id)):
        with pytest.raises(sdk.APIStatusError) as caught:
            openai.fine_tuning.jobs.create(model=model, training_file=file)
        assert not isinstance(caught.value, sdk.BadRequestError)
    job = openai.fine_tuning.jobs.create(model=ASKED, training_file=uploaded.id, suffix="li")
    name = str(ended(openai, job.id).fine_tuned_model)
    assert name.split(":")[1] == ASKED, "it looks up the context of the part behind ft:"


@pytest.mark.usefixtures("standing")
def test_instructor(openai: OpenAI, data: Path) -> None:
    """Its command line waits for the file and names a validation file that there is not."""
    with data.open("rb") as file:
        uploaded = openai.files.create(file=file, purpose="fine-tune")
    assert openai.files.retrieve(uploaded.id).status == "processed"
    nothing: Any = None
    job = openai.fine_tuning.jobs.create(
        model=ASKED, training_file=uploaded.id, validation_file=nothing, hyperparameters={"n_epochs": 1}
    )
    assert job.id in [one.id for one in openai.fine_tuning.jobs.list(limit=5).data]
    assert openai.fine_tuning.jobs.cancel(job.id).status == "cancelled"


@pytest.mark.slow
def test_wandb(openai: OpenAI, data: Path) -> None:
    """Its sync reads the first result file as numbers by step, the error as a mapping, and the data."""
    uploaded = openai.files.create(file=("train.jsonl", data.read_bytes()), purpose="fine-tune")
    job = openai.fine_tuning.jobs.create(model=ASKED, training_file=uploaded.id, suffix="wandb")
    done = ended(openai, job.id)
    result: Any = openai.files.content(done.result_files[0]).read()
    table = list(csv.DictReader(io.StringIO(base64.b64decode(result).decode())))
    assert table and all(float(value) >= 0 for row in table for value in row.values() if value)
    assert [int(row["step"]) for row in table] == sorted({int(row["step"]) for row in table})
    assert dict(done.error).get("message") == ""
    assert dict(done.hyperparameters)["n_epochs"] == "auto"
    assert openai.files.content(done.training_file).read() == data.read_bytes()
