"""A model's answers are kept while it answers: which prompts, at what price, once, and what for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import command
from tests.chat_host import chat_host
from tests.unit.migration.conftest import chat_rows

from orchestrate import Orchestrator, RunHandle
from orchestrate.data import Dataset
from orchestrate.errors import DataError, OverBudget, UsageError
from orchestrate.evaluation import Item, item_id
from orchestrate.evaluation.held_out import held_out, prompts
from orchestrate.evaluation.recordings import covering
from orchestrate.migration import recordings
from orchestrate.migration.recordings import PreparedRecording, RecordOrder
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.chat import Chat
from orchestrate.runs.evaluation.contenders import SANDBOX_THREADS, Contenders
from orchestrate.sandbox.server import Sandbox
from orchestrate.sandbox.training import ANSWER, Trainer
from orchestrate.settings import config
from orchestrate.types import Message, Reply, Sampling

SHORT = Sampling(max_tokens=16)


def items(texts: Sequence[str]) -> list[Item]:
    found: list[Item] = []
    for place, text in enumerate(texts):
        prompt = (Message(role="system", content="Answer."), Message(role="user", content=text))
        found.append(Item(id=item_id(prompt, (), str(place), ()), prompt=prompt, expected=str(place)))
    return found


TOPICS = {
    "refund": "I want my money back for the broken lamp with number {i} that you sent to me last week",
    "invoice": "Please write another invoice {i} for our company with its new address and the tax number",
    "delay": "The parcel {i} should have been here days ago, where is it now and when will it arrive at last",
}


def test_every_kind_of_prompt_is_among_those_that_are_taken() -> None:
    texts = [TOPICS["refund"].format(i=i) for i in range(200)]
    texts += [TOPICS[name].format(i=i) for name in ("invoice", "delay") for i in range(3)]
    found = covering(items(texts), 12)
    said = [item.prompt[-1].content for item in found.items]
    assert len(said) == 12 and found.clusters == 6
    for name, words in TOPICS.items():
        assert any(text.startswith(words[:10]) for text in said), name


def test_equal_prompts_are_taken_once_and_nearly_equal_ones_last() -> None:
    long = " ".join(f"word{i}" for i in range(60))
    texts = [
        long,
        long,
        f"{long} more",
        *(f"{i} " + " ".join(f"{i}x{k}" for k in range(20)) for i in range(5)),
    ]
    assert [covering(items(texts), n).equal for n in (None, 6)] == [1, 1]
    assert len(covering(items(texts), None).items) == 7
    six = covering(items(texts), 6)
    assert six.near == 1 and sum("word59" in item.prompt[-1].content for item in six.items) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("abc d", min_size=1, max_size=30), min_size=1, max_size=40), st.integers(1, 50))
def test_so_many_as_asked_each_once_in_the_order_of_the_file(texts: list[str], most: int) -> None:
    found = covering(items(texts), most)
    prompts = [item.prompt for item in found.items]
    assert len(prompts) == len(set(prompts)) == min(most, len(set(texts)))
    places = [int(item.expected) for item in found.items]
    assert places == sorted(places)
    assert covering(items(texts), most) == found


ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
CHOICES = {
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}]
}
SPEND = {
    # The columns of LiteLLM_SpendLogs, as its database and its /spend/logs give them.
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "api_key": "its hash",
    "spend": 0.0001,
    "total_tokens": 9,
    "startTime": "2026-11-02T09:00:00.000Z",
    "model": "gpt-4o-mini-2024-07-18",
    "api_base": "https://api.openai.com",
    "metadata": {"user_api_key_alias": "app", "status": "success"},
    "cache_hit": "False",
    "request_tags": [],
    "messages": {},
    "status": "success",
}
OBSERVATION = {
    # Langfuse's export to a bucket: strings of JSON, names with underscores.
    "id": "o-1",
    "trace_id": "t-1",
    "project_id": "p",
    "type": "GENERATION",
    "start_time": "2026-11-02 09:00:00.000000",
    "provided_model_name": "gpt-4o-mini",
    "usage_details": {"input": 8},
    "level": "DEFAULT",
}
RUN = {
    "id": "r-1",
    "trace_id": "r-1",
    "run_type": "llm",
    "name": "ChatOpenAI",
    "start_time": "2026-11-02T09:00:00",
    "extra": {"metadata": {"ls_model_name": "gpt-4o-mini"}},
}


def lc(kind: str, text: str) -> dict[str, Any]:
    """A message as LangChain serialises it."""
    name = ["langchain", "schema", "messages", f"{kind}Message"]
    return {"lc": 1, "type": "constructor", "id": name, "kwargs": {"content": text}}


LOGS: dict[str, tuple[dict[str, Any], str]] = {
    "stored": ({"object": "chat.completion", "id": "c", "messages": ASK, **CHOICES}, "hello"),
    "stored, of its list": ({"object": "chat.completion", "input_messages": ASK, **CHOICES}, "hello"),
    "responses": ({"instructions": "Be brief.", "input": "hi", "model": "gpt-4o-mini"}, ""),
    "batch": ({"custom_id": "1", "url": "/v1/chat/completions", "body": {"model": "m", "messages": ASK}}, ""),
    "litellm callback": ({"messages": ASK, "response": CHOICES}, "hello"),
    "litellm": (
        SPEND | {"proxy_server_request": {"model": "m", "messages": ASK}, "response": CHOICES},
        "hello",
    ),
    "litellm, of psql": (
        SPEND
        | {
            "messages": "{}",
            "proxy_server_request": json.dumps({"body": {"messages": ASK}, "headers": {}}),
            "response": json.dumps(CHOICES),
        },
        "hello",
    ),
    "litellm, failed": (SPEND | {"proxy_server_request": {"messages": ASK}, "response": {}}, ""),
    "langfuse": (
        {"traceId": "t", "input": ASK, "output": {"role": "assistant", "content": "hello"}},
        "hello",
    ),
    "langfuse, of a bucket": (
        OBSERVATION | {"input": json.dumps({"messages": ASK}), "output": json.dumps("hello")[1:-1]},
        "hello",
    ),
    "langfuse, failed": (OBSERVATION | {"input": json.dumps(ASK), "output": None}, ""),
    "langsmith": (RUN | {"inputs": {"messages": ASK}, "outputs": CHOICES}, "hello"),
    "langsmith, of langchain": (
        RUN
        | {
            "inputs": {"messages": [[lc("System", "Be brief."), lc("Human", "hi")]]},
            "outputs": {"generations": [[{"text": "hello", "message": lc("AI", "hello")}]]},
        },
        "hello",
    ),
    "langsmith, of parquet": (
        RUN | {"inputs": json.dumps({"messages": ASK}), "outputs": json.dumps(CHOICES)},
        "hello",
    ),
    "langsmith, failed": (RUN | {"inputs": {"messages": ASK}, "outputs": None, "error": "timeout"}, ""),
    "chat": ({"messages": ASK}, ""),
    "prompt": ({"system": "Be brief.", "prompt": "hi"}, ""),
}


@pytest.mark.parametrize(("row", "answer"), LOGS.values(), ids=LOGS)
def test_prompts_come_from_logs_with_an_answer_or_without(
    tmp_path: Path, row: dict[str, Any], answer: str
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text((json.dumps(row) + "\n") * 2)
    found = prompts(str(path))
    first, _ = found.items
    assert [(m.role, m.content) for m in first.prompt] == [("system", "Be brief."), ("user", "hi")]
    assert first.expected == answer and not found.left_out
    assert len(covering(found.items, None).items) == 1


def test_a_log_of_many_kinds_is_read_row_by_row_and_what_asks_nothing_is_counted(tmp_path: Path) -> None:
    rows = [row for row, _ in LOGS.values()]
    rows += [
        RUN | {"run_type": "tool", "inputs": {"x": 1}, "outputs": {"y": 2}},
        {"messages": ASK[:1]},
        {"question": "which?", "options": ["this one here", "that one there"]},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "[1]\nnot json\n")
    found = prompts(str(path))
    assert len(found.items) == len(LOGS) and sum(found.left_out.values()) == 5
    assert any("options is not used" in why for why in found.left_out)
    assert not found.unread
    more = [
        {"messages": [*ASK, {"role": "assistant", "content": "a"}], "story": f"a long one of {n} kings"}
        for n in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in more))
    assert prompts(str(path)).unread == ("story",)
    path.write_text("{}\n")
    with pytest.raises(DataError, match="has no usable prompt:"):
        prompts(str(path))


def test_prompts_without_answers_are_recorded(ft: Orchestrator, old: RunHandle, tmp_path: Path) -> None:
    path = tmp_path / "asked.txt"
    path.write_text("Which colour has the sky?\nWhich colour has the grass?\n")
    with PreparedRecording(ft, old.id, RecordOrder(prompts=path, sampling=SHORT)) as prepared:
        done = prepared.run()
    assert (done.answered, done.prompts, done.expected) == (2, 2, 0)
    lines = [json.loads(line)["messages"] for line in done.rows_file.read_text().splitlines()]
    assert [[m["content"] for m in said] for said in lines] == [
        ["Which colour has the sky?", ANSWER],
        ["Which colour has the grass?", ANSWER],
    ]


def asked(sandbox: Sandbox) -> int:
    return sum(e["path"].endswith("/chat/completions") for e in sandbox.requests("openai"))


def test_what_was_recorded_stays_when_the_model_is_silent(
    ft: Orchestrator, old: RunHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = RecordOrder(sampling=SHORT)
    with PreparedRecording(ft, old.id, order) as prepared:
        first = prepared.run()
    rows = first.rows_file.read_bytes()
    shutil.rmtree(ft.settings.home / "evaluations" / "answers")

    def silent(*_: object) -> None:
        raise UsageError("no answer comes any more")

    monkeypatch.setattr(recordings.Asking, "ask", silent)
    with PreparedRecording(ft, old.id, order) as prepared, pytest.raises(UsageError, match="any more"):
        prepared.run()
    last = recordings.named(ft, first.id)
    assert (last.answered, last.complete) == (first.answered, True)
    assert last.rows_file.read_bytes() == rows


def test_answers_are_paid_once(ft: Orchestrator, old: RunHandle, sandbox: Sandbox) -> None:
    order = RecordOrder(sampling=SHORT)
    with PreparedRecording(ft, old.id, order) as prepared:
        plan = prepared.plan()
        assert (plan.prompts, plan.taken, plan.silent_on) == (30, 30, date(2027, 1, 14))
        high = plan.asked.high_usd
        assert high is not None and plan.asked.expected_usd is not None
        # gpt-4o-mini tuned: 0.30 USD a million tokens in, 1.20 out: developers.openai.com/api/docs/pricing.
        assert high > 30 * 16 * Decimal("1.2") / 10**6
        done = prepared.run()
    assert (done.answered, done.prompts, done.refused, done.expected) == (30, 30, 0, 30)
    first = asked(sandbox)
    assert first == 30
    with PreparedRecording(ft, old.id, order) as prepared:
        assert prepared.plan().asked.kept == 30
        assert prepared.run().id == done.id
    assert asked(sandbox) == first
    assert [one.id for one in recordings.all_recordings(ft)] == [done.id]
    lines = [json.loads(line) for line in done.rows_file.read_text().splitlines()]
    source = [json.loads(line) for line in Path(str(old.record.spec["test"])).read_text().splitlines()]
    assert lines == source, "the rows that the next model is asked are those of the file"


def test_what_was_answered_before_a_limit_or_a_fault_is_kept(
    ft: Orchestrator, old: RunHandle, sandbox: Sandbox
) -> None:
    with (
        PreparedRecording(ft, old.id, RecordOrder(sampling=SHORT, max_cost_usd=Decimal("0.0000001"))) as low,
        pytest.raises(OverBudget),
    ):
        low.run()
    assert asked(sandbox) == 0
    with PreparedRecording(ft, old.id, RecordOrder(sampling=SHORT, most=10)) as some:
        assert some.run().answered == 10
    sandbox.fault("openai", "error", method="POST", path="/v1/chat/completions", status=403, count=0)
    with (
        PreparedRecording(ft, old.id, RecordOrder(sampling=SHORT)) as rest,
        pytest.raises(Exception, match="403"),
    ):
        rest.run()
    partial = recordings.all_recordings(ft)[-1]
    assert (partial.answered, partial.prompts, partial.complete) == (10, 30, False)


def killed_record(arguments: list[str]) -> None:
    """A recording in a process of its own, which ends itself when so many prompts are answered."""
    run, at = arguments

    def progress(contender: str, done: int, of: int, usd: Decimal) -> None:
        del contender, of, usd
        if done >= int(at):
            os.kill(os.getpid(), signal.SIGKILL)

    with (
        Orchestrator(config.load(env=dict(os.environ), cwd=Path.cwd())) as ft,
        PreparedRecording(ft, run, RecordOrder(sampling=SHORT)) as prepared,
    ):
        prepared.run(progress)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 30])
def test_a_recording_goes_on_after_a_kill(
    ft: Orchestrator,
    old: RunHandle,
    sandbox: Sandbox,
    own_env: dict[str, str],
    tmp_path: Path,
    at: int,
) -> None:
    ended = command.run([old.id, str(at)], cwd=tmp_path, env=own_env, program=killed_record)
    assert ended.code == -signal.SIGKILL, ended.err.decode()
    before = asked(sandbox)
    with PreparedRecording(ft, old.id, RecordOrder(sampling=SHORT)) as prepared:
        kept = prepared.plan().asked.kept
        assert kept >= at, "what was paid is there"
        done = prepared.run()
    assert (done.answered, done.prompts) == (30, 30)
    assert asked(sandbox) - before == 30 - kept
    assert len(recordings.all_recordings(ft)) == 1


@pytest.mark.slow
def test_an_interrupted_recording_says_how_to_go_on_and_loses_nothing(
    ft: Orchestrator, old: RunHandle, sandbox: Sandbox, own_env: dict[str, str], tmp_path: Path
) -> None:
    """Ctrl-C in the command, while some of its prompts wait for their answers and most are not sent yet: a
    sandbox is asked `SANDBOX_THREADS` at once."""
    prompts = 6 * SANDBOX_THREADS
    path = chat_rows(tmp_path / "many.jsonl", 200, 200 + prompts)
    stuck = {"method": "POST", "path": "/v1/chat/completions", "skip": 10, "count": 0, "delay_s": 10}
    sandbox.fault("openai", "slow", **stuck)
    streams = [tmp_path / name for name in ("in", "out", "err")]
    streams[0].touch()
    words = ["record", old.id, "--prompts", path, "--max-tokens", "16", "--max-cost", "1"]
    env = {**os.environ, **own_env}
    process = command.start(command.orchestrate, words, cwd=tmp_path, env=env, streams=streams)
    deadline = time.monotonic() + 240
    while asked(sandbox) < 12:
        assert process.is_alive() and time.monotonic() < deadline, streams[2].read_text()
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGINT)
    assert command.ended(process, 240) == 130, streams[2].read_text()
    assert "same command" in streams[2].read_text()
    sandbox.clear_faults()
    [kept] = recordings.all_recordings(ft)
    before = asked(sandbox)
    # What was under way is waited for and kept; one that was just being written down is asked again.
    assert 10 < before - 1 <= kept.answered <= before < prompts
    with PreparedRecording(ft, old.id, RecordOrder(prompts=path, sampling=SHORT)) as rest:
        left = rest.plan().asked
        assert kept.answered <= left.kept <= before, "the journal may have one that the record does not yet"
        assert rest.run().complete
    assert asked(sandbox) - before == prompts - left.kept


def test_a_limit_that_is_reached_midway_keeps_what_was_paid_and_goes_on_under_a_higher_one(
    ft: Orchestrator, old: RunHandle, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PreparedRecording(ft, old.id, RecordOrder(sampling=SHORT)) as whole:
        expected = whole.plan().asked.expected_usd
    assert expected is not None
    limit = expected * 3 / 2  # one reserved answer costs more than all are expected to
    wordy = Reply(content="on and on", model="none", prompt_tokens=36, completion_tokens=16)
    monkeypatch.setattr(Trainer, "reply", lambda *_, **__: wordy)  # dearer than is expected
    order = RecordOrder(sampling=SHORT, max_cost_usd=limit)
    with PreparedRecording(ft, old.id, order) as low, pytest.raises(OverBudget) as told:
        low.run()
    assert told.value.fix
    [kept] = recordings.all_recordings(ft)
    assert 0 < kept.answered < 30 and not kept.complete
    assert kept.usd is not None and 0 < kept.usd <= limit
    assert asked(sandbox) == kept.answered, "what was answered is kept, and nothing is asked beyond the limit"
    with PreparedRecording(ft, old.id, RecordOrder(sampling=SHORT)) as rest:
        assert rest.run().complete
    assert asked(sandbox) == 30


def test_two_recordings_at_once_on_one_home_pay_nothing_twice(
    ft: Orchestrator, old: RunHandle, sandbox: Sandbox, own_env: dict[str, str], tmp_path: Path
) -> None:
    def record(number: int) -> str:
        with (
            Orchestrator(config.load(env=own_env, cwd=tmp_path)) as own,
            PreparedRecording(own, old.id, RecordOrder(sampling=SHORT)) as prepared,
        ):
            try:
                return prepared.run().id
            except UsageError as error:
                assert "another command is already querying" in error.message
                return ""

    with ThreadPoolExecutor(2) as pool:
        ids = list(pool.map(record, range(2)))
    with PreparedRecording(ft, old.id, RecordOrder(sampling=SHORT)) as last:
        done = last.run()
    assert done.complete and set(ids) <= {done.id, ""}
    assert asked(sandbox) == 30


def test_the_calendar_says_what_to_record_by_when(ft: Orchestrator, old: RunHandle) -> None:
    [due] = recordings.calendar(ft, date(2027, 1, 4))
    assert (due.run_id, due.silent_on, due.days_left) == (old.id, date(2027, 1, 14), 10)
    assert due.no_new_jobs_after == date(2027, 1, 6)
    assert due.recorded == 0 and due.command == f"orchestrate record {old.id}"
    with PreparedRecording(ft, old.id, RecordOrder(sampling=SHORT)) as prepared:
        prepared.run()
    [due] = recordings.calendar(ft, date(2027, 1, 4))
    assert due.recorded == 30 and due.command is None
    assert recordings.calendar(ft, date(2027, 1, 15))[0].days_left == -1


def test_recorded_answers_become_rows_with_the_terms_told(
    ft: Orchestrator, old: RunHandle, tmp_path: Path
) -> None:
    with PreparedRecording(ft, old.id, RecordOrder(sampling=SHORT)) as prepared:
        done = prepared.run()
    found = recordings.from_record(ft, done.id[:8], tmp_path / "rows.jsonl")
    rows = Dataset.open(tmp_path / "rows.jsonl")
    assert found.rows == rows.rows == 30 and rows.format == "openai-chat"
    assert {example.messages[-1].text for example in rows.examples()} == {ANSWER}  # type: ignore[union-attr]
    assert any("compete" in line for line in found.terms)
    with pytest.raises(UsageError, match="unknown recording"):
        recordings.from_record(ft, "rec-nothing", tmp_path / "x.jsonl")


def test_a_model_that_is_no_run_is_recorded_by_its_address(ft: Orchestrator, tmp_path: Path) -> None:
    path = chat_rows(tmp_path / "log.jsonl", 0, 3)
    with chat_host() as host:
        host.writes = lambda number, body: f"answer {number}"
        name = f"{host.url}=old-model"
        with PreparedRecording(ft, name, RecordOrder(prompts=path, sampling=SHORT)) as prepared:
            done = prepared.run()
        assert all(body["logprobs"] for body in host.bodies) and done.answered == 3
    silent = Contenders(ft, SHORT, "auto").of_model(f"record:{done.id}")
    questions = silent.questions(held_out(Dataset.open(path)).items, 1)
    assert {a.text for a in silent.respondent.ask(questions)} == {f"answer {n}" for n in (1, 2, 3)}
    with pytest.raises(UsageError, match="choose the prompts"):
        PreparedRecording(ft, name, RecordOrder())


def test_a_recording_notes_what_an_evaluation_would_note(ft: Orchestrator, tmp_path: Path) -> None:
    path = chat_rows(tmp_path / "log.jsonl", 0, 3)
    cut = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "half an"}}
    usage = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "usage": usage}
    with chat_host() as host:
        host.writes = lambda number, body: {**answer, "choices": [cut]} if number == 1 else "whole"
        order = RecordOrder(prompts=path, sampling=SHORT)
        with PreparedRecording(ft, f"{host.url}=old-model", order) as prepared:
            done = prepared.run()
    [note] = done.notes
    assert "1 of 3 answers: cut off at the token limit" in note


LOGPROBS = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": 0}]}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (LOGPROBS, (-0.5, 0.0)),
        ({"tokens": ["a"], "token_logprobs": [-1.5]}, (-1.5,)),
        (None, None),
    ],
)
def test_log_probabilities_are_read_where_they_are_given(told: Any, found: Any) -> None:
    sent: list[dict[str, Any]] = []

    def create(**options: Any) -> dict[str, Any]:
        sent.append(options)
        return {"choices": [{"message": {"content": "ab"}, "logprobs": told}]}

    chat = Chat(Wire("host"), create, "m").with_logprobs()
    assert chat.ask([Message(role="user", content="hi")]).logprobs == found
    assert [options["logprobs"] for options in sent] == [True]


def test_a_host_that_takes_no_logprobs_is_asked_without() -> None:
    class Refused(Exception):
        status_code = 400

    def create(**options: Any) -> dict[str, Any]:
        if "logprobs" in options:
            raise Refused
        return {"choices": [{"message": {"content": "ab"}}]}

    assert (
        Chat(Wire("host"), create, "m").with_logprobs().ask([Message(role="user", content="hi")]).content
        == "ab"
    )
