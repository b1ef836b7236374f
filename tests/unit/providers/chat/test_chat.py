"""What a host's chat answer says, in the SDKs' own types: its fields for thinking and calls where it fills
them, else what its text says."""

from __future__ import annotations

from typing import Any

import fireworks.types.chat
import httpx
import openai.types.chat
import pytest
import together.types.chat

from orchestrate.errors import InvalidRequest, UnexpectedAnswer
from orchestrate.providers.calls.clients import completions
from orchestrate.providers.calls.hosted import Retry, Wire
from orchestrate.providers.chat import Chat
from orchestrate.settings import Secret
from orchestrate.settings.hosts import HostConfig
from orchestrate.types import Message, Reply

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
WRITTEN = '<tool_call>{"name": "look", "arguments": {"at": "x"}}</tool_call>'
READ = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}


def ask(sdk: Any, message: dict[str, Any], finish: str = "stop", **options: Any) -> Reply:
    answer = sdk.model_validate(
        {
            "id": "a",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            **({"prompt": []} if "prompt" in sdk.model_fields else {}),
        }
    )
    chat = Chat(Wire("any", retry=Retry(attempts=1)), lambda **_: answer, "m", **options)
    return chat.ask([Message(role="user", content="hi")])


@pytest.mark.parametrize(("key", "patience_s"), [("sandbox-key", 600.0), ("a-key-of-tests", 60.0)])
def test_a_sandbox_has_time_to_bring_its_model_up(key: str, patience_s: float) -> None:
    """By what the SDK tells its HTTP library of each request."""
    waits: list[float] = []

    class Client(openai.OpenAI):
        def _prepare_request(self, request: Any) -> None:
            waits.append(request.extensions["timeout"]["read"])
            raise KeyboardInterrupt  # nothing is sent

    config = HostConfig(name="openai", base_url="http://127.0.0.1:9/v1", api_key=Secret(key))
    create = completions(Client(base_url=config.base_url, api_key=key, timeout=config.timeout_s), config)
    with pytest.raises(KeyboardInterrupt):
        create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert waits == [patience_s]


OPENAI = openai.types.chat.ChatCompletion
TOGETHER = together.types.chat.ChatCompletion
FIREWORKS = fireworks.types.chat.CompletionCreateResponse


@pytest.mark.parametrize(
    ("sdk", "message", "expected"),
    [
        (OPENAI, {"content": "blue"}, ("blue", None, ())),
        (OPENAI, {"content": None, "tool_calls": [CALL]}, ("", None, (CALL,))),
        (TOGETHER, {"content": "blue", "reasoning": "hm"}, ("blue", "hm", ())),
        (TOGETHER, {"content": "blue", "reasoning_content": "hm"}, ("blue", "hm", ())),
        (FIREWORKS, {"content": "blue", "reasoning_content": "hm"}, ("blue", "hm", ())),
        (TOGETHER, {"content": "<think>\nhm\n</think>\n\nblue"}, ("blue", "hm", ())),
        (FIREWORKS, {"content": "<think>\n\n</think>\n\nblue"}, ("blue", None, ())),
        (FIREWORKS, {"content": f"Look.\n{WRITTEN}"}, ("Look.", None, (READ,))),
        (TOGETHER, {"content": WRITTEN, "reasoning": "hm"}, ("", "hm", (READ,))),
        (
            TOGETHER,
            {"content": "<think>as it is</think>", "reasoning": "hm"},
            ("<think>as it is</think>", "hm", ()),
        ),
    ],
)
def test_thinking_and_calls_are_apart(sdk: Any, message: dict[str, Any], expected: tuple[Any, ...]) -> None:
    reply = ask(sdk, message)
    shown = tuple({k: call[k] for k in ("id", "type", "function")} for call in reply.tool_calls)
    assert (reply.content, reply.reasoning, shown) == expected
    assert reply.notes == ()


def test_an_answer_that_was_cut_while_it_thought_says_so() -> None:
    for message in ({"content": "<think>\nhm"}, {"content": None, "reasoning_content": "hm"}):
        reply = ask(FIREWORKS, message, finish="length")
        assert (reply.content, reply.reasoning, reply.finish_reason) == ("", "hm", "length")
        assert reply.notes == ("cut off during reasoning, before the answer",)
    assert ask(FIREWORKS, {"content": "bl"}, finish="length").notes == ()


def test_a_text_that_may_hold_rows_keeps_the_calls_in_them() -> None:
    """As data that a model is asked to write."""
    row = '{"messages": [{"role": "assistant", "content": "<function=look></function>"}]}'
    assert ask(OPENAI, {"content": f"<think>hm</think>{row}"}, calls=False).content == row


def refusing(*refuses: str) -> tuple[Any, list[dict[str, Any]]]:
    """As OpenAI's reasoning models answer, through its SDK's own error class."""
    seen: list[dict[str, Any]] = []

    def create(**sent: Any) -> Any:
        seen.append(sent)
        for name in refuses:
            if name in sent:
                code = "unsupported_value" if name == "temperature" else "unsupported_parameter"
                body = {"message": f"no {name}", "type": "invalid_request_error", "param": name, "code": code}
                request = httpx.Request("POST", "https://models.example/v1/chat/completions")
                response: Any = httpx.Response(400, request=request, json={"error": body})
                raise openai.BadRequestError("no", response=response, body=body)
        return {"choices": [{"message": {"content": "blue"}, "finish_reason": "stop"}]}

    return create, seen


def test_what_a_model_does_not_take_is_left_out_told_and_remembered() -> None:
    create, seen = refusing("temperature", "max_tokens")
    options = {"max_tokens": 9, "temperature": 0.0}
    chat = Chat(Wire("any", retry=Retry(attempts=1)), create, "m", options)
    first, second = chat.replies([[Message(role="user", content="hi")]] * 2)
    assert first.content == second.content == "blue"
    assert {"temperature", "max_tokens"} <= set(" ".join(first.notes).replace(",", " ").split())
    assert seen[-1].keys() == {"model", "messages", "max_completion_tokens"}
    before = len(seen)
    assert chat.ask([Message(role="user", content="again")]).notes == first.notes
    assert len(seen) == before + 1 and seen[-1]["max_completion_tokens"] == 9


@pytest.mark.parametrize("refuses", [("max_tokens", "max_completion_tokens"), ("model",)])
def test_what_cannot_be_left_out_is_an_error(refuses: tuple[str, ...]) -> None:
    create, seen = refusing(*refuses)
    chat = Chat(Wire("any", retry=Retry(attempts=1)), create, "m", {"max_tokens": 9})
    with pytest.raises(InvalidRequest) as caught:
        chat.ask([Message(role="user", content="hi")])
    assert caught.value.param == refuses[-1] and len(seen) == len(refuses)


def test_a_model_that_takes_all_is_asked_once_with_all_of_it() -> None:
    create, seen = refusing()
    chat = Chat(Wire("any"), create, "m", {"max_tokens": 9, "temperature": 0.0})
    assert chat.ask([Message(role="user", content="hi")]).notes == ()
    assert [(s["max_tokens"], s["temperature"]) for s in seen] == [(9, 0.0)]


def test_an_answer_200_that_is_an_error_is_none() -> None:
    """As a router answers when the model behind it fails: kept as an empty answer it would count as wrong."""
    failed = {"finish_reason": "error", "error": {"code": 502, "message": "behind it"}, "message": {}}
    chat = Chat(Wire("any", retry=Retry(attempts=1)), lambda **_: {"choices": [failed]}, "m")
    with pytest.raises(UnexpectedAnswer, match="behind it"):
        chat.ask([Message(role="user", content="hi")])
