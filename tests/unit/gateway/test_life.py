"""The official client through a whole life, with only its base URL changed."""

from __future__ import annotations

import base64
import io

import pytest
from openai import OpenAI
from tests.unit.gateway.conftest import MODELS, Gateway, ended, rows

HOSTED = [name for name, target in MODELS.items() if target["backend"] != "local"]


@pytest.mark.parametrize(
    "model", [HOSTED[0], *(pytest.param(name, marks=pytest.mark.slow) for name in HOSTED[1:])]
)
def test_a_whole_life_on_a_host(gateway: Gateway, openai: OpenAI, model: str) -> None:
    content = rows(mark=model)
    named = io.BytesIO(content) if model == HOSTED[0] else ("train.jsonl", content)  # guides send it without
    file = openai.files.create(file=named, purpose="fine-tune")
    assert openai.files.content(file.id).read() == content
    assert file.id in [one.id for one in openai.files.list(purpose="fine-tune")]
    job = openai.fine_tuning.jobs.create(
        model=model,
        training_file=file.id,
        suffix="my tune",
        hyperparameters={"n_epochs": 2},
        metadata={"team": model},
    )
    assert job.status == "validating_files" and job.model == model and job.hyperparameters.n_epochs == 2
    openai.files.delete(file.id)  # its content is kept for the job
    done = ended(openai, job.id)
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model == f"ft:{model}:orchestrate:my tune:{job.id[-8:]}"
    assert [one.id for one in openai.fine_tuning.jobs.list(metadata={"team": model})] == [job.id]
    assert not list(openai.fine_tuning.jobs.list(metadata={"team": "nobody"}))
    events = openai.fine_tuning.jobs.list_events(job.id, limit=100).data
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message == f"Created fine-tuning job: {job.id}"
    assert [e.created_at for e in events] == sorted((e.created_at for e in events), reverse=True)
    [newest] = openai.fine_tuning.jobs.list_events(job.id, limit=1).data
    assert newest.id == events[0].id
    table = base64.b64decode(openai.files.content(done.result_files[0]).read()).decode().splitlines()
    assert table[0].startswith("step,") and len(table) > 1
    points = openai.fine_tuning.jobs.checkpoints.list(job.id).data
    assert points and points[0].fine_tuned_model_checkpoint == done.fine_tuned_model
    assert len({point.step_number for point in points}) == len(points)
    assert done.fine_tuned_model in [one.id for one in openai.models.list()]
    [run] = [run for run in gateway.ft.runs() if run.record.tags.get("team") == model]
    assert run.record.status.value == "succeeded" and run.record.provider == MODELS[model]["backend"]
    assert openai.models.delete(done.fine_tuned_model).deleted
    assert done.fine_tuned_model not in [one.id for one in openai.models.list()]


@pytest.mark.slow
def test_a_whole_life_on_this_machine(gateway: Gateway, openai: OpenAI) -> None:
    file = openai.files.create(file=("train.jsonl", rows(16)), purpose="fine-tune")
    job = openai.fine_tuning.jobs.create(
        model="gpt-4.1-nano-2025-04-14",
        training_file=file.id,
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}},
    )
    done = ended(openai, job.id, 240)
    assert done.status == "succeeded" and done.seed == 7 and done.trained_tokens
    losses = [
        event.data["train_loss"]  # type: ignore[index]
        for event in openai.fine_tuning.jobs.list_events(job.id, limit=100)
        if event.type == "metrics" and "train_loss" in event.data  # type: ignore[operator]
    ]
    assert len(losses) == 2
