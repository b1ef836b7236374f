"""What a row has beside its plain text is read, or told: nothing of it is lost in silence."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrate.data import Dataset
from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    Example,
    PreferenceExample,
    RLExample,
    UnpairedExample,
)


def opened(tmp_path: Path, *rows: dict[str, Any]) -> Dataset:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Dataset.open(file)


def one(data: Dataset) -> Example:
    (example,) = data.examples()
    return example


def chat(*said: tuple[str, str]) -> ChatExample:
    return ChatExample(messages=[ChatMessage(role=role, content=text) for role, text in said])  # type: ignore[arg-type]


def told(data: Dataset) -> list[tuple[str, str | None]]:
    return [(p.code, p.field) for p in data.problems]


USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
ASKED, SAID = ("user", "Why?"), ("assistant", "Because.")
SYSTEM = ("system", "Answer briefly.")


# -- cells of tables


def table(tmp_path: Path, row: dict[str, Any]) -> Dataset:
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as opened:
        out = csv.DictWriter(opened, row)
        out.writeheader()
        out.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    return Dataset.open(file)


def test_cells_of_prompts_and_completions_may_be_messages(tmp_path: Path) -> None:
    pair = one(
        table(tmp_path, {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER | {"content": "No."}]})
    )
    assert isinstance(pair, PreferenceExample) and pair.prompt == chat(ASKED).messages
    assert one(table(tmp_path, {"prompt": [USER], "completion": [ANSWER]})) == chat(ASKED, SAID)
    labelled = one(table(tmp_path, {"prompt": [USER], "completion": [ANSWER], "label": "true"}))
    assert isinstance(labelled, UnpairedExample) and labelled.completion == chat(SAID).messages
    graded = one(table(tmp_path, {"prompt": [USER], "solution": "2"}))
    assert graded == RLExample(messages=chat(ASKED).messages, fields={"solution": "2"})


def test_a_list_that_is_no_message_stays_a_prompt(tmp_path: Path) -> None:
    for prompt in ("[1, 2]", '[{"role": "admin"}]', "[]"):
        data = table(tmp_path, {"prompt": prompt, "completion": '{"role": "user", "content": "x"}'})
        assert data.format == "prompt-completion" and data.problems == ()


def test_a_history_is_read_from_a_table(tmp_path: Path) -> None:
    row = {"instruction": "Why?", "output": "Because.", "history": [["Hi", "Hello"]]}
    turns = chat(("user", "Hi"), ("assistant", "Hello"), ASKED, SAID)
    assert one(table(tmp_path, row)) == turns
    assert one(table(tmp_path, row | {"history": ""})) == chat(ASKED, SAID)


@pytest.mark.parametrize("history", ['[["Hi", "Hello"]]', {"Hi": "Hello"}, 5])
def test_a_history_that_is_no_list_is_told(tmp_path: Path, history: object) -> None:
    data = opened(tmp_path, {"instruction": "Why?", "output": "Because.", "history": history})
    assert told(data) == [("bad-message", "history")] and data.rows == 0


# -- turns and inputs


def turns(tmp_path: Path, **beside: object) -> Dataset:
    answers = [{"from": "gpt", "value": "A draft"} | beside, {"from": "human", "value": "Better?"}]
    row = [{"from": "human", "value": "Why?"}, *answers, {"from": "gpt", "value": "Because."}]
    return opened(tmp_path, {"conversations": row})


@pytest.mark.parametrize(
    ("beside", "read"),
    [
        ({"loss": False}, {"weight": 0}),
        ({"train": False}, {"weight": 0}),
        ({"train": True}, {}),
        ({"weight": 0, "loss": False}, {"weight": 0}),
        ({"weight": 1, "train": True}, {"weight": 1}),
        ({"thinking": "Hm"}, {"reasoning": "Hm"}),
        ({"reasoning_content": "Hm"}, {"reasoning": "Hm"}),
        ({"name": "Bob"}, {"name": "Bob"}),
    ],
)
def test_what_a_turn_has_beside_its_text_is_read(
    tmp_path: Path, beside: dict[str, object], read: dict[str, Any]
) -> None:
    data = turns(tmp_path, **beside)
    example = one(data)
    assert isinstance(example, ChatExample) and data.problems == ()
    assert example.messages[1] == ChatMessage(role="assistant", content="A draft", **read)


@pytest.mark.parametrize("weight", ["0", True, [0]])
def test_a_weight_of_a_turn_that_is_no_number_is_an_error(tmp_path: Path, weight: object) -> None:
    data = turns(tmp_path, weight=weight)
    assert told(data) == [("bad-weight", "conversations[1].weight")] and data.rows == 0


def test_unknown_keys_of_turns_are_told(tmp_path: Path) -> None:
    data = turns(tmp_path, mood="glad", note=None, tone="low")
    (found,) = data.problems
    assert (found.code, found.field) == ("extra-fields", "conversations[1]")
    assert found.message == "unused: mood, tone"
    assert told(turns(tmp_path, thinking=["Hm"])) == [("lost-meaning", "conversations[1]")]


def test_flags_of_chat_messages_are_read(tmp_path: Path) -> None:
    row = {"messages": [USER | {"loss": False}, ANSWER | {"loss": False}, USER, ANSWER | {"train": True}]}
    data = opened(tmp_path, row)
    example = one(data)
    assert isinstance(example, ChatExample) and data.problems == ()
    assert [m.weight for m in example.messages] == [None, 0, None, None]
    assert told(opened(tmp_path, {"messages": [USER | {"train": True}, ANSWER]})) == [
        ("lost-meaning", "messages[0].train")
    ]


NOTHING = [{"begin_offset": 0, "end_offset": 6, "train": False}]
SOME = [{"begin_offset": 0, "end_offset": 1, "train": True}]


@pytest.mark.parametrize(
    ("beside", "names"),
    [
        ({"weight": 1, "train": False}, ("weight", "train")),
        ({"weight": 0, "train": True}, ("train", "weight")),
        ({"weight": 1, "loss": False}, ("weight", "loss")),
        ({"weight": 1, "loss_weight": 0}, ("weight", "loss_weight")),
        ({"train": True, "loss": False}, ("train", "loss")),
        ({"weight": 1, "train_detail": NOTHING}, ("weight", "train_detail")),
        ({"weight": 0, "train_detail": SOME}, ("train_detail", "weight")),
    ],
)
def test_settings_of_the_loss_that_contradict_each_other_are_an_error(
    tmp_path: Path, beside: dict[str, object], names: tuple[str, str]
) -> None:
    said = f"{names[0]} marks the message for training, but {names[1]} excludes it"
    chatted = opened(tmp_path, {"messages": [USER, ANSWER, USER, ANSWER | beside]})
    assert [p.message for p in chatted.problems] == [said] and chatted.rows == 0
    turned = turns(tmp_path, **beside)
    assert [p.message for p in turned.problems] == [said] and turned.rows == 0


def parts(tmp_path: Path, *given: Mapping[str, object], **beside: object) -> Dataset:
    answer = {"role": "assistant", "content": [*given]} | beside
    return opened(tmp_path, {"messages": [USER, ANSWER, USER, answer]})


SAYS = {"type": "text", "text": "Because."}
THINKS = {"type": "thinking", "thinking": "Hm"}
CALLS = {"type": "tool_use", "id": "c", "name": "look", "input": {}}


def test_flags_of_text_parts_that_contradict_the_weight_are_an_error(tmp_path: Path) -> None:
    left_out = parts(tmp_path, SAYS | {"train": False}, weight=1)
    assert told(left_out) == [("bad-weight", "messages[3]")] and left_out.rows == 0
    taken = parts(tmp_path, SAYS | {"train": True}, SAYS, weight=0, train=False)
    assert told(taken) == [("bad-weight", "messages[3]")]
    assert told(parts(tmp_path, SAYS | {"train": False}, weight=0)) == []
    some = one(parts(tmp_path, SAYS | {"train": True}, SAYS, loss=False))
    assert isinstance(some, ChatExample) and some.messages[3].loss_spans == [(0, 8)]


@pytest.mark.parametrize("part", [THINKS, CALLS])
def test_flags_of_parts_that_have_no_effect_are_told(tmp_path: Path, part: dict[str, object]) -> None:
    for flag, texts in ((False, [SAYS]), (True, [SAYS | {"train": False}, SAYS]), (False, [SAYS, SAYS])):
        data = parts(tmp_path, part | {"train": flag}, *texts)
        assert ("lost-meaning", "messages[3]") in told(data) and data.rows == 0
    for flag in (True, False):  # all parts say the same
        data = parts(tmp_path, part | {"train": flag}, SAYS | {"train": flag})
        assert "lost-meaning" not in {code for code, _ in told(data)}


def test_flags_of_images_in_a_question_are_told_if_they_train(tmp_path: Path) -> None:
    for flag, codes in ((True, ["lost-meaning"]), (False, [])):
        image = {"type": "image_url", "image_url": {"url": "https://a.b/c.png"}, "train": flag}
        data = opened(tmp_path, {"messages": [{"role": "user", "content": [SAYS, image]}, ANSWER]})
        assert [code for code, _ in told(data)] == codes


CALLED = 'I look. <tool_call>{"name": "look", "arguments": {}}</tool_call>'


def test_parts_of_a_text_with_calls_are_not_trained(tmp_path: Path) -> None:
    turn = {"from": "gpt", "value": CALLED, "train_detail": SOME}
    data = opened(tmp_path, {"conversations": [{"from": "human", "value": "Why?"}, turn]})
    assert ("bad-weight", "conversations[1].train_detail") in told(data) and data.rows == 0
    whole = [{"begin_offset": 0, "end_offset": len(CALLED) - 1, "train": True}]
    turn |= {"train_detail": whole}
    assert opened(tmp_path, {"conversations": [{"from": "human", "value": "Why?"}, turn]}).rows == 1
    for beside in ({"loss_spans": [[0, 1]]}, {"train_detail": SOME}):
        answer = {"role": "assistant", "content": CALLED} | beside
        data = opened(tmp_path, {"messages": [USER, answer, {"role": "tool", "content": "here"}, ANSWER]})
        assert ("bad-weight", "messages[1].loss_spans") in told(data) and data.rows == 0


def test_both_spellings_of_a_call_must_be_equal(tmp_path: Path) -> None:
    old = {"name": "look", "arguments": '{"at":1}'}
    new = [{"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}]
    answer = {"role": "assistant", "content": None, "tool_calls": new, "function_call": old}
    result = {"role": "tool", "tool_call_id": "c", "content": "here"}
    data = opened(tmp_path, {"messages": [USER, answer, result, ANSWER]})
    example = one(data)
    assert isinstance(example, ChatExample) and [c.id for c in example.messages[1].tool_calls or ()] == ["c"]
    for other in (old | {"name": "find"}, old | {"arguments": "{}"}):
        data = opened(tmp_path, {"messages": [USER, answer | {"function_call": other}, result, ANSWER]})
        assert ("bad-tool-call", "messages[1].function_call") in told(data) and data.rows == 0


def test_unknown_keys_of_an_input_are_told(tmp_path: Path) -> None:
    given = {"messages": [USER], "tool_choice": "none", "metadata": {}, "parallel_tool_calls": "true"}
    bad = ANSWER | {"content": "No."}
    data = opened(tmp_path, {"input": given, "preferred_output": [ANSWER], "non_preferred_output": [bad]})
    messages = [(p.field, p.message) for p in data.problems]
    assert messages == [
        ("input", "unused: metadata, tool_choice"),
        ("input", "parallel_tool_calls is ignored because it is neither true nor false"),
    ]
    chatted = opened(tmp_path, {"messages": [USER, ANSWER], "parallel_tool_calls": "true"})
    assert told(chatted) == [("extra-fields", None)]


# -- the system text, and the context of a question


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"messages": [{"role": "system", "content": SYSTEM[1]}, USER, ANSWER]},
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": [USER], "completion": [ANSWER]},
        {"question": "Why?", "answer": "Because."},
        {"instruction": "Why?", "output": "Because."},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
    ],
)
def test_a_system_column_is_read_once(tmp_path: Path, row: dict[str, Any]) -> None:
    data = opened(tmp_path, row | {"system": SYSTEM[1]})
    assert one(data) == chat(SYSTEM, ASKED, SAID) and data.problems == ()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"question": "Why?", "chosen": "Because.", "rejected": "No."},
        {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER | {"content": "No."}]},
        {"prompt": "Why?", "completion": "Because.", "label": True},
    ],
)
def test_a_system_column_is_read_beside_judged_answers(tmp_path: Path, row: dict[str, Any]) -> None:
    data = opened(tmp_path, row | {"system": SYSTEM[1]})
    example = one(data)
    assert isinstance(example, PreferenceExample | UnpairedExample) and data.problems == ()
    assert example.prompt == chat(SYSTEM, ASKED).messages


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"messages": [USER, ANSWER]},
        {"instruction": "Why?", "output": "Because."},
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    ],
)
def test_a_system_column_that_is_no_text_is_an_error(tmp_path: Path, row: dict[str, Any]) -> None:
    data = opened(tmp_path, row | {"system": ["Answer", "briefly."]})
    assert told(data) == [("bad-content", "system")] and data.rows == 0


def test_rows_without_a_system_text_are_read_beside_those_with_one(tmp_path: Path) -> None:
    pair = {"prompt": "Why?", "completion": "Because."}
    data = opened(tmp_path, pair | {"system": SYSTEM[1]}, pair | {"system": SYSTEM[1]}, pair)
    assert data.format == "prompt-completion-system" and data.problems == ()
    assert list(data.examples())[1:] == [chat(SYSTEM, ASKED, SAID), chat(ASKED, SAID)]
    assert opened(tmp_path, pair | {"system": ""}).format == "prompt-completion"


def test_a_question_is_asked_about_its_context(tmp_path: Path) -> None:
    asked = ("user", "It rained.\n\nWhy?")
    row = {"context": "It rained.", "question": "Why?"}
    assert one(opened(tmp_path, row | {"answer": "Because."})) == chat(asked, SAID)
    pair = one(opened(tmp_path, row | {"chosen": "Because.", "rejected": "No."}))
    assert isinstance(pair, PreferenceExample) and pair.prompt == chat(asked).messages
    odd = opened(tmp_path, {"context": {"title": ["Rain"]}, "question": "Why?", "answer": "Because."})
    assert told(odd) == [("bad-content", "context")]


@pytest.mark.parametrize("name", ["context", "input", "instruction"])
def test_an_unread_part_of_the_prompt_is_an_error(tmp_path: Path, name: str) -> None:
    row = {"prompt": "Text: It rained. Why?", "completion": "Because."}
    data = opened(tmp_path, row | {name: "It snowed."})
    assert told(data) == [("unused-prompt", name), ("unread-column", name)] and data.rows == 0
    for harmless in ("It rained.", "", None):
        assert opened(tmp_path, row | {name: harmless}).rows == 1


# -- Anthropic's transcripts


def test_what_stands_before_a_transcript_is_its_system_text(tmp_path: Path) -> None:
    start = "Answer briefly.\n\nHuman: Why?\n\nAssistant:"
    example = one(opened(tmp_path, {"chosen": f"{start} Because.", "rejected": f"{start} No."}))
    assert isinstance(example, PreferenceExample) and example.prompt == chat(SYSTEM, ASKED).messages


def test_a_transcript_may_stand_beside_its_answers(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    expected = chat(("user", "Hi"), ("assistant", "Hello"), ASKED).messages
    for before in ("", start):
        row = {"prompt": start, "chosen": f"{before} Because.", "rejected": f"{before} No."}
        data = opened(tmp_path, row)
        example = one(data)
        assert data.format == "anthropic-hh" and isinstance(example, PreferenceExample)
        assert example.prompt == expected and example.preferred == chat(SAID).messages


# -- what takes the place of something else


PAIR: dict[str, Any] = {"prompt": "Why?", "completion": "Because."}
CALLS: dict[str, Any] = {"name": "look", "args": {"at": 1}, "id": "c"}


def langchain(**answer: object) -> dict[str, Any]:
    said = {"type": "ai", "content": "So.", **answer}
    return {"inputs": {"messages": [{"type": "human", "content": "Why?"}]}, "outputs": {"messages": [said]}}


def gemini(*parts: dict[str, Any]) -> dict[str, Any]:
    turns = [
        ("user", [{"text": "Why?"}]),
        ("model", [{"functionCall": {"name": "look", "args": {}}}]),
        ("user", [*parts]),
        ("model", [{"text": "Because."}]),
    ]
    return {"contents": [{"role": role, "parts": said} for role, said in turns]}


def bedrock(*blocks: dict[str, Any]) -> dict[str, Any]:
    turns = [("user", [{"text": "Why?"}]), ("assistant", [*blocks, {"text": "Because."}])]
    said = [{"role": role, "content": content} for role, content in turns]
    return {"schemaVersion": "bedrock-conversation-2024", "messages": said}


def reasoned(text: object) -> dict[str, Any]:
    return {"reasoningContent": {"reasoningText": text}}


RESULT = {"functionResponse": {"name": "look", "response": {"result": "here"}}}
DECLARED = {"name": "look", "parametersJsonSchema": {"type": "object"}}
THOUGHT = [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Because."}]


def test_text_beside_a_result_is_read(tmp_path: Path) -> None:
    example = one(opened(tmp_path, gemini(RESULT, {"text": "And now?"})))
    assert isinstance(example, ChatExample)
    assert [(m.role, m.text) for m in example.messages[2:]] == [
        ("tool", "here"),
        ("user", "And now?"),
        SAID,
    ]


def test_all_reasoning_of_an_answer_is_read(tmp_path: Path) -> None:
    example = one(opened(tmp_path, bedrock(reasoned({"text": "Hm"}), reasoned({"text": "Oh"}))))
    assert isinstance(example, ChatExample) and example.messages[1].reasoning == "Hm\n\nOh"
    same = ANSWER | {"content": THOUGHT, "reasoning": "Hm"}
    example = one(opened(tmp_path, {"messages": [USER, same]}))
    assert isinstance(example, ChatExample) and example.messages[1].reasoning == "Hm"


@pytest.mark.parametrize("kind", ["thinking", "reasoning"])
@pytest.mark.parametrize("name", ["thinking", "value", "text"])
def test_reasoning_in_a_part_is_no_text(tmp_path: Path, kind: str, name: str) -> None:
    parts = [{"type": kind, "thinking": None, name: "Hm"}, {"type": "text", "text": "", "value": "Because."}]
    data = opened(tmp_path, {"messages": [USER, ANSWER | {"content": parts}]})
    example = one(data)
    assert isinstance(example, ChatExample) and data.problems == ()
    assert example.messages[1] == ChatMessage(role="assistant", content="Because.", reasoning="Hm")


def test_text_around_a_tagged_result_is_kept(tmp_path: Path) -> None:
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    tagged = "<tool_response>here</tool_response>"
    for said, kept in ((f"{tagged}\n", "here"), (f"So {tagged}", f"So {tagged}")):
        turns = [("human", "Why?"), ("gpt", call), ("tool", said), ("gpt", "Because.")]
        example = one(opened(tmp_path, {"conversations": [{"from": f, "value": v} for f, v in turns]}))
        assert isinstance(example, ChatExample) and example.messages[2].text == kept


def test_a_call_written_as_text_is_read(tmp_path: Path) -> None:
    call = {"name": "look", "arguments": "{}"}
    read = [
        one(opened(tmp_path, {"messages": [USER, ANSWER | {"function_call": given}]}))
        for given in (call, json.dumps(call))
    ]
    assert isinstance(read[0], ChatExample) and read[0].messages[1].tool_calls and read[0] == read[1]
    for empty in (None, ""):
        data = opened(tmp_path, {"messages": [USER, ANSWER | {"function_call": empty}]})
        assert one(data) == chat(ASKED, SAID) and data.problems == ()


def test_an_exported_call_has_the_arguments_of_either_name(tmp_path: Path) -> None:
    for name in ("args", "arguments"):
        call = {"id": "c", "name": "look", name: {"at": 1}}
        example = one(opened(tmp_path, langchain(tool_calls=[call])))
        assert isinstance(example, ChatExample)
        [made] = example.messages[1].tool_calls or ()
        assert json.loads(made.function.arguments) == {"at": 1}


@pytest.mark.parametrize(
    ("row", "code", "name"),
    [
        (gemini(RESULT | {"text": "And now?"}), "extra-fields", "parts.text"),
        (gemini(RESULT) | {"systemInstruction": "A", "system_instruction": "B"}, "lost-meaning", "system"),
        (gemini(RESULT | {"function_response": {"name": "look"}}), "lost-meaning", "function_response"),
        (
            gemini(RESULT)
            | {"tools": [{"functionDeclarations": [DECLARED | {"parameters": {"type": "STRING"}}]}]},
            "extra-fields",
            "parameters_json_schema",
        ),
        (bedrock(reasoned({"text": "Hm", "note": "x"})), "extra-fields", "reasoningText.note"),
        (bedrock(reasoned("Hm")), "bad-content", "reasoningContent"),
        *(
            ({"messages": [USER, ANSWER | {"content": [*THOUGHT[:more], part]}]}, "bad-content", kind)
            for kind, part in (("note", {"type": "note", "text": "So."}), ("None", {"text": "So."}))
            for more in (0, 1)
        ),
        (
            {"messages": [USER, ANSWER | {"content": THOUGHT, "reasoning": "Oh"}]},
            "lost-meaning",
            "content.thinking",
        ),
        (
            {"messages": [USER, ANSWER | {"content": [{"type": "text", "text": "So.", "value": "No."}]}]},
            "extra-fields",
            "content.value",
        ),
        *(
            ({"messages": [USER, ANSWER | {"function_call": given}]}, "bad-tool-call", "function_call")
            for given in ("look", "{}", [1], 3)
        ),
        (langchain(tool_calls=[CALLS | {"note": "x"}]), "extra-fields", "tool_calls.note"),
        (langchain(tool_calls=[CALLS | {"weight": 0}]), "lost-meaning", "tool_calls.weight"),
        (
            langchain(tool_calls=[CALLS], additional_kwargs={"tool_calls": [{"id": "d"}]}),
            "extra-fields",
            "additional_kwargs.tool_calls",
        ),
        (
            {"prompt": "Why?", "responses": [{"text": "So.", "content": "Or not."}, "No."], "scores": [2, 1]},
            "extra-fields",
            "answer.content",
        ),
        (
            {"prompt": "Why?", "responses": ["So.", "No."], "outputs": ["A", "B"], "scores": [2, 1]},
            "unread-column",
            "outputs",
        ),
        (
            {"prompt": "Why?", "instruction": "Be brief.", "responses": ["So.", "No."], "scores": [2, 1]},
            "unused-prompt",
            "instruction",
        ),
        (
            {"instruction": "Why?", "input": "It rained.", "context": "It snowed.", "response": "So."},
            "unused-prompt",
            "context",
        ),
        (
            {"instruction": "Why?", "context": "It snowed.", "chosen": "So.", "rejected": "No."},
            "unused-prompt",
            "context",
        ),
        (PAIR | {"kto_tag": True, "label": False}, "lost-meaning", "label"),
        ({"input": [USER], "output": "So.", "expectedOutput": "No."}, "unread-column", "expectedOutput"),
        (
            {"inputs": {"query": "Why?"}, "outputs": {"text": "So."}, "reference_outputs": {"text": "No."}},
            "unread-column",
            "reference_outputs",
        ),
        (
            {"messages": [USER], "input_messages": [ANSWER], "choices": [{"message": ANSWER}]},
            "unread-column",
            "input_messages",
        ),
    ],
)  # fmt: skip
def test_what_is_not_used_beside_something_else_is_told(
    tmp_path: Path, row: dict[str, Any], code: str, name: str
) -> None:
    found = [p for p in opened(tmp_path, row).problems if p.code == code]
    assert any(name in f"{p.field} {p.message}" for p in found), found


def test_two_labels_that_agree_are_one(tmp_path: Path) -> None:
    data = opened(tmp_path, PAIR | {"kto_tag": True, "label": True})
    assert isinstance(one(data), UnpairedExample) and "lost-meaning" not in {p.code for p in data.problems}


# -- what is written twice


def test_a_field_in_both_spellings_is_read_once_if_they_agree(tmp_path: Path) -> None:
    row = gemini(RESULT | {"function_response": RESULT["functionResponse"]}, {"text": "And now?"})
    tools = [{"functionDeclarations": [DECLARED | {"parameters": {"type": "OBJECT"}}]}]
    twice = row | {"systemInstruction": SYSTEM[1], "system_instruction": SYSTEM[1], "tools": tools}
    once = gemini(RESULT, {"text": "And now?"}) | {"systemInstruction": SYSTEM[1], "tools": tools}
    for other in (twice, twice | {"systemInstruction": None}, twice | {"system_instruction": ""}):
        data = opened(tmp_path, other)
        assert data.problems == () and one(data) == one(opened(tmp_path, once))
    noted = once | {"metadata": {"fooBar": 1, "foo_bar": 2}}
    assert "lost-meaning" not in {p.code for p in opened(tmp_path, noted).problems}


def test_a_schema_beside_an_empty_one_is_read(tmp_path: Path) -> None:
    declared = {"name": "look", "parameters": None, "parametersJsonSchema": {"type": "object"}}
    example = one(opened(tmp_path, gemini(RESULT) | {"tools": [{"functionDeclarations": [declared]}]}))
    assert isinstance(example, ChatExample) and example.tools
    assert example.tools[0]["function"]["parameters"] == {"type": "object"}


@pytest.mark.parametrize(("name", "kind"), [("parameters", "OBJECT"), ("parametersJsonSchema", "object")])
def test_values_in_a_schema_keep_their_case(tmp_path: Path, name: str, kind: str) -> None:
    value = {"type": "ABC"}
    named = {"type": kind, "default": value, "enum": [value]}
    schema = {"type": kind, "properties": {"type": named, "default": {"type": kind}}}
    declared = {"functionDeclarations": [{"name": "look", name: schema}]}
    example = one(opened(tmp_path, gemini(RESULT) | {"tools": [declared]}))
    assert isinstance(example, ChatExample) and example.tools
    read = example.tools[0]["function"]["parameters"]["properties"]
    assert read == {"type": named | {"type": "object"}, "default": {"type": "object"}}


def test_fields_without_a_value_hide_no_other(tmp_path: Path) -> None:
    empty = {"text": None, "functionCall": None, "functionResponse": None, "inlineData": None}
    row = {"contents": [{"role": r, "parts": [empty | {"text": t}]} for r, t in (ASKED, ("model", SAID[1]))]}
    assert one(opened(tmp_path, row)) == chat(ASKED, SAID)
    use = {"toolUseId": "c", "name": "look", "input": {}}
    example = one(opened(tmp_path, bedrock({"text": None, "json": None, "toolUse": use})))
    assert isinstance(example, ChatExample) and example.messages[1].tool_calls
    assert example.messages[1].text == "Because."


USE = {"type": "tool_use", "id": "c", "name": "look"}


def calling(*calls: dict[str, Any], **block: object) -> dict[str, Any]:
    answer = {"role": "assistant", "content": [USE | block], "tool_calls": [*calls]}
    result = {"role": "tool", "tool_call_id": "c", "content": "here"}
    return {"messages": [USER, answer, result, ANSWER]}


CALLS_ALIKE = [
    {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}},
    {"id": "c", "name": "look", "args": {"at": 1}},
    {"name": "look", "args": {"at": 1}},
]


@pytest.mark.parametrize("call", CALLS_ALIKE)
def test_a_call_in_the_content_and_beside_it_is_one_call(tmp_path: Path, call: dict[str, Any]) -> None:
    example = one(opened(tmp_path, calling(call, input={"at": 1})))
    assert example == one(opened(tmp_path, calling(CALLS_ALIKE[0], input={"at": 1})))
    assert isinstance(example, ChatExample)
    [made] = example.messages[1].tool_calls or ()
    assert (made.id, json.loads(made.function.arguments)) == ("c", {"at": 1})


def test_as_many_equal_calls_as_are_beside_the_content_are_one_each(tmp_path: Path) -> None:
    row = calling(CALLS_ALIKE[0], CALLS_ALIKE[0] | {"id": "d"}, input={"at": 1})
    row["messages"][1]["content"].append(USE | {"id": "d", "input": {"at": 1}})
    row["messages"].insert(3, {"role": "tool", "tool_call_id": "d", "content": "there"})
    example = one(opened(tmp_path, row))
    assert isinstance(example, ChatExample)
    assert [call.id for call in example.messages[1].tool_calls or ()] == ["c", "d"]


@pytest.mark.parametrize("call", CALLS_ALIKE[:2])
def test_calls_that_differ_in_the_content_and_beside_it_are_an_error(
    tmp_path: Path, call: dict[str, Any]
) -> None:
    data = opened(tmp_path, calling(call, input={"at": 2}))
    [found] = [p for p in data.problems if p.code == "bad-tool-call"]
    assert found.message == "two different calls have the id 'c'" and "content" in found.fix
    assert data.rows == 0


FUNCTION = {"name": "look", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER | {"content": "No."}]},
        {"prompt": [USER], "completion": [ANSWER], "label": True},
    ],
)
def test_functions_are_read_as_tools_are(tmp_path: Path, row: dict[str, Any]) -> None:
    read = one(opened(tmp_path, row | {"tools": [TOOL]}))
    for functions in ([FUNCTION], json.dumps([FUNCTION])):
        for tools in ({}, {"tools": None}, {"tools": []}, {"tools": ""}, {"tools": [TOOL]}):
            data = opened(tmp_path, row | {"functions": functions, **tools})
            assert one(data) == read and {p.code for p in data.problems} <= {"legacy-functions"}
        other = TOOL | {"function": FUNCTION | {"name": "find"}}
        data = opened(tmp_path, row | {"functions": functions, "tools": [other]})
        assert ("lost-meaning", "functions") in told(data)


@pytest.mark.parametrize("functions", ["[{", "look", {"name": "look"}, ["look"], 3])
def test_functions_that_are_no_list_of_functions_are_an_error(tmp_path: Path, functions: object) -> None:
    data = opened(tmp_path, {"messages": [USER, ANSWER], "functions": functions})
    assert told(data) == [("bad-tools", "functions")] and data.rows == 0
