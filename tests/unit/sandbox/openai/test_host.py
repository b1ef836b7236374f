"""The OpenAI host of the sandbox, driven by OpenAI's own client."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import openai as sdk
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from tests import loopback
from tests.unit.sandbox.conftest import slowed

from orchestrate.sandbox.server import Sandbox

MODEL = "gpt-4o-mini-2024-07-18"
Write = Callable[..., Path]
Until = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def upload(openai: OpenAI, write: Write, until: Until) -> Callable[..., str]:
    def send(rows: Any, *, wait: bool = True) -> str:
        file = openai.files.create(file=write(rows), purpose="fine-tune")
        if wait:
            until(lambda: openai.files.retrieve(file.id).status == "processed")
        return file.id

    return send


def finish(client: OpenAI, id: str, until: Until) -> FineTuningJob:
    def ended() -> FineTuningJob | None:
        job = client.fine_tuning.jobs.retrieve(id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return until(ended)


def test_a_job_walks_from_validation_to_a_tuned_model(
    openai: OpenAI, sandbox: Sandbox, upload: Callable[..., str], until: Until
) -> None:
    train, valid = upload(20), upload(12)
    with slowed(sandbox) as goes_on:
        job = openai.fine_tuning.jobs.create(
            model=MODEL,
            training_file=train,
            validation_file=valid,
            suffix="shop",
            seed=7,
            metadata={"ref": "run-1"},
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 2}},
            },
        )
    assert job.status == "validating_files"
    assert job.organization_id == "org-sandbox"
    assert job.model_extra is not None and job.model_extra["sandbox"] is True
    assert job.model_extra["sandbox_trained"] is False

    seen = {job.status}
    while job.status not in ("succeeded", "failed"):
        goes_on()
        job = openai.fine_tuning.jobs.retrieve(job.id)
        seen.add(job.status)
    assert job.status == "succeeded"
    assert seen <= set(get_args(FineTuningJob.model_fields["status"].annotation))
    assert {"validating_files", "running", "succeeded"} <= seen
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith(f"ft:{MODEL}:sandbox:shop:")
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size, job.seed) == (4, 2, 7)
    assert job.trained_tokens is not None and job.trained_tokens % 4 == 0

    events = list(openai.fine_tuning.jobs.list_events(job.id, limit=7))
    assert len({event.id for event in events}) == len(events) > 14  # several pages
    assert events[0].message == "The job has successfully completed"
    assert "not trained" in events[-2].message or "not trained" in events[-3].message
    steps = [event for event in events if event.type == "metrics"]
    assert len(steps) == 40  # 20 rows, batches of 2, 4 epochs
    older = openai.fine_tuning.jobs.list_events(job.id, after=events[3].id, limit=2)
    assert [event.id for event in older.data] == [event.id for event in events[4:6]]

    checkpoints = openai.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [c.step_number for c in checkpoints] == sorted((c.step_number for c in checkpoints), reverse=True)
    assert checkpoints[0].fine_tuned_model_checkpoint == job.fine_tuned_model
    assert checkpoints[-1].fine_tuned_model_checkpoint.endswith(f":ckpt-step-{checkpoints[-1].step_number}")

    text = base64.b64decode(openai.files.content(job.result_files[0]).read()).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 40
    assert list(rows[0]) == [
        "step",
        "train_loss",
        "train_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
    ]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])

    with slowed(sandbox):
        again = openai.fine_tuning.jobs.create(model=job.fine_tuned_model, training_file=train)
        assert again.status == "validating_files"
        openai.fine_tuning.jobs.cancel(again.id)


def test_listing_pages_and_filters_by_metadata(
    openai: OpenAI, sandbox: Sandbox, upload: Callable[..., str]
) -> None:
    file = upload(15)
    bodies = [
        {"model": MODEL, "training_file": file, "metadata": {"batch": "b", "n": str(n)}} for n in range(45)
    ]
    made = sandbox.create_jobs("openai", bodies)
    before = sandbox.count("openai", method="GET", path="/fine_tuning/jobs")
    found = [job.id for job in openai.fine_tuning.jobs.list(limit=10, metadata={"batch": "b"})]
    assert found == made[::-1]
    assert sandbox.count("openai", method="GET", path="/fine_tuning/jobs") - before == 5
    one = openai.fine_tuning.jobs.list(metadata={"n": "17"}).data
    assert [job.id for job in one] == [made[17]]
    assert openai.fine_tuning.jobs.list(metadata={"batch": "other"}).data == []


def test_pause_resume_and_cancel(
    openai: OpenAI, sandbox: Sandbox, upload: Callable[..., str], until: Until
) -> None:
    jobs, file = openai.fine_tuning.jobs, upload(15)
    with slowed(sandbox) as goes_on:
        job = jobs.create(model=MODEL, training_file=file)
        until(lambda: jobs.retrieve(job.id).status == "running" or goes_on())
        assert jobs.pause(job.id).status == "paused"  # a word that the SDK's own type does not have
        with pytest.raises(sdk.BadRequestError):
            jobs.pause(job.id)
        assert jobs.resume(job.id).status in ("running", "queued")
        assert jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(sdk.BadRequestError) as refused:
        jobs.cancel(job.id)
    assert refused.value.code == "invalid_job_status"
    assert jobs.retrieve(job.id).fine_tuned_model is None


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "gpt-9"}, 404, "model"),
        ({"model": "gpt-4.1-nano"}, 400, "model"),
        ({"training_file": "file-none"}, 400, "training_file"),
        ({"suffix": "x" * 65}, 400, "suffix"),
        ({"seed": -1}, 400, "seed"),
        ({"metadata": {"k": "v" * 513}}, 400, None),
        ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 51}}}}, 400, None),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 2.5}}}}, 400, None),
        ({"extra_body": {"n_epochs": 3}}, 400, "n_epochs"),
    ],
)
def test_wrong_bodies_are_refused_as_the_host_does(
    openai: OpenAI, upload: Callable[..., str], change: dict[str, Any], status: int, param: str | None
) -> None:
    body: dict[str, Any] = {"model": MODEL, "training_file": upload(15), **change}
    with pytest.raises(sdk.APIStatusError) as refused:
        openai.fine_tuning.jobs.create(**body)
    assert refused.value.status_code == status
    assert refused.value.type == "invalid_request_error"
    if param is not None:
        assert refused.value.param == param


def test_a_job_may_be_made_while_its_file_is_still_processed(
    openai: OpenAI, upload: Callable[..., str], slow_clock: Sandbox
) -> None:
    file = upload(15, wait=False)
    assert openai.files.retrieve(file).status == "uploaded"
    job = openai.fine_tuning.jobs.create(model=MODEL, training_file=file)
    assert job.status == "validating_files"
    slow_clock.skip(86400)
    assert openai.files.retrieve(file).status == "processed"
    assert openai.fine_tuning.jobs.retrieve(job.id).status != "validating_files"


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        (9, "invalid_n_examples", "must have at least 10"),
        ([{"messages": [{"role": "cook", "content": "x"}]}] * 10, "invalid_training_file", "Line 1"),
        ([{"prompt": "a", "completion": "b"}] * 10, "invalid_training_file", "chat"),
    ],
)
def test_wrong_rows_fail_the_job_while_it_validates(
    openai: OpenAI, upload: Callable[..., str], until: Until, rows: Any, code: str, words: str
) -> None:
    job = openai.fine_tuning.jobs.create(model=MODEL, training_file=upload(rows))
    job = finish(openai, job.id, until)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.param) == (code, "training_file")
    assert words in job.error.message
    last = openai.fine_tuning.jobs.list_events(job.id).data[0]
    assert last.level == "error"


def test_dpo_and_reinforcement_jobs(
    openai: OpenAI, upload: Callable[..., str], until: Until, preferences: Callable[[int], Any]
) -> None:
    pairs = upload(preferences(12))
    hyper: Any = {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}
    dpo = openai.fine_tuning.jobs.create(
        model=MODEL, training_file=pairs, method={"type": "dpo", "dpo": hyper}
    )
    assert (
        dpo.method is not None and dpo.method.dpo is not None and dpo.method.dpo.hyperparameters is not None
    )
    assert dpo.method.dpo.hyperparameters.beta == 0.2
    assert finish(openai, dpo.id, until).status == "succeeded"

    grader: Any = {"type": "string_check", "name": "same", "input": "a", "reference": "a", "operation": "eq"}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": grader}}
    rows = upload(12)
    with pytest.raises(sdk.BadRequestError, match="validation"):
        openai.fine_tuning.jobs.create(model="o4-mini-2025-04-16", training_file=rows, method=method)
    with pytest.raises(sdk.BadRequestError, match="does not support the reinforcement method"):
        openai.fine_tuning.jobs.create(model=MODEL, training_file=rows, validation_file=rows, method=method)
    method["reinforcement"]["response_format"] = {"type": "json_schema", "json_schema": {"name": "x"}}
    rft = openai.fine_tuning.jobs.create(
        model="o4-mini-2025-04-16", training_file=rows, validation_file=rows, method=method
    )
    kept = rft.to_dict()["method"]["reinforcement"]["response_format"]  # type: ignore[index]
    assert kept == method["reinforcement"]["response_format"]
    assert finish(openai, rft.id, until).status == "succeeded"


CHECK = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


def test_graders_are_tried_out(openai: OpenAI) -> None:
    graders: Any = openai.fine_tuning.alpha.graders
    right = graders.run(grader=CHECK, model_sample="7", item={"answer": "7"})
    wrong = graders.run(grader=CHECK, model_sample="8", item={"answer": "7"})
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    assert right.metadata.name == "same" and not any(right.metadata.errors.to_dict().values())
    both = {
        "type": "multi",
        "name": "both",
        "graders": {"a": CHECK, "b": {**CHECK, "operation": "ne"}},
        "calculate_output": "0.75 * a + 0.25 * b",
    }
    assert graders.run(grader=both, model_sample="7", item={"answer": "7"}).reward == 0.75
    code = {"type": "python", "name": "code", "source": "def grade(sample, item): return 1.0"}
    assert graders.run(grader=code, model_sample="7").metadata.errors.python_grader_server_error is True
    assert graders.validate(grader=CHECK).grader.name == "same"
    with pytest.raises(sdk.BadRequestError, match="operation must be one of"):
        graders.validate(grader={**CHECK, "operation": "equals"})


def test_projects_are_given_a_checkpoint_and_lose_it(
    openai: OpenAI, upload: Callable[..., str], until: Until
) -> None:
    job = openai.fine_tuning.jobs.create(model=MODEL, training_file=upload(12))
    name = str(finish(openai, job.id, until).fine_tuned_model)
    permissions = openai.fine_tuning.checkpoints.permissions
    made = permissions.create(name, project_ids=["proj_a", "proj_b"]).data
    assert {p.project_id for p in made} == {"proj_a", "proj_b"}
    assert [p.id for p in permissions.list(name, project_id="proj_a")] == [
        p.id for p in made if p.project_id == "proj_a"
    ]
    assert permissions.delete(made[0].id, fine_tuned_model_checkpoint=name).deleted
    assert len(list(permissions.list(name))) == 1
    with pytest.raises(sdk.NotFoundError):
        permissions.create("ft:nobody:has::this", project_ids=["proj_a"])


def test_the_second_api_of_answers(openai: OpenAI) -> None:
    from openai.types.responses import Response

    told = openai.responses.create(model=MODEL, instructions="Be short.", input="hello", max_output_tokens=8)
    Response.model_validate(told.to_dict(), strict=False)
    assert told.output_text and told.usage is not None and told.usage.output_tokens <= 8
    talk: Any = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    assert openai.responses.create(model=MODEL, input=talk).status in ("completed", "incomplete")
    with pytest.raises(sdk.NotFoundError):
        openai.responses.create(model="nobody-has-this", input="hello")


def test_a_large_file_in_parts(openai: OpenAI, write: Write, until: Until) -> None:
    path = write(40)
    data = path.read_bytes()
    upload = openai.uploads.create(
        bytes=len(data), filename="big.jsonl", mime_type="text/jsonl", purpose="fine-tune"
    )
    parts = [
        openai.uploads.parts.create(upload.id, data=data[at : at + 1000]).id
        for at in range(0, len(data), 1000)
    ]
    with pytest.raises(sdk.BadRequestError):
        openai.uploads.complete(upload.id, part_ids=parts[:-1])
    done = openai.uploads.complete(upload.id, part_ids=parts)
    assert done.status == "completed"
    assert done.file is not None
    assert openai.files.content(done.file.id).read() == data
    with pytest.raises(sdk.BadRequestError, match="text/jsonl"):
        openai.uploads.create(bytes=5, filename="x.jsonl", mime_type="text/plain", purpose="fine-tune")
    other = openai.uploads.create(bytes=5, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    assert openai.uploads.cancel(other.id).status == "cancelled"


def test_models_say_when_they_end_and_tuned_ones_can_be_deleted(
    openai: OpenAI, upload: Callable[..., str], until: Until
) -> None:
    known = {model.id: model for model in openai.models.list()}
    assert known[MODEL].shutdown_date == "2027-01-14"
    job = finish(openai, openai.fine_tuning.jobs.create(model=MODEL, training_file=upload(15)).id, until)
    tuned = job.fine_tuned_model
    assert tuned is not None
    assert openai.models.retrieve(tuned).id == tuned
    answer = openai.chat.completions.create(model=tuned, messages=[{"role": "user", "content": "hi"}])
    assert "not trained" in (answer.choices[0].message.content or "")
    streamed = openai.chat.completions.create(
        model=tuned, messages=[{"role": "user", "content": "hi"}], stream=True
    )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
        == answer.choices[0].message.content
    )
    assert openai.models.delete(tuned).deleted
    with pytest.raises(sdk.NotFoundError):
        openai.models.retrieve(tuned)
    with pytest.raises(sdk.NotFoundError):
        openai.chat.completions.create(model="gpt-none", messages=[{"role": "user", "content": "hi"}])


def test_only_sandbox_keys_are_taken_and_none_is_kept(sandbox: Sandbox, openai: OpenAI) -> None:
    secret = "sk-live-0123456789abcdef"
    with (
        OpenAI(base_url=sandbox.env["OPENAI_BASE_URL"], api_key=secret, max_retries=0) as real,
        pytest.raises(sdk.AuthenticationError) as refused,
    ):
        real.models.list()
    assert refused.value.code == "invalid_api_key"
    openai.models.list()
    assert not any(sandbox.env["OPENAI_API_KEY"] in str(entry) for entry in sandbox.requests())
    kept = b"".join(p.read_bytes() for p in sandbox.home.rglob("*") if p.is_file())
    assert secret.encode() not in kept


def test_every_answer_and_page_says_that_it_is_a_sandbox(sandbox: Sandbox) -> None:
    for host, url in sandbox.urls.items():
        page = loopback.get(url + "/")
        assert "This is a sandbox" in page.text, host
        for answer in (page, loopback.get(url + "/v1/nothing"), loopback.get(url + "/_sandbox/requests")):
            assert answer.headers["x-orchestrate-sandbox"] == "1"
    headers = {"authorization": f"Bearer {sandbox.env['OPENAI_API_KEY']}"}
    assert loopback.get(sandbox.urls["openai"] + "/v1/nothing", headers=headers).status_code == 404
