"""Answers taken apart: what each chat template renders is read back, in agreement with the parsers of TRL and
transformers (Apache-2.0), and nothing of any text is lost."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data.tokens.templates import PUBLISHED, each
from tests.unit.data.tokens.test_turns import KINDS, REFUSED, conversations

from orchestrate.data.rows import ChatMessage, FunctionCall, ToolCall
from orchestrate.data.tokens.answers import CODE, AnswerShape, ReadAnswer, read_answer, shape_of
from orchestrate.data.tokens.calls import CODE_MARK, taken_out
from orchestrate.data.tokens.turns import Conversations
from orchestrate.errors import DataError


@cache
def chats_of(name: str) -> Conversations:
    return conversations(PUBLISHED[name])


@cache
def shape_by(name: str) -> AnswerShape:
    return shape_of(chats_of(name))


GIVEN: dict[str, Any] = {
    "city": 'New "York"\nand more',
    "days": 3,
    "share": 2.5,
    "sure": True,
    "none": None,
    "zip": "75001",
    "tags": ["a", "b"],
    "deep": {"k": [1, {"z": "ü"}]},
    "code": "if a < b and c > d: print('{x}') </x>",
}
TYPES = {
    "city": "string", "days": "integer", "share": "number", "sure": "boolean", "none": "null",
    "zip": "string", "tags": "array", "deep": "object", "code": "string",
}  # fmt: skip
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Does something.",
            "parameters": {
                "type": "object",
                "properties": {k: {"type": t, "description": "One."} for k, t in types.items()},
            },
        },
    }
    for name, types in (("plan", TYPES), ("ping", {}))
]


def calls(*made: tuple[str, dict[str, Any]]) -> list[ToolCall]:
    return [
        ToolCall(id=f"call_{n}", function=FunctionCall(name=name, arguments=json.dumps(arguments)))
        for n, (name, arguments) in enumerate(made)
    ]


def shown(answer: ReadAnswer) -> tuple[str, str | None, list[tuple[str, Any]]]:
    return answer.content, answer.reasoning, made(answer.tool_calls)


def made(of: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in of or ()]


def written(name: str, messages: list[ChatMessage], tools: Any) -> list[tuple[int, str, str]]:
    """The text of each answer as the model has to write it, less the token that ends it, and its prompt."""
    chats, ends = chats_of(name), shape_by(name).ends
    found = chats.rendered(messages, tools)
    out: list[tuple[int, str, str]] = []
    places = [i for i, m in enumerate(messages) if m.role == "assistant"]
    for i, turn in zip(places, found.turns, strict=True):
        text = "".join(found.text[start:end] for start, end in turn.spans).rstrip()
        last = max((end for end in ends if text.endswith(end)), key=len, default="")
        out.append((i, text.removesuffix(last), chats.prompt(messages[:i], tools)))
    return out


@pytest.mark.parametrize("name", each(PUBLISHED))
def test_what_a_template_renders_is_read_back(name: str) -> None:
    """Over all kinds of conversations; what the template leaves out of an answer is not in it."""
    for kind, (messages, tools) in KINDS.items():
        if (name.removesuffix("_training"), kind) in REFUSED:
            continue
        for i, text, prompt in written(name, messages, tools):
            said = messages[i]
            inline = re.fullmatch(r"<think>\n(\w+)\n</think>\n\n(\w+)", said.text)
            thought, content = (inline[1], inline[2]) if inline else (said.reasoning, said.text)
            wanted = [one for one in made(said.tool_calls) if one[1]["city"] in text]
            expected = (
                content if content in text else "",
                thought if thought and thought in text else None,
                wanted,
            )
            assert shown(read_answer(text, prompt=prompt, shape=shape_by(name), tools=tools)) == expected, (
                kind,
                text,
            )


NOT_READ = {
    name: "a text is written between quotes that are not escaped in it"
    for name in ("lfm2_2_5", "lfm2_2_5_v2")
}
ONE_A_TURN = ("gptoss",)
"""Shows the first call of a turn alone."""
NO_CALLS = {
    "cohere", "cohere2", "deepseek_r1_distill", "gemma", "gemma3", "idefics3", "lfm2", "llama3", "llava_next",
    "phi3", "phi3_5", "qwen2_5_vl", "smolvlm",
}  # fmt: skip
"""Templates that show no calls."""


@pytest.mark.parametrize("name", each(PUBLISHED))
def test_arguments_of_every_type_are_read_back(name: str) -> None:
    base = name.removesuffix("_training")
    for wanted in ([("plan", GIVEN)], [("ping", {})], [("ping", {}), ("plan", {"city": "x", "days": 1})]):
        messages = [
            ChatMessage(role="user", content="u0hi"),
            ChatMessage(role="assistant", content="", tool_calls=calls(*wanted)),
        ]
        try:
            [(_, text, prompt)] = written(name, messages, TOOLS)
        except DataError:
            assert (
                base in ("llama3_1", "llama3_2") and len(wanted) == 2
            )  # one call a turn, they say themselves
            continue
        assert ("ping" in text or "plan" in text) is (base not in NO_CALLS)
        if base in NO_CALLS:
            continue
        answer = read_answer(text, prompt=prompt, shape=shape_by(name), tools=TOOLS)
        if base in NOT_READ and wanted[0][0] == "plan":
            assert "New" in answer.content and not answer.tool_calls  # nothing is lost
        else:
            assert shown(answer) == ("", None, wanted[:1] if base in ONE_A_TURN else wanted)


APART = ("an empty answer", "thinking in the text")
"""Theirs reads the token at the end as the answer, or knows no thinking but in the template's own marks."""


def judged(name: str) -> Any:
    """TRL's own way of reading what a template writes, where it has one."""
    from trl.chat_template_utils import add_response_schema

    class Holder:
        chat_template = PUBLISHED[name]
        response_template: Any = None

    try:
        return add_response_schema(Holder()).response_template  # type: ignore[type-var]
    except ValueError:
        return None


@pytest.mark.parametrize("name", each(n for n in PUBLISHED if not n.endswith("_training")))
def test_answers_are_read_as_trl_and_transformers_do(name: str) -> None:
    from transformers.utils.chat_parsing import parse_response

    template = judged(name)
    if template is None:
        assert name in NO_CALLS | {"chatml", "deepseekv3", "diffusion_gemma", "muse_glimmer"}
        return
    compared = 0
    for kind, (messages, tools) in KINDS.items():
        if (name, kind) in REFUSED or kind in APART or (tools and name in NO_CALLS):
            continue
        for i in [i for i, m in enumerate(messages) if m.role == "assistant"]:
            *_, (_, text, prompt) = written(name, messages[: i + 1], tools)
            whole = chats_of(name).rendered(messages[: i + 1], tools).text
            if not whole.startswith(prompt + text):
                continue  # the template writes earlier answers otherwise than it asks for new ones
            theirs = parse_response(whole[len(prompt) :], template, prefix=prompt, tools=cast("Any", tools))
            thought = theirs.get("reasoning_content") or theirs.get("thinking")
            called = [
                (c["function"]["name"], c["function"]["arguments"]) for c in theirs.get("tool_calls") or ()
            ]
            content = (theirs.get("content") or "").strip()
            mine = read_answer(text, prompt=prompt, shape=shape_by(name), tools=tools)
            assert shown(mine) == (content, (thought or "").strip() or None, called), (kind, i, text)
            compared += 1
    if name == "deepseek_r1_distill":  # whose template shows no thinking
        theirs = parse_response("hm</think>\n\nblue", template, prefix="<｜Assistant｜><think>\n")
        assert (theirs["content"], theirs["reasoning_content"]) == ("blue", "hm")
        assert read_answer("hm</think>\n\nblue", prompt="<｜Assistant｜><think>\n") == ReadAnswer(
            "blue", "hm"
        )
    else:
        assert compared >= 4


ONE = [("look", {"at": "x", "n": 2})]
TWO = [*ONE, ("ping", {})]
FAMILIES: dict[str, tuple[str, list[tuple[str, Any]]]] = {
    "Hermes": (
        '<tool_call>\n{"name": "look", "arguments": {"at": "x", "n": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>',
        TWO,
    ),
    "Hermes, arguments as text": (
        '<tool_call>{"name": "look", "arguments": "{\\"at\\": \\"x\\", \\"n\\": 2}"}</tool_call>',
        ONE,
    ),
    "Hermes, its end in a value": (
        '<tool_call>{"name": "look", "arguments": {"at": "</tool_call>"}}</tool_call>',
        [("look", {"at": "</tool_call>"})],
    ),
    "Hermes, the end not written": ('<tool_call>{"name": "look", "arguments": {"at": "x", "n": 2}}', ONE),
    "Qwen3-Coder": (
        "<tool_call>\n<function=look>\n<parameter=at>\nx\n</parameter>\n<parameter=n>\n2\n</parameter>\n"
        "</function>\n</tool_call>",
        ONE,
    ),
    "Qwen3-Coder without a block": (
        "<function=look>\n<parameter=at>\nx\n</parameter>\n<parameter=n>\n2\n</parameter>\n</function>",
        ONE,
    ),
    "Seed": (
        "<seed:tool_call>\n<function=look>\n<parameter=at>x</parameter>\n<parameter=n>2</parameter>\n</function>\n"
        "</seed:tool_call>",
        ONE,
    ),
    "GLM": (
        "<tool_call>look\n<arg_key>at</arg_key>\n<arg_value>x</arg_value>\n<arg_key>n</arg_key>\n"
        "<arg_value>2</arg_value>\n</tool_call>\n<tool_call>ping\n</tool_call>",
        TWO,
    ),
    "Mistral": ('[TOOL_CALLS][{"name": "look", "arguments": {"at": "x", "n": 2}, "id": "abcdefgh1"}]', ONE),
    "Mistral 11": (
        '[TOOL_CALLS]look[CALL_ID]abcdefgh1[ARGS]{"at": "x", "n": 2}'
        "[TOOL_CALLS]ping[CALL_ID]abcdefgh2[ARGS]{}",
        TWO,
    ),
    "Mistral 13": ('[TOOL_CALLS]look[ARGS]{"at": "x", "n": 2}[TOOL_CALLS]ping[ARGS]{}', TWO),
    "Llama 3": ('{"name": "look", "parameters": {"at": "x", "n": 2}}', ONE),
    "Llama 3, several": (
        '<|python_tag|>{"name": "look", "parameters": {"at": "x", "n": 2}}; '
        '{"name": "ping", "parameters": {}}',
        TWO,
    ),
    "Llama 3, built in": ('<|python_tag|>brave_search.call(query="x")', [("brave_search", {"query": "x"})]),
    "Llama 3, own": ('<function=look>{"at": "x", "n": 2}</function>', ONE),
    "Llama 4": ('<|python_start|>[look(at="x", n=2), ping()]<|python_end|>', TWO),
    "Llama 4, bare": ('[look(at="x", n=2), ping()]', TWO),
    "DeepSeek 3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n"
        '{"at": "x", "n": 2}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\n{}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        TWO,
    ),
    "DeepSeek 3.1": (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>look<｜tool▁sep｜>{"at": "x", "n": 2}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>ping<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        TWO,
    ),
    "DeepSeek 3.2": (
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="look">\n<｜DSML｜parameter name="at" string="true">x'
        "</｜DSML｜parameter>\n"
        '<｜DSML｜parameter name="n" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        ONE,
    ),
    "Gemma 4": (
        '<|tool_call>call:look{at:<|"|>x<|"|>,n:2}<tool_call|><|tool_call>call:ping{}<tool_call|>',
        TWO,
    ),
    "FunctionGemma": ("<start_function_call>call:look{at:<escape>x<escape>,n:2}<end_function_call>", ONE),
    "Command R7B": (
        "<|START_ACTION|>[\n    "
        '{"tool_call_id": "0", "tool_name": "look", "parameters": {"at": "x", "n": 2}}\n]'
        "<|END_ACTION|>",
        ONE,
    ),
    "Command R": (
        'Action: ```json\n[\n{"tool_name": "look", "parameters": {"at": "x", "n": 2}}\n]```',
        ONE,
    ),
    "gpt-oss": (
        '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"at": "x", "n": 2}<|call|>',
        ONE,
    ),
    "gpt-oss, as rendered": (
        ' to=functions.look<|channel|>commentary json<|message|>{"at": "x", "n": 2}',
        ONE,
    ),
    "Kimi": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>"
        '{"at": "x", "n": 2}<|tool_call_end|>'
        "<|tool_call_begin|>functions.ping:1<|tool_call_argument_begin|>{}"
        "<|tool_call_end|><|tool_calls_section_end|>",
        TWO,
    ),
    "MiniMax M1": (
        '<tool_calls>\n{"name": "look", "arguments": {"at": "x", "n": 2}}\n'
        '{"name": "ping", "arguments": {}}\n'
        "</tool_calls>",
        TWO,
    ),
    "MiniMax M2": (
        '<minimax:tool_call>\n<invoke name="look">\n<parameter name="at">x</parameter>\n<parameter name="n">2'
        '</parameter>\n</invoke>\n<invoke name="ping">\n</invoke>\n</minimax:tool_call>',
        TWO,
    ),
    "Phi-4-mini": ('<|tool_call|>[{"name": "look", "arguments": {"at": "x", "n": 2}}]<|/tool_call|>', ONE),
    "Phi-4-mini, functools": ('functools[{"name": "look", "arguments": {"at": "x", "n": 2}}]', ONE),
    "Granite 3": ('<|tool_call|>[{"name": "look", "arguments": {"at": "x", "n": 2}}]', ONE),
    "LFM2": ("<|tool_call_start|>[look(at='x', n=2), ping()]<|tool_call_end|>", TWO),
    "OLMo 3": ("<function_calls>look(at='x', n=2)\nping()</function_calls>", TWO),
    "Nemotron 2": ('<TOOLCALL>[{"name": "look", "arguments": {"at": "x", "n": 2}}]</TOOLCALL>', ONE),
    "Apertus": ('<|tools_prefix|>[{"look": {"at": "x", "n": 2}}, {"ping": {}}]<|tools_suffix|>', TWO),
    "InternLM": (
        '<|action_start|><|plugin|>{"name": "look", "parameters": {"at": "x", "n": 2}}<|action_end|>',
        ONE,
    ),
}
OFFERED: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": fields}}}
    for name, fields in (("look", {"at": {"type": "string"}, "n": {"type": "integer"}}), ("ping", {}))
]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_familys_calls_are_read(family: str) -> None:
    text, wanted = FAMILIES[family]
    assert shown(read_answer(text, tools=OFFERED)) == ("", None, wanted)


def test_ids_that_are_written_are_kept() -> None:
    found = {family: [c.id for c in read_answer(FAMILIES[family][0]).tool_calls] for family in FAMILIES}
    assert found["Mistral 11"] == ["abcdefgh1", "abcdefgh2"]
    assert found["Kimi"] == ["functions.look:0", "functions.ping:1"]
    assert found["Command R7B"] == ["0"]
    assert found["Hermes"] == ["call_0", "call_1"]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "look", "arguments": {"at": }</tool_call>',
        "<tool_call>what I would call</tool_call>",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": "look", "arguments": NaN}</tool_call>',
        "[TOOL_CALLS] is how it begins",
        "<|tool_call_start|>[look('x')]<|tool_call_end|>",
        "<|python_tag|>print(1) or x",
        "<function=look><parameter=at>x</function>",
        "Use <think> to think, and <tool_call> to call.",
        '{"name": "Ana", "arguments": {"n": 1}}',
        '[{"name": "Ana"}]',
        "[" * 5000,
        "<tool_call>" * 500,
    ],
)
def test_what_cannot_be_read_stays_the_answer(text: str) -> None:
    assert shown(read_answer(text, tools=OFFERED)) == (text, None, [])


INTERPRETER = {"type": "function", "function": {"name": "code_interpreter", "parameters": {}}}


@pytest.mark.parametrize("code", ["print(1) or x", "x = 1\nprint(x)", "df.head(n=2)", '{"a": 1}'])
def test_llamas_code_is_a_call_where_an_interpreter_is_offered_and_told_where_none_is(code: str) -> None:
    text = f"<|python_tag|>{code}"
    said = read_answer(text, tools=[*OFFERED, INTERPRETER], shape=AnswerShape(special=frozenset({CODE_MARK})))
    assert shown(said) == ("", None, [("code_interpreter", {"code": code})]) and said.notes == ()
    look = '<|python_tag|>{"name": "look", "parameters": {"at": "x", "n": 2}}'
    assert made(read_answer(look, tools=[*OFFERED, INTERPRETER]).tool_calls) == ONE
    if "head" not in code:  # which is read as a call of another built-in tool
        told = read_answer(text, tools=OFFERED, shape=AnswerShape(special=frozenset({CODE_MARK})))
        assert shown(told) == (code, None, []) and told.notes == (CODE,)


def test_bare_calls_are_of_tools_that_were_offered() -> None:
    """An order as JSON is an answer, whatever its fields are called."""
    text = FAMILIES["Llama 3"][0]
    assert shown(read_answer(text)) == (text, None, [])
    assert made(read_answer(text, tools=OFFERED).tool_calls) == ONE


def test_values_without_quotes_are_of_the_type_that_the_tool_says() -> None:
    text = "<tool_call>look\n<arg_key>at</arg_key>\n<arg_value>75001</arg_value>\n</tool_call>"
    assert made(read_answer(text, tools=OFFERED).tool_calls) == [("look", {"at": "75001"})]
    assert made(read_answer(text).tool_calls) == [("look", {"at": 75001})]


@pytest.mark.parametrize(
    ("text", "prompt", "cut", "expected"),
    [
        ("<think>\n\n</think>\n\nblue", "", False, ("blue", None)),
        ("<think>\nhm\n</think>\n\nblue", "", False, ("blue", "hm")),
        ("[THINK]hm[/THINK]blue", "", False, ("blue", "hm")),
        ("<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>a<|END_RESPONSE|>", "", False, ("a", "hm")),
        ("<|channel>thought\nhm\n<channel|>blue", "", False, ("blue", "hm")),
        ("<seed:think>hm</seed:think>blue", "", False, ("blue", "hm")),
        # The prompt opened it.
        ("hm\n</think>\n\nblue", "...assistant\n<think>\n", False, ("blue", "hm")),
        ("<think>hm</think>blue", "...assistant\n<think>\n", False, ("blue", "hm")),
        ("hm</think>blue", "", False, ("blue", "hm")),
        # It was opened and closed, or answered at once.
        ("blue", "...assistant\n<think>\n\n</think>\n\n", False, ("blue", None)),
        ("blue", "...assistant\n<think>\n", False, ("blue", None)),
        # Cut within it: nothing was answered yet.
        ("<think>\nhm", "", True, ("", "hm")),
        ("hm", "...assistant\n<think>\n", True, ("", "hm")),
        ("<think>hm</think>bl", "", True, ("bl", "hm")),
        ("<|channel|>analysis<|message|>hm", "<|start|>assistant", True, ("", "hm")),
        ("hm", "<|start|>assistant<|channel|>analysis<|message|>", True, ("", "hm")),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|chan",
            "<|start|>assistant",
            True,
            ("", "hm"),
        ),
        # Channels.
        (
            "<|channel|>analysis<|message|>TTT1<|end|><|start|>assistant<|channel|>final<|message|>AAA1",
            "<|start|>assistant",
            False,
            ("AAA1", "TTT1"),
        ),
        (
            "<|channel|>final<|message|>blue<|end|><|start|>user<|message|>and then?<|end|>",
            "<|start|>user<|message|>hi<|end|><|start|>assistant",
            True,
            ("blue", None),
        ),
        ("blue", "<|start|>assistant<|channel|>final<|message|>", False, ("blue", None)),
    ],
)  # fmt: skip
def test_thinking_by_hand(text: str, prompt: str, cut: bool, expected: tuple[str, str | None]) -> None:
    special = frozenset({"<|START_RESPONSE|>", "<|END_RESPONSE|>"})
    answer = read_answer(text, prompt=prompt, shape=AnswerShape(special=special), cut=cut)
    assert (answer.content, answer.reasoning) == expected


def test_a_call_that_was_cut_is_no_call() -> None:
    text = '<tool_call>{"name": "look", "arguments": {"at": "x"'
    assert shown(read_answer(text, cut=True)) == (text, None, [])
    assert shown(read_answer("[TOOL_CALLS]look[ARGS]{}", cut=True))[2] == []


UNKNOWN = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{% if m.role == 'assistant' and m.reasoning_content %}"
    "{{ '<musing>' + m.reasoning_content + '</musing>\n<reply>' }}"
    "{% elif m.role == 'assistant' %}{{ '<reply>' }}"
    "{% endif %}{{ m.content }}{% if m.role == 'assistant' %}{{ '</reply>' }}{% endif %}"
    "{{ '<|stop|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def test_marks_that_nobody_knows_are_learnt_from_the_template() -> None:
    marks = frozenset({"<|user|>", "<|assistant|>", "<|stop|>"})
    shape = shape_of(Conversations(UNKNOWN, {}, marks))
    assert shape.ends == {"<|stop|>"}
    text = "<musing>hm</musing>\n<reply>blue</reply>"
    assert read_answer(text, shape=shape) == ReadAnswer("blue", "hm")
    assert read_answer("<reply>blue</reply>", shape=shape) == ReadAnswer("blue")
    assert read_answer(text).content == text


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("gptoss", {"<|return|>", "<|call|>"}),
        ("glm4moe", {"<|user|>", "<|observation|>"}),
        ("gemma4", {"<turn|>", "<|tool_response>"}),
        ("qwen3", {"<|im_end|>"}),
        ("llama3_1", {"<|eot_id|>", "<|eom_id|>"}),
        ("lfm2_2_5", {"<|im_end|>"}),
        ("deepseekv3", {"<｜end▁of▁sentence｜>"}),
        ("muse_glimmer", {"<|eot|>"}),
    ],
)
def test_what_ends_an_answer(name: str, ends: set[str]) -> None:
    """By hand: the token behind answers and behind calls, and none that stands within an answer, as
    gpt-oss's `<|end|>` does."""
    assert shape_by(name).ends == ends
    assert shape_by(name).others == ({"<|start|>user<|message|>"} if name == "gptoss" else set())


PIECES = st.sampled_from(
    [
        "<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>",
        "<function=", "</function>",
        "[TOOL_CALLS]", "{", "}", '{"name": "look", "arguments": {}}', "<|channel|>analysis<|message|>",
        "<|channel|>final<|message|>", "<|start|>assistant", "call:look{}", "<arg_key>", "\n",
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.one_of(PIECES, st.integers(0, 999).map("w{} ".format)), max_size=12),
    prompt=st.sampled_from(["", "<think>\n", "<|start|>assistant"]),
    cut=st.booleans(),
)
def test_no_word_is_lost(pieces: list[str], prompt: str, cut: bool) -> None:
    """Whatever marks stand around them, in whatever order."""
    text = "".join(pieces)
    answer = read_answer(text, prompt=prompt, tools=OFFERED, cut=cut)
    told = answer.content + (answer.reasoning or "") + str(answer.tool_calls)
    headers = re.sub(r"<\|start\|>[^<]*(<\|channel\|>|$)", " ", text)  # words within a header are none
    assert set(re.findall(r"w\d+", headers)) <= set(re.findall(r"w\d+", told))


@settings(max_examples=100, deadline=None)
@given(
    thought=st.text(st.characters(exclude_categories=("Cs",)), max_size=30),
    said=st.text(st.characters(exclude_categories=("Cs",)), max_size=30),
    name=st.sampled_from(["qwen3", "gptoss", "glm4moe", "chatml", "qwen3_5_think"]),
)
def test_any_words_are_read_back(thought: str, said: str, name: str) -> None:
    if any(mark in thought + said for mark in "<>[]{}"):
        return
    thought, said = thought.strip(), said.strip()
    messages = [
        ChatMessage(role="user", content="u0hi"),
        ChatMessage(role="assistant", content=said, reasoning=thought or None),
    ]
    [(_, text, prompt)] = written(name, messages, None)
    answer = read_answer(text, prompt=prompt, shape=shape_by(name))
    assert answer.content == said
    assert answer.reasoning == (thought or None) or thought not in text


def test_calls_among_words_leave_the_words() -> None:
    text = 'I look.\n<tool_call>{"name": "look", "arguments": {}}</tool_call>\nAnd wait.'
    rest, found = taken_out(text)
    assert rest == "I look.\n\nAnd wait." and made(found) == [("look", {})]


@pytest.mark.parametrize("family", [*FAMILIES, "thinking", "words"])
def test_what_is_told_of_a_growing_answer_stays(family: str) -> None:
    """Each beginning of a text tells a beginning of what all of it does."""
    text = {
        "thinking": "<think>\nhm\n</think>\n\nblue < [red] and so on",
        "words": "Use <b> and [x] here.",
    }.get(family, "") or FAMILIES[family][0]
    begun = (
        "Words before it.\n" if family in ("Hermes", "GLM", "Mistral", "Kimi", "LFM2", "DeepSeek 3") else ""
    )
    prompt = "<|start|>assistant" if family.startswith("gpt-oss") else ""
    whole = read_answer(begun + text, prompt=prompt, tools=OFFERED)
    for end in range(len(begun + text)):
        told = read_answer((begun + text)[:end], prompt=prompt, tools=OFFERED, growing=True)
        assert whole.content.startswith(told.content) and not told.tool_calls
