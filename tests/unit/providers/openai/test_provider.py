"""What is OpenAI's own: paging, result files, parts, Azure, the end of fine-tuning."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.scripted_host import Answer, Host, scripted_host
from tests.sending import create, upload
from tests.targets import to

from orchestrate.costing import built_in
from orchestrate.data import TrainingData
from orchestrate.errors import (
    DataError,
    InvalidRequest,
    MissingKey,
    OutcomeUnknown,
    PermissionRefused,
    TrainingClosed,
    TranslationRefused,
    UnexpectedAnswer,
    UsageError,
)
from orchestrate.providers import registry
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.openai.provider import OpenAIProvider
from orchestrate.settings import config
from orchestrate.settings.config import HostConfig, Secret
from orchestrate.spec import DPO, RFT, JobSpec, WandB
from orchestrate.types import Feature, JobHandle, JobStatus, Message, RemoteDataset, Severity

JOBS = "/v1/fine_tuning/jobs"
HANDLE = JobHandle(provider="openai", job_id="ftjob-1")
REMOTE = RemoteDataset(provider="openai", digest="d", train_id="file-1", validation_id="file-2")
JOB = {
    "object": "fine_tuning.job",
    "id": "ftjob-1",
    "created_at": 1790000000,
    "status": "running",
    "model": "gpt-4o-mini-2024-07-18",
    "error": {},
    "result_files": [],
    "metadata": {"orchestrate_ref": "orc-1"},
}
CSV = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,1.5,0.5,,\n2,0.75,0.8,0.9,0.7\n"


@pytest.fixture
def host() -> Iterator[Host]:
    with scripted_host() as running:
        yield running


def provider_at(url: str, home: Path, **changes: Any) -> OpenAIProvider:
    options = {"home": str(home), **changes.pop("options", {})}
    settings = HostConfig(name="openai", base_url=f"{url}/v1", api_key=Secret("sandbox-key"), timeout_s=240)
    settings = dataclasses.replace(settings, options=options, **changes)
    return OpenAIProvider(settings, wire=Wire(settings.name, sleep=lambda _: None))


@pytest.fixture
def provider(host: Host, tmp_path: Path) -> Iterator[OpenAIProvider]:
    made = provider_at(host.url, tmp_path)
    yield made
    made.close()


def page(items: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    return {"object": "list", "data": items, "has_more": more}


def chat_file(path: Path, rows: int = 12) -> str:
    turns = [
        {"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": f"a {i}"}]}
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(t) + "\n" for t in turns))
    return str(path)


# -- create ---------------------------------------------------------------------------------------------


def test_create_sends_the_whole_spec(host: Host, provider: OpenAIProvider) -> None:
    host.on("POST", JOBS, JOB)
    spec = JobSpec(
        model="gpt-4o-mini",
        train="t",
        epochs=4,
        batch_size=8,
        learning_rate_multiplier=1.5,
        method=DPO(beta=0.2),
        seed=7,
        suffix="mine",
        wandb=WandB(project="p", tags=("a",)),
        provider_options={"openai": {"new_field": {"x": 1}}},
    )
    handle = create(provider, spec, REMOTE, "orc-1")
    assert (handle.job_id, handle.ref) == ("ftjob-1", "orc-1")
    [sent] = host.sent
    hyper = {"n_epochs": 4, "batch_size": 8, "learning_rate_multiplier": 1.5, "beta": 0.2}
    assert sent.body == {
        "model": "gpt-4o-mini-2024-07-18",
        "training_file": "file-1",
        "validation_file": "file-2",
        "method": {"type": "dpo", "dpo": {"hyperparameters": hyper}},
        "seed": 7,
        "suffix": "mine",
        "integrations": [{"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}],
        "metadata": {"orchestrate_ref": "orc-1"},
        "new_field": {"x": 1},
    }


def test_create_leaves_out_what_was_not_asked(host: Host, provider: OpenAIProvider) -> None:
    host.on("POST", JOBS, JOB)
    create(provider, JobSpec(model="gpt-4.1", train="t"), REMOTE, "orc-1")
    body = host.sent[0].body
    assert body["method"] == {"type": "supervised"}
    assert set(body) == {"model", "training_file", "validation_file", "method", "metadata"}


def test_create_refuses_before_it_sends(host: Host, provider: OpenAIProvider) -> None:
    with pytest.raises(TranslationRefused, match="learning_rate"):
        create(provider, JobSpec(model="gpt-4.1", train="t", learning_rate=1e-5), REMOTE, "orc-1")
    assert host.sent == []


def test_create_without_a_key(host: Host, tmp_path: Path) -> None:
    keyless = provider_at(host.url, tmp_path, api_key=None)
    with pytest.raises(MissingKey):
        create(keyless, JobSpec(model="gpt-4.1", train="t"), REMOTE, "orc-1")


def test_lost_answer_names_the_ref(host: Host, provider: OpenAIProvider) -> None:
    host.on("POST", JOBS, Answer(JOB, fault="hang_up"))
    with pytest.raises(OutcomeUnknown, match="orc-1"):
        create(provider, JobSpec(model="gpt-4.1", train="t"), REMOTE, "orc-1")
    assert len(host.sent) == 1


def test_training_closed_tells_dates_and_the_way_out(host: Host, provider: OpenAIProvider) -> None:
    error = {"message": "winding down", "code": "training_not_available", "type": "invalid_request_error"}
    host.on("POST", JOBS, Answer({"error": error}, 403))
    with pytest.raises(TrainingClosed) as caught:
        create(provider, JobSpec(model="gpt-4o-mini", train="t"), REMOTE, "orc-1")
    assert "2027-01-06" in str(caught.value)
    assert "2027-01-14" in str(caught.value)
    assert caught.value.code == "training_not_available"
    assert caught.value.fix is not None
    words = caught.value.fix.split()
    # The command offered must itself be possible.
    from orchestrate import catalog

    assert catalog.find(words[words.index("--model") + 1]).on(words[words.index("--provider") + 1])


# -- find and list --------------------------------------------------------------------------------------


def test_find_filters_at_the_host_and_checks_here(host: Host, provider: OpenAIProvider) -> None:
    other = {**JOB, "id": "ftjob-2", "metadata": {"orchestrate_ref": "orc-2"}}
    none = {**JOB, "id": "ftjob-3", "metadata": None}
    host.on("GET", JOBS, page([other, JOB, none], more=False))
    found = provider.find("orc-1")
    assert [(h.job_id, h.ref) for h in found] == [("ftjob-1", "orc-1")]
    assert host.sent[0].query["metadata[orchestrate_ref]"] == "orc-1"


def test_find_reports_a_double(host: Host, provider: OpenAIProvider) -> None:
    host.on("GET", JOBS, page([{**JOB, "id": "ftjob-9"}, JOB], more=False))
    assert [h.job_id for h in provider.find("orc-1")] == ["ftjob-9", "ftjob-1"]


def test_list_stops_at_since(host: Host, provider: OpenAIProvider) -> None:
    old = {**JOB, "id": "ftjob-0", "created_at": 1780000000}
    host.on("GET", JOBS, page([JOB, old], more=True))
    since = datetime.fromtimestamp(1790000000, UTC).replace(microsecond=900_000)
    assert [job.handle.job_id for job in provider.list(since=since)] == ["ftjob-1"]
    assert len(host.sent) == 1


# -- reading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [True, None])
def test_a_list_has_what_the_sdk_reads(host: Host, provider: OpenAIProvider, more: bool | None) -> None:
    """Our pages are not the SDK's, which judges them: the same requests, the same jobs under the same
    names, also where the host leaves out whether there is more."""
    jobs = [
        JOB | {"id": f"ftjob-{n}", "of_next_year": {"x": [n, None]}, "hyperparameters": {"n_epochs": n}}
        for n in range(5)
    ]

    pages = [page(jobs[n : n + 2], n + 2 < 5) for n in (0, 2, 4)]
    if more is None:
        pages = [{"object": "list", "data": one["data"]} for one in [*pages, {"data": []}]]
    host.on("GET", JOBS, *pages, *pages)
    ours = [job.payload for job in provider.list()]
    asked = [(one.path, one.query) for one in host.sent]
    host.sent.clear()
    theirs = [
        job.to_dict(mode="json", warnings=False)
        for job in provider.client.fine_tuning.jobs.list(limit=provider.most_listed)
    ]
    assert ours == theirs and len(ours) == 5
    assert asked == [(one.path, one.query) for one in host.sent]


@pytest.mark.parametrize("error", [None, {}, {"code": None, "message": None, "param": None}])
def test_job_without_an_error(host: Host, provider: OpenAIProvider, error: Any) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", {**JOB, "error": error})
    assert provider.get(HANDLE).error is None


def test_failed_job(host: Host, provider: OpenAIProvider) -> None:
    error = {"code": "invalid_training_file", "message": "row 3", "param": "training_file"}
    host.on("GET", f"{JOBS}/ftjob-1", {**JOB, "status": "failed", "error": error, "finished_at": 1790000100})
    job = provider.get(HANDLE)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert job.finished_at == datetime.fromtimestamp(1790000100, UTC)


@pytest.mark.parametrize("word", ["reticulating", ""])
def test_unknown_status_word_is_kept(host: Host, provider: OpenAIProvider, word: str) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", {**JOB, "status": word})
    job = provider.get(HANDLE)
    assert (job.status, job.raw_status) == (JobStatus.UNKNOWN, word)
    assert not job.status.terminal


def test_something_that_is_no_job(host: Host, provider: OpenAIProvider) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", {"hello": "world"})
    with pytest.raises(UnexpectedAnswer):
        provider.get(HANDLE)


def event(n: int, **more: Any) -> dict[str, Any]:
    made = {"object": "fine_tuning.job.event", "id": f"ftevent-{n}", "created_at": 1790000000 + n}
    return {**made, "level": "info", "message": f"m{n}", "type": "message", "data": None, **more}


def test_events_of_all_pages_oldest_first(host: Host, provider: OpenAIProvider) -> None:
    first = [event(5, level="warn"), event(4)]
    host.on(
        "GET",
        f"{JOBS}/ftjob-1/events",
        page(first, True),
        page([event(3), event(2)], True),
        page([event(1)], False),
    )
    found = list(provider.events(HANDLE))
    assert [e.id for e in found] == [f"ftevent-{n}" for n in (1, 2, 3, 4, 5)]
    assert found[-1].level == "warning"
    assert [s.query.get("after") for s in host.sent] == [None, "ftevent-4", "ftevent-2"]


def test_events_after_one_read_no_further_than_needed(host: Host, provider: OpenAIProvider) -> None:
    path = f"{JOBS}/ftjob-1/events"
    host.on("GET", path, page([event(5), event(4)], True), page([event(3), event(2)], True))
    assert [e.id for e in provider.events(HANDLE, after="ftevent-3")] == ["ftevent-4", "ftevent-5"]
    assert len(host.sent) == 2


@pytest.mark.parametrize(
    "content",
    [CSV.encode(), base64.b64encode(CSV.encode()), base64.encodebytes(CSV.encode())],
    ids=["plain", "base64", "base64-lines"],
)
def test_metrics_of_the_result_file(host: Host, provider: OpenAIProvider, content: bytes) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", {**JOB, "status": "succeeded", "result_files": ["file-9"]})
    host.on("GET", "/v1/files/file-9/content", Answer(content, type="application/octet-stream"))
    told = event(1, type="metrics", data={"step": 1, "train_loss": 1.49, "learning_rate": 0.1})
    host.on("GET", f"{JOBS}/ftjob-1/events", page([told], False))
    points = provider.metrics(HANDLE)
    assert [p.at is None for p in points] == [False, True]
    assert [(p.step, p.values) for p in points] == [
        (1, {"train_loss": 1.5, "train_accuracy": 0.5, "learning_rate": 0.1}),
        (2, {"train_loss": 0.75, "train_accuracy": 0.8, "valid_loss": 0.9, "valid_accuracy": 0.7}),
    ]


def test_a_loss_that_is_not_finite_is_not_lost(host: Host, provider: OpenAIProvider) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", {**JOB, "status": "succeeded", "result_files": ["file-9"]})
    content = b"step,train_loss,valid_loss\n1,0.5,0.6\n2,nan,inf\n"
    host.on("GET", "/v1/files/file-9/content", Answer(content, type="application/octet-stream"))
    host.on("GET", f"{JOBS}/ftjob-1/events", page([], False))
    last = provider.metrics(HANDLE)[-1]
    assert math.isnan(last.values["train_loss"]) and last.values["valid_loss"] == math.inf


def test_metrics_while_it_runs_come_from_events(host: Host, provider: OpenAIProvider) -> None:
    data = {"step": 3, "train_loss": 0.5, "train_mean_token_accuracy": 0.9, "total_steps": 30}
    host.on("GET", f"{JOBS}/ftjob-1", JOB)
    host.on("GET", f"{JOBS}/ftjob-1/events", page([event(2, type="metrics", data=data), event(1)], False))
    [point] = provider.metrics(HANDLE)
    assert point.step == 3
    assert point.values == {"train_loss": 0.5, "train_accuracy": 0.9, "total_steps": 30.0}
    assert point.at == datetime.fromtimestamp(1790000002, UTC)


# -- acting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "reached"),
    [("cancel", "cancelled"), ("cancel", "succeeded"), ("pause", "paused"), ("resume", "running")],
)
def test_acts_are_idempotent(host: Host, provider: OpenAIProvider, act: str, reached: str) -> None:
    refusal = Answer({"error": {"message": "cannot", "code": None}}, 400)
    host.on("POST", f"{JOBS}/ftjob-1/{act}", refusal)
    host.on("GET", f"{JOBS}/ftjob-1", {**JOB, "status": reached})
    getattr(provider, act)(HANDLE)
    assert len(host.calls("POST", f"{JOBS}/ftjob-1/{act}")) == 1


@pytest.mark.parametrize(
    ("act", "status"), [("cancel", "running"), ("pause", "failed"), ("resume", "cancelled")]
)
def test_acts_that_cannot_be_done(host: Host, provider: OpenAIProvider, act: str, status: str) -> None:
    host.on("POST", f"{JOBS}/ftjob-1/{act}", Answer({"error": {"message": "cannot"}}, 400))
    host.on("GET", f"{JOBS}/ftjob-1", {**JOB, "status": status})
    with pytest.raises(InvalidRequest):
        getattr(provider, act)(HANDLE)


def test_delete_deletes_the_tuned_model(host: Host, provider: OpenAIProvider) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", {**JOB, "status": "succeeded", "fine_tuned_model": "ft:m:o::1"})
    host.on(
        "DELETE",
        "/v1/models/ft:m:o::1",
        {"id": "ft:m:o::1", "deleted": True, "object": "model"},
        Answer({}, 404),
    )
    provider.delete(HANDLE)
    provider.delete(HANDLE)
    assert len(host.calls("DELETE", "/v1/models/ft:m:o::1")) == 2


def test_chat_before_there_is_a_model(host: Host, provider: OpenAIProvider) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", JOB)
    with pytest.raises(UsageError, match="no model yet"):
        provider.generate(HANDLE, [[Message(role="user", content="hi")]])
    assert provider.endpoint(HANDLE) is None


def test_chat_asks_the_tuned_or_the_base_model(host: Host, provider: OpenAIProvider) -> None:
    host.on("GET", f"{JOBS}/ftjob-1", {**JOB, "status": "succeeded", "fine_tuned_model": "ft:m:o::1"})
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    answer = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }
    host.on("POST", "/v1/chat/completions", Answer({}, 503), answer)
    prompts = [[Message(role="user", content=f"q{n}")] for n in range(3)]
    replies = provider.generate(HANDLE, prompts, max_tokens=5)
    assert [r.content for r in replies] == ["yes"] * 3
    assert (replies[0].prompt_tokens, replies[0].completion_tokens) == (3, 1)
    provider.generate(HANDLE, prompts[:1], base=True)
    bodies = [s.body for s in host.calls("POST", "/v1/chat/completions")]
    assert {b["model"] for b in bodies[:-1]} == {"ft:m:o::1"}
    assert bodies[-1]["model"] == JOB["model"]
    assert (bodies[0]["max_completion_tokens"], bodies[0]["temperature"]) == (5, 0.0)


# -- uploads --------------------------------------------------------------------------------------------


def record(file: Path | str, size: int, **more: Any) -> dict[str, Any]:
    made = {"object": "file", "id": "file-1", "bytes": size, "created_at": 1, "filename": str(file)}
    return {**made, "purpose": "fine-tune", "status": "processed", **more}


def written(data: TrainingData, folder: Path) -> Path:
    return data.train.write(to("openai"), folder / "data")


@pytest.mark.slow
def test_file_is_sent_once_for_each_digest(host: Host, provider: OpenAIProvider, tmp_path: Path) -> None:
    spec = JobSpec(model="gpt-4.1", train=chat_file(tmp_path / "t.jsonl"))
    data = TrainingData.open(spec.train)
    path = written(data, tmp_path)
    kept = record(path.name, path.stat().st_size)
    host.on("GET", "/v1/files", page([], False), page([kept], False))
    host.on("POST", "/v1/files", {**kept, "status": "uploaded"})
    host.on("GET", "/v1/files/file-1", {**kept, "status": "uploaded"}, kept)
    seen: list[tuple[int, int]] = []
    first = upload(provider, spec, data, progress=lambda done, size: seen.append((done, size)))
    second = upload(provider, spec, data)
    assert first == second
    assert first.train_id == "file-1"
    assert data.train.digest[:16] in path.name
    assert len(host.calls("POST", "/v1/files")) == 1
    sent = host.calls("POST", "/v1/files")[0].raw
    assert path.read_bytes() in sent
    assert b'name="purpose"\r\n\r\nfine-tune' in sent
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


def test_lost_answer_to_an_upload_makes_no_second_file(
    host: Host, provider: OpenAIProvider, tmp_path: Path
) -> None:
    spec = JobSpec(model="gpt-4.1", train=chat_file(tmp_path / "t.jsonl"))
    data = TrainingData.open(spec.train)
    path = written(data, tmp_path)
    host.on("GET", "/v1/files", page([], False), page([record(path.name, path.stat().st_size)], False))
    host.on("POST", "/v1/files", Answer({}, fault="hang_up"))
    assert upload(provider, spec, data).train_id == "file-1"
    assert len(host.calls("POST", "/v1/files")) == 1


def test_file_that_the_host_refuses(host: Host, provider: OpenAIProvider, tmp_path: Path) -> None:
    spec = JobSpec(model="gpt-4.1", train=chat_file(tmp_path / "t.jsonl"))
    host.on("GET", "/v1/files", page([], False))
    host.on("POST", "/v1/files", record("x", 1, status="error", status_details="line 4 is not JSON"))
    with pytest.raises(DataError, match="line 4 is not JSON"):
        upload(provider, spec, TrainingData.open(spec.train))


def test_large_file_goes_in_parts_and_goes_on_after_a_failure(host: Host, tmp_path: Path) -> None:
    spec = JobSpec(model="gpt-4.1", train=chat_file(tmp_path / "t.jsonl", 40))
    data = TrainingData.open(spec.train)
    path = written(data, tmp_path)
    size = path.stat().st_size
    third = size // 3 + 1
    made = {"object": "upload", "id": "upload_1", "status": "pending", "bytes": size, "filename": path.name}
    parts = [{"object": "upload.part", "id": f"part_{n}", "upload_id": "upload_1"} for n in (1, 2, 3)]
    host.on("GET", "/v1/files", page([], False))
    host.on("POST", "/v1/uploads", made)
    refused = Answer({"error": {"message": "no"}}, 403)
    host.on("POST", "/v1/uploads/upload_1/parts", parts[0], refused, Answer({}, 500), parts[1], parts[2])
    host.on(
        "POST",
        "/v1/uploads/upload_1/complete",
        {**made, "status": "completed", "file": record(path.name, size)},
    )
    options = {"multipart_bytes": 100, "part_bytes": third}
    with closing(provider_at(host.url, tmp_path, options=options)) as first, pytest.raises(PermissionRefused):
        upload(first, spec, data)
    again = provider_at(host.url, tmp_path, options=options)  # as a later process would
    assert upload(again, spec, data).train_id == "file-1"
    again.close()

    opened = host.calls("POST", "/v1/uploads")
    assert len(opened) == 1
    assert opened[0].body == {
        "bytes": size,
        "filename": path.name,
        "mime_type": "text/jsonl",
        "purpose": "fine-tune",
    }
    whole = path.read_bytes()
    sent = [s.raw for s in host.calls("POST", "/v1/uploads/upload_1/parts")]
    assert len(sent) == 5
    for raw, begin in zip(sent, (0, third, third, third, 2 * third), strict=True):
        assert whole[begin : begin + third] in raw
    assert host.calls("POST", "/v1/uploads/upload_1/complete")[0].body == {
        "part_ids": ["part_1", "part_2", "part_3"]
    }
    assert not list((tmp_path / "data").glob("*.upload.json"))


# -- other hosts of this type ---------------------------------------------------------------------------


def test_azure(host: Host, tmp_path: Path) -> None:
    (tmp_path / "orchestrate.toml").write_text(
        f"""
        [hosts.azure]
        type = "openai"
        base_url = "{host.url}"
        options = {{api_version = "2025-04-01-preview", deployment = "my-deployment"}}
        """
    )
    env = {
        "AZURE_API_KEY": "sandbox-azure",
        "ORCHESTRATE_HOME": str(tmp_path),
        "ORCHESTRATE_KEYS": str(tmp_path / "k"),
    }
    azure = registry.make("azure", config.load(env=env, config_file=tmp_path / "orchestrate.toml"))
    host.on("POST", "/openai/fine_tuning/jobs", JOB)
    host.on("GET", "/openai/fine_tuning/jobs/ftjob-1", {**JOB, "status": "pending"})
    spec = JobSpec(model="gpt-4o-mini", train="t")
    handle = create(azure, spec, REMOTE, "orc-1")
    assert handle.provider == azure.name == "azure"
    [sent] = host.sent
    assert sent.query == {"api-version": "2025-04-01-preview"}
    assert sent.headers["api-key"] == "sandbox-azure"
    assert sent.body["model"] == "gpt-4o-mini-2024-07-18"
    assert azure.get(handle).status is JobStatus.QUEUED
    endpoint = azure.endpoint(handle)
    assert endpoint is not None
    assert (endpoint.model, endpoint.usd_per_hour) == ("my-deployment", None)
    azure.close()


def test_compatible_host(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another-host")
    (tmp_path / "orchestrate.toml").write_text(
        f"""
        [hosts.mine]
        type = "openai"
        base_url = "{host.url}/v1"
        options = {{headers = {{"x-team" = "a"}}}}
        """
    )
    env = {
        "MINE_API_KEY": "sandbox-mine",
        "ORCHESTRATE_HOME": str(tmp_path),
        "ORCHESTRATE_KEYS": str(tmp_path / "k"),
    }
    mine = registry.make("mine", config.load(env=env, config_file=tmp_path / "orchestrate.toml"))
    host.on("POST", JOBS, JOB)
    spec = JobSpec(
        model={"mine": "my-base-7b"},
        train=chat_file(tmp_path / "t.jsonl"),
        provider_options={"mine": {"zone": "x"}},
    )
    create(mine, spec, REMOTE, "orc-1")
    [sent] = host.sent
    assert (sent.body["model"], sent.body["zone"]) == ("my-base-7b", "x")
    assert sent.headers["authorization"] == "Bearer sandbox-mine"
    assert sent.headers["x-team"] == "a"
    assert "openai-organization" not in {name.lower() for name in sent.headers}
    quote = mine.quote(spec, TrainingData.open(spec.train), mine.translate(spec), built_in())
    assert quote.provider == "mine"
    assert quote.unavailable
    mine.close()


# -- checks ---------------------------------------------------------------------------------------------


def codes(provider: OpenAIProvider, spec: JobSpec) -> set[str]:
    data = TrainingData.open(spec.train, spec.validation)
    found = provider.check(spec, data, provider.translate(spec))
    return {p.code for p in found if p.severity is Severity.ERROR}


def test_good_spec_has_no_errors(provider: OpenAIProvider, tmp_path: Path) -> None:
    assert codes(provider, JobSpec(model="gpt-4o-mini", train=chat_file(tmp_path / "t.jsonl"))) == set()


def test_too_few_rows(provider: OpenAIProvider, tmp_path: Path) -> None:
    spec = JobSpec(model="gpt-4o-mini", train=chat_file(tmp_path / "t.jsonl", 3))
    assert codes(provider, spec) == {"too-few-rows"}


def test_model_that_takes_no_new_jobs(provider: OpenAIProvider, tmp_path: Path) -> None:
    spec = JobSpec(model="gpt-3.5-turbo", train=chat_file(tmp_path / "t.jsonl"))
    assert "model-closed" in codes(provider, spec)


@pytest.mark.parametrize(("model", "refused"), [("gpt-4o", False), ("gpt-4o-mini", True)])
def test_images_for_one_model_only(
    provider: OpenAIProvider, tmp_path: Path, model: str, refused: bool
) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "https://host.example/x.png"}},
        {"type": "text", "text": "?"},
    ]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]}
    file = tmp_path / "t.jsonl"
    file.write_text(f"{json.dumps(row)}\n" * 12)
    assert ("no-vision" in codes(provider, JobSpec(model=model, train=str(file)))) is refused


def test_reinforcement_needs_validation_and_a_grader_that_fits(
    provider: OpenAIProvider, tmp_path: Path
) -> None:
    rows = tmp_path / "t.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": f"{i}"}], "answer": "x"}) + "\n"
            for i in range(12)
        )
    )
    good = {
        "type": "string_check",
        "name": "same",
        "input": "{{sample.output_text}}",
        "operation": "eq",
        "reference": "{{item.answer}}",
    }
    spec = JobSpec(model="o4-mini", train=str(rows), validation=str(rows), method=RFT(grader=good))
    assert codes(provider, spec) & {"grader", "rft-needs-validation", "wrong-kind"} == set()
    alone = spec.model_copy(update={"validation": None})
    assert "rft-needs-validation" in codes(provider, alone)
    for wrong in (
        {**good, "operation": "equals"},
        {"type": "mine"},
        {k: good[k] for k in good if k != "name"},
    ):
        assert "grader" in codes(provider, spec.model_copy(update={"method": RFT(grader=wrong)}))


GRADERS_GUIDE: dict[str, Any] = {
    "type": "multi",
    "name": "sample_multi_grader",
    "graders": {
        "name": {
            "name": "name_grader",
            "type": "text_similarity",
            "input": "{{sample.output_json.name}}",
            "reference": "{{item.name}}",
            "evaluation_metric": "fuzzy_match",
        },
        "email": {
            "name": "email_grader",
            "type": "string_check",
            "input": "{{sample.output_json.email}}",
            "reference": "{{item.email}}",
            "operation": "eq",
        },
    },
    "calculate_output": "(name + email) / 2",
}
"""The form of developers.openai.com/api/docs/guides/graders, "Multigraders"."""


@pytest.mark.parametrize(
    ("change", "places"),
    [
        ({}, []),
        ({"graders": GRADERS_GUIDE["graders"]["email"]}, []),  # as the SDK has it
        ({"graders": {"email": {"type": "string_check"}}}, ["method.grader.graders.email."] * 4),
        ({"graders": {"all": GRADERS_GUIDE}}, ["method.grader.graders.all.type"]),
        ({"graders": {}}, ["method.grader.graders"]),
        ({"graders": None}, ["method.grader.graders"] * 5),
        ({"calculate_output": 3}, ["method.grader.calculate_output"]),
    ],
)
def test_a_multi_grader_is_a_map_of_graders(change: dict[str, Any], places: list[str]) -> None:
    from orchestrate.providers.openai.provider import grader_errors

    found = [place for place, _ in grader_errors({**GRADERS_GUIDE, **change})]
    assert len(found) == len(places), found
    assert all(place.startswith(begin) for place, begin in zip(found, places, strict=True))


@pytest.mark.parametrize(
    ("continued", "accepted"),
    [
        ("ft:gpt-4o-mini-2024-07-18:org:mine:abc", True),
        ("ft:gpt-4.1-2025-04-14:org:mine:abc", False),
        ("ftjob-1", False),
    ],
)
def test_continue_from(host: Host, provider: OpenAIProvider, continued: str, accepted: bool) -> None:
    spec = JobSpec(model="gpt-4o-mini", train="t", continue_from=continued)
    translation = provider.translate(spec)
    assert bool(translation.refused) is not accepted
    if accepted:
        assert translation.body["model"] == continued
        assert translation.model == "gpt-4o-mini-2024-07-18"


def test_download_gives_its_reason(provider: OpenAIProvider) -> None:
    from orchestrate.errors import Unsupported
    from orchestrate.providers.base import Downloads, capability

    with pytest.raises(Unsupported) as caught:
        capability(provider, Downloads)
    assert caught.value.reason == OpenAIProvider.missing[Feature.DOWNLOAD]


def test_models_of_the_host(host: Host, provider: OpenAIProvider) -> None:
    from orchestrate.catalog import differences

    def model(id: str, ends: str | None) -> dict[str, Any]:
        return {"id": id, "object": "model", "created": 1, "owned_by": "openai", "shutdown_date": ends}

    seen = [
        model("gpt-4o-mini-2024-07-18", "2027-03-01"),
        model("gpt-9", None),
        model("ft:gpt-4o-mini-2024-07-18:o::1", None),
    ]
    host.on("GET", "/v1/models", {"object": "list", "data": seen})
    told = provider.base_models()
    assert [m.id for m in told] == ["gpt-4o-mini-2024-07-18", "gpt-9"]
    changed = {(c.model, c.field, c.theirs) for c in differences("openai", told)}
    assert ("gpt-4o-mini-2024-07-18", "shutdown", "2027-03-01") in changed
    assert not [c for c in changed if c[0] == "gpt-9"]
