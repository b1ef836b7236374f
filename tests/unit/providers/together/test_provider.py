"""Together through its real SDK client against a loopback host: what is sent, and what the answers become."""

from __future__ import annotations

import io
import json
import math
import struct
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.scripted_host import Answer, Host, Sent, scripted_host
from tests.sending import create, live_price, upload
from tests.targets import to

from orchestrate import catalog
from orchestrate.core.zstd import zstd
from orchestrate.data import TrainingData
from orchestrate.errors import (
    ArtifactRefused,
    AuthenticationFailed,
    DataError,
    HostUnavailable,
    InvalidRequest,
    MissingKey,
    OutcomeUnknown,
    OverBudget,
    QuotaExceeded,
    TranslationRefused,
    UsageError,
)
from orchestrate.providers.together.provider import TogetherProvider
from orchestrate.settings.config import HostConfig, Secret
from orchestrate.spec import DPO, JobSpec, LoRA, WandB
from orchestrate.types import JobHandle, JobStatus, Message, RemoteDataset

MODEL = "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference"
REF = "orc-0123456789ab"
JOB = JobHandle(provider="together", job_id="ft-1", ref=REF)
LIMITS = {
    "model_name": MODEL,
    "max_num_epochs": 20,
    "max_num_evals": 100,
    "max_num_checkpoints": 100,
    "min_learning_rate": 1e-8,
    "max_learning_rate": 0.01,
    "max_seq_length_sft": 131072,
    "max_seq_length_dpo": 65536,
    "min_max_seq_length": 1024,
    "supports_vision": False,
    "supports_tools": True,
    "supports_reasoning": False,
    "supports_full_training": True,
    "merge_output_lora": True,
    "default_gradient_accumulation_steps": 1,
    "lora_training": {
        "default_rank": 64,
        "max_rank": 64,
        "min_batch_size": 8,
        "max_batch_size": 32,
        "max_batch_size_dpo": 16,
        "target_modules": ["q_proj", "v_proj"],
    },
    "full_training": {"min_batch_size": 8, "max_batch_size": 32, "max_batch_size_dpo": 16},
}
REMOTE = RemoteDataset(provider="together", digest="d", train_id="file-train", validation_id=None)


def job_json(**changes: Any) -> dict[str, Any]:
    return {
        "id": "ft-1",
        "status": "running",
        "user_id": "u",
        "created_at": "2026-11-24T10:00:00.123456789Z",
        "updated_at": "2026-11-24T10:05:00Z",
        "model": MODEL,
        "model_output_name": f"me/Meta-Llama-3.1-8B-{REF}-1a2b3c4d",
        "training_type": {"type": "Lora", "lora_r": 8, "lora_alpha": 16},
        **changes,
    }


@pytest.fixture
def host() -> Iterator[Host]:
    with scripted_host() as made:
        made.on("GET", "/v1/fine-tunes/models/limits", LIMITS)
        yield made


@pytest.fixture
def together(host: Host, slept: list[float], tmp_path: Path) -> Iterator[TogetherProvider]:
    config = HostConfig(
        name="together",
        api_key=Secret("sandbox-key-for-together"),
        base_url=host.url,
        project="proj-1",
        timeout_s=240,
        options={"home": str(tmp_path / "home"), "wandb_api_key": Secret("wandb-secret-key-123")},
    )
    provider = TogetherProvider(config, sleep=slept.append)
    yield provider
    provider.close()


def spec(**changes: Any) -> JobSpec:
    return JobSpec.parse({"model": "llama-3.1-8b", "train": "train.jsonl", **changes})


# -- create ------------------------------------------------------------------------------------------------


def test_create_is_one_post_with_the_sdks_body(host: Host, together: TogetherProvider) -> None:
    host.on("POST", "/v1/fine-tunes", job_json())
    wanted = spec(epochs=3, adapter=LoRA(r=16), suffix="support-bot", seed=7, batch_size=8)
    handle = create(together, wanted, REMOTE, REF)
    assert handle == JobHandle(provider="together", job_id="ft-1", ref=REF)
    assert [(a.method, a.path) for a in host.sent] == [("POST", "/v1/fine-tunes")]
    assert host.sent[0].body == {
        "model": MODEL,
        "training_file": "file-train",
        "training_method": {"method": "sft", "train_on_inputs": "auto"},
        "training_type": {"type": "Lora", "lora_r": 16, "lora_alpha": 32},
        "n_epochs": 3,
        "batch_size": 8,
        "random_seed": 7,
        "suffix": f"support-bot-{REF}",
    }
    assert host.sent[0].headers["Authorization"] == "Bearer sandbox-key-for-together"


def test_every_field_that_is_sent_is_one_of_the_sdks_request(host: Host, together: TogetherProvider) -> None:
    from together.lib.types.fine_tuning import FinetuneRequest, LoRATrainingType, TrainingMethodDPO

    host.on("POST", "/v1/fine-tunes", job_json())
    wanted = spec(
        method=DPO(beta=0.2, rpo_alpha=0.1, normalize_by_length=True),
        adapter=LoRA(r=8, alpha=16, dropout=0.1, targets=("q_proj", "v_proj")),
        validation="v.jsonl",
        epochs=2,
        learning_rate=1e-4,
        gradient_accumulation=2,
        warmup_ratio=0.1,
        schedule="cosine",
        weight_decay=0.01,
        max_grad_norm=0.5,
        max_seq_length=4096,
        packing=False,
        evals=5,
        checkpoints=2,
        early_stopping={"patience": 2},
        seed=1,
        wandb=WandB(project="p", name="n", entity="e").model_dump(exclude_unset=True),
        provider_options={"together": {"hf_output_repo_name": "me/out"}},
    )
    create(
        together, wanted, RemoteDataset(provider="together", digest="d", train_id="f", validation_id="v"), REF
    )
    body = host.sent[-1].body
    assert body.keys() <= FinetuneRequest.model_fields.keys()
    assert body["training_type"].keys() <= LoRATrainingType.model_fields.keys()
    assert body["training_method"].keys() <= TrainingMethodDPO.model_fields.keys()
    FinetuneRequest.model_validate({"warmup_ratio": 0, **body})
    assert body["wandb_key"] == "wandb-secret-key-123" and body["validation_file"] == "v"


def test_the_rank_is_asked_when_another_lora_setting_needs_it(host: Host, together: TogetherProvider) -> None:
    host.on("POST", "/v1/fine-tunes", job_json())
    create(together, spec(adapter=LoRA(dropout=0.1)), REMOTE, REF)
    assert host.sent[-1].body["training_type"] == {
        "type": "Lora",
        "lora_r": 64,
        "lora_alpha": 128,
        "lora_dropout": 0.1,
    }
    assert [a.method for a in host.sent] == ["GET", "POST"]


def test_continuing_sends_the_checkpoint_and_no_model(host: Host, together: TogetherProvider) -> None:
    host.on("POST", "/v1/fine-tunes", job_json())
    create(together, spec(continue_from="ft-0:12"), REMOTE, REF)
    body = host.sent[-1].body
    assert body["from_checkpoint"] == "ft-0:12" and "model" not in body and "training_type" not in body


LOST = {
    "dropped": Answer(fault="hang_up"),
    "server error": Answer({"error": {"message": "boom"}}, status=500),
    "time-out at a proxy": Answer("<html>504</html>", status=504),
    "page": Answer("<html><body>Please log in</body></html>"),
    "no id": Answer({"object": "list", "data": []}),
    "list": Answer([1, 2]),
    "broken JSON": Answer("{", headers={"Content-Type": "application/json"}),
    "redirect": Answer("", status=302, headers={"Location": "/elsewhere"}),
}


@pytest.mark.parametrize("answer", LOST.values(), ids=list(LOST))
def test_a_lost_answer_is_an_unknown_outcome_and_nothing_is_sent_again(
    host: Host, together: TogetherProvider, answer: Answer
) -> None:
    host.on("POST", "/v1/fine-tunes", answer)
    with pytest.raises(OutcomeUnknown):
        create(together, spec(), REMOTE, REF)
    assert len(host.calls("POST", "/v1/fine-tunes")) == 1


@pytest.mark.parametrize(
    ("status", "error"), [(400, InvalidRequest), (401, AuthenticationFailed), (402, QuotaExceeded)]
)
def test_a_refusal_is_certain(host: Host, together: TogetherProvider, status: int, error: type) -> None:
    host.on("POST", "/v1/fine-tunes", Answer({"error": {"message": "no", "code": "x"}}, status=status))
    with pytest.raises(error, match="no"):
        create(together, spec(), REMOTE, REF)
    assert len(host.sent) == 1


def test_a_host_that_is_not_there_made_nothing(together: TogetherProvider, host: Host) -> None:
    from dataclasses import replace

    away = TogetherProvider(replace(together.config, base_url="http://127.0.0.1:9"))
    with pytest.raises(HostUnavailable):
        create(away, spec(), REMOTE, REF)


def test_a_refused_setting_is_never_sent(host: Host, together: TogetherProvider) -> None:
    with pytest.raises(TranslationRefused):
        create(together, spec(batch_tokens=1000), REMOTE, REF)
    assert host.sent == []


def test_a_spec_does_not_say_where_the_wandb_key_goes(together: TogetherProvider) -> None:
    told = together.translate(
        spec(
            wandb={"project": "p"}, provider_options={"together": {"wandb_base_url": "https://evil.example"}}
        )
    )
    assert [row.name for row in told.refused] == ["provider_options.wandb_base_url"]


def test_wandb_without_a_key_is_never_sent(host: Host, together: TogetherProvider) -> None:
    from dataclasses import replace

    bare = TogetherProvider(replace(together.config, options={}))
    with pytest.raises(MissingKey, match="WANDB_API_KEY"):
        create(bare, spec(wandb={"project": "p"}), REMOTE, REF)
    assert host.sent == []


def test_the_job_is_found_by_its_ref_in_suffix_or_output_name(host: Host, together: TogetherProvider) -> None:
    host.on(
        "GET",
        "/v1/fine-tunes",
        {
            "data": [
                job_json(id="ft-a", suffix=f"bot-{REF}", model_output_name=None),
                job_json(id="ft-b", suffix=None),
                job_json(id="ft-c", suffix=f"{REF}9", model_output_name=f"me/x-{REF}9-1a"),
                {"id": "ft-odd", "status": 7, "created_at": "never", "batch_size": {}},
            ]
        },
    )
    assert [h.job_id for h in together.find(REF)] == ["ft-a", "ft-b"]


# -- price -------------------------------------------------------------------------------------------------


def test_the_estimate_is_asked_with_what_will_be_sent(host: Host, together: TogetherProvider) -> None:
    host.on(
        "POST",
        "/v1/fine-tunes/estimate-price",
        {
            "estimation_available": True,
            "estimated_total_price": 4.5,
            "allowed_to_proceed": True,
            "estimated_train_token_count": 1000000.0,
            "estimated_eval_token_count": 500.0,
        },
    )
    quote = live_price(together, spec(epochs=3, max_cost_usd=5), REMOTE)
    assert quote.expected_usd == Decimal("4.5") and quote.billed_tokens == 1000500
    assert host.sent[-1].body == {
        "training_file": "file-train",
        "model": MODEL,
        "n_epochs": 3,
        "training_method": {"method": "sft", "train_on_inputs": "auto"},
    }


def test_a_price_above_the_limit_is_named_and_the_submit_compares_it(
    host: Host, together: TogetherProvider
) -> None:
    answer = {"estimation_available": True, "estimated_total_price": 5.01, "allowed_to_proceed": True}
    host.on("POST", "/v1/fine-tunes/estimate-price", answer)
    assert live_price(together, spec(max_cost_usd=5), REMOTE).expected_usd == Decimal("5.01")


def test_a_job_that_the_account_may_not_pay_is_refused(host: Host, together: TogetherProvider) -> None:
    answer = {
        "estimation_available": True,
        "estimated_total_price": 90,
        "allowed_to_proceed": False,
        "user_limit": 20,
    }
    host.on("POST", "/v1/fine-tunes/estimate-price", answer)
    with pytest.raises(QuotaExceeded, match=r"\$90\.00"):
        live_price(together, spec(), REMOTE)


def test_no_estimate_says_why(host: Host, together: TogetherProvider) -> None:
    answer = {"estimation_available": False, "unavailable_reason": "multimodal_dataset"}
    host.on("POST", "/v1/fine-tunes/estimate-price", answer)
    assert "images" in (live_price(together, spec(), REMOTE).unavailable or "")


# -- upload ------------------------------------------------------------------------------------------------


def serve_upload(host: Host, *states: str, report: dict[str, Any] | None = None) -> None:
    def file(state: str) -> dict[str, Any]:
        return {
            "id": "file-9",
            "object": "file",
            "bytes": 1,
            "created_at": 1,
            "filename": "x.jsonl",
            "FileType": "jsonl",
            "purpose": "fine-tune",
            "processing_status": state,
            **({"validation_report": report} if report else {}),
        }

    host.on("GET", "/v1/files", {"data": []})
    location = {"Location": f"{host.url}/storage/put", "X-Together-File-Id": "file-9"}
    host.on("POST", "/v1/files", Answer("", status=302, headers=location))
    host.on("PUT", "/storage/put", Answer(""))
    host.on("POST", "/v1/files/file-9/preprocess", file("PENDING"))
    host.on("GET", "/v1/files/file-9", *[file(s) for s in states])


def test_upload_sends_the_file_and_waits_for_validation(
    host: Host, together: TogetherProvider, data: TrainingData
) -> None:
    serve_upload(host, "PENDING", "RUNNING", "COMPLETED", report={"valid": True, "nlines": 4})
    told: list[tuple[int, int]] = []
    remote = upload(together, spec(), data, progress=lambda done, total: told.append((done, total)))
    assert (remote.train_id, remote.validation_id, remote.digest) == ("file-9", None, data.digest)
    assert remote.details["train"]["nlines"] == 4
    put = host.calls("PUT", "/storage/put")[0]
    assert len(put.raw.splitlines()) == 4 and "Authorization" not in put.headers
    assert told[-1] == (len(put.raw), len(put.raw))
    assert len(host.calls("GET", "/v1/files/file-9")) == 3


def test_a_file_with_the_same_digest_is_used_again(
    host: Host, together: TogetherProvider, data: TrainingData, tmp_path: Path
) -> None:
    serve_upload(host, "COMPLETED")
    path = data.train.write(to("together"), tmp_path / "home" / "data")
    known = {"id": "file-9", "filename": path.name, "bytes": path.stat().st_size}
    host.on("GET", "/v1/files", {"data": [known]})
    assert upload(together, spec(), data).train_id == "file-9"
    assert host.calls("POST", "/v1/files") == []


def test_the_hosts_report_is_shown_when_it_refuses_a_file(
    host: Host, together: TogetherProvider, data: TrainingData
) -> None:
    report = {"valid": False, "error": "line 3: no assistant", "error_type": "INVALID_FORMAT"}
    serve_upload(host, "INVALID_FORMAT", report=report)
    with pytest.raises(DataError, match="line 3: no assistant") as caught:
        upload(together, spec(), data)
    assert caught.value.problems[0].code == "invalid_format"


def test_nothing_is_uploaded_for_a_job_outside_the_models_limits(
    host: Host, together: TogetherProvider, data: TrainingData
) -> None:
    with pytest.raises(TranslationRefused, match=r"(?s)epochs.*20.*batch_size.*32"):
        upload(together, spec(epochs=21, batch_size=64), data)
    assert {a.path for a in host.sent} == {"/v1/fine-tunes/models/limits"}


# -- reading -----------------------------------------------------------------------------------------------


def test_a_job_with_everything(host: Host, together: TogetherProvider) -> None:
    host.on(
        "GET",
        "/v1/fine-tunes/ft-1",
        job_json(
            status="completed",
            token_count=1234,
            total_price=4500000000,
            steps_completed=10,
            total_steps=10,
            epochs_completed=2,
            early_stopped=True,
            wandb_key="wandb-very-secret-key",
            events=[],
        ),
    )
    job = together.get(JobHandle(provider="together", job_id="ft-1"))
    assert job.status is JobStatus.SUCCEEDED and job.early_stopped
    assert job.cost_usd == Decimal("4.5") and job.cost_origin == "total_price"
    assert job.handle.ref == REF and job.tuned_model == f"me/Meta-Llama-3.1-8B-{REF}-1a2b3c4d"
    assert (job.trained_tokens, job.step, job.total_steps, job.epoch, job.percent) == (1234, 10, 10, 2, 100)
    assert job.created_at == datetime(2026, 11, 24, 10, 0, 0, 123456, UTC)
    assert job.finished_at == datetime(2026, 11, 24, 10, 5, tzinfo=UTC)
    assert "secret" not in str(job.payload)


def test_an_unknown_word_is_kept_and_never_final(host: Host, together: TogetherProvider) -> None:
    host.on("GET", "/v1/fine-tunes/ft-1", job_json(status="hibernating"))
    job = together.get(JOB)
    assert (job.status, job.raw_status, job.status.terminal) == (JobStatus.UNKNOWN, "hibernating", False)


def test_a_failed_job_says_what_its_events_said(host: Host, together: TogetherProvider) -> None:
    events = [
        {"object": "fine-tune-event", "type": "JOB_USER_ERROR", "message": "bad W&B key", "created_at": "x"}
    ]
    host.on("GET", "/v1/fine-tunes/ft-1", job_json(status="user_error", events=events))
    job = together.get(JOB)
    assert job.error is not None and (job.error.code, job.error.message) == ("user_error", "bad W&B key")


def test_the_estimate_of_the_end(host: Host, together: TogetherProvider) -> None:
    progress = {"estimate_available": True, "seconds_remaining": 60}
    host.on("GET", "/v1/fine-tunes/ft-1", job_json(progress=progress))
    assert together.get(JOB).estimated_finish == datetime(2026, 11, 24, 10, 6, tzinfo=UTC)


def test_the_list_is_newest_first_and_ends_at_since(host: Host, together: TogetherProvider) -> None:
    jobs = [job_json(id=f"ft-{d}", created_at=f"2026-11-{d}T00:00:00Z") for d in ("02", "09", "05")]
    host.on("GET", "/v1/fine-tunes", {"data": jobs})
    since = datetime(2026, 11, 3, tzinfo=UTC)
    assert [j.handle.job_id for j in together.list(since=since)] == ["ft-09", "ft-05"]


def test_events_have_ids_that_stay(host: Host, together: TogetherProvider) -> None:
    entry = {
        "object": "fine-tune-event",
        "level": "legacy_iwarning",
        "message": "m",
        "created_at": "2026-11-24T10:00:01Z",
    }
    early = {**entry, "type": "job_start", "created_at": "2026-11-24T10:00:00Z", "level": "info"}
    answer = {"data": [{**entry, "type": "WARNING"}, {**entry, "type": "WARNING"}, early]}
    host.on("GET", "/v1/fine-tunes/ft-1/events", answer)
    events = list(together.events(JOB))
    assert [(e.type, e.level) for e in events] == [
        ("job_start", "info"),
        ("warning", "warning"),
        ("warning", "warning"),
    ]
    assert len({e.id for e in events}) == 3
    assert [e.id for e in together.events(JOB)] == [e.id for e in events]
    assert [e.id for e in together.events(JOB, after=events[0].id)] == [e.id for e in events[1:]]
    assert list(together.events(JOB, after=events[-1].id)) == []


def test_metrics_are_joined_by_step_and_named(host: Host, together: TogetherProvider) -> None:
    rows = [
        {"train/global_step": 1, "train/loss": 2.0, "train/epoch": 0.5, "timestamp": 1764000000000000000},
        {
            "train/global_step": 2,
            "train/loss": 1.0,
            "train/learning_rate": 1e-5,
            "train/rewards/margins": 0.5,
        },
        {"eval/loss": 1.5, "eval/odd": "NaN"},
    ]
    host.on("GET", "/v1/fine-tunes/ft-1/metrics", {"metrics": rows})
    first, second = together.metrics(JOB)
    assert (first.step, first.values, first.epoch) == (1, {"train_loss": 2.0}, 0.5)
    assert first.at == datetime.fromtimestamp(1764000000, UTC)
    assert second.values == {
        "train_loss": 1.0,
        "learning_rate": 1e-5,
        "train/rewards/margins": 0.5,
        "valid_loss": 1.5,
        "eval/odd": pytest.approx(math.nan, nan_ok=True),
    }


def test_checkpoints_can_be_downloaded_and_continued_from(host: Host, together: TogetherProvider) -> None:
    rows = [
        {"checkpoint_type": "Final Merged", "created_at": "", "path": "p", "step": 10, "checkpoint": "model"},
        {
            "checkpoint_type": "Intermediate Adapter",
            "created_at": "2026-11-24T10:00:00Z",
            "path": "p",
            "step": 5,
        },
    ]
    host.on("GET", "/v1/fine-tunes/ft-1/checkpoints", {"data": rows})
    found = together.checkpoints(JOB)
    assert [(c.id, c.model) for c in found] == [("5:adapter", "ft-1:5"), ("10:model", "ft-1:10")]


def test_the_token_mask(host: Host, together: TogetherProvider) -> None:
    row = {
        "input_ids": [1, 2, 3],
        "labels": [-100, 2, -100],
        "tokens": ["<s>", "hi", "</s>"],
        "trained_spans": [[1, 2]],
        "num_tokens": 3,
        "num_trained_tokens": 1,
        "truncated": False,
    }
    host.on("POST", "/v1/fine-tunes/preview", {"rows": [row], "model": MODEL})
    (mask,) = together.preview(spec(), REMOTE)
    assert (mask.tokens, mask.trained) == (("<s>", "hi", "</s>"), (False, True, False))
    assert host.sent[-1].body == {
        "model": MODEL,
        "training_file": "file-train",
        "top_k": 3,
        "training_method": "sft",
    }


def test_reads_wait_as_long_as_the_host_asks(
    host: Host, together: TogetherProvider, slept: list[float]
) -> None:
    busy = Answer({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "3"})
    host.on("GET", "/v1/fine-tunes/ft-1", busy, Answer("<html>", status=200), job_json())
    assert together.get(JOB).status is JobStatus.RUNNING
    assert slept[0] == 3.0 and len(host.sent) == 3


# -- acting ------------------------------------------------------------------------------------------------


def test_cancel_asks_once_and_leaves_ended_jobs_alone(host: Host, together: TogetherProvider) -> None:
    host.on("GET", "/v1/fine-tunes/ft-1", job_json())
    host.on("POST", "/v1/fine-tunes/ft-1/cancel", job_json(status="cancel_requested"))
    together.cancel(JOB)
    host.on("GET", "/v1/fine-tunes/ft-1", job_json(status="cancel_requested"))
    together.cancel(JOB)
    host.on("GET", "/v1/fine-tunes/ft-1", job_json(status="completed"))
    together.cancel(JOB)
    assert len(host.calls("POST", "/v1/fine-tunes/ft-1/cancel")) == 1


def test_a_job_that_ends_while_it_is_cancelled(host: Host, together: TogetherProvider) -> None:
    host.on("GET", "/v1/fine-tunes/ft-1", job_json(), job_json(status="completed"))
    host.on("POST", "/v1/fine-tunes/ft-1/cancel", Answer({"error": {"message": "ended"}}, status=400))
    together.cancel(JOB)
    job = "/v1/fine-tunes/ft-1"
    asked = [(asked.method, asked.path) for asked in host.sent]
    assert asked == [("GET", job), ("POST", f"{job}/cancel"), ("GET", job)]


def test_delete_twice(host: Host, together: TogetherProvider) -> None:
    host.on("DELETE", "/v1/fine-tunes/ft-1", {"message": "ok"}, Answer({"error": {}}, status=404))
    together.delete(JOB)
    together.delete(JOB)
    assert len(host.sent) == 2


# -- the tuned model ---------------------------------------------------------------------------------------


def archive(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return zstd.compress(out.getvalue())


def weights() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


def test_download_takes_the_adapter_and_goes_on_after_a_break(
    host: Host, together: TogetherProvider, tmp_path: Path
) -> None:
    whole = archive(adapter_config__json=b"{}", adapter_model__safetensors=weights())

    def serve(asked: Sent) -> Answer:
        start = int(asked.headers.get("Range", "bytes=0-")[6:-1])
        if len(host.calls("GET", "/v1/finetune/download")) == 1:
            return Answer({"error": {"message": "later"}}, status=503)
        rest = {"Content-Range": f"bytes {start}-{len(whole) - 1}/{len(whole)}"} if start else {}
        return Answer(whole[start:], status=206 if start else 200, headers={"ETag": '"1"', **rest})

    host.on("GET", "/v1/fine-tunes/ft-1", job_json(status="completed"))
    host.on("GET", "/v1/finetune/download", serve)
    artifact = together.download(JOB, tmp_path / "out")
    assert artifact.kind == "adapter" and artifact.base_model == MODEL
    assert [f.path for f in artifact.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert host.sent[-1].query == {"ft_id": "ft-1", "checkpoint": "adapter"}
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize(
    ("checkpoint", "full", "query"),
    [
        ("merged", False, {"checkpoint": "merged"}),
        ("12:adapter", False, {"checkpoint": "adapter", "checkpoint_step": "12"}),
        ("12:model", False, {"checkpoint": "merged", "checkpoint_step": "12"}),
        ("12", False, {"checkpoint": "adapter", "checkpoint_step": "12"}),
        (None, True, {"checkpoint": "model_output_path"}),
    ],
)
def test_which_checkpoint_is_asked_for(
    host: Host,
    together: TogetherProvider,
    tmp_path: Path,
    checkpoint: str | None,
    full: bool,
    query: dict[str, str],
) -> None:
    kind = {"type": "Full"} if full else {"type": "Lora", "lora_r": 8, "lora_alpha": 16}
    host.on("GET", "/v1/fine-tunes/ft-1", job_json(status="completed", training_type=kind))
    host.on("GET", "/v1/finetune/download", Answer(archive(model__safetensors=weights(), config__json=b"{}")))
    artifact = together.download(JOB, tmp_path / "out", checkpoint=checkpoint)
    assert host.sent[-1].query == {"ft_id": "ft-1", **query}
    assert artifact.kind == ("full" if full else "merged")


def test_a_hostile_archive_leaves_nothing(host: Host, together: TogetherProvider, tmp_path: Path) -> None:
    host.on("GET", "/v1/fine-tunes/ft-1", job_json(status="completed"))
    host.on(
        "GET", "/v1/finetune/download", Answer(archive(model__safetensors=weights(), **{"../x.json": b"{}"}))
    )
    with pytest.raises(ArtifactRefused):
        together.download(JOB, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == []


def test_a_checkpoint_that_is_none(host: Host, together: TogetherProvider, tmp_path: Path) -> None:
    host.on("GET", "/v1/fine-tunes/ft-1", job_json(status="completed"))
    with pytest.raises(UsageError, match="is not a checkpoint"):
        together.download(JOB, tmp_path / "out", checkpoint="best")


# -- serving -----------------------------------------------------------------------------------------------

PROJECT = "/v2/projects/proj-1"


def serve_endpoints(host: Host) -> None:
    deployment = {
        "id": "dep_1",
        "name": "me/orc-ft-1/tuned",
        "state": "DEPLOYMENT_STATE_PROVISIONING",
        "hardware": "1xnvidia-h100-80gb",
        "autoscaling": {"minReplicas": 1, "maxReplicas": 1},
        "desiredReplicas": 1,
    }
    empty = {"id": "ep_1", "name": "me/orc-ft-1", "etag": "e", "deployments": [], "projectId": "proj-1"}
    model = {"id": "ml_1", "name": "me/tuned", "projectId": "proj-1", "baseModelId": "ml_base"}
    configs = [
        {
            "id": f"cr_{gpu}",
            "projectId": "pub",
            "selectors": [
                {"key": "accelerator_type", "value": f"nvidia-{gpu}"},
                {"key": "accelerator_count", "value": "1"},
            ],
        }
        for gpu in ("b200", "h100-80gb")
    ]
    hardware = [
        {"id": "it_1", "name": "1xnvidia-h100-80gb", "priceCentsPerHour": 349},
        {"id": "it_2", "name": "1xnvidia-b200", "priceCentsPerHour": 799},
    ]
    host.on("GET", "/v1/fine-tunes/ft-1", job_json(status="completed", model_object_id="ml_1"))
    host.on("GET", f"{PROJECT}/endpoints", {"data": []})
    host.on("GET", f"{PROJECT}/models/ml_1", model)
    host.on("GET", f"{PROJECT}/configs", {"data": configs})
    host.on("GET", "/v2/public/inference-instance-types", {"object": "list", "data": hardware})
    host.on("POST", f"{PROJECT}/endpoints", empty)
    host.on("POST", f"{PROJECT}/endpoints/ep_1/deployments", deployment)
    host.on("PATCH", f"{PROJECT}/endpoints/ep_1", {**empty, "deployments": [deployment]})
    host.on("GET", f"{PROJECT}/endpoints/ep_1", {**empty, "deployments": [deployment]})
    host.on("PATCH", f"{PROJECT}/endpoints/ep_1/deployments/dep_1", deployment)
    host.on("DELETE", f"{PROJECT}/endpoints/ep_1/deployments/dep_1", {})
    host.on("DELETE", f"{PROJECT}/endpoints/ep_1", {})


def there(host: Host) -> None:
    host.on("GET", f"{PROJECT}/endpoints", {"data": [host.routes["GET", f"{PROJECT}/endpoints/ep_1"][0]]})


def test_the_price_is_told_before_anything_is_made(host: Host, together: TogetherProvider) -> None:
    serve_endpoints(host)
    assert together.deployment_price(JOB, options={"max_replicas": 2}) == Decimal("6.98")
    assert together.deployment_price(JOB, options={"shape": "1xnvidia-b200"}) == Decimal("7.99")
    assert {a.method for a in host.sent} == {"GET"}


def test_deploying_makes_one_deployment_and_routes_to_it(host: Host, together: TogetherProvider) -> None:
    serve_endpoints(host)
    endpoint = together.deploy(JOB)
    assert (endpoint.id, endpoint.model, endpoint.state) == ("ep_1", "me/orc-ft-1", "provisioning")
    assert endpoint.usd_per_hour == Decimal("3.49")
    made = host.calls("POST", f"{PROJECT}/endpoints/ep_1/deployments")[0].body
    assert made == {
        "name": "tuned",
        "model": "projects/proj-1/models/ml_1",
        "config": "projects/pub/configs/cr_h100-80gb",
        "autoscaling": {"minReplicas": 1, "maxReplicas": 1},
        "inactiveTimeout": 60,
    }
    routed = host.calls("PATCH", f"{PROJECT}/endpoints/ep_1")[0]
    assert routed.body == {"trafficSplit": [{"deploymentId": "dep_1", "weight": 1.0}]}
    there(host)
    assert together.deploy(JOB).id == "ep_1"
    assert len(host.calls("POST", f"{PROJECT}/endpoints")) == 1


def test_no_part_of_the_price_passes_for_all_of_it(host: Host, together: TogetherProvider) -> None:
    """Of two deployments behind one endpoint one is on hardware that the list does not price."""
    serve_endpoints(host)
    [known] = host.routes["GET", f"{PROJECT}/endpoints/ep_1"][0]["deployments"]
    other = {**known, "id": "dep_2", "hardware": "8xnvidia-unlisted"}
    idle = {**other, "desiredReplicas": 0, "autoscaling": {"minReplicas": 0, "maxReplicas": 0}}
    found: list[Decimal | None] = []
    for second in (other, idle):
        body = {"id": "ep_1", "name": "me/orc-ft-1", "deployments": [known, second], "projectId": "proj-1"}
        host.on("GET", f"{PROJECT}/endpoints", {"data": [body]})
        host.on("GET", f"{PROJECT}/endpoints/ep_1", body)
        endpoint = together.endpoint(JOB)
        assert endpoint is not None
        found.append(endpoint.usd_per_hour)
    assert found == [None, Decimal("3.49")]


@pytest.mark.parametrize(
    ("most", "wanted", "usd"),
    [
        (4, 1, "13.96"),
        (4, 4, "13.96"),
        (4, 0, "13.96"),
        (4, None, "13.96"),
        (1, 3, "10.47"),
        (None, 2, "6.98"),
    ],
)
def test_the_price_is_that_of_all_replicas_that_may_run(
    host: Host, together: TogetherProvider, most: int | None, wanted: int | None, usd: str
) -> None:
    serve_endpoints(host)
    whole = host.routes["GET", f"{PROJECT}/endpoints/ep_1"][0]
    [up] = whole["deployments"]
    scaling = {"minReplicas": 1, "maxReplicas": most}
    ready = {**up, "state": "DEPLOYMENT_STATE_READY", "autoscaling": scaling, "desiredReplicas": wanted}
    host.on("GET", f"{PROJECT}/endpoints/ep_1", {**whole, "deployments": [ready]})
    there(host)
    endpoint, [item] = together.endpoint(JOB), list(together.deployments())
    assert endpoint is not None
    prices = (endpoint.usd_per_hour, item.usd_per_hour, together.deployment_price(JOB))
    assert prices == (Decimal(usd),) * 3 and item.bills


def test_a_price_above_the_limit_makes_nothing(host: Host, together: TogetherProvider) -> None:
    serve_endpoints(host)
    with pytest.raises(OverBudget):
        together.deploy(JOB, options={"max_usd_per_hour": "3"})
    assert {a.method for a in host.sent} == {"GET"}


def test_a_refused_deployment_takes_its_endpoint_back(host: Host, together: TogetherProvider) -> None:
    serve_endpoints(host)
    refused = Answer({"error": {"message": "no capacity"}}, status=400)
    host.on("POST", f"{PROJECT}/endpoints/ep_1/deployments", refused)
    host.on("GET", f"{PROJECT}/endpoints/ep_1", {"id": "ep_1", "name": "me/orc-ft-1", "deployments": []})
    with pytest.raises(InvalidRequest, match="no capacity"):
        together.deploy(JOB)
    assert host.sent[-1].method == "DELETE"


@pytest.mark.parametrize("status", [400, 409, 422, 429])
def test_a_deployment_that_was_refused_and_made_all_the_same_is_taken(
    host: Host, together: TogetherProvider, status: int
) -> None:
    serve_endpoints(host)
    host.on("POST", f"{PROJECT}/endpoints/ep_1/deployments", Answer({"error": "no"}, status=status))
    assert together.deploy(JOB).id == "ep_1"
    assert host.calls("PATCH", f"{PROJECT}/endpoints/ep_1") and not host.calls(
        "DELETE", f"{PROJECT}/endpoints/ep_1"
    )


def test_deploying_again_completes_what_was_begun(host: Host, together: TogetherProvider) -> None:
    serve_endpoints(host)
    whole = host.routes["GET", f"{PROJECT}/endpoints/ep_1"][0]

    def began(**changes: Any) -> list[str]:
        host.on("GET", f"{PROJECT}/endpoints", {"data": [{**whole, **changes}]})
        host.sent.clear()
        assert together.deploy(JOB).id == "ep_1"
        return [f"{a.method} {a.path.removeprefix(PROJECT)}" for a in host.sent if a.method != "GET"]

    [up] = whole["deployments"]
    down = {**up, "state": "DEPLOYMENT_STATE_STOPPED", "autoscaling": {"minReplicas": 0, "maxReplicas": 0}}
    route, below = "PATCH /endpoints/ep_1", "/endpoints/ep_1/deployments"
    traffic = [{"deploymentId": "dep_1", "weight": 1.0}]
    assert began(deployments=[]) == [f"POST {below}", route]
    assert began(trafficSplit=[]) == [route]
    assert began(trafficSplit=[{"deploymentId": "dep_1", "weight": 0}]) == [route]
    assert began(deployments=[down]) == [f"PATCH {below}/dep_1", route]
    assert began(trafficSplit=traffic) == []
    host.on("GET", f"{PROJECT}/endpoints", {"data": [{**whole, "deployments": [down]}]})
    with pytest.raises(OverBudget):
        together.deploy(JOB, options={"max_usd_per_hour": 3})


def test_an_end_goes_on_after_a_step_that_is_done_or_refused(host: Host, together: TogetherProvider) -> None:
    serve_endpoints(host)
    there(host)
    gone, refused = Answer({"error": "gone"}, status=404), Answer({"error": "stopping"}, status=400)
    for first in (gone, refused):
        host.on("PATCH", f"{PROJECT}/endpoints/ep_1", first)
        host.on("PATCH", f"{PROJECT}/endpoints/ep_1/deployments/dep_1", first)
        host.sent.clear()
        together.undeploy(JOB)
        assert host.calls("DELETE", f"{PROJECT}/endpoints/ep_1/deployments/dep_1")
        [left] = together.deployed(JOB)
        assert (left.kind, left.bills) == ("deployment", True)


def test_undeploying_stops_deletes_and_may_be_repeated(host: Host, together: TogetherProvider) -> None:
    serve_endpoints(host)
    there(host)
    together.undeploy(JOB)
    assert [a.method for a in host.sent[1:]] == ["PATCH", "PATCH", "DELETE", "DELETE"]
    assert host.sent[2].body == {"autoscaling": {"minReplicas": 0, "maxReplicas": 0}}
    host.on("GET", f"{PROJECT}/endpoints", {"data": []})
    together.undeploy(JOB)
    assert together.endpoint(JOB) is None


def test_an_unknown_deploy_option_is_named(host: Host, together: TogetherProvider) -> None:
    serve_endpoints(host)
    with pytest.raises(UsageError, match="gpu"):
        together.deploy(JOB, options={"gpu": "h100"})


def test_the_tuned_model_answers_through_its_endpoint(host: Host, together: TogetherProvider) -> None:
    serve_endpoints(host)
    there(host)
    answer = {
        "id": "c",
        "model": "me/orc-ft-1",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }
    host.on("POST", "/v1/chat/completions", answer)
    (reply,) = together.generate(JOB, [[Message(role="user", content="hi")]], max_tokens=5)
    assert (reply.content, reply.prompt_tokens, reply.finish_reason) == ("hello", 3, "stop")
    assert host.sent[-1].body == {
        "model": "me/orc-ft-1",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "temperature": 0.0,
    }
    together.generate(JOB, [[Message(role="user", content="hi")]], base=True)
    assert host.sent[-1].body["model"] == MODEL


def test_a_model_that_is_not_deployed_says_how(host: Host, together: TogetherProvider) -> None:
    serve_endpoints(host)
    with pytest.raises(UsageError, match="not deployed"):
        together.generate(JOB, [[Message(role="user", content="hi")]])


def test_the_project_is_found_from_the_key(host: Host, together: TogetherProvider) -> None:
    from dataclasses import replace

    serve_endpoints(host)
    host.on(
        "GET",
        "/v3/whoami",
        {"type": "project_api_key", "project": {"id": "proj-1", "name": "n", "slug": "me"}},
    )
    provider = TogetherProvider(replace(together.config, project=None))
    try:
        assert provider.endpoint(JOB) is None
    finally:
        provider.close()
    assert host.sent[-1].path == f"{PROJECT}/endpoints"


def test_images_for_a_model_without_vision_name_those_that_take_them(
    together: TogetherProvider, tmp_path: Path
) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "t.jsonl").write_text(f"{json.dumps(row)}\n" * 4)

    def refusals(model: str) -> list[str | None]:
        spec = JobSpec(model=model, train=str(tmp_path / "t.jsonl"))
        found = together.check(spec, TrainingData.open(str(spec.train)), together.translate(spec))
        return [problem.fix for problem in found if problem.code == "no-vision"]

    [fix] = refusals("qwen3.5-9b")
    taking = [model.name for model in catalog.search("vision", "together")]
    assert taking and all(name in (fix or "") for name in taking)
    assert [refusals(name) for name in taking] == [[] for _ in taking]
