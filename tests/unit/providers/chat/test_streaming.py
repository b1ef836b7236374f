"""A streamed answer is the answer that it is without a stream, and the first token has its time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from openai import OpenAI
from tests.http_server import Handler, serving

from orchestrate.errors import HostUnavailable, UnexpectedAnswer
from orchestrate.providers.calls.hosted import Retry, Wire
from orchestrate.providers.chat import Chat, Timed
from orchestrate.types import Message


def chunk(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q"'}}
SAID: dict[str, Sequence[dict[str, Any]]] = {
    "text": (chunk(role="assistant"), chunk(content="Hel"), chunk(content="lo")),
    "call": (chunk(tool_calls=[CALL]), chunk(tool_calls=[{"index": 0, "function": {"arguments": ': "a"}'}}])),
    "nothing": (chunk(role="assistant"),),
    "thinking": (chunk(content=" <thi"), chunk(content="nk>hm</think>"), chunk(content="yes")),
}
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}


@pytest.fixture
def host() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The model's name says what it writes; `old` knows no stream options, `cut` and `silent` end
    before the answer does."""
    bodies: list[dict[str, Any]] = []

    class Writer(Handler):
        def do_POST(self) -> None:
            body = json.loads(self.body())
            bodies.append(body)
            if body["model"] == "old" and "stream_options" in body:
                self.send_error(400)
                return
            self.send_response(200 if body["model"] != "down" else 503)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            if body["model"] == "down":
                return
            time.sleep(0.05)
            pieces = [*SAID.get(body["model"], SAID["text"]), END]
            if body["model"] in ("cut", "silent"):
                pieces = [*SAID["text"]] if body["model"] == "cut" else []
            for piece in [*pieces, *([USAGE] if "stream_options" in body else [])]:
                whole = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", **piece}
                self.wfile.write(f"data: {json.dumps(whole)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

    with serving(Writer) as url:
        yield f"{url}/v1", bodies


def asked(url: str, model: str) -> tuple[Chat, Timed]:
    client = OpenAI(base_url=url, api_key="a-key-of-tests", max_retries=0)
    timed = Timed(client.chat.completions.create)
    return Chat(Wire("host", retry=Retry(attempts=1)), timed, model), timed


QUESTION = [Message(role="user", content="Hi")]


def test_text_and_tokens(host: tuple[str, list[dict[str, Any]]]) -> None:
    chat, timed = asked(host[0], "text")
    started = time.monotonic()
    reply = chat.ask(QUESTION)
    assert (reply.content, reply.finish_reason, reply.model) == ("Hello", "stop", "m")
    assert (reply.prompt_tokens, reply.completion_tokens) == (5, 2)
    assert timed.first_seconds is not None and 0.04 < timed.first_seconds <= time.monotonic() - started


def test_a_host_without_stream_options_tells_no_tokens(host: tuple[str, list[dict[str, Any]]]) -> None:
    chat, timed = asked(host[0], "old")
    reply = chat.ask(QUESTION)
    assert reply.content == "Hello" and reply.prompt_tokens is None and timed.first_seconds is not None
    assert len(host[1]) == 2


def test_an_answer_without_text_has_no_first_token(host: tuple[str, list[dict[str, Any]]]) -> None:
    chat, timed = asked(host[0], "nothing")
    assert chat.ask(QUESTION).content == "" and timed.first_seconds is None


def test_calls_come_in_pieces(host: tuple[str, list[dict[str, Any]]]) -> None:
    answer = asked(host[0], "call")[1](model="call", messages=[{"role": "user", "content": "Hi"}])
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call == {"type": "function", "id": "c1", "function": {"name": "find", "arguments": '{"q": "a"}'}}


def test_a_host_that_is_down_is_one_without_a_stream_too(host: tuple[str, list[dict[str, Any]]]) -> None:
    with pytest.raises(HostUnavailable):
        asked(host[0], "down")[0].ask(QUESTION)


@pytest.mark.parametrize("model", ["cut", "silent"])
def test_a_stream_that_ends_early_is_no_answer(host: tuple[str, list[dict[str, Any]]], model: str) -> None:
    """Half an answer would be kept as the model's own, and never asked for again."""
    with pytest.raises(UnexpectedAnswer, match="the stream ended before the model had finished"):
        asked(host[0], model)[0].ask(QUESTION)


def test_an_answer_is_read_along_and_its_thinking_is_not(host: tuple[str, list[dict[str, Any]]]) -> None:
    def heard(model: str) -> tuple[list[str], str]:
        pieces: list[str] = []
        client = OpenAI(base_url=host[0], api_key="a-key-of-tests", max_retries=0)
        plain = Chat(Wire("host", retry=Retry(attempts=1)), client.chat.completions.create, model)
        return pieces, plain.read_along(pieces.append).ask(QUESTION).content

    assert heard("text") == (["Hel", "lo"], "Hello")
    assert heard("thinking") == ([], "yes")
    assert heard("nothing") == ([], "")


def test_an_answer_that_breaks_off_says_so(host: tuple[str, list[dict[str, Any]]]) -> None:
    pieces: list[str] = []
    client = OpenAI(base_url=host[0], api_key="a-key-of-tests", max_retries=0)
    chat = Chat(Wire("host", retry=Retry(attempts=1)), client.chat.completions.create, "cut")
    with pytest.raises(UnexpectedAnswer):
        chat.read_along(pieces.append).ask(QUESTION)
    assert pieces == ["Hel", "lo", "\n(the answer was cut off here)\n"]
