"""Programs written as the hosts' documentation shows them, against the sandbox by its environment alone.

Each is a process of its own that imports a host's SDK, or Together's command line `tg`, and nothing of
Orchestrate. The OpenAI SDK had a command `openai` until 3.0; the one that is tested here (3.x) installs none,
so that its documented Python stands for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrate.sandbox import running
from orchestrate.sandbox.server import Sandbox

pytestmark = pytest.mark.slow
TG = Path(sys.executable).with_name("tg")
NOT_TRAINED = "[sandbox] This model was not trained"
Program = Callable[..., str]

OPENAI = """
import time
from openai import OpenAI

client = OpenAI()
file = client.files.create(file=open("train.jsonl", "rb"), purpose="fine-tune")
job = client.fine_tuning.jobs.create(training_file=file.id, model="gpt-4o-mini-2024-07-18")
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(0.1)
    job = client.fine_tuning.jobs.retrieve(job.id)
print(job.status)
for event in client.fine_tuning.jobs.list_events(fine_tuning_job_id=job.id, limit=10):
    print(event.message)
completion = client.chat.completions.create(
    model=job.fine_tuned_model,
    messages=[
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello!"},
    ],
)
print(completion.choices[0].message.content)
"""

TOGETHER = """
import time
from together import Together

client = Together()
train_file = client.files.upload("train.jsonl", purpose="fine-tune", check=True)
while (file := client.files.retrieve(train_file.id)).processing_status not in (
    "COMPLETED", "INVALID_FORMAT", "FAILED"
):
    time.sleep(0.1)
assert file.processing_status == "COMPLETED", file
job = client.fine_tuning.create(
    training_file=train_file.id, model="Qwen/Qwen3.5-9B", n_epochs=2, n_checkpoints=1, lora=True
)
while (status := client.fine_tuning.retrieve(job.id)).status not in ("completed", "error", "cancelled"):
    time.sleep(0.1)
print(status.status)
for event in client.fine_tuning.list_events(id=job.id).data:
    print(event.message)
for checkpoint in client.fine_tuning.list_checkpoints(job.id).data:
    print(checkpoint.checkpoint_type)
with client.fine_tuning.with_streaming_response.content(ft_id=job.id, checkpoint="adapter") as response:
    response.stream_to_file("weights.tar.zst")
reply = client.chat.completions.create(
    model="Qwen/Qwen3.5-9B", messages=[{"role": "user", "content": "Hello!"}]
)
print(reply.choices[0].message.content)
"""

FIREWORKS = """
import os, time
from fireworks import Fireworks

client = Fireworks()
client.datasets.create(dataset_id="items", dataset={"user_uploaded": {}})
client.datasets.upload("items", file=open("train.jsonl", "rb"))
while client.datasets.get("items").state != "READY":
    time.sleep(0.1)
account = os.environ["FIREWORKS_ACCOUNT_ID"]
job = client.supervised_fine_tuning_jobs.create(
    dataset=f"accounts/{account}/datasets/items",
    base_model="accounts/fireworks/models/qwen3-8b",
    output_model=f"accounts/{account}/models/tuned",
    epochs=1,
)
job_id = job.name.split("/")[-1]
while (job := client.supervised_fine_tuning_jobs.get(job_id)).state not in (
    "JOB_STATE_COMPLETED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"
):
    time.sleep(0.1)
print(job.state)
match = client.deployment_shape_versions.match_for_model(job.output_model)
deployment = client.deployments.create(
    base_model=job.output_model,
    deployment_shape=match.deployment_shape_versions[0].snapshot.name,
    min_replica_count=0,
    max_replica_count=1,
)
deployment_id = deployment.name.split("/")[-1]
while client.deployments.get(deployment_id).state != "READY":
    time.sleep(0.1)
reply = client.chat.completions.create(
    model=f"{job.output_model}#{deployment.name}", messages=[{"role": "user", "content": "Hello!"}]
)
print(reply.choices[0].message.content)
client.deployments.delete(deployment_id, ignore_checks=True)
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running(train=False, speed=20) as hosts:
        yield hosts


@pytest.fixture
def program(sandbox: Sandbox, tmp_path: Path) -> Program:
    """Runs a program beside a `train.jsonl` of the test's own and returns what it printed."""
    rows = (
        [
            {"role": "user", "content": f"What is item {n}?"},
            {"role": "assistant", "content": f"{tmp_path.name} {n}"},
        ]
        for n in range(12)
    )
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "COLUMNS": "200", **sandbox.env}

    def run(*words: str | Path) -> str:
        done = subprocess.run(
            words,
            cwd=tmp_path,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Warning" not in done.stderr, done.stderr
        return done.stdout

    return run


def test_openai_in_python(program: Program) -> None:
    lines = program(sys.executable, "-c", OPENAI).splitlines()
    assert lines[0] == "succeeded"
    assert "The job has successfully completed" in lines
    assert lines[-1].startswith(NOT_TRAINED)


def test_together_in_python(program: Program, tmp_path: Path) -> None:
    lines = program(sys.executable, "-c", TOGETHER).splitlines()
    assert lines[0] == "completed"
    assert any(line.startswith("Job finished") for line in lines)
    assert any(line.startswith("Final adapter") for line in lines)
    assert lines[-1].startswith(NOT_TRAINED)
    assert (tmp_path / "weights.tar.zst").read_bytes()[:4] == b"\x28\xb5\x2f\xfd", "Zstandard"


def test_fireworks_in_python(program: Program) -> None:
    lines = program(sys.executable, "-c", FIREWORKS).splitlines()
    assert lines[0] == "JOB_STATE_COMPLETED"
    assert lines[-1].startswith(NOT_TRAINED)


def test_together_on_its_own_command_line(program: Program, tmp_path: Path) -> None:
    def tg(*words: str) -> str:
        return program(TG, *words)

    assert "sandbox" in tg("whoami")
    tg("files", "check", "train.jsonl")
    file = json.loads(tg("files", "upload", "train.jsonl", "--json"))["id"]
    assert file in tg("files", "list", "--json")
    deadline = time.monotonic() + 120
    while json.loads(tg("files", "retrieve", file, "--json"))["processing_status"] != "COMPLETED":
        assert time.monotonic() < deadline
    assert "Max Batch Size" in tg("fine-tuning", "model-limits", "Qwen/Qwen3.5-9B")
    start = ("--training-file", file, "--model", "Qwen/Qwen3.5-9B", "--lora", "--non-interactive")
    assert "has been submitted" in tg("fine-tuning", "create", *start)
    job = json.loads(tg("fine-tuning", "list", "--json"))[0]["id"]
    deadline = time.monotonic() + 120
    while json.loads(tg("fine-tuning", "retrieve", job, "--json"))["status"] != "completed":
        assert time.monotonic() < deadline
    assert "Job finished" in tg("fine-tuning", "list-events", job)
    assert "Final adapter" in tg("fine-tuning", "list-checkpoints", job)
    assert "train/loss" in tg("fine-tuning", "list-metrics", job)
    tg("fine-tuning", "download", job)
    assert list(tmp_path.rglob("*.tar.zst"))
