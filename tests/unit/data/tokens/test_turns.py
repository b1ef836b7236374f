"""Whose words are trained, over every chat template that the installed TRL carries (Apache-2.0) and kinds of
conversations, each message with a word of its own by which it is known."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data.tokens.replicas import REPLICAS
from tests.unit.data.tokens.templates import PUBLISHED, each

from orchestrate.data.rows import ChatMessage, FunctionCall, ToolCall
from orchestrate.data.tokens.answers import read_answer
from orchestrate.data.tokens.turns import APART, Conversations
from orchestrate.errors import DataError

TEMPLATES = PUBLISHED | REPLICAS
MARKS = re.compile(
    r"<SPECIAL_\d+>|<seed:\w+>|\]~!?b\[?\]?|\[e~\[|<[|\uff5c][^<>\s'\"{}|\uff5c]+[|\uff5c]?>|<\w+[|\uff5c]>|<(?:start|end)_of_\w+>|</?s>|\[/?[A-Z_]{3,20}\]"
)
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
WORD = re.compile(r"[uastrc](\d)[a-z]+\b")
"""A word of message N: `u2three` is the user's third."""


def said(role: Any, content: str, *cities: str, reasoning: str | None = None) -> ChatMessage:
    calls = [
        ToolCall(id=f"call_{n}", function=FunctionCall(name="weather", arguments=f'{{"city": "{city}"}}'))
        for n, city in enumerate(cities, 1)
    ]
    id = "call_1" if role == "tool" else None
    return ChatMessage(
        role=role, content=content, tool_calls=calls or None, reasoning=reasoning, tool_call_id=id
    )


TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Of a place.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "?"}}},
        },
    }
]
Talk = tuple[list[ChatMessage], list[dict[str, Any]] | None]


def talk(*messages: ChatMessage, tools: list[dict[str, Any]] | None = None) -> Talk:
    return list(messages), tools


ASK, MORE, RAIN = said("user", "u0one"), said("user", "u2x"), said("tool", "t2rain")
KINDS: dict[str, Talk] = {
    "plain": talk(ASK, said("assistant", "a1two")),
    "multi": talk(ASK, said("assistant", "a1two"), MORE, said("assistant", "a3four")),
    "system": talk(
        said("system", "s0be"),
        said("user", "u1x"),
        said("assistant", "a2y"),
        said("user", "u3one"),
        said("assistant", "a4two"),
    ),
    "thinking": talk(
        ASK,
        said("assistant", "a1two", reasoning="r1why"),
        MORE,
        said("assistant", "a3four", reasoning="r3hmm"),
    ),
    "thinking in the text": talk(
        ASK,
        said("assistant", "<think>\nr1why\n</think>\n\na1two"),
        MORE,
        said("assistant", "<think>\nr3hmm\n</think>\n\na3y"),
    ),
    "tools": talk(ASK, said("assistant", "", "c1paris"), RAIN, said("assistant", "a3four"), tools=TOOLS),
    "tools and talk": talk(
        ASK,
        said("assistant", "a1lead", "c1paris"),
        RAIN,
        said("assistant", "a3four"),
        said("user", "u4x"),
        said("assistant", "a5y"),
        tools=TOOLS,
    ),
    "two calls": talk(
        ASK,
        said("assistant", "", "c1paris", "c1rome"),
        RAIN,
        said("tool", "t3sun"),
        said("assistant", "a4four"),
        tools=TOOLS,
    ),
    "tools and thinking": talk(
        ASK,
        said("assistant", "", "c1paris", reasoning="r1why"),
        RAIN,
        said("assistant", "a3four", reasoning="r3hmm"),
        tools=TOOLS,
    ),
    "an empty answer": talk(ASK, said("assistant", ""), MORE, said("assistant", "a3y")),
}
ONE_CALL = ("llama3_1", "llama3_2")
NO_TOOL_ROLE = ("gemma", "gemma3", "cohere", "cohere2", "llava_next")
REFUSED = (
    {(name, "two calls") for name in ONE_CALL}
    | {
        (name, kind)
        for name in NO_TOOL_ROLE
        for kind in ("tools", "tools and talk", "two calls", "tools and thinking")
    }
    | {("gemma", "system"), ("ministral-3", "an empty answer")}
)
"""What these templates themselves refuse, by `raise_exception`."""


def conversations(template: object) -> Conversations:
    return Conversations(template, NAMES, frozenset(MARKS.findall(str(template))) | {"<s>", "</s>"})


@pytest.mark.parametrize("kind", KINDS)  # varies first, so that a template is compiled once for all kinds
@pytest.mark.parametrize("name", each(TEMPLATES))
def test_a_span_has_its_own_messages_words_and_no_other_ones(name: str, kind: str) -> None:
    messages, tools = KINDS[kind]
    if (name.removesuffix("_training"), kind) in REFUSED:
        with pytest.raises(DataError, match="chat template rejected"):
            conversations(TEMPLATES[name]).rendered(messages, tools)
        return
    found = conversations(TEMPLATES[name]).rendered(messages, tools)
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    assert len(found.turns) == len(answers)
    for i, turn in zip(answers, found.turns, strict=True):
        text = "".join(found.text[start:end] for start, end in turn.spans)
        assert {int(n) for n in WORD.findall(text)} <= {i}
        for call in messages[i].tool_calls or ():
            city = call.function.arguments.split('"')[3]
            assert city in text or city not in found.text
        if WORD.search(messages[i].text):
            assert WORD.findall(messages[i].text)[-1] in WORD.findall(text)
        last = found.unended and i == answers[-1]
        assert turn.ends or last or "precedes" in " ".join(found.notes(has_end=True)), (text, found.text)


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "deepseekv3", "glm4moe", "gemma4", "chatml"])
def test_an_answer_begins_where_the_generation_prompt_ends(name: str) -> None:
    chats = conversations(TEMPLATES[name])
    messages, tools = KINDS["tools"]
    found = chats.rendered(messages, tools)
    for i, turn in zip((1, 3), found.turns, strict=True):
        prompt = chats.prompt(messages[:i], tools)
        whole = found.text.startswith(prompt) and turn.spans[0][0] == len(prompt)
        assert whole or any(note.startswith(APART) for note in found.notes(has_end=True))


@pytest.mark.parametrize("name", each(TEMPLATES))
def test_an_answer_that_begins_a_conversation_is_trained_as_after_a_question(name: str) -> None:
    chats, system = conversations(TEMPLATES[name]), said("system", "s0be")
    answers = (said("assistant", " a1two"), said("assistant", "<tool_call>a1two"))
    for before, answer in product(([], [system]), (*answers, said("assistant", "a1two", reasoning="r1why"))):
        row = [answer, MORE, said("assistant", "a3four")]
        try:
            first, asked = chats.rendered([*before, *row]), chats.rendered([*before, ASK, *row])
        except DataError:
            continue  # not every template takes such a conversation
        texts = ["".join(one.text[start:end] for start, end in one.turns[0].spans) for one in (first, asked)]
        assert texts[0] == texts[1]


BY_HAND = {
    ("qwen3", "plain"): ["<think>\n\n</think>\n\na1two<|im_end|>"],
    ("qwen3", "tools"): [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "c1paris"}}\n</tool_call><|im_end|>',
        "<think>\n\n</think>\n\na3four<|im_end|>",
    ],
    ("gptoss", "tools"): [
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": "c1paris"}<|call|>',
        "<|channel|>final<|message|>a3four<|return|>",
    ],
    ("gptoss", "thinking"): [
        "<|channel|>final<|message|>a1two<|end|>",
        "<|channel|>analysis<|message|>r3hmm<|end|><|start|>assistant<|channel|>final<|message|>a3four<|return|>",
    ],
    ("glm4moe", "multi"): ["\n<think></think>\na1two<|user|>", "\n<think></think>\na3four"],
    ("gemma4", "tools"): [
        '<|tool_call>call:weather{city:<|"|>c1paris<|"|>}<tool_call|><|tool_response>',
        "a3four<turn|>",
    ],
    ("apertus", "tools"): [
        '<|tools_prefix|>[{"weather": {"city": "c1paris"}}]<|tools_suffix|>',
        "a3four<|assistant_end|>",
    ],
    ("command-r7b", "tools"): [
        '<|START_THINKING|><|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": '
        '"weather", "parameters": {"city": "c1paris"}}\n]<|END_ACTION|><|END_OF_TURN_TOKEN|>',
        "<|START_RESPONSE|>a3four<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    ],
    ("minimax-m2", "tools and thinking"): [
        "r1why\n</think>\n\n\n<minimax:tool_call>\n"
        '<invoke name="weather"><parameter name="city">c1paris</parameter></invoke>\n'
        "</minimax:tool_call>[e~[",
        "r3hmm\n</think>\n\na3four[e~[",
    ],
    ("deepseekv3", "an empty answer"): ["<｜end▁of▁sentence｜>", "a3y<｜end▁of▁sentence｜>"],
    ("hermes-3", "tools"): [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "c1paris"}}\n</tool_call><|im_end|>',
        "a3four<|im_end|>",
    ],
    ("command-r-plus", "tools"): [
        '\nAction: ```json\n[{"tool_name": "weather", "parameters": {"city": "c1paris"}}]```'
        "<|END_OF_TURN_TOKEN|>",
        "a3four<|END_OF_TURN_TOKEN|>",
    ],
    ("command-r-plus", "multi"): ["a1two<|END_OF_TURN_TOKEN|>", "a3four<|END_OF_TURN_TOKEN|>"],
    ("gemma4", "tools and talk"): [
        '<|tool_call>call:weather{city:<|"|>c1paris<|"|>}<tool_call|><|tool_response>a1lead<turn|>',
        "a3four<turn|>",
        "a5y<turn|>",
    ],
    ("chatml", "tools"): [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "c1paris"}}\n</tool_call><|im_end|>',
        "a3four<|im_end|>",
    ],
}


@pytest.mark.parametrize(("name", "kind"), BY_HAND)
def test_spans_judged_by_hand(name: str, kind: str) -> None:
    found = conversations(TEMPLATES[name]).rendered(*KINDS[kind])
    assert ["".join(found.text[a:b] for a, b in turn.spans) for turn in found.turns] == BY_HAND[name, kind]


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"n": 3},
    {"x": -2.5, "on": True},
    {"off": False, "nothing": None},
    {"ns": [1, 2], "none": []},
    {"of": {"n": 1}},
    {"n": 12345678901, "city": "Paris", "on": True},
    {"empty": ""},
]
"""Of calls: each kind of value that JSON has, and none."""
TYPES = {int: "integer", float: "number", bool: "boolean", list: "array", dict: "object", str: "string"}
NOT_READ = ("olmo", "seed-oss")
"""They write values as Python does."""
NO_CALLS = (
    "deepseek_r1_distill", "idefics3", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl", "smolvlm",
)  # fmt: skip
"""They show no calls."""
NO_TEXT = ("gptoss", "hermes-3", "llama3_1", "llama3_2", "muse_glimmer")
"""They show no text beside a call."""


def rows_with_a_call(arguments: dict[str, Any], name: str = "get_page") -> dict[str, list[ChatMessage]]:
    call = ToolCall(id="call_1", function=FunctionCall(name=name, arguments=json.dumps(arguments)))

    def calling(content: str, reasoning: str | None = None) -> ChatMessage:
        return ChatMessage(role="assistant", content=content, tool_calls=[call], reasoning=reasoning)

    rain, four = RAIN, said("assistant", "a3four")
    return {
        "the call alone": [ASK, calling(""), rain, four],
        "an empty line": [ASK, calling(" "), rain, four],
        "text": [ASK, calling("a1lead"), rain, four],
        "thinking": [ASK, calling("", "r1why"), rain, four],
        "more follows": [ASK, calling(""), rain, four, said("user", "u4x"), said("assistant", "a5y")],
        "a call again": [
            ASK,
            calling(""),
            rain,
            calling(""),
            said("tool", "t4sun"),
            said("assistant", "a5y"),
        ],
        "last": [ASK, calling("")],
    }


def offered(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    properties = {name: {"type": TYPES.get(type(value), "null")} for name, value in arguments.items()}
    described = {name: {**of, "description": "?"} for name, of in properties.items()}
    parameters = {"type": "object", "properties": described}
    of = {"name": "get_page", "description": "Of a book.", "parameters": parameters}
    return [{"type": "function", "function": of}]


@pytest.mark.parametrize("name", each(TEMPLATES))
def test_a_call_is_trained_whatever_its_arguments_are(name: str) -> None:
    """The judge reads the trained text back as a call, and compares."""
    family = name.removesuffix("_training")
    if family in NO_TOOL_ROLE:
        return
    chats = conversations(TEMPLATES[name])
    for arguments in ARGUMENTS:
        tools = offered(arguments)
        for kind, messages in rows_with_a_call(arguments).items():
            found = chats.rendered(messages, tools)
            notes = found.notes(has_end=True)
            lost_text = "the chat template drops the text next to a tool call" in notes
            assert lost_text == (family in NO_TEXT and kind == "text"), (kind, notes)
            assert ("the chat template drops a tool call" in notes) == (family in NO_CALLS), (
                kind,
                notes,
            )
            assert family in NO_CALLS or "no special token" not in " ".join(notes), (kind, notes)
            answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
            for i, turn in zip(answers, found.turns, strict=True):
                text = "".join(found.text[start:end] for start, end in turn.spans)
                assert {int(n) for n in WORD.findall(text)} <= {i}, (kind, text)
                assert turn.ends or (found.unended and i == answers[-1]), (kind, text)
                if messages[i].tool_calls and family not in NO_CALLS:
                    assert reads_back(text, chats, arguments, tools, family), (kind, text, found.text)


def reads_back(
    text: str, chats: Conversations, arguments: dict[str, Any], tools: list[dict[str, Any]], family: str
) -> bool:
    if family in NOT_READ:
        return "get_page" in text and text.endswith(tuple(mark for mark in chats.special if mark))
    end = max((mark for mark in chats.special if mark and text.endswith(mark)), key=len, default="")
    opening = "<|start|>assistant" if "<|message|>" in text else ""
    text = text.replace("\n<｜tool▁call▁begin｜>", "\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", 1)
    calls = read_answer(text.removesuffix(end), prompt=opening, tools=tools).tool_calls
    return [(c.function.name, json.loads(c.function.arguments)) for c in calls] == [("get_page", arguments)]


def test_two_calls_of_which_a_template_shows_one_are_told() -> None:
    messages, tools = KINDS["two calls"]
    same = [messages[0], said("assistant", "", "c1paris", "c1paris"), *messages[2:]]
    for row in (messages, same):
        told = conversations(TEMPLATES["gptoss"]).rendered(row, tools).notes(has_end=True)
        assert "the chat template drops a tool call" in told
        assert not conversations(TEMPLATES["qwen3"]).rendered(row, tools).notes(has_end=True)


def test_names_and_reasoning_of_questions_that_a_template_drops_are_told() -> None:
    ask = ChatMessage(role="user", content="Is Ann so sure?", name="Ann", reasoning="sure")
    row = [ask, ChatMessage(role="assistant", content="Yes.")]
    name, thought = (
        "the chat template drops the name of a message with the role user",
        "the chat template drops the reasoning of a user message",
    )
    assert {name, thought} <= {*conversations(TEMPLATES["qwen3"]).rendered(row).notes(has_end=True)}
    shown = (
        "{% for m in messages %}{{ m.name }} {{ m.reasoning_content }} {{ m.content }}<|im_end|>{% endfor %}"
    )
    told = conversations(shown).rendered(row).notes(has_end=True)
    assert not {name, thought} & {*told}
    # The name of a result's function is in the call.
    called = [ToolCall(id="c", function=FunctionCall(name="look", arguments="{}"))]
    result = ChatMessage(role="tool", content="here", tool_call_id="c", name="look")
    row = [row[0], ChatMessage(role="assistant", tool_calls=called), result, row[1]]
    assert not any(
        "role tool" in n for n in conversations(TEMPLATES["qwen3"]).rendered(row).notes(has_end=True)
    )


def test_a_row_is_taken_whatever_ids_the_row_before_it_had() -> None:
    """As Mistral's templates do, this one asks for ids of nine letters and digits."""
    chats = conversations(
        "{% for m in messages %}{% for call in m.tool_calls or [] %}{% if call.id | length != 9 %}"
        "{{ raise_exception('ids have nine characters') }}{% endif %}{{ call.function | tojson }}{% endfor %}"
        "{{ m.content }}</s>{% endfor %}"
    )
    messages, tools = KINDS["tools"]
    [call] = messages[1].tool_calls or []
    nine = ToolCall(id="abcdefgh1", function=call.function)
    fitting = [messages[0], ChatMessage(role="assistant", content="", tool_calls=[nine]), *messages[2:]]
    texts = {chats.rendered(row, tools).text for row in (fitting, messages)}
    assert len(texts) == 1


def test_the_template_for_tools_is_taken_when_there_are_tools() -> None:
    named = {"default": "{{ 'plain' }}", "tool_use": "{{ 'with tools' }}"}
    chats = conversations(named)
    assert chats.rendered(KINDS["plain"][0]).text == "plain"
    assert chats.rendered(*KINDS["tools"]).text == "with tools"


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=40), min_size=4, max_size=4),
    name=st.sampled_from(["qwen3", "llama3_1", "gemma3", "deepseekv3", "gptoss", "phi3", "lfm2"]),
)
def test_any_words_are_found_where_they_stand(texts: list[str], name: str) -> None:
    """Whatever is said: a span lies in the text behind the turns before it, and holds what was said."""
    roles: list[Any] = ["user", "assistant", "user", "assistant"]
    messages = [ChatMessage(role=role, content=text) for role, text in zip(roles, texts, strict=True)]
    found = conversations(TEMPLATES[name]).rendered(messages)
    ends = 0
    for message, turn in zip(messages[1::2], found.turns, strict=True):
        if not turn.spans:
            continue
        assert ends <= turn.spans[0][0] <= turn.spans[-1][1] <= len(found.text)
        ends = turn.spans[-1][1]
        if "think" not in message.text:  # which some templates take out
            said = found.text[turn.spans[0][0] : ends]
            assert message.text.strip() in said or message.text.strip() not in found.text
