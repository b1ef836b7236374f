"""The Together host of the sandbox, driven by Together's own client."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import together as sdk
from tests import loopback
from tests.unit.sandbox.conftest import slowed
from together import Together
from together.lib.constants import NUM_BYTES_IN_GB
from together.lib.resources.files import MultipartUploadManager, _calculate_file_checksum
from together.types import FinetuneEventType, FinetuneResponse

from orchestrate.core.zstd import zstd
from orchestrate.sandbox.server import Sandbox

pytestmark = pytest.mark.slow  # the fast half has the first host's stand-in


MODEL = "Qwen/Qwen3.5-9B"
COMMAND = str(Path(sys.executable).parent / "together")
WORDS = set(get_args(FinetuneResponse.model_fields["status"].annotation))
Write = Callable[..., Path]
Until = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def upload(together: Together, write: Write, until: Until) -> Callable[..., str]:
    def send(rows: Any, *, wait: bool = True) -> str:
        file = together.files.upload(write(rows), purpose="fine-tune", check=False)
        if wait:
            done = ("COMPLETED", "INVALID_FORMAT")
            until(lambda: together.files.retrieve(file.id).processing_status in done)
        return file.id

    return send


def create(client: Together, file: str, **settings: Any) -> Any:
    return client.fine_tuning.create(
        model=settings.pop("model", MODEL), training_file=file, lora=True, train_on_inputs="auto", **settings
    )


def finish(client: Together, id: str, until: Until) -> FinetuneResponse:
    def ended() -> FinetuneResponse | None:
        job = client.fine_tuning.retrieve(id)
        if job.status == "completed" and not job.api_model_object_id:
            return None  # the model is registered a moment later
        return job if job.status in ("completed", "error", "cancelled") else None

    return until(ended)


def test_uploads_are_validated_and_known_bytes_are_found_again(
    together: Together, write: Write, until: Until
) -> None:
    path = write(8, "some.jsonl")
    file = together.files.upload(path, purpose="fine-tune")
    assert file.processing_status in ("PENDING", "QUEUED", "RUNNING")
    done = until(lambda: (f := together.files.retrieve(file.id)).processing_status == "COMPLETED" and f)
    report = done.validation_report
    assert (report.valid, report.nlines, report.dataset_format) == (True, 8, "CONVERSATION")
    assert together.files.upload(path, purpose="fine-tune").id == file.id
    assert together.files.content(file.id).read() == path.read_bytes()
    assert file.id in [f.id for f in together.files.list().data]
    together.files.delete(file.id)
    with pytest.raises(sdk.NotFoundError):
        together.files.retrieve(file.id)


def test_wrong_rows_are_found_by_the_check_and_refused_by_create(
    together: Together, upload: Callable[..., str]
) -> None:
    rows = [{"messages": [{"role": "assistant", "content": "I speak first"}]}, {"text": "x"}]
    file = upload(rows)
    report = together.files.retrieve(file).validation_report
    assert report is not None
    assert (report.valid, report.error_type) == (False, "INVALID_FORMAT")
    assert report.error is not None and report.error.startswith("Line 1")
    price = together.fine_tuning.estimate_price(training_file=file, model=MODEL)
    assert price.to_dict()["unavailable_reason"] == "train_file_invalid"
    with pytest.raises(sdk.BadRequestError, match="is invalid"):
        create(together, file)


def test_a_large_file_goes_up_in_parts(together: Together, write: Write, until: Until) -> None:
    path = write(3000)
    manager = MultipartUploadManager(together)
    assert path.stat().st_size / NUM_BYTES_IN_GB < 1  # the SDK itself takes this way only above 5 GB
    checksum = _calculate_file_checksum(path)
    file = manager.upload("/v1/files", path, checksum, "fine-tune")
    assert file.bytes == path.stat().st_size
    assert together.files.content(file.id).read() == path.read_bytes()
    report = until(lambda: together.files.retrieve(file.id).validation_report)
    assert report.nlines == 3000


def test_a_job_from_its_price_to_its_weights(
    sandbox: Sandbox, together: Together, upload: Callable[..., str], until: Until, tmp_path: Path
) -> None:
    train, valid = upload(20), upload(6)
    limits = together.fine_tuning.model_limits(model_name=MODEL)
    assert (limits.lora_training.max_rank, limits.max_seq_length_sft) == (64, 65536)
    price = together.fine_tuning.estimate_price(
        training_file=train, validation_file=valid, model=MODEL, n_epochs=2, n_evals=4
    )
    assert price.estimation_available is True and price.allowed_to_proceed is True
    with slowed(sandbox) as goes_on:
        made = create(
            together,
            train,
            validation_file=valid,
            n_epochs=2,
            n_evals=4,
            n_checkpoints=2,
            batch_size=8,
            suffix="orc-12",
            random_seed=5,
        )
    assert made.status == "pending"
    assert made.total_price == round((price.estimated_total_price or 0) * 1e9)  # nano-dollars
    seen: set[str] = set()
    while (job := together.fine_tuning.retrieve(made.id)).status not in ("completed", "error"):
        seen.add(job.status)
        goes_on()
    assert job.status == "completed"
    assert seen <= WORDS and {"running", "compressing", "uploading"} & seen
    assert job.model_extra is not None and job.model_extra["sandbox_trained"] is False
    assert job.x_model_output_name is not None and "-orc-12-" in job.x_model_output_name
    assert (job.token_count, job.n_evals) == (price.estimated_train_token_count, 4)

    events = together.fine_tuning.list_events(made.id).data
    assert {event.type for event in events} <= set(get_args(FinetuneEventType))
    assert [event.created_at for event in events] == sorted(event.created_at for event in events)
    assert [event.type for event in events].count("epoch_complete") == 2
    assert events[-1].type == "job_complete"

    metrics = together.fine_tuning.list_metrics(made.id).metrics or []
    train_rows = [row for row in metrics if "train/loss" in row]
    assert [row["train/global_step"] for row in train_rows] == [1, 2, 3, 4, 5, 6]  # 3 steps, 2 epochs
    assert any("eval/loss" in row for row in metrics)
    late = together.fine_tuning.list_metrics(made.id, global_step_from=4, resolution=2).metrics or []
    assert all(row.get("train/global_step", 9) >= 4 for row in late)
    assert len([row for row in late if "train/loss" in row]) == 2

    checkpoints = together.fine_tuning.list_checkpoints(made.id).data
    assert {(c.step, c.checkpoint) for c in checkpoints} == {
        (3, "model"),
        (3, "adapter"),
        (6, "model"),
        (6, "adapter"),
    }
    with together.fine_tuning.with_streaming_response.content(ft_id=made.id, checkpoint="adapter") as answer:
        packed = answer.read()
    names = _unpack(packed, tmp_path)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names

    root = f"{sandbox.urls['together']}/v1/finetune/download?ft_id={made.id}&checkpoint=adapter"
    headers = {**together.auth_headers, "Range": "bytes=10-19"}
    part = loopback.get(root, headers=headers)
    assert (part.status_code, part.content) == (206, packed[10:20])

    again = together.fine_tuning.create(
        from_checkpoint=f"{made.id}:3", training_file=train, train_on_inputs="auto"
    )
    assert again.from_checkpoint == f"{made.id}:3"
    assert finish(together, again.id, until).model == MODEL


def _unpack(packed: bytes, folder: Path) -> set[str]:
    plain = zstd.decompress(packed)
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        tar.extractall(folder, filter="data")
        return set(tar.getnames())


def test_cancel_then_delete(
    together: Together, sandbox: Sandbox, upload: Callable[..., str], until: Until
) -> None:
    file = upload(20)
    with slowed(sandbox) as goes_on:
        job = create(together, file)
    with pytest.raises(sdk.BadRequestError):
        together.fine_tuning.delete(job.id)
    until(lambda: together.fine_tuning.retrieve(job.id).status == "running" or goes_on())
    assert together.fine_tuning.cancel(job.id).status in ("cancel_requested", "cancelled")
    ended = finish(together, job.id, until)
    assert ended.status == "cancelled"
    assert (ended.total_price or 0) < (job.total_price or 0)  # steps that were not run are not billed
    with pytest.raises(sdk.BadRequestError):
        together.fine_tuning.cancel(job.id)
    assert job.id in [j.id for j in together.fine_tuning.list().data]
    together.fine_tuning.delete(job.id)
    assert job.id not in [j.id for j in together.fine_tuning.list().data]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "Qwen/Nothing-1B"}, "not supported"),
        ({"n_epochs": 21}, "n_epochs"),
        ({"learning_rate": 0.5}, "learning_rate"),
        ({"n_checkpoints": 101}, "n_checkpoints"),
        ({"lora_r": 65}, "lora_r"),
        ({"suffix": "x" * 41}, "suffix"),
        ({"training_method": "dpo", "train_on_inputs": None}, "preference"),
        ({"unknown_thing": 1}, "unknown_thing"),
    ],
)
def test_wrong_bodies_are_refused(
    together: Together, upload: Callable[..., str], change: dict[str, Any], words: str
) -> None:
    method = change.get("training_method", "sft")
    body: dict[str, Any] = {
        "model": MODEL,
        "training_file": upload(20),
        "n_epochs": 1,
        "training_type": {"type": "Lora", "lora_r": change.pop("lora_r", 8), "lora_alpha": 16},
        **{k: v for k, v in change.items() if k not in ("training_method", "train_on_inputs")},
        "training_method": {"method": method},
    }
    with pytest.raises(sdk.BadRequestError, match=words):
        together.post("/v1/fine-tunes", body=body, cast_to=object)


def test_a_file_that_is_not_checked_yet_has_no_price_and_no_job(
    together: Together, upload: Callable[..., str], slow_clock: Sandbox
) -> None:
    file = upload(23, wait=False)
    price = together.fine_tuning.estimate_price(training_file=file, model=MODEL)
    assert price.to_dict()["unavailable_reason"] == "train_file_not_validated"
    with pytest.raises(sdk.BadRequestError, match="not been validated"):
        create(together, file)
    slow_clock.skip(86400)
    assert create(together, file).status == "pending"


def test_dpo_jobs_take_preference_rows(
    together: Together, upload: Callable[..., str], until: Until, preferences: Callable[[int], Any]
) -> None:
    job = together.fine_tuning.create(
        model=MODEL,
        training_file=upload(preferences(6)),
        lora=True,
        training_method="dpo",
        dpo_beta=0.2,
    )
    ended = finish(together, job.id, until)
    assert ended.status == "completed"
    assert ended.training_method is not None and ended.training_method.method == "dpo"


def test_a_tuned_model_answers_only_from_a_dedicated_endpoint(
    sandbox: Sandbox, together: Together, upload: Callable[..., str], until: Until
) -> None:
    job = finish(together, create(together, upload(20)).id, until)
    ask: Any = {"messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(sdk.BadRequestError) as refused:
        together.chat.completions.create(model=job.x_model_output_name or "", **ask)
    assert refused.value.body["error"]["code"] == "model_not_available"  # type: ignore[index]

    hardware = together.endpoints.hardware.list().data
    assert all(kind.price_cents_per_hour > 0 for kind in hardware)
    before, sandbox.clock.speed = sandbox.clock.speed, 0.001
    endpoint = together.endpoints.create(name="shop")
    scaling: Any = {"min_replicas": 1, "max_replicas": 1}
    deployment = together.endpoints.deployments.create(
        endpoint.id, name="first", autoscaling=scaling, model_id=job.api_model_object_id or ""
    )
    assert deployment.status.state == "DEPLOYMENT_STATE_PROVISIONING"
    together.endpoints.update(endpoint.id, traffic_split=[{"deployment_id": deployment.id, "weight": 1}])
    with pytest.raises(sdk.InternalServerError) as starting:
        together.chat.completions.create(model=endpoint.name, **ask)
    assert starting.value.status_code == 503
    sandbox.clock.speed = before
    sandbox.skip(86400)

    def ready() -> bool:
        found = together.endpoints.deployments.retrieve(deployment.id, endpoint_id=endpoint.id)
        return found.status.state == "DEPLOYMENT_STATE_READY"

    until(ready)
    answer = together.chat.completions.create(model=endpoint.name, **ask)
    assert "not trained" in str(answer.choices[0].message.content)  # type: ignore[union-attr]
    with pytest.raises(sdk.BadRequestError):
        together.endpoints.delete(endpoint.id)
    together.endpoints.deployments.delete(deployment.id, endpoint_id=endpoint.id)
    together.endpoints.delete(endpoint.id)
    assert endpoint.id not in [found.id for found in together.endpoints.list()]


def test_a_deployment_tells_its_replicas(together: Together, sandbox: Sandbox) -> None:
    endpoint = together.endpoints.create(name="scaled")
    api, found = together.endpoints.deployments, list[tuple[int | None, ...]]()

    def seen(id: str) -> None:
        one, whole = api.retrieve(id, endpoint_id=endpoint.id), together.endpoints.retrieve(endpoint.id)
        found.extend((one.desired_replicas, d.desired_replicas, d.ready_replicas) for d in whole.deployments)

    scaling: Any = {"min_replicas": 2, "max_replicas": 4}
    made = api.create(endpoint.id, name="first", autoscaling=scaling, model=MODEL)
    sandbox.skip(86400)
    seen(made.id)
    for bounds in ((0, 1), (0, 0)):
        change: Any = dict(zip(scaling, bounds, strict=True))
        api.update(made.id, endpoint_id=endpoint.id, autoscaling=change)
        seen(made.id)
    assert found == [(2, 2, 2), (1, 1, 1), (0, 0, 0)]
    api.delete(made.id, endpoint_id=endpoint.id)
    together.endpoints.delete(endpoint.id)


def test_models_and_what_can_be_tuned(together: Together, sandbox: Sandbox) -> None:
    del sandbox
    assert MODEL in [m.name for m in together.models.list_supported()]


def test_the_preview_shows_which_tokens_carry_loss(together: Together, upload: Callable[..., str]) -> None:
    found = together.fine_tuning.preview(model=MODEL, training_file=upload(20), top_k=3)
    assert (found.dataset_format, len(found.rows)) == ("conversation", 3)
    for row in found.rows:
        assert len(row.input_ids) == len(row.labels) == len(row.tokens) == row.num_tokens
        kept = [n for n, label in enumerate(row.labels) if label != -100]
        assert kept == [n for start, end in row.trained_spans for n in range(start, end)]
        assert 0 < len(kept) == row.num_trained_tokens < row.num_tokens
        assert row.tokens[kept[-1]] == "<|im_end|>"
    whole = together.fine_tuning.preview(model=MODEL, training_file=upload(20), top_k=1, train_on_inputs=True)
    assert whole.rows[0].num_trained_tokens == whole.rows[0].num_tokens


# -- Together's own command line, with what it sends by its defaults -------------------------------------


@pytest.fixture
def command(sandbox: Sandbox, tmp_path: Path) -> Callable[..., str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOGETHER_")}
    env = {**kept, **sandbox.env, "HOME": str(tmp_path), "TOGETHER_TELEMETRY_DISABLED": "1"}

    def run(*words: str) -> str:
        asked = [COMMAND, "--non-interactive", *words]
        done = subprocess.run(asked, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def sent(command: Callable[..., str], tmp_path: Path, sandbox: Sandbox) -> Callable[..., str]:
    def send(rows: list[dict[str, object]]) -> str:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        id = json.loads(command("files", "upload", "rows.jsonl", "--json"))["id"]
        sandbox.skip(60)
        return str(id)

    return send


def created(told: str) -> str:
    found = re.search(r"ft-[0-9a-f-]{36}", told)
    assert found, told
    return found[0]


def talk(n: int) -> list[dict[str, object]]:
    return [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]


@pytest.mark.slow
def test_preference_jobs_with_and_without_a_loss_of_their_own(
    command: Callable[..., str], sent: Callable[..., str], sandbox: Sandbox
) -> None:
    pairs: list[dict[str, object]] = [
        {
            "input": {"messages": talk(n)[:1]},
            "preferred_output": talk(n)[1:],
            "non_preferred_output": talk(0)[1:],
        }
        for n in range(1, 13)
    ]
    file = sent(pairs)
    dpo = ("ft", "create", "--training-file", file, "--model", MODEL, "--training-method", "dpo", "--confirm")
    created(command(*dpo))
    created(command(*dpo, "--dpo-beta", "0"))
    assert sandbox.requests("together", method="POST")[-1]["body"]["training_method"]["dpo_beta"] == 0
    created(command(*dpo, "--simpo-gamma", "0.5"))
    assert sandbox.requests("together", method="POST")[-1]["body"]["training_method"]["simpo_gamma"] == 0.5


@pytest.mark.slow
def test_a_tokenized_dataset_and_an_endpoint(
    command: Callable[..., str], sent: Callable[..., str], sandbox: Sandbox, tmp_path: Path
) -> None:
    file = sent([{"messages": talk(n)} for n in range(12)])
    job = created(command("ft", "create", "--training-file", file, "--model", MODEL, "--confirm"))
    sandbox.skip(3600)
    command("ft", "download-tokenized-dataset", job, "--output-dir", str(tmp_path / "tokens"))
    [archive] = (tmp_path / "tokens").iterdir()
    rows = [json.loads(line) for line in archive.read_text().splitlines()]
    assert len(rows) == 12 and all(len(r["input_ids"]) == len(r["labels"]) for r in rows)
    command("endpoints", "deploy", MODEL, "--endpoint", "mine", "--json")
    told = json.loads(command("endpoints", "get", "mine", "--json"))
    assert [d["modelId"] for d in told["deployments"]] == [MODEL]
