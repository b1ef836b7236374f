"""Jobs that the sandbox really trains, one on each host, from upload to an answer of the tuned model."""

from __future__ import annotations

import base64
import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tests import loopback
from tests.paths import BUNDLED
from tests.workers import Nursery

from orchestrate.core.zstd import zstd
from orchestrate.sandbox import running
from orchestrate.sandbox.server import Sandbox

pytestmark = pytest.mark.usefixtures("quick_python")
ORDERS = BUNDLED / "orders"
ROWS = 480
Until = Callable[[Callable[[], Any]], Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Iterator[Sandbox]:
    with running(home=tmp_path_factory.mktemp("trained"), speed=20, slots=1, start=nursery.start) as sandbox:
        yield sandbox


@pytest.fixture
def orders(tmp_path: Path) -> tuple[Path, Path]:
    """Training and validation rows, fewer than there are, to keep the tests short."""
    found: list[Path] = []
    for name, rows in (("train", ROWS), ("validation", 20)):
        lines = (ORDERS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        found.append(path)
    return found[0], found[1]


def few(rows: Path) -> Path:
    """So many that a model becomes another one; what it learns of more is seen at one host."""
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)[:160]
    path = rows.with_name("few.jsonl")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def questions(count: int) -> list[tuple[list[dict[str, str]], dict[str, Any]]]:
    lines = (ORDERS / "test.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line)["messages"] for line in lines]
    return [(row[:-1], json.loads(row[-1]["content"])) for row in rows]


def order_fields(ask: Callable[[list[dict[str, str]]], Any]) -> int:
    """How many of five answers are JSON with an order's fields, as only the tuned model has learnt it."""
    right = 0
    for messages, expected in questions(5):
        try:
            found = json.loads(str(ask(messages).choices[0].message.content))
        except ValueError:
            continue
        right += isinstance(found, dict) and found.keys() == expected.keys()
    return right


def answers(ask: Callable[[list[dict[str, str]]], Any]) -> list[str]:
    return [str(ask(messages).choices[0].message.content) for messages, _ in questions(3)]


def test_three_hosts_do_not_queue_behind_one_another(
    tmp_path: Path, orders: tuple[Path, Path], clients: dict[str, Any], until: Until
) -> None:
    """By default; of workers that never get anywhere."""
    begun: list[Path] = []
    nothing_done = running(home=tmp_path / "home", speed=1000, start=lambda run: begun.append(run.path))
    with nothing_done as sandbox, clients["openai"](sandbox.env) as client:
        file = client.files.create(file=orders[1], purpose="fine-tune").id
        until(lambda: client.files.retrieve(file).status == "processed")
        jobs = [
            client.fine_tuning.jobs.create(model="gpt-4o-mini-2024-07-18", training_file=file).id
            for _ in range(4)
        ]

        def states() -> list[str]:
            return sorted(client.fine_tuning.jobs.retrieve(job).status for job in jobs)

        until(lambda: states() == ["queued", "running", "running", "running"])
    assert len(set(begun)) == 3


@pytest.mark.slow
def test_openai(trained: Sandbox, orders: tuple[Path, Path], clients: dict[str, Any], until: Until) -> None:
    with clients["openai"](trained.env) as client:
        files = [client.files.create(file=path, purpose="fine-tune").id for path in orders]
        until(lambda: all(client.files.retrieve(id).status == "processed" for id in files))
        base = "gpt-4o-mini-2024-07-18"
        hyper = {"n_epochs": 3, "batch_size": 16}
        job = client.fine_tuning.jobs.create(
            model=base,
            training_file=files[0],
            validation_file=files[1],
            method={"type": "supervised", "supervised": {"hyperparameters": hyper}},
        )
        assert job.model_extra["sandbox_trained"] is True
        waiting = client.fine_tuning.jobs.create(model=base, training_file=files[0])
        job = until(
            lambda: (
                (j := client.fine_tuning.jobs.retrieve(job.id)).status not in ("validating_files", "queued")
                and j
            )
        )
        assert client.fine_tuning.jobs.retrieve(waiting.id).status == "queued"  # one training at a time
        client.fine_tuning.jobs.cancel(waiting.id)

        job = until(lambda: (j := client.fine_tuning.jobs.retrieve(job.id)).status != "running" and j)
        assert (job.status, job.error.message) == ("succeeded", None)
        text = base64.b64decode(client.files.content(job.result_files[0]).read()).decode()
        rows = list(csv.DictReader(io.StringIO(text)))
        assert len(rows) == 90  # 30 steps of 16 rows, three times
        assert float(rows[-1]["train_loss"]) < 0.8 * float(rows[0]["train_loss"])
        valid = [float(row["valid_loss"]) for row in rows if row["valid_loss"]]
        assert len(valid) == 3 and valid[2] < valid[0]
        checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
        assert [c.step_number for c in checkpoints] == [90, 60, 30]
        assert checkpoints[2].metrics.valid_loss == pytest.approx(valid[0])

        def ask(model: str) -> Callable[[list[dict[str, str]]], Any]:
            return lambda messages: client.chat.completions.create(
                model=model, messages=messages, max_tokens=80
            )

        assert order_fields(ask(base)) == 0
        assert order_fields(ask(job.fine_tuned_model)) >= 4
        answer = ask(checkpoints[1].fine_tuned_model_checkpoint)(questions(1)[0][0])
        assert answer.usage.completion_tokens > 0


@pytest.mark.slow
def test_together(
    trained: Sandbox, orders: tuple[Path, Path], clients: dict[str, Any], until: Until, tmp_path: Path
) -> None:
    with clients["together"](trained.env) as client:
        files = [client.files.upload(path, purpose="fine-tune").id for path in (few(orders[0]), orders[1])]
        until(lambda: all(client.files.retrieve(id).processing_status == "COMPLETED" for id in files))
        model = "Qwen/Qwen3.5-9B"
        job = client.fine_tuning.create(
            model=model,
            training_file=files[0],
            validation_file=files[1],
            n_epochs=2,
            n_evals=2,
            n_checkpoints=2,
            batch_size=16,
            lora=True,
            lora_r=16,
            train_on_inputs="auto",
        )
        job = until(lambda: (j := client.fine_tuning.retrieve(job.id)).status in ("completed", "error") and j)
        assert job.status == "completed"
        metrics = client.fine_tuning.list_metrics(job.id).metrics
        losses = [row["train/loss"] for row in metrics if "train/loss" in row]
        assert losses[-1] < losses[0]
        assert len([row for row in metrics if "eval/loss" in row]) == 2
        assert {c.step for c in client.fine_tuning.list_checkpoints(job.id).data} == {10, 20}

        for kind in ("adapter", "merged"):
            with client.fine_tuning.with_streaming_response.content(ft_id=job.id, checkpoint=kind) as answer:
                plain = zstd.decompress(answer.read())
            with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
                tar.extractall(tmp_path / kind, filter="data")
        with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "np") as weights:
            names = list(weights.keys())
            assert any(weights.get_tensor(name).any() for name in names if "lora_B" in name)
        assert {"model.safetensors", "config.json"} <= {p.name for p in (tmp_path / "merged").iterdir()}

        endpoint = client.endpoints.create(name="orders")
        scaling = {"min_replicas": 1, "max_replicas": 1}
        deployment = client.endpoints.deployments.create(
            endpoint.id, name="one", autoscaling=scaling, model_id=job.adapter_object_id
        )
        client.endpoints.update(endpoint.id, traffic_split=[{"deployment_id": deployment.id, "weight": 1}])
        trained.skip(60)

        def ask(model: str) -> Callable[[list[dict[str, str]]], Any]:
            return lambda messages: client.chat.completions.create(
                model=model, messages=messages, max_tokens=80
            )

        assert answers(ask(endpoint.name)) != answers(ask(model))


@pytest.mark.slow
def test_fireworks(
    trained: Sandbox, orders: tuple[Path, Path], clients: dict[str, Any], until: Until
) -> None:
    model = "accounts/fireworks/models/qwen3-8b"
    with clients["fireworks"](trained.env) as client:
        for id, path in (("orders", few(orders[0])), ("orders-valid", orders[1])):
            client.datasets.create(dataset_id=id, dataset={"user_uploaded": {}})
            client.datasets.upload(id, file=(path.name, path.read_bytes()))
            until(lambda id=id: client.datasets.get(id).state == "READY")
        jobs = client.supervised_fine_tuning_jobs
        jobs.create(
            supervised_fine_tuning_job_id="orders",
            dataset="accounts/sandbox/datasets/orders",
            evaluation_dataset="accounts/sandbox/datasets/orders-valid",
            base_model=model,
            epochs=2,
            lora_rank=16,
            batch_size_samples=16,
        )
        until(lambda: jobs.get("orders").state == "JOB_STATE_RUNNING")
        done = ("JOB_STATE_COMPLETED", "JOB_STATE_FAILED")
        job = until(lambda: (j := jobs.get("orders")).state in done and j)
        assert (job.state, job.status.message) == ("JOB_STATE_COMPLETED", "")
        rows = [json.loads(line) for line in loopback.get(job.metrics_file_signed_url).text.splitlines()]
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        assert losses[-1] < losses[0]
        urls = client.models.get_download_endpoint("orders").filename_to_signed_urls
        assert {"adapter_model.safetensors", "adapter_config.json"} <= urls.keys()
        place = client.deployments.create(
            base_model=job.output_model, deployment_shape="any", deployment_id="orders"
        )
        trained.skip(60)

        def ask(model: str) -> Callable[[list[dict[str, str]]], Any]:
            return lambda messages: client.chat.completions.create(
                model=model, messages=messages, max_tokens=80
            )

        assert answers(ask(f"{job.output_model}#{place.name}")) != answers(ask(model))


@pytest.mark.slow
def test_a_stopped_sandbox_goes_on_with_the_training(
    tmp_path: Path, orders: tuple[Path, Path], clients: dict[str, Any], until: Until, nursery: Nursery
) -> None:
    starts = (nursery.start, nursery.again)
    first, second = (running(home=tmp_path / "home", speed=50, start=start) for start in starts)
    with first as sandbox, clients["openai"](sandbox.env) as client:
        file = client.files.create(file=few(orders[0]), purpose="fine-tune")
        until(lambda: client.files.retrieve(file.id).status == "processed")
        jobs = client.fine_tuning.jobs
        job = jobs.create(model="gpt-4.1-mini-2025-04-14", training_file=file.id)
        until(lambda: [e for e in jobs.list_events(job.id, limit=20).data if e.type == "metrics"])
        assert jobs.pause(job.id).status == "paused"
        assert jobs.resume(job.id).status == "running"
    with second as sandbox, clients["openai"](sandbox.env) as client:
        jobs = client.fine_tuning.jobs
        ended = until(
            lambda: (j := jobs.retrieve(job.id)).status in ("succeeded", "failed", "cancelled") and j
        )
        assert ended.status == "succeeded"
        steps = [e.data["step"] for e in jobs.list_events(job.id, limit=100) if e.type == "metrics"]
        assert sorted(set(steps)) == list(range(1, max(steps) + 1))
        assert ended.created_at == job.created_at


@pytest.mark.slow
@pytest.mark.parametrize("method", ["DPO", "ORPO"])
def test_preference_pairs_are_trained_too(
    method: str, trained: Sandbox, clients: dict[str, Any], until: Until, preferences: Callable[[int], Any]
) -> None:
    pairs = f"pairs-{method.lower()}"
    data = "".join(json.dumps(row) + "\n" for row in preferences(24)).encode()
    with clients["fireworks"](trained.env) as client:
        client.datasets.create(dataset_id=pairs, dataset={"user_uploaded": {}})
        client.datasets.upload(pairs, file=("pairs.jsonl", data))
        until(lambda: client.datasets.get(pairs).state == "READY")
        client.dpo_jobs.create(
            dpo_job_id=pairs,
            dataset=f"accounts/sandbox/datasets/{pairs}",
            training_config={"base_model": "accounts/fireworks/models/qwen3-8b", "epochs": 2},
            loss_config={"method": method, "dpo": {"beta": 0.2}},
        )
        done = ("JOB_STATE_COMPLETED", "JOB_STATE_FAILED")
        job = until(lambda: (j := client.dpo_jobs.get(pairs)).state in done and j)
        assert (job.state, job.status.message) == ("JOB_STATE_COMPLETED", "")
        url = client.dpo_jobs.get_metrics_file_endpoint(pairs).signed_url
        rows = [json.loads(line) for line in loopback.get(url).text.splitlines()]
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        if method == "DPO":
            assert losses[-1] < 0.5 < losses[0] < 0.7  # log 2 before the first step
        else:
            assert losses[0] > max(0.7, losses[-1])  # the preferred answer is learnt as well
