"""The Fireworks host of the sandbox, driven by Fireworks' own client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import fireworks as sdk
import pytest
from fireworks import Fireworks
from fireworks.types import SupervisedFineTuningJob
from tests import loopback
from tests.unit.sandbox.conftest import slowed

from orchestrate.sandbox.server import Sandbox

pytestmark = pytest.mark.slow  # the fast half has the first host's stand-in


MODEL = "accounts/fireworks/models/qwen3-8b"
WORDS = {
    word
    for option in get_args(SupervisedFineTuningJob.model_fields["state"].annotation)
    for word in get_args(option)
}
Write = Callable[..., Path]
Until = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def dataset(fireworks: Fireworks, write: Write, until: Until) -> Callable[..., str]:
    """Makes a dataset over signed URLs and gives its full name."""
    made = 0

    def make(rows: Any, id: str) -> str:
        nonlocal made
        made += 1
        path = write(rows)
        size = path.stat().st_size
        fireworks.datasets.create(dataset_id=id, dataset={"user_uploaded": {}, "example_count": "9"})
        answer = fireworks.datasets.get_upload_endpoint(id, filename_to_size={path.name: str(size)})
        urls = answer.filename_to_signed_urls
        assert urls is not None
        headers = {
            "Content-Type": "application/octet-stream",
            "x-goog-content-length-range": f"{size},{size}",
        }
        loopback.put(urls[path.name], content=path.read_bytes(), headers=headers).raise_for_status()
        fireworks.datasets.validate_upload(id, body={})
        until(lambda: fireworks.datasets.get(id).state == "READY")
        return f"accounts/sandbox/datasets/{id}"

    return make


def finish(client: Fireworks, id: str, until: Until) -> SupervisedFineTuningJob:
    def ended() -> SupervisedFineTuningJob | None:
        job = client.supervised_fine_tuning_jobs.get(id)
        return (
            job if job.state in ("JOB_STATE_COMPLETED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED") else None
        )

    return until(ended)


def test_the_account_is_found_from_the_key(fireworks: Fireworks) -> None:
    assert [account.name for account in fireworks.accounts.list()] == ["accounts/sandbox"]
    with pytest.raises(sdk.NotFoundError):
        fireworks.accounts.get(account_id="other")


def test_a_dataset_is_ready_once_it_is_uploaded_and_checked(
    fireworks: Fireworks, dataset: Callable[..., str], write: Write
) -> None:
    dataset(8, "ready-1")
    found = fireworks.datasets.get("ready-1")
    assert (found.example_count, found.format, found.average_turn_count) == ("8", "CHAT", 1.0)
    assert int(found.estimated_token_count or 0) > 8
    urls = fireworks.datasets.get_download_endpoint("ready-1").filename_to_signed_urls
    assert urls is not None
    assert loopback.get(urls["train.jsonl"]).content == write(8).read_bytes()

    fireworks.datasets.create(dataset_id="empty-1", dataset={"user_uploaded": {}})
    with pytest.raises(sdk.BadRequestError):
        fireworks.datasets.validate_upload("empty-1", body={})
    with pytest.raises(sdk.ConflictError):
        fireworks.datasets.create(dataset_id="empty-1", dataset={"user_uploaded": {}})
    first = fireworks.datasets.get_upload_endpoint("empty-1", filename_to_size={"a.jsonl": "5"})
    fireworks.datasets.get_upload_endpoint("empty-1", filename_to_size={"a.jsonl": "7"})
    old = (first.filename_to_signed_urls or {})["a.jsonl"]
    headers = {"Content-Type": "application/octet-stream", "x-goog-content-length-range": "5,5"}
    assert (
        loopback.put(old, content=b"12345", headers=headers).status_code == 403
    )  # a second call replaces it

    data = write(9).read_bytes()
    fireworks.datasets.upload("empty-1", file=("small.jsonl", data))
    assert fireworks.datasets.get("empty-1").example_count in ("0", "9")
    fireworks.datasets.delete("empty-1")
    with pytest.raises(sdk.NotFoundError):
        fireworks.datasets.get("empty-1")


def test_a_supervised_job_with_an_id_of_the_callers(
    fireworks: Fireworks, dataset: Callable[..., str], sandbox: Sandbox
) -> None:
    train, valid = dataset(20, "train-1"), dataset(6, "valid-1")
    body: dict[str, Any] = {"dataset": train, "baseModel": MODEL, "epochs": 2}
    estimate: Any = fireworks.post(
        "/v1/accounts/sandbox/supervisedFineTuningJobs:estimateCost", body=body, cast_to=object
    )
    jobs = fireworks.supervised_fine_tuning_jobs
    with slowed(sandbox) as goes_on:
        job = jobs.create(
            supervised_fine_tuning_job_id="orc-a1",
            dataset=train,
            evaluation_dataset=valid,
            base_model=MODEL,
            epochs=2,
            learning_rate=1e-4,
            lora_rank=16,
            batch_size_samples=4,
            output_model="my-chairs",
            display_name="chairs",
        )
    assert job.name == "accounts/sandbox/supervisedFineTuningJobs/orc-a1"
    assert job.state in ("JOB_STATE_CREATING", "JOB_STATE_VALIDATING")
    assert job.estimated_cost is not None
    assert (job.estimated_cost.units, job.estimated_cost.nanos) == (
        estimate["estimatedCost"]["units"],
        estimate["estimatedCost"]["nanos"],
    )
    with pytest.raises(sdk.ConflictError):
        jobs.create(supervised_fine_tuning_job_id="orc-a1", dataset=train, base_model=MODEL)

    seen: set[str | None] = set()
    percents: list[int] = []
    while (job := jobs.get("orc-a1")).state not in ("JOB_STATE_COMPLETED", "JOB_STATE_FAILED"):
        seen.add(job.state)
        assert job.job_progress is not None and job.job_progress.percent is not None
        percents.append(job.job_progress.percent)
        goes_on()
    assert job.state == "JOB_STATE_COMPLETED"
    assert seen <= WORDS and "JOB_STATE_RUNNING" in seen
    assert percents == sorted(percents)
    assert job.output_model == "accounts/sandbox/models/my-chairs"
    assert job.model_extra is not None and job.model_extra["sandbox"] is True
    assert job.metrics_file_signed_url is not None
    rows = [json.loads(line) for line in loopback.get(job.metrics_file_signed_url).text.splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 11))  # 5 steps, 2 epochs

    addon = fireworks.models.get("my-chairs")
    assert (addon.kind, addon.peft_details.r if addon.peft_details else None) == ("HF_PEFT_ADDON", 16)
    urls = fireworks.models.get_download_endpoint("my-chairs").filename_to_signed_urls or {}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= urls.keys()
    assert json.loads(loopback.get(urls["adapter_config.json"]).text)["r"] == 16
    assert sandbox.count("fireworks", method="POST", path=":estimateCost") == 1

    warm = jobs.create(dataset=train, warm_start_from="accounts/sandbox/models/my-chairs")
    assert warm.warm_start_from == "accounts/sandbox/models/my-chairs"
    with pytest.raises(sdk.BadRequestError, match="is not a base model"):
        jobs.create(dataset=train, base_model="accounts/sandbox/models/my-chairs")


def test_listing_pages_and_filters(
    fireworks: Fireworks, dataset: Callable[..., str], sandbox: Sandbox
) -> None:
    train = dataset(5, "list-1")
    bodies = [
        {"id": f"many-{n}", "dataset": train, "baseModel": MODEL, "displayName": f"d{n % 2}"}
        for n in range(30)
    ]
    sandbox.create_jobs("fireworks", bodies)
    jobs = fireworks.supervised_fine_tuning_jobs
    first = jobs.list(page_size=7)
    assert len(first.supervised_fine_tuning_jobs) == 7 and first.next_page_token
    names = [str(job.name).rsplit("/", 1)[1] for job in jobs.list(page_size=7)]
    assert names[:30] == [f"many-{n}" for n in range(29, -1, -1)]
    odd = [job.display_name for job in jobs.list(filter='display_name="d1"', page_size=200)]
    assert odd == ["d1"] * 15
    with pytest.raises(sdk.BadRequestError):
        list(jobs.list(filter="anything goes"))


def test_cancel_resume_delete(
    fireworks: Fireworks, sandbox: Sandbox, dataset: Callable[..., str], until: Until
) -> None:
    jobs = fireworks.supervised_fine_tuning_jobs
    train = dataset(20, "stop-1")
    with slowed(sandbox) as goes_on:
        jobs.create(supervised_fine_tuning_job_id="stop", dataset=train, base_model=MODEL)
        until(lambda: jobs.get("stop").state == "JOB_STATE_RUNNING" or goes_on())
    jobs.cancel("stop", body={})
    assert finish(fireworks, "stop", until).state == "JOB_STATE_CANCELLED"
    with pytest.raises(sdk.BadRequestError):
        jobs.cancel("stop", body={})
    jobs.resume("stop", body={})
    sandbox.skip(1_000_000)
    assert finish(fireworks, "stop", until).state == "JOB_STATE_COMPLETED"
    jobs.delete("stop")
    with pytest.raises(sdk.NotFoundError):
        jobs.get("stop")


def test_dpo_and_reinforcement_jobs(
    fireworks: Fireworks, dataset: Callable[..., str], until: Until, preferences: Callable[[int], Any]
) -> None:
    pairs = dataset(preferences(6), "pairs-1")
    config: Any = {"base_model": MODEL, "epochs": 1}
    job = fireworks.dpo_jobs.create(
        dpo_job_id="dpo-1",
        dataset=pairs,
        training_config=config,
        loss_config={"method": "DPO", "dpo": {"beta": 0.2}},
    )
    assert job.training_config is not None and job.training_config.base_model == MODEL
    with pytest.raises(sdk.NotFoundError):
        fireworks.supervised_fine_tuning_jobs.get("dpo-1")
    until(lambda: fireworks.dpo_jobs.get("dpo-1").state == "JOB_STATE_COMPLETED")
    url = fireworks.dpo_jobs.get_metrics_file_endpoint("dpo-1").signed_url
    assert url is not None and loopback.get(url).text.count("\n") == 2
    with pytest.raises(sdk.BadRequestError):
        fireworks.dpo_jobs.create(
            dataset=pairs, training_config=config, loss_config={"method": "DPO", "dpo": {"beta": 0.5}}
        )
    with pytest.raises(sdk.BadRequestError, match="preference"):
        fireworks.dpo_jobs.create(dataset=dataset(6, "chats-1"), training_config=config)

    rft = fireworks.reinforcement_fine_tuning_jobs.create(
        reinforcement_fine_tuning_job_id="rft-1",
        dataset="accounts/sandbox/datasets/chats-1",
        evaluator="accounts/sandbox/evaluators/same",
        training_config=config,
    )
    assert rft.model_extra is not None and rft.model_extra["sandbox_trained"] is False
    until(lambda: fireworks.reinforcement_fine_tuning_jobs.get("rft-1").state == "JOB_STATE_COMPLETED")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"base_model": "accounts/fireworks/models/none"}, 404),
        ({"dataset": "accounts/sandbox/datasets/none"}, 404),
        ({"lora_rank": 12}, 400),
        ({"lora_rank": 64}, 400),
        ({"epochs": 0}, 400),
        ({"batch_size": 65536}, 400),
        ({"early_stop": True}, 400),
        ({"warm_start_from": "accounts/sandbox/models/x"}, 400),
        ({"extra_body": {"nonsense": 1}}, 400),
    ],
)
def test_wrong_bodies_are_refused(
    fireworks: Fireworks, dataset: Callable[..., str], change: dict[str, Any], status: int
) -> None:
    try:
        fireworks.datasets.get("wrong-1")
    except sdk.NotFoundError:
        dataset(5, "wrong-1")
    body: dict[str, Any] = {"dataset": "accounts/sandbox/datasets/wrong-1", "base_model": MODEL, **change}
    with pytest.raises(sdk.APIStatusError) as refused:
        fireworks.supervised_fine_tuning_jobs.create(**body)
    assert refused.value.status_code == status
    assert refused.value.body["code"] == {400: 3, 404: 5}[status]  # type: ignore[index]


def test_too_few_examples(fireworks: Fireworks, dataset: Callable[..., str]) -> None:
    with pytest.raises(sdk.BadRequestError, match="at least 3"):
        fireworks.supervised_fine_tuning_jobs.create(dataset=dataset(2, "few-1"), base_model=MODEL)


@pytest.mark.parametrize("way", ["addon", "live merge"])
def test_a_tuned_model_answers_from_a_deployment(
    sandbox: Sandbox, fireworks: Fireworks, dataset: Callable[..., str], until: Until, way: str
) -> None:
    name = way.replace(" ", "-")
    jobs = fireworks.supervised_fine_tuning_jobs
    jobs.create(
        supervised_fine_tuning_job_id=f"serve-{name}", dataset=dataset(5, f"serve-{name}"), base_model=MODEL
    )
    tuned = str(finish(fireworks, f"serve-{name}", until).output_model)
    ask: Any = {"messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(sdk.NotFoundError):
        fireworks.chat.completions.create(model=tuned, **ask)
    with pytest.raises(sdk.BadRequestError, match="accelerator_type"):
        fireworks.deployments.create(base_model=MODEL)
    before, sandbox.clock.speed = sandbox.clock.speed, 0.001
    shapes = list(fireworks.deployment_shapes.list(account_id="fireworks", filter=f'base_model="{MODEL}"'))
    place = fireworks.deployments.create(
        base_model=MODEL if way == "addon" else tuned,
        deployment_shape=str(shapes[0].name),
        deployment_id=f"dep-{name}",
        enable_addons=way == "addon",
    )
    if way == "addon":
        loaded = fireworks.lora.load(model=tuned, deployment=str(place.name))
        assert loaded.state == "DEPLOYING"
    routed = f"{tuned}#{place.name}"
    with pytest.raises(sdk.InternalServerError, match="DEPLOYMENT_SCALING_UP"):
        fireworks.chat.completions.create(model=routed, **ask)
    sandbox.clock.speed = before
    sandbox.skip(86400)
    answer: Any = fireworks.chat.completions.create(model=routed, **ask)
    assert "not trained" in str(answer.choices[0].message.content)
    fireworks.deployments.delete(f"dep-{name}")
    assert f"dep-{name}" not in str([d.name for d in fireworks.deployments.list()])


def test_evaluators_and_secrets_are_kept(fireworks: Fireworks) -> None:
    made = fireworks.evaluators.create(
        evaluator_id="exact", evaluator={"display_name": "Exact", "entry_point": "main.py::grade"}
    )
    assert made.name == "accounts/sandbox/evaluators/exact"
    urls = fireworks.evaluators.get_upload_endpoint("exact", filename_to_size={"main.py": "12"})
    assert urls.filename_to_signed_urls is not None and set(urls.filename_to_signed_urls) == {"main.py"}
    fireworks.evaluators.validate_upload("exact", body={})
    got = fireworks.evaluators.get("exact")
    assert (got.state, got.entry_point) == ("ACTIVE", "main.py::grade")
    changed = fireworks.evaluators.update("exact", description="same")
    assert (changed.description, changed.display_name) == ("same", "Exact")
    assert [e.name for e in fireworks.evaluators.list()] == [made.name]
    with pytest.raises(sdk.ConflictError):
        fireworks.evaluators.create(evaluator_id="exact", evaluator={})
    fireworks.evaluators.delete("exact")
    assert list(fireworks.evaluators.list()) == []

    name = "accounts/sandbox/secrets/wandb"
    secret = fireworks.secrets.create(key_name="WANDB_API_KEY", name=name, value="hidden-value-of-a-key")
    assert (secret.name, secret.value) == (name, None)
    assert [s.key_name for s in fireworks.secrets.list()] == ["WANDB_API_KEY"]
    assert fireworks.secrets.get("wandb").value is None
    fireworks.secrets.delete("wandb")
    assert list(fireworks.secrets.list()) == []


def test_fields_that_supervised_jobs_do_not_have_are_refused(
    fireworks: Fireworks, dataset: Callable[..., str]
) -> None:
    name = dataset(12, "fields")
    for extra in ({"loraAlpha": 16}, {"loraDropout": 0.1}, {"loraTargetModules": ["q_proj"]}):
        with pytest.raises(sdk.BadRequestError, match="Unrecognized"):
            fireworks.supervised_fine_tuning_jobs.create(dataset=name, base_model=MODEL, extra_body=extra)
    for schedule in ({}, {"linear": {}, "cosine": {}}, {"linear": {"minLrRatio": 2}}, "cosine"):
        with pytest.raises(sdk.BadRequestError):
            fireworks.supervised_fine_tuning_jobs.create(
                dataset=name, base_model=MODEL, extra_body={"lrScheduler": schedule}
            )
