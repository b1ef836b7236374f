"""Fireworks through its real SDK client against a loopback host: what is sent, what answers become."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.scripted_host import Answer, Host, scripted_host
from tests.sending import create, live_price, upload

from orchestrate.data import TrainingData
from orchestrate.errors import (
    ArtifactRefused,
    DataError,
    HostUnavailable,
    InvalidRequest,
    MissingKey,
    NotFound,
    OutcomeUnknown,
    OverBudget,
    QuotaExceeded,
    RateLimited,
    TranslationRefused,
    UnexpectedAnswer,
    UsageError,
)
from orchestrate.providers.fireworks.provider import FireworksProvider
from orchestrate.settings.config import HostConfig, Secret
from orchestrate.spec import DPO, RFT, JobSpec, LoRA
from orchestrate.types import JobHandle, JobStatus, Message, RemoteDataset

ACCOUNT = "/v1/accounts/acme"
MODEL = "accounts/fireworks/models/qwen3-8b"
REF = "orc-0123456789ab"
SFT_JOBS = f"{ACCOUNT}/supervisedFineTuningJobs"
JOB = JobHandle(provider="fireworks", job_id=REF, ref=REF, kind="supervised")
DPO_JOB = JobHandle(provider="fireworks", job_id=REF, ref=REF, kind="dpo")
REMOTE = RemoteDataset(
    provider="fireworks", digest="d", train_id="accounts/acme/datasets/ds", details={"examples": "100"}
)


def job_json(**changes: Any) -> dict[str, Any]:
    return {
        "name": f"accounts/acme/supervisedFineTuningJobs/{REF}",
        "state": "JOB_STATE_RUNNING",
        "dataset": "accounts/acme/datasets/ds",
        "baseModel": MODEL,
        "createTime": "2026-11-24T10:00:00Z",
        "updateTime": "2026-11-24T10:05:00Z",
        **changes,
    }


@pytest.fixture
def host() -> Iterator[Host]:
    with scripted_host() as made:
        yield made


@pytest.fixture
def fireworks(host: Host, slept: list[float], tmp_path: Path) -> Iterator[FireworksProvider]:
    config = HostConfig(
        name="fireworks",
        api_key=Secret("sandbox-key-for-fireworks"),
        base_url=host.url,
        account_id="acme",
        timeout_s=240,
        options={"home": str(tmp_path / "home"), "wandb_api_key": Secret("wandb-secret-key-123")},
    )
    provider = FireworksProvider(config, sleep=slept.append)
    yield provider
    provider.close()


def spec(**changes: Any) -> JobSpec:
    return JobSpec.parse({"model": "qwen3-8b", "train": "train.jsonl", **changes})


# -- create ------------------------------------------------------------------------------------------------


def test_create_is_one_post_under_our_id(host: Host, fireworks: FireworksProvider) -> None:
    host.on("POST", SFT_JOBS, job_json())
    wanted = spec(epochs=2, adapter=LoRA(r=16), batch_size=8, learning_rate=1e-4, schedule="cosine")
    handle = create(fireworks, wanted, REMOTE, REF)
    assert handle == JOB
    (asked,) = host.sent
    assert (asked.method, asked.path, asked.query) == ("POST", SFT_JOBS, {"supervisedFineTuningJobId": REF})
    assert asked.body == {
        "baseModel": MODEL,
        "dataset": "accounts/acme/datasets/ds",
        "epochs": 2,
        "learningRate": 1e-4,
        "loraRank": 16,
        "evalAutoCarveout": False,
        "batchSizeSamples": 8,
        "lrScheduler": {"cosine": {}},
    }
    assert asked.headers["Authorization"] == "Bearer sandbox-key-for-fireworks"


def aliases(params: type) -> set[str]:
    """The wire names of an SDK's parameter type."""
    from typing import Annotated, get_args, get_origin, get_type_hints

    names: set[str] = set()
    for name, hint in get_type_hints(params, include_extras=True).items():
        while get_origin(hint) is not None and get_origin(hint) is not Annotated and get_args(hint):
            hint = get_args(hint)[0]
        told = [a.alias for a in get_args(hint)[1:] if getattr(a, "alias", None)]
        names.add(told[0] if told else name)
    return names


def test_every_field_of_an_sft_job_is_known_to_the_sdk_or_the_gateway(
    host: Host, fireworks: FireworksProvider
) -> None:
    from fireworks.types import supervised_fine_tuning_job_create_params as params

    host.on("POST", SFT_JOBS, job_json())
    wanted = spec(
        validation="v.jsonl",
        epochs=2,
        batch_size=10,
        warmup_ratio=0.1,
        weight_decay=0.1,
        max_seq_length=4096,
        checkpoints=4,
        schedule="linear",
        suffix="Support Bot".replace(" ", "_"),
        adapter=LoRA(r=8),
        wandb={"project": "p", "entity": "e"},
        provider_options={"fireworks": {"region": "US_IOWA_1"}},
    )
    create(fireworks, wanted, replace_validation(REMOTE), REF)
    body = host.sent[-1].body
    assert body.keys() - {"lrScheduler"} <= aliases(params.SupervisedFineTuningJobCreateParams)
    assert body["wandbConfig"] == {
        "enabled": True,
        "project": "p",
        "entity": "e",
        "apiKey": "wandb-secret-key-123",
    }
    # 100 rows in batches of 10, twice: 20 steps
    assert (body["learningRateWarmupSteps"], body["samplerCheckpointSaveIntervalSteps"]) == (2, 5)
    assert body["outputModel"] == f"support-bot-{REF}"
    assert body["evaluationDataset"] == "accounts/acme/datasets/v"
    assert body["region"] == "US_IOWA_1"


def replace_validation(remote: RemoteDataset) -> RemoteDataset:
    return RemoteDataset(
        provider="fireworks",
        digest="d",
        train_id=remote.train_id,
        validation_id="accounts/acme/datasets/v",
        details=remote.details,
    )


def test_a_dpo_job_names_its_loss_and_nests_its_settings(host: Host, fireworks: FireworksProvider) -> None:
    host.on("POST", f"{ACCOUNT}/dpoJobs", job_json(name=f"accounts/acme/dpoJobs/{REF}"))
    handle = create(fireworks, spec(method=DPO(beta=0.2), epochs=1, adapter=LoRA(r=8)), REMOTE, REF)
    assert handle == DPO_JOB
    assert host.sent[-1].query == {"dpoJobId": REF}
    assert host.sent[-1].body == {
        "dataset": "accounts/acme/datasets/ds",
        "trainingConfig": {"baseModel": MODEL, "epochs": 1, "loraRank": 8},
        "lossConfig": {"method": "DPO", "dpo": {"beta": 0.2}},
    }


def test_an_rft_job_has_its_evaluator(host: Host, fireworks: FireworksProvider) -> None:
    path = f"{ACCOUNT}/reinforcementFineTuningJobs"
    host.on("POST", path, job_json(name=f"accounts/acme/reinforcementFineTuningJobs/{REF}"))
    grader = {"evaluator": "accounts/acme/evaluators/exact"}
    handle = create(fireworks, spec(method=RFT(grader=grader, samples_per_prompt=4)), REMOTE, REF)
    assert handle.kind == "reinforcement"
    assert host.sent[-1].body == {
        "dataset": "accounts/acme/datasets/ds",
        "evaluator": "accounts/acme/evaluators/exact",
        "evalAutoCarveout": False,
        "inferenceParameters": {"responseCandidatesCount": 4},
        "trainingConfig": {"baseModel": MODEL},
    }


def test_going_on_from_an_adapter(host: Host, fireworks: FireworksProvider) -> None:
    host.on("POST", SFT_JOBS, job_json())
    create(fireworks, spec(continue_from="my-adapter"), REMOTE, REF)
    body = host.sent[-1].body
    assert body["warmStartFrom"] == "accounts/acme/models/my-adapter" and "baseModel" not in body


LOST = {
    "dropped": Answer(fault="hang_up"),
    "server error": Answer({"code": 13, "message": "internal"}, status=500),
    "page": Answer("<html><body>Please log in</body></html>"),
    "no name": Answer({"state": "JOB_STATE_CREATING"}),
    "list": Answer([1, 2]),
    "redirect": Answer("", status=307, headers={"Location": "/elsewhere"}),
    "already there": Answer({"code": 6, "message": "already exists"}, status=409),
}


@pytest.mark.parametrize("answer", LOST.values(), ids=list(LOST))
def test_a_lost_answer_is_an_unknown_outcome_and_nothing_is_sent_again(
    host: Host, fireworks: FireworksProvider, answer: Answer
) -> None:
    host.on("POST", SFT_JOBS, answer)
    with pytest.raises(OutcomeUnknown):
        create(fireworks, spec(), REMOTE, REF)
    assert len(host.sent) == 1


def test_a_refusal_is_certain(host: Host, fireworks: FireworksProvider) -> None:
    host.on("POST", SFT_JOBS, Answer({"code": 3, "message": "not tunable"}, status=400))
    with pytest.raises(InvalidRequest, match="not tunable"):
        create(fireworks, spec(), REMOTE, REF)


def test_a_host_that_is_not_there_made_nothing(fireworks: FireworksProvider) -> None:
    away = FireworksProvider(replace(fireworks.config, base_url="http://127.0.0.1:9"))
    with pytest.raises(HostUnavailable):
        create(away, spec(), REMOTE, REF)


@pytest.mark.parametrize("setting", [{"seed": 1}, {"adapter": LoRA(r=12)}, {"batch_size": "max"}])
def test_a_refused_setting_is_never_sent(host: Host, fireworks: FireworksProvider, setting: Any) -> None:
    with pytest.raises(TranslationRefused):
        create(fireworks, spec(**setting), REMOTE, REF)
    assert host.sent == []


def test_wandb_without_a_key_is_never_sent(host: Host, fireworks: FireworksProvider) -> None:
    bare = FireworksProvider(replace(fireworks.config, options={}))
    with pytest.raises(MissingKey, match="WANDB_API_KEY"):
        create(bare, spec(wandb={"project": "p"}), REMOTE, REF)
    assert host.sent == []


def test_a_job_is_found_by_its_name_in_any_collection(host: Host, fireworks: FireworksProvider) -> None:
    assert fireworks.find(REF) == []
    host.on("GET", f"{ACCOUNT}/dpoJobs/{REF}", job_json())
    assert fireworks.find(REF) == [DPO_JOB]
    assert len(host.sent) == 6


def test_a_search_that_fails_is_no_absence(
    host: Host, fireworks: FireworksProvider, slept: list[float]
) -> None:
    host.on("GET", f"{SFT_JOBS}/{REF}", Answer({"message": "later"}, status=503))
    with pytest.raises(HostUnavailable):
        fireworks.find(REF)


# -- the account -------------------------------------------------------------------------------------------


def test_the_account_is_found_from_the_key_once(host: Host, fireworks: FireworksProvider) -> None:
    host.on("GET", "/v1/accounts", {"accounts": [{"name": "accounts/acme"}]})
    host.on("GET", f"{SFT_JOBS}/{REF}", job_json())
    keyed = FireworksProvider(replace(fireworks.config, account_id=None))
    try:
        keyed.get(JOB)
        keyed.get(JOB)
    finally:
        keyed.close()
    assert [a.path for a in host.sent] == ["/v1/accounts", f"{SFT_JOBS}/{REF}", f"{SFT_JOBS}/{REF}"]


def test_a_key_with_two_accounts_must_be_told_which(host: Host, fireworks: FireworksProvider) -> None:
    host.on("GET", "/v1/accounts", {"accounts": [{"name": "accounts/a"}, {"name": "accounts/b"}]})
    keyed = FireworksProvider(replace(fireworks.config, account_id=None))
    with pytest.raises(UsageError, match="a, b"):
        keyed.get(JOB)
    keyed.close()


# -- price -------------------------------------------------------------------------------------------------


def test_the_estimate_is_asked_with_what_will_be_sent(host: Host, fireworks: FireworksProvider) -> None:
    cost = {"currencyCode": "USD", "units": "4", "nanos": 500000000}
    host.on("POST", f"{SFT_JOBS}:estimateCost", {"estimatedCost": cost})
    quote = live_price(fireworks, spec(epochs=3, max_cost_usd=5), REMOTE)
    assert quote.expected_usd == Decimal("4.5")
    sent = {"baseModel": MODEL, "dataset": "accounts/acme/datasets/ds", "epochs": 3}
    assert host.sent[-1].body == {**sent, "evalAutoCarveout": False}
    above = live_price(fireworks, spec(epochs=3, max_cost_usd=4), REMOTE)
    assert above.expected_usd == Decimal("4.5"), "the submit compares it with the limit"


def test_only_sft_has_an_estimate(host: Host, fireworks: FireworksProvider) -> None:
    assert "SFT" in (live_price(fireworks, spec(method=DPO()), REMOTE).unavailable or "")
    assert host.sent == []


# -- upload ------------------------------------------------------------------------------------------------


def dataset_path(data: TrainingData) -> str:
    return f"{ACCOUNT}/datasets/orc-{data.train.digest[:24]}"


def serve_upload(host: Host, data: TrainingData, *states: Any) -> None:
    path = dataset_path(data)

    def record(state: Any) -> Any:
        return state if isinstance(state, Answer) else {"name": path[4:], "state": state, "exampleCount": "4"}

    host.on("GET", path, *[record(s) for s in states])
    host.on("POST", f"{ACCOUNT}/datasets", {"name": path[4:], "state": "UPLOADING"})
    host.on(
        "POST",
        f"{path}:getUploadEndpoint",
        lambda asked: {
            "filenameToSignedUrls": {
                name: f"{host.url}/store/{name}?X-Goog-Signature=s" for name in asked.body["filenameToSize"]
            }
        },
    )
    name = f"{data.train.digest[:16]}.fireworks.jsonl"
    host.on("PUT", f"/store/{name}", Answer(""))
    host.on("POST", f"{path}:validateUpload", {})


GONE = Answer({"code": 5, "message": "not found"}, status=404)


def test_upload_signs_puts_validates_and_waits(
    host: Host, fireworks: FireworksProvider, data: TrainingData
) -> None:
    serve_upload(host, data, GONE, "UPLOADING", "READY")
    told: list[tuple[int, int]] = []
    remote = upload(fireworks, spec(), data, progress=lambda done, total: told.append((done, total)))
    path = dataset_path(data)
    assert remote.train_id == f"accounts/acme/datasets/orc-{data.train.digest[:24]}"
    assert remote.details["examples"] == "4"
    made = host.calls("POST", f"{ACCOUNT}/datasets")[0].body
    assert made == {
        "datasetId": f"orc-{data.train.digest[:24]}",
        "dataset": {"userUploaded": {}, "exampleCount": "4"},
    }
    (put,) = [a for a in host.sent if a.method == "PUT"]
    size = str(len(put.raw))
    assert put.headers["X-Goog-Content-Length-Range"] == f"{size},{size}"
    assert put.headers["Content-Type"] == "application/octet-stream" and put.headers["Content-Length"] == size
    assert "Authorization" not in put.headers
    assert len(host.calls("POST", f"{path}:getUploadEndpoint")) == 1
    assert told[-1] == (int(size), int(size))


def test_a_ready_dataset_is_used_again(host: Host, fireworks: FireworksProvider, data: TrainingData) -> None:
    serve_upload(host, data, "READY")
    upload(fireworks, spec(), data)
    assert {a.method for a in host.sent} == {"GET"}


def test_an_upload_that_stopped_goes_on(host: Host, fireworks: FireworksProvider, data: TrainingData) -> None:
    serve_upload(host, data, "UPLOADING", "READY")
    upload(fireworks, spec(), data)
    assert host.calls("POST", f"{ACCOUNT}/datasets") == [] and any(a.method == "PUT" for a in host.sent)


def test_the_hosts_words_are_shown_when_it_refuses_the_rows(
    host: Host, fireworks: FireworksProvider, data: TrainingData
) -> None:
    bad = Answer({"state": "UPLOADING", "status": {"code": "INVALID_ARGUMENT", "message": "row 2: no role"}})
    serve_upload(host, data, GONE, bad)
    with pytest.raises(DataError, match="row 2: no role") as caught:
        upload(fireworks, spec(), data)
    assert caught.value.problems[0].code == "invalid_argument"
    serve_upload(host, data, GONE)
    host.on(
        "POST",
        f"{dataset_path(data)}:validateUpload",
        Answer({"code": 3, "message": "2 lines, 4 promised"}, status=400),
    )
    with pytest.raises(DataError, match="4 promised"):
        upload(fireworks, spec(), data)


def test_data_never_travel_unencrypted(host: Host, fireworks: FireworksProvider, data: TrainingData) -> None:
    serve_upload(host, data, GONE)
    name = f"{data.train.digest[:16]}.fireworks.jsonl"
    url = {"filenameToSignedUrls": {name: "http://storage.example.com/x"}}
    host.on("POST", f"{dataset_path(data)}:getUploadEndpoint", url)
    with pytest.raises(UnexpectedAnswer, match="https"):
        upload(fireworks, spec(), data)
    assert not any(a.method == "PUT" for a in host.sent)


# -- reading -----------------------------------------------------------------------------------------------


def test_a_job_with_everything(host: Host, fireworks: FireworksProvider) -> None:
    host.on(
        "GET",
        f"{SFT_JOBS}/{REF}",
        job_json(
            state="JOB_STATE_EARLY_STOPPED",
            completedTime="2026-11-24T11:00:00Z",
            estimatedCost={"currencyCode": "USD", "units": "1", "nanos": 250000000},
            jobProgress={"percent": 80, "epoch": 1, "inputTokens": 1234},
            metricsFileSignedUrl=f"{host.url}/m?X-Goog-Signature=secretsecret",
            renderSamplesSignedUrl=f"{host.url}/r?X-Goog-Signature=secretsecret",
            wandbConfig={"apiKey": "very-secret-value"},
        ),
    )
    job = fireworks.get(JOB)
    assert job.status is JobStatus.SUCCEEDED and job.early_stopped
    assert job.tuned_model == f"accounts/acme/models/{REF}"
    assert (job.cost_usd, job.cost_origin) == (Decimal("1.25"), "estimatedCost")
    assert (job.percent, job.epoch, job.trained_tokens) == (80, 1, 1234)
    assert job.finished_at == datetime(2026, 11, 24, 11, tzinfo=UTC)
    assert "secret" not in str(job.payload)


@pytest.mark.parametrize(
    ("word", "status", "raw"),
    [
        ("JOB_STATE_RUNNING", JobStatus.RUNNING, "JOB_STATE_RUNNING"),
        ("RUNNING", JobStatus.RUNNING, "JOB_STATE_RUNNING"),
        ("JobState.JOB_STATE_FAILED", JobStatus.FAILED, "JOB_STATE_FAILED"),
        (2, JobStatus.RUNNING, "JOB_STATE_RUNNING"),
        (3, JobStatus.SUCCEEDED, "JOB_STATE_COMPLETED"),
        (17, JobStatus.UNKNOWN, "17"),
        ("JOB_STATE_HIBERNATING", JobStatus.UNKNOWN, "JOB_STATE_HIBERNATING"),
        (None, JobStatus.UNKNOWN, ""),
    ],
)
def test_states_in_every_form(
    host: Host, fireworks: FireworksProvider, word: Any, status: JobStatus, raw: str
) -> None:
    host.on("GET", f"{SFT_JOBS}/{REF}", job_json(state=word))
    job = fireworks.get(JOB)
    assert (job.status, job.raw_status) == (status, raw)


def test_a_failed_job_says_why(host: Host, fireworks: FireworksProvider) -> None:
    status = {"code": "RESOURCE_EXHAUSTED", "message": "no GPUs"}
    host.on("GET", f"{SFT_JOBS}/{REF}", job_json(state="JOB_STATE_FAILED", status=status))
    job = fireworks.get(JOB)
    assert job.error is not None and (job.error.code, job.error.message) == ("RESOURCE_EXHAUSTED", "no GPUs")


def test_a_job_whose_kind_was_not_kept(host: Host, fireworks: FireworksProvider) -> None:
    host.on(
        "GET", f"{ACCOUNT}/dpoJobs/{REF}", job_json(trainingConfig={"outputModel": "accounts/acme/models/m"})
    )
    job = fireworks.get(JobHandle(provider="fireworks", job_id=REF))
    assert job.handle.kind == "dpo"
    with pytest.raises(NotFound):
        fireworks.get(JobHandle(provider="fireworks", job_id="nothing"))


def test_the_list_joins_the_collections_newest_first(host: Host, fireworks: FireworksProvider) -> None:
    def named(kind: str, day: int) -> dict[str, Any]:
        return job_json(name=f"accounts/acme/{kind}/j{day}", createTime=f"2026-11-{day:02}T00:00:00Z")

    host.on(
        "GET",
        SFT_JOBS,
        {"supervisedFineTuningJobs": [named("supervisedFineTuningJobs", 9)], "nextPageToken": "p2"},
        {"supervisedFineTuningJobs": [named("supervisedFineTuningJobs", 1)], "nextPageToken": "p3"},
        {"supervisedFineTuningJobs": [named("supervisedFineTuningJobs", 0 + 1)]},
    )
    host.on("GET", f"{ACCOUNT}/dpoJobs", {"dpoJobs": [named("dpoJobs", 8), named("dpoJobs", 2)]})
    host.on("GET", f"{ACCOUNT}/reinforcementFineTuningJobs", {})
    found = list(fireworks.list(since=datetime(2026, 11, 5, tzinfo=UTC)))
    assert [(j.handle.job_id, j.handle.kind) for j in found] == [("j9", "supervised"), ("j8", "dpo")]
    pages = host.calls("GET", SFT_JOBS)
    assert [p.query.get("pageToken") for p in pages] == [None, "p2"]
    assert pages[0].query["pageSize"] == "200" and pages[0].query["orderBy"] == "create_time desc"


def test_events_are_made_of_states_and_progress_under_ids_that_stay(
    host: Host, fireworks: FireworksProvider
) -> None:
    progress = {"percent": 40, "epoch": 1}
    host.on("GET", f"{SFT_JOBS}/{REF}", job_json(jobProgress=progress))
    events = list(fireworks.events(JOB))
    assert [e.id for e in events] == ["created", "state-JOB_STATE_RUNNING", "progress-1-40"]
    host.on("GET", f"{SFT_JOBS}/{REF}", job_json(jobProgress=progress, updateTime="2026-11-24T10:09:00Z"))
    assert [e.id for e in fireworks.events(JOB)] == [e.id for e in events]
    assert list(fireworks.events(JOB, after="progress-1-40")) == []
    host.on(
        "GET",
        f"{SFT_JOBS}/{REF}",
        job_json(state="JOB_STATE_FAILED", status={"message": "boom"}, completedTime="2026-11-24T10:10:00Z"),
    )
    last = list(fireworks.events(JOB, after="progress-1-40"))[-1]
    assert (last.id, last.level) == ("state-JOB_STATE_FAILED", "error") and "boom" in last.message


NAN = pytest.approx(float("nan"), nan_ok=True)
METRICS = "\n".join(
    [
        json.dumps(
            {
                "timestamp": 1784318345.9,
                "step": 1,
                "data": {"train/epoch": 0, "train/loss": 0.9, "train/token": 20248},
            }
        ),
        "not json",
        json.dumps(
            {
                "step": 2,
                "train/loss": 0.8,
                "eval/loss": 0.85,
                "train/lr": 1e-4,
                "train/odd": 3,
                "note": "x",
                "odd": "NaN",
            }
        ),
        json.dumps([1]),
    ]
)


def test_metrics_of_an_sft_job_in_both_shapes(host: Host, fireworks: FireworksProvider) -> None:
    host.on("GET", f"{SFT_JOBS}/{REF}", job_json(metricsFileSignedUrl=f"{host.url}/m?X-Goog-Signature=s"))
    host.on("GET", "/m", METRICS)
    first, second = fireworks.metrics(JOB)
    assert (first.step, first.epoch, first.values) == (1, 0, {"train_loss": 0.9, "tokens": 20248})
    assert first.at is not None and first.at.year == 2026
    assert second.values == {
        "train_loss": 0.8,
        "valid_loss": 0.85,
        "learning_rate": 1e-4,
        "train/odd": 3,
        "odd": NAN,
    }
    assert "Authorization" not in host.sent[-1].headers


DOCUMENTED_SAMPLE = {
    "source_jsonl_row_index": 4,
    "source_jsonl_line_number": 5,
    "split_index": 0,
    "worker_id": 2,
    "renderer": "qwen3",
    "train_on_what": "all_assistant_messages",
    "token_ids": [10, 11, 12],
    "decoded_tokens": ["<|im_start|>", "assistant", "Hello"],
    "token_weights": [0.0, 0.0, 1.0],
    "training_target_token_ids": [11, 12],
    "training_loss_weights": [0.0, 1.0],
}
"""docs.fireworks.ai, "Debug SFT tokenization"."""


def test_rows_as_the_trainer_saw_them(host: Host, fireworks: FireworksProvider) -> None:
    host.on("GET", f"{SFT_JOBS}/{REF}", job_json(renderSamplesSignedUrl=f"{host.url}/r?X-Goog-Signature=s"))
    assert list(fireworks.rendered(JOB)) == []  # 404 until the job has ended
    earlier = {**DOCUMENTED_SAMPLE, "source_jsonl_line_number": 2, "split_index": 1}
    host.on("GET", "/r", "\n".join([json.dumps(DOCUMENTED_SAMPLE), "no JSON", json.dumps(earlier), "{}"]))
    first, second = fireworks.rendered(JOB)
    assert (first.row, second.row) == (2, 5) and "part 2 of this row" in first.notes
    assert [(t.id, t.text, t.weight) for t in second.tokens] == [
        (10, "<|im_start|>", 0),
        (11, "assistant", 0),
        (12, "Hello", 1),
    ]
    assert second.trained == 1 and second.notes == ("renderer qwen3, trained on all_assistant_messages",)
    assert "Authorization" not in host.sent[-1].headers


def test_metrics_of_a_dpo_job_have_their_own_endpoint(host: Host, fireworks: FireworksProvider) -> None:
    path = f"{ACCOUNT}/dpoJobs/{REF}"
    host.on("GET", path, job_json())
    assert fireworks.metrics(DPO_JOB) == []
    host.on("GET", f"{path}:getMetricsFileEndpoint", {"signedUrl": f"{host.url}/m"})
    assert fireworks.metrics(DPO_JOB) == []
    host.on("GET", "/m", METRICS)
    assert len(fireworks.metrics(DPO_JOB)) == 2


def test_reads_wait_as_long_as_the_host_asks(
    host: Host, fireworks: FireworksProvider, slept: list[float]
) -> None:
    busy = Answer({"code": 8, "message": "slow down"}, status=429, headers={"Retry-After": "3"})
    host.on("GET", f"{SFT_JOBS}/{REF}", busy, Answer("<html>"), job_json())
    assert fireworks.get(JOB).status is JobStatus.RUNNING
    assert slept[0] == 3.0 and len(host.sent) == 3


# -- acting ------------------------------------------------------------------------------------------------


def test_cancel_resume_and_delete(host: Host, fireworks: FireworksProvider) -> None:
    path = f"{SFT_JOBS}/{REF}"
    host.on("GET", path, job_json())
    host.on("POST", f"{path}:cancel", {})
    host.on("POST", f"{path}:resume", {})
    host.on("DELETE", path, {})
    fireworks.cancel(JOB)
    fireworks.resume(JOB)
    assert len(host.calls("POST", f"{path}:cancel")) == 1 and host.calls("POST", f"{path}:resume") == []
    host.on("GET", path, job_json(state="JOB_STATE_CANCELLED"))
    fireworks.cancel(JOB)
    with pytest.raises(UsageError, match="billed again"):
        fireworks.resume(JOB)
    assert len(host.calls("POST", f"{path}:cancel")) == 1 and host.calls("POST", f"{path}:resume") == []
    host.on("GET", path, job_json(state="JOB_STATE_PAUSED"))
    fireworks.resume(JOB)
    assert len(host.calls("POST", f"{path}:resume")) == 1
    fireworks.delete(JOB)
    host.on("GET", path, GONE)
    fireworks.delete(JOB)
    assert len(host.calls("DELETE", path)) == 1


def test_a_job_that_ends_while_it_is_cancelled(host: Host, fireworks: FireworksProvider) -> None:
    path = f"{SFT_JOBS}/{REF}"
    host.on("GET", path, job_json(), job_json(state="JOB_STATE_COMPLETED"))
    host.on("POST", f"{path}:cancel", Answer({"code": 9, "message": "ended"}, status=400))
    fireworks.cancel(JOB)
    assert [(asked.method, asked.path) for asked in host.sent] == [
        ("GET", path),
        ("POST", f"{path}:cancel"),
        ("GET", path),
    ]


# -- the tuned model ---------------------------------------------------------------------------------------


def weights() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


def serve_model(host: Host, files: dict[str, bytes]) -> None:
    host.on("GET", f"{SFT_JOBS}/{REF}", job_json(state="JOB_STATE_COMPLETED"))
    urls = {name: f"{host.url}/files/{name.rsplit('/', 1)[-1]}?X-Goog-Signature=s" for name in files}
    host.on("GET", f"{ACCOUNT}/models/{REF}:getDownloadEndpoint", {"filenameToSignedUrls": urls})
    for name, content in files.items():
        host.on("GET", f"/files/{name.rsplit('/', 1)[-1]}", Answer(content, headers={"ETag": '"1"'}))


def test_download_takes_the_models_files_and_no_others(
    host: Host, fireworks: FireworksProvider, tmp_path: Path
) -> None:
    serve_model(
        host,
        {
            "adapter_config.json": b"{}",
            "adapter_model.safetensors": weights(),
            "training_args.bin": b"pickle",
        },
    )
    artifact = fireworks.download(JOB, tmp_path / "out")
    assert artifact.kind == "adapter" and artifact.base_model == MODEL
    assert [f.path for f in artifact.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert host.calls("GET", "/files/training_args.bin") == []
    assert all("Authorization" not in a.headers for a in host.sent if a.path.startswith("/files/"))
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


def test_an_interrupted_download_fetches_only_what_is_missing(
    host: Host, fireworks: FireworksProvider, tmp_path: Path
) -> None:
    serve_model(host, {"adapter_config.json": b"{}", "adapter_model.safetensors": weights()})
    host.on("GET", "/files/adapter_model.safetensors", GONE)
    with pytest.raises(NotFound):
        fireworks.download(JOB, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    host.on("GET", "/files/adapter_model.safetensors", Answer(weights()))
    fireworks.download(JOB, tmp_path / "out")
    assert len(host.calls("GET", "/files/adapter_config.json")) == 1


def test_a_url_that_expired_is_asked_again(host: Host, fireworks: FireworksProvider, tmp_path: Path) -> None:
    serve_model(host, {"adapter_config.json": b"{}", "adapter_model.safetensors": weights()})
    expired = Answer("<Error><Code>ExpiredToken</Code></Error>", status=400)
    host.on("GET", "/files/adapter_model.safetensors", expired, Answer(weights()))
    fireworks.download(JOB, tmp_path / "out")
    assert len(host.calls("GET", f"{ACCOUNT}/models/{REF}:getDownloadEndpoint")) == 2


def test_a_hostile_file_name_is_refused(host: Host, fireworks: FireworksProvider, tmp_path: Path) -> None:
    serve_model(host, {"../../evil.json": b"{}", "adapter_model.safetensors": weights()})
    with pytest.raises(ArtifactRefused):
        fireworks.download(JOB, tmp_path / "out")
    assert list(tmp_path.rglob("evil.json")) == [] and not (tmp_path / "out").exists()


def test_a_job_that_runs_has_no_model(host: Host, fireworks: FireworksProvider, tmp_path: Path) -> None:
    host.on("GET", f"{SFT_JOBS}/{REF}", job_json())
    with pytest.raises(UsageError, match="no model yet"):
        fireworks.download(JOB, tmp_path / "out")


# -- serving -----------------------------------------------------------------------------------------------

DEPLOYMENT = f"accounts/acme/deployments/{REF}"
TUNED = f"accounts/acme/models/{REF}"


def serve_deployments(host: Host, **changes: Any) -> dict[str, Any]:
    shapes = [
        {
            "snapshot": {
                "name": f"accounts/fireworks/deploymentShapes/{gpu}",
                "acceleratorType": f"NVIDIA_{gpu}",
                "acceleratorCount": count,
                "baseModel": MODEL,
            }
        }
        for gpu, count in (("B200_180GB", 1), ("H100_80GB", 1), ("H200_141GB", 2))
    ]
    record = {
        "name": DEPLOYMENT,
        "baseModel": TUNED,
        "state": "CREATING",
        "acceleratorType": "NVIDIA_H100_80GB",
        "acceleratorCount": 1,
        "maxReplicaCount": 1,
        **changes,
    }
    host.on("GET", f"{SFT_JOBS}/{REF}", job_json(state="JOB_STATE_COMPLETED"))
    host.on("GET", f"{ACCOUNT}/deployments/{REF}", GONE)
    host.on("POST", f"{ACCOUNT}/deploymentShapeVersions:match", {"deploymentShapeVersions": shapes})
    host.on("POST", f"{ACCOUNT}/deployments", record)
    host.on("DELETE", f"{ACCOUNT}/deployments/{REF}", {})
    host.on("GET", f"{ACCOUNT}/deployedModels", {})
    host.on(
        "POST", f"{ACCOUNT}/deployedModels", {"name": "accounts/acme/deployedModels/dm", "state": "DEPLOYING"}
    )
    return record


def test_the_price_is_told_before_anything_is_made(host: Host, fireworks: FireworksProvider) -> None:
    serve_deployments(host)
    assert fireworks.deployment_price(JOB, options={"max_replicas": 2}) == 16
    assert host.calls("POST", f"{ACCOUNT}/deployments") == []


@pytest.mark.parametrize(
    ("region", "usd", "placement"),
    [
        ("GLOBAL", 8, {"multiRegion": "GLOBAL"}),
        ("EUROPE", 12, {"multiRegion": "EUROPE"}),
        ("EU_PARIS_1", 12, {"region": "EU_PARIS_1"}),
    ],
)
def test_a_region_costs_half_as_much_again(
    host: Host, fireworks: FireworksProvider, region: str, usd: int, placement: dict[str, str]
) -> None:
    serve_deployments(host, placement=placement)
    assert fireworks.deployment_price(JOB, options={"region": region}) == usd
    assert fireworks.deploy(JOB, options={"region": region}).usd_per_hour == usd
    assert host.calls("POST", f"{ACCOUNT}/deployments")[0].body["placement"] == placement


def test_a_merged_deployment_of_the_cheapest_shape_scales_to_zero(
    host: Host, fireworks: FireworksProvider
) -> None:
    record = serve_deployments(host)
    endpoint = fireworks.deploy(JOB)
    assert (endpoint.id, endpoint.model, endpoint.state) == (DEPLOYMENT, f"{TUNED}#{DEPLOYMENT}", "creating")
    assert endpoint.usd_per_hour == Decimal(8)
    made = host.calls("POST", f"{ACCOUNT}/deployments")[0]
    assert made.query == {"deploymentId": REF}
    assert made.body == {
        "baseModel": TUNED,
        "deploymentShape": "accounts/fireworks/deploymentShapes/H100_80GB",
        "minReplicaCount": 0,
        "maxReplicaCount": 1,
        "autoscalingPolicy": {"scaleToZeroWindow": "3600s"},
    }
    host.on("GET", f"{ACCOUNT}/deployments/{REF}", {**record, "state": "READY"})
    assert fireworks.deploy(JOB).state == "ready"
    assert len(host.calls("POST", f"{ACCOUNT}/deployments")) == 1


def test_an_addon_deployment_loads_the_adapter_once(host: Host, fireworks: FireworksProvider) -> None:
    record = serve_deployments(host, enableAddons=True, baseModel=MODEL)
    fireworks.deploy(JOB, options={"mode": "addons"})
    made = host.calls("POST", f"{ACCOUNT}/deployments")[0].body
    assert (made["baseModel"], made["enableAddons"]) == (MODEL, True)
    matched = host.calls("POST", f"{ACCOUNT}/deploymentShapeVersions:match")[0].body
    assert matched["createDeploymentRequest"]["deployment"] == {"baseModel": MODEL, "enableAddons": True}
    assert host.calls("POST", f"{ACCOUNT}/deployedModels")[0].body == {
        "model": TUNED,
        "deployment": DEPLOYMENT,
    }
    loaded = {"name": "accounts/acme/deployedModels/dm", "model": TUNED, "deployment": DEPLOYMENT}
    host.on("GET", f"{ACCOUNT}/deployedModels", {"deployedModels": [loaded]})
    host.on("GET", f"{ACCOUNT}/deployments/{REF}", record)
    host.on("DELETE", f"{ACCOUNT}/deployedModels/dm", {})
    fireworks.deploy(JOB)
    assert len(host.calls("POST", f"{ACCOUNT}/deployedModels")) == 1
    fireworks.undeploy(JOB)
    assert [a.path for a in host.sent[-3:] if a.method == "DELETE"] == [
        f"{ACCOUNT}/deployedModels/dm",
        f"{ACCOUNT}/deployments/{REF}",
    ]
    assert host.sent[-1].query == {"ignoreChecks": "true"}


def test_a_price_above_the_limit_makes_nothing(host: Host, fireworks: FireworksProvider) -> None:
    serve_deployments(host)
    with pytest.raises(OverBudget):
        fireworks.deploy(JOB, options={"max_usd_per_hour": 7})
    assert host.calls("POST", f"{ACCOUNT}/deployments") == []


def test_undeploying_nothing(host: Host, fireworks: FireworksProvider) -> None:
    serve_deployments(host)
    fireworks.undeploy(JOB)
    assert fireworks.endpoint(JOB) is None
    assert {a.method for a in host.sent} == {"GET"}


def test_undeploying_needs_no_record_of_the_job(host: Host, fireworks: FireworksProvider) -> None:
    record = serve_deployments(host, enableAddons=True)
    host.on("GET", f"{SFT_JOBS}/{REF}", GONE)
    host.on("GET", f"{ACCOUNT}/deployments/{REF}", record)
    assert [item.id for item in fireworks.deployed(JOB)] == [DEPLOYMENT]
    fireworks.undeploy(JOB)
    assert host.sent[-1].method == "DELETE"
    host.on("GET", f"{ACCOUNT}/deployments/{REF}", {**record, "state": "DELETING"})
    assert [item.bills for item in fireworks.deployed(JOB)] == [True]
    host.on("GET", f"{ACCOUNT}/deployments/{REF}", GONE)
    host.on("GET", f"{ACCOUNT}/deployments", {"deployments": [record]})
    assert len(fireworks.deployed(JOB)) == 1, "one of two answers that shows it is enough"
    host.on("GET", f"{ACCOUNT}/deployments", {})
    assert fireworks.deployed(JOB) == []


@pytest.mark.parametrize("status", [400, 409, 429])
def test_a_deployment_that_was_refused_and_made_all_the_same_is_taken(
    host: Host, fireworks: FireworksProvider, status: int
) -> None:
    record = serve_deployments(host)
    host.on("GET", f"{ACCOUNT}/deployments/{REF}", GONE, record)
    host.on("POST", f"{ACCOUNT}/deployments", Answer({"error": "no"}, status=status))
    assert fireworks.deploy(JOB).id == DEPLOYMENT


def test_an_adapter_that_was_not_loaded_is_loaded_by_the_next_call(
    host: Host, fireworks: FireworksProvider
) -> None:
    record = serve_deployments(host, enableAddons=True, baseModel=MODEL)
    host.on("GET", f"{ACCOUNT}/deployments/{REF}", record)
    fireworks.deploy(JOB)
    assert [a.path for a in host.sent if a.method == "POST"] == [f"{ACCOUNT}/deployedModels"]


def test_a_deployment_that_is_going_is_none(host: Host, fireworks: FireworksProvider) -> None:
    record = serve_deployments(host)
    host.on("GET", f"{ACCOUNT}/deployments/{REF}", {**record, "state": "DELETING"})
    assert fireworks.endpoint(JOB) is None


def test_the_tuned_model_answers_through_its_deployment(host: Host, fireworks: FireworksProvider) -> None:
    record = serve_deployments(host)
    host.on("GET", f"{ACCOUNT}/deployments/{REF}", {**record, "state": "READY"})
    choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
    scaling = Answer({"error": {"code": "DEPLOYMENT_SCALING_UP", "message": "wait"}}, status=503)
    answer = {"id": "c", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    host.on("POST", "/v1/chat/completions", scaling, answer)
    (reply,) = fireworks.generate(JOB, [[Message(role="user", content="hi")]], max_tokens=5)
    assert (reply.content, reply.prompt_tokens, reply.model) == ("hello", 3, f"{TUNED}#{DEPLOYMENT}")
    assert host.sent[-1].body == {
        "model": f"{TUNED}#{DEPLOYMENT}",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "temperature": 0.0,
    }
    fireworks.generate(JOB, [[Message(role="user", content="hi")]], base=True)
    assert host.sent[-1].body["model"] == MODEL


def test_quota_is_told_from_a_pause(host: Host, fireworks: FireworksProvider) -> None:
    quota = {"code": "quota_exceeded", "message": "0 of 0 GPUs"}
    host.on("POST", SFT_JOBS, Answer({"error": quota}, status=429))
    with pytest.raises(QuotaExceeded) as caught:
        create(fireworks, spec(), REMOTE, REF)
    assert not caught.value.retryable
    host.on("POST", SFT_JOBS, Answer({"error": {"message": "slow"}}, status=429))
    with pytest.raises(RateLimited) as paused:
        create(fireworks, spec(), REMOTE, "orc-other")
    assert paused.value.retryable
