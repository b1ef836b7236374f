"""Tuned models asked through the gateway by the official client: as chats, completions and responses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai as sdk
import pytest
from openai import OpenAI
from tests.paths import TINY
from tests.unit.gateway.conftest import ASKED, MODELS, Gateway, deployed, ended, gateway_of, rows
from tests.unit.serving.conftest import random_adapter
from tests.waiting import until

from orchestrate.errors import Unsupported
from orchestrate.http.wire.openai.chat import ChatRequest
from orchestrate.providers import files
from orchestrate.sandbox.server import Sandbox
from orchestrate.serving.server.engine import EngineClient
from orchestrate.types import Artifact, GatewayJob

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
LOCAL = "gpt-4.1-nano-2025-04-14"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> Iterator[Gateway]:
    """One that does not ask a failing host for a minute."""
    home = tmp_path_factory.mktemp("gateway")
    (home / "orchestrate.toml").write_text("[hosts.together.options]\nretry_budget_s = 0.5\n")
    with gateway_of(home, sandbox.env) as found:
        yield found


@pytest.fixture(scope="module")
def hosted(gateway: Gateway) -> str:
    """A model that was tuned on a host, and is deployed there."""
    with gateway.client() as client:
        file = client.files.create(file=("t.jsonl", rows(mark="chat")), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model=ASKED, training_file=file.id, suffix="chat")
        name = ended(client, job.id).fine_tuned_model
        with pytest.raises(sdk.UnprocessableEntityError, match="orchestrate deploy") as caught:
            client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}])
        assert caught.value.code == "model_not_deployed"
    found = gateway.ft.store.gateway_jobs.get(job.id)
    assert found is not None and found.run_id is not None
    deployed(gateway, found.run_id)
    return name


@pytest.fixture(scope="module")
def local(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model of this machine with a job that made it, without the training."""
    folder = random_adapter(tmp_path_factory.mktemp("adapter") / "a", 1)
    yield tuned_here(gateway, folder)


def tuned_here(gateway: Gateway, folder: Path) -> str:
    ft = gateway.ft
    [source] = [run for run in ft.runs() if run.record.status.value == "succeeded"][:1]
    from msgspec.structs import replace

    from orchestrate.store import new_run_id, ref_of

    id = new_run_id(ft.store.clock.now())
    own = {"provider": "local", "host": "local", "model": str(TINY), "job_id": f"job-{id}"}
    run = replace(source.record, id=id, ref=ref_of(id), idempotency_key=f"ftjob-{id}", **own)
    ft.store.runs.restore(run)
    ft.store.runs.close(run.id)
    downloaded(gateway, run.id, folder)
    name = f"ft:{LOCAL}:orchestrate::{id[-8:]}"
    job = GatewayJob(
        id=f"ftjob-{id}",
        key="local",
        project="default",
        created_at=run.created_at,
        asked={"model": LOCAL, "training_file": "file-x"},
        tuned=name,
        backend="local",
        spec={},
        run_id=run.id,
        ended_at=run.created_at,
        told=True,
    )
    from orchestrate.store.gateway import CreateKey

    ft.store.gateway_jobs.take(job, CreateKey("local", id), lambda use: None)
    return name


def downloaded(gateway: Gateway, run_id: str, folder: Path) -> None:
    """An adapter lies where `download` puts that of a run."""
    artifact = Artifact(
        kind="adapter", folder=str(folder), files=(), base_model=str(TINY), provider="local", job_id="job"
    )
    kept = gateway.ft.settings.home / "models" / run_id
    kept.parent.mkdir(exist_ok=True)
    kept.symlink_to(folder)
    files.write(kept, artifact)


ASK: list[Any] = [{"role": "user", "content": "order 17"}]


@pytest.fixture(params=["hosted", "local"])
def name(request: pytest.FixtureRequest, hosted: str) -> str:
    return hosted if request.param == "hosted" else request.getfixturevalue("local")


@pytest.mark.slow
def test_a_chat_and_its_stream_are_one_answer(openai: OpenAI, name: str) -> None:
    whole = openai.chat.completions.create(model=name, messages=ASK, max_tokens=12, temperature=0)
    stream = openai.chat.completions.create(
        model=name, messages=ASK, max_tokens=12, temperature=0, stream=True
    )
    pieces = list(stream)
    said = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert whole.model == name and {piece.model for piece in pieces} == {name}
    assert said == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert whole.usage and ("nano" not in name or whole.usage.completion_tokens)


@pytest.mark.slow
def test_a_response_and_its_stream_are_the_chat(openai: OpenAI, name: str) -> None:
    chat = openai.chat.completions.create(model=name, messages=ASK, max_tokens=12, temperature=0)
    whole = openai.responses.create(model=name, input="order 17", max_output_tokens=12, temperature=0)
    assert whole.output_text == chat.choices[0].message.content
    with openai.responses.stream(model=name, input="order 17", max_output_tokens=12, temperature=0) as stream:
        events = list(stream)
        kinds = [event.type for event in events]
        last = stream.get_final_response() if kinds[-1] == "response.completed" else None
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
    assert "usage" not in events[0].response.model_fields_set  # an object, where there is one
    if last is not None:
        assert last.output_text == whole.output_text and ("nano" not in name or last.usage)


@pytest.mark.slow
def test_completions_are_answered_here(openai: OpenAI, local: str) -> None:
    """By a process that imports torch and loads a model."""
    done = openai.completions.create(model=local, prompt="order", max_tokens=4, temperature=0)
    assert done.choices[0].text and done.model == local


def test_completions_are_refused_for_hosts(openai: OpenAI, hosted: str) -> None:
    with pytest.raises(sdk.UnprocessableEntityError, match="chat/completions"):
        openai.completions.create(model=hosted, prompt="order")


def test_a_name_of_nobody_is_404_with_those_that_there_are(openai: OpenAI, hosted: str) -> None:
    with pytest.raises(sdk.NotFoundError, match=hosted):
        openai.chat.completions.create(model="ft:gpt-4:o::x", messages=ASK)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["error", "html", "half_body", "bad_json", "lost_answer"])
def test_a_host_that_fails_before_its_first_word_is_an_error(
    gateway: Gateway, sandbox: Sandbox, hosted: str, fault: str, stream: bool
) -> None:
    """Not an answer 200 that breaks off: then a client would not ask again."""
    more = {"status": 503} if fault == "error" else {}
    sandbox.fault("together", fault, method="POST", path="chat/completions", count=0, **more)
    try:
        with gateway.http() as http:
            answer = http.post("chat/completions", json={"model": hosted, "messages": ASK, "stream": stream})
    finally:
        sandbox.clear_faults()
    if fault in ("half_body", "bad_json") and stream and answer.status_code == 200:
        last = [line for line in answer.text.splitlines() if line][-1]
        assert "error" in json.loads(last.removeprefix("data: ")), "it had begun"
        return
    assert answer.status_code >= 500, answer.text
    assert answer.headers["x-should-retry"] == "true" and answer.json()["error"]["message"]


def test_permissions_of_a_checkpoint_are_made_listed_and_deleted(openai: OpenAI, hosted: str) -> None:
    made = openai.fine_tuning.checkpoints.permissions.create(hosted, project_ids=["other"])
    listed = openai.fine_tuning.checkpoints.permissions.list(hosted)
    assert [one.project_id for one in made] == [one.project_id for one in listed.data] == ["other"]
    openai.fine_tuning.checkpoints.permissions.delete(listed.data[0].id, fine_tuned_model_checkpoint=hosted)
    assert not openai.fine_tuning.checkpoints.permissions.list(hosted).data


SCHEMA = {
    "type": "object",
    "properties": {"late": {"type": "boolean"}},
    "required": ["late"],
    "additionalProperties": False,
}
FORMAT: dict[str, Any] = {"type": "json_schema", "name": "o", "strict": True, "schema": SCHEMA}
CHANGES: dict[str, Any] = {
    "input": "other",
    "instructions": "be brief",
    "max_output_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.5,
    "tools": [{"type": "function", "name": "find", "parameters": {"type": "object"}}],
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "text": {"format": FORMAT},
    "reasoning": {"effort": "low"},
    "previous_response_id": "resp_1",
    "conversation": "conv_1",
    "prompt": {"id": "pmpt_1"},
    "background": True,
    "context_management": [{"type": "compaction"}],
    "moderation": {"type": "auto"},
    "image": {"model": "m"},
    "top_logprobs": 2,
    "include": ["message.output_text.logprobs"],
}
"""Of a request, what changes its answer."""
KEEPS = {
    "model", "stream", "stream_options", "truncation", "max_tool_calls", "background_options",
    "access_programs", "metadata", "user", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention",
}  # fmt: skip
"""What does not, or only names who answers and how."""


def test_nothing_that_changes_an_answer_is_taken_and_ignored() -> None:
    """By the official client's own list of what a request may have."""
    from openai.types.responses.response_create_params import ResponseCreateParamsBase

    from orchestrate.http.wire import HostError, parse
    from orchestrate.http.wire.openai import responses

    known = set(ResponseCreateParamsBase.__annotations__) | {"stream"}
    assert known == CHANGES.keys() | KEEPS
    plain = {"model": "m", "input": "hi"}
    for given in (*({name: value} for name, value in CHANGES.items()), {"text": {"verbosity": "low"}}):
        asked = parse(responses.ResponseRequest, plain | given)
        try:
            body = responses.chat_body(asked)
        except HostError as error:
            assert error.status == 400 and error.param, given
            continue
        assert body != responses.chat_body(parse(responses.ResponseRequest, plain)), given
        assert set(body) <= {"verbosity"} | set(ChatRequest.model_fields), given
    with pytest.raises(HostError, match="Unrecognized"):
        parse(responses.ResponseRequest, plain | {"not_of_the_api": 1})


@pytest.mark.slow
def test_a_format_of_a_response_is_kept(openai: OpenAI, hosted: str, local: str, sandbox: Sandbox) -> None:
    asked: Any = {"input": "order 17", "text": {"format": FORMAT}, "max_output_tokens": 400}
    here = openai.responses.create(model=local, **asked)
    jsonschema.validate(json.loads(here.output_text), FORMAT["schema"])
    sandbox.clear_requests()
    told = openai.responses.create(model=hosted, **asked)
    [sent] = [one for one in sandbox.requests("together") if one["path"].endswith("/chat/completions")]
    schema = {name: FORMAT[name] for name in ("name", "strict", "schema")}
    assert sent["body"]["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert told.text is not None and told.text.format is not None and told.text.format.type == "json_schema"


def test_tools_of_a_response_are_those_of_a_chat() -> None:
    from openai.types.responses import Response, ResponseStreamEvent
    from pydantic import TypeAdapter

    from orchestrate.http.wire.openai import responses

    tool = {"type": "function", "name": "find", "parameters": {"type": "object"}, "strict": True}
    told = [
        {"role": "user", "content": [{"type": "input_text", "text": "look"}]},
        {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "7"},
    ]
    asked = responses.ResponseRequest(model="m", input=told, tools=[tool])
    body = responses.chat_body(asked)
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "tool"]
    assert body["messages"][1]["tool_calls"][0]["id"] == body["messages"][2]["tool_call_id"] == "c1"
    assert body["tools"][0]["function"]["name"] == "find"
    call = {"id": "c2", "type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    choice = {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    chat = {"created": 1, "choices": [choice], "usage": usage}
    whole = TypeAdapter(Response).validate_python(responses.of_chat(asked, chat, "resp_1"), strict=False)
    assert whole.output[0].type == "function_call" and whole.output[0].arguments == '{"a": 1}'
    stream = responses.ResponseStream(asked, "resp_1", 1)
    deltas = [{**call, "index": 0, "function": {"name": "find", "arguments": ""}}]
    deltas += [{"index": 0, "function": {"arguments": part}} for part in ('{"a"', ": 1}")]
    events = [*stream.begin()]
    for delta in deltas:
        events += stream.take({"choices": [{"delta": {"tool_calls": [delta]}, "finish_reason": None}]})
    events += [*stream.take({"choices": [], "usage": usage}), *stream.end()]
    read = [
        TypeAdapter(ResponseStreamEvent).validate_python(json.loads(event.split("data: ", 1)[1]))
        for event in events
    ]
    last: Any = read[-1]
    assert last.type == "response.completed" and last.response.output == whole.output
    assert [event.sequence_number for event in read] == list(range(len(read)))


@pytest.mark.slow
def test_a_hosts_model_is_answered_here_where_the_configuration_says_so(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    models = {ASKED: {**MODELS[ASKED], "on": "here"}, "other": MODELS[ASKED]}
    with gateway_of(tmp_path, sandbox.env, {"models": models}) as found, found.client() as client:
        file = client.files.create(file=("t.jsonl", rows(mark="here")), purpose="fine-tune").id
        made = [client.fine_tuning.jobs.create(model=m, training_file=file, seed=7) for m in models]
        here, other = [ended(client, job.id) for job in made]
        job = found.ft.store.gateway_jobs.get(here.id)
        assert job is not None and job.run_id is not None
        downloaded(found, job.run_id, random_adapter(tmp_path / "a", 1))
        said = client.chat.completions.create(model=here.fine_tuned_model, messages=ASK, max_tokens=4)
        assert said.usage and said.usage.completion_tokens
        with pytest.raises(sdk.UnprocessableEntityError) as told:
            client.chat.completions.create(model=other.fine_tuned_model, messages=ASK)
        assert told.value.code == "model_not_deployed"
        events = [client.fine_tuning.jobs.list_events(job.id, limit=100).data for job in made]
        assert [any("orchestrate deploy" in e.message for e in each) for each in events] == [False, True]


def test_a_checkpoint_of_a_host_is_downloaded_once(gateway: Gateway, hosted: str, sandbox: Sandbox) -> None:
    job = gateway.ft.store.gateway_jobs.of_model(hosted)
    assert job is not None and job.run_id is not None
    run = gateway.ft.run(job.run_id)
    point = run.checkpoints()[0].id
    first = run.download(checkpoint=point)
    sandbox.clear_requests()
    assert run.download(checkpoint=point) == first and first.files
    assert not sandbox.requests("together", path="download")
    assert run.download().folder != first.folder


def test_a_backend_that_gives_no_files_cannot_be_answered_here(sandbox: Sandbox, tmp_path: Path) -> None:
    models = {ASKED: {"backend": "openai", "model": "gpt-4.1-nano", "on": "here"}}
    with pytest.raises(Unsupported), gateway_of(tmp_path, sandbox.env, {"models": models}):
        pass


@pytest.mark.slow
def test_a_model_whose_files_were_healed_is_the_same_after_a_crash(
    gateway: Gateway, openai: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are hashed once, and again where they changed."""
    engines: list[EngineClient] = []
    hashed: list[Path] = []

    def start(engine: EngineClient, start: Callable[[EngineClient], None] = EngineClient.start) -> None:
        engines.append(engine)
        start(engine)

    def digest(file: Any, name: str, digest: Any = hashlib.file_digest) -> Any:
        hashed.append(Path(file.name))
        return digest(file, name)

    monkeypatch.setattr(EngineClient, "start", start)
    monkeypatch.setattr(hashlib, "file_digest", digest)
    file = openai.files.create(file=("healed.jsonl", rows(16, "healed")), purpose="fine-tune")
    made = ended(openai, openai.fine_tuning.jobs.create(model=LOCAL, training_file=file.id, seed=7).id)

    def said() -> str | None:
        how: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
        chat = openai.chat.completions.create(model=made.fine_tuned_model, messages=ASK, **how)
        return chat.choices[0].message.content

    before = said()
    job = gateway.ft.store.gateway_jobs.get(made.id)
    assert job is not None and job.run_id is not None
    weights = gateway.ft.settings.home / "models" / job.run_id / "adapter_model.safetensors"
    hashed.clear()
    assert said() == before and weights not in hashed, "read for each answer"

    content = weights.read_bytes()
    weights.write_bytes(bytes(len(content)))
    assert said() == before and weights.read_bytes() == content, "downloaded again"

    engine = engines[-1]
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    until(lambda: not engine.up)
    until(lambda: engine.up or engine.failure)
    assert engine.up, engine.failure
    assert said() == before
