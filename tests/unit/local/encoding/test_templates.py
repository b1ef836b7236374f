"""Masks on published chat templates, as the installed TRL carries them (Apache-2.0, `trl/chat_templates`).

TRL's own copies for training mark what the assistant says by hand. They are the judge here of what is found
without marks, on templates that have none.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
from tests.paths import TINY

from orchestrate.data.rows import ChatExample, ChatMessage, FunctionCall, ToolCall
from orchestrate.local.encoding import SKIPS_THINKING, Encoded, Template, encode

CHATML = ["<|im_start|>", "<|im_end|>"]
LLAMA = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"]
GEMMA = ["<start_of_turn>", "<end_of_turn>"]
PHI = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"]

FAMILIES: dict[str, tuple[list[str], str]] = {
    "llama3": (LLAMA, "<|eot_id|>"),
    "qwen2_5": (CHATML, "<|im_end|>"),
    "qwen3": (CHATML, "<|im_end|>"),
    "qwen3_instruct_2507": (CHATML, "<|im_end|>"),
    "gemma": (GEMMA, "<end_of_turn>"),
    "gemma3": (GEMMA, "<end_of_turn>"),
    "phi3": (PHI, "<|end|>"),
    "phi3_5": (PHI, "<|end|>"),
    "lfm2": ([*CHATML, "<|startoftext|>"], "<|im_end|>"),
}
"""Its special tokens, and the one that ends a turn."""

TALK = [
    ChatMessage(role="user", content="First?"),
    ChatMessage(role="assistant", content="One answer"),
    ChatMessage(role="user", content="Second?"),
    ChatMessage(role="assistant", content="Two answers"),
]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def template(name: str, special: list[str], end: str) -> Template:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(TINY, local_files_only=True)
    tokenizer.add_tokens([*special, "<bos>"], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = "<bos>", end
    tokenizer.chat_template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return Template(tokenizer)


def trained(encoded: Encoded, of: Template) -> str:
    return of.tokenizer.decode([i for i, w in zip(encoded.ids, encoded.weights, strict=True) if w])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_and_the_ends_of_their_turns_are_trained(family: str) -> None:
    special, end = FAMILIES[family]
    of = template(family, special, end)
    assert not of.chats.marked
    encoded = encode(ChatExample(messages=TALK), of)
    text = trained(encoded, of)
    assert "First?" not in text and "Second?" not in text and not text.startswith(tuple(special))
    answers = [part.strip() for part in text.split(end)]
    assert answers[0] == "One answer" and answers[1].endswith("Two answers") and answers[2:] in ([], [""])
    assert encoded.notes == (SKIPS_THINKING,) * ("<think>" in text)
    messages = [{"role": m.role, "content": m.text} for m in TALK]
    rendered = of.tokenizer.apply_chat_template(messages, tokenize=False)
    assert encoded.ids == of.tokenizer(rendered, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "qwen3_instruct_2507"])
def test_marks_made_by_hand_find_the_same_tokens(family: str) -> None:
    if not (files("trl") / "chat_templates" / f"{family}_training.jinja").is_file():
        pytest.fail(f"TRL no longer carries marks for {family}")
    special, end = FAMILIES[family]
    ours = encode(ChatExample(messages=TALK), template(family, special, end))
    marked = template(f"{family}_training", special, end)
    assert marked.chats.marked
    talk = TALK
    if family == "qwen3":  # TRL's copy keeps the thoughts that the original drops from earlier turns
        talk = TALK[2:]
        ours = encode(ChatExample(messages=talk), template(family, special, end))
    theirs = encode(ChatExample(messages=talk), marked)
    assert ours.ids == theirs.ids
    # Some of the marks take in the line feeds that the template writes around an answer, and Phi's the token
    # with which it closes the whole conversation.
    apart = [i for i, w in enumerate(theirs.weights) if w != ours.weights[i]]
    if family.startswith("phi"):
        assert apart[-1] == len(ours.ids) - 1 and ours.ids[apart.pop()] == marked.tokenizer.eos_token_id
    assert {marked.tokenizer.decode(ours.ids[i]) for i in apart} <= {"\n"}
    assert all(theirs.weights[i] for i in apart)
    # What begins the next turn is nobody's answer, however far the marks reach.
    assert not any(theirs.weights[i] for i in opening(theirs.ids, marked, special[0]))


def opening(ids: list[int], of: Template, token: str) -> list[int]:
    wanted = of.tokenizer.convert_tokens_to_ids(token)
    return [i for i, found in enumerate(ids) if found == wanted]


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_messages_reach_their_tokens(family: str) -> None:
    special, end = FAMILIES[family]
    of = template(family, special, end)
    first = ChatMessage(role="assistant", content="One answer", weight=0.0)
    last = ChatMessage(role="assistant", content="Two answers", weight=0.5)
    encoded = encode(ChatExample(messages=[TALK[0], first, TALK[2], last]), of)
    assert set(encoded.weights) == {0.0, 0.5}
    text = trained(encoded, of)
    assert "One answer" not in text and text.endswith(end) and "Two answers" in text


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_calls_of_tools_are_trained_and_their_results_are_not(family: str) -> None:
    of = template(family, *FAMILIES[family])
    call = ToolCall(id="1", function=FunctionCall(name="weather", arguments='{"city": "Rome"}'))
    row = ChatExample(
        messages=[
            ChatMessage(role="user", content="Weather?"),
            ChatMessage(role="assistant", content="", tool_calls=[call]),
            ChatMessage(role="tool", content="sunny in the ROMAN result", tool_call_id="1"),
            ChatMessage(role="assistant", content="Sunny."),
        ],
        tools=TOOLS,
    )
    encoded = encode(row, of)
    text = trained(encoded, of)
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>' in text
    assert text.endswith("Sunny.<|im_end|>")
    assert "ROMAN" not in text and "Of a city" not in text
    assert "Of a city" in of.tokenizer.decode(encoded.ids)
    assert not any("tools" in note for note in encoded.notes)


def test_a_thought_is_trained_where_the_template_shows_it() -> None:
    of = template("qwen3", *FAMILIES["qwen3"])
    answer = ChatMessage(role="assistant", content="Four.", reasoning="Two and two.")
    encoded = encode(ChatExample(messages=[TALK[0], answer]), of)
    assert trained(encoded, of) == "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>"
    assert encoded.notes == ()
