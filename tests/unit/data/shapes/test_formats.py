"""Formats of other tools against the rows that they stand for, and columns that no format reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from tests.targets import hosts, to

from orchestrate.data import Dataset
from orchestrate.data.operations.check import CheckOptions, check
from orchestrate.data.operations.convert import convert
from orchestrate.data.rows import ChatExample, Example, PreferenceExample, TextExample
from orchestrate.data.shapes import known
from orchestrate.data.shapes.row_reader import row_of
from orchestrate.types import Severity

FORMATS = Path(__file__).parents[4] / "fixtures" / "datasets" / "formats"
GOOD = FORMATS / "good"
QUESTION, ANSWER = "What is the capital of Norway?", "Oslo."


def rows(name: str) -> list[Example]:
    data = Dataset.open(GOOD / name)
    assert data.problems == ()
    return list(data.examples())


def said(example: Example) -> list[tuple[str, str]]:
    assert isinstance(example, ChatExample)
    return [(m.role, m.text) for m in example.messages]


BRIEF = [("system", "Be brief."), ("user", QUESTION), ("assistant", ANSWER)]
PLAIN = BRIEF[1:]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("llamafactory_v1.jsonl", BRIEF),
        ("gemini.jsonl", BRIEF),
        ("bedrock.jsonl", BRIEF),
        ("openai_stored.jsonl", BRIEF),
        ("langsmith.jsonl", PLAIN),
        ("langfuse.jsonl", BRIEF),
        ("dolly.jsonl", PLAIN),
        ("openorca.jsonl", BRIEF),
        ("gpteacher.jsonl", PLAIN),
    ],
)
def test_the_first_row_is_the_conversation_that_it_stands_for(
    name: str, first: list[tuple[str, str]]
) -> None:
    assert said(rows(name)[0]) == first


@pytest.mark.parametrize(
    ("name", "at"),
    [("llamafactory_v1.jsonl", 1), ("gemini.jsonl", 1), ("bedrock.jsonl", 1), ("openai_text_calls.jsonl", 0)],
)
def test_calls_of_every_format_are_those_of_openai(name: str, at: int) -> None:
    (wanted, *_) = rows("openai_tools.jsonl")
    got = rows(name)[at]
    assert isinstance(got, ChatExample) and isinstance(wanted, ChatExample)
    call, same = ((e.messages[1].tool_calls or [])[0] for e in (got, wanted))
    assert json.loads(call.function.arguments) == json.loads(same.function.arguments)
    assert (call.function.name, got.messages[2].tool_call_id) == ("weather", call.id)
    assert [m.text for m in got.messages[2:]] == ["3 degrees", "It is 3 degrees."]
    assert got.tools and got.tools[0]["function"]["parameters"]["properties"]["city"] == {"type": "string"}


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("llamafactory_images.jsonl", 0),
        ("trl_images.jsonl", 0),
        ("anthropic_tools.jsonl", 1),
        ("gemini.jsonl", 2),
        ("bedrock.jsonl", 2),
    ],
)
def test_images_of_every_format_stand_where_they_are_shown(name: str, at: int) -> None:
    got = rows(name)[at]
    assert isinstance(got, ChatExample) and isinstance(got.messages[0].content, list)
    shown, asked = got.messages[0].content
    assert shown.image_url and shown.image_url.url == "data:image/png;base64,iVBORw0KGgo="
    assert asked.text == "What colour?" and got.messages[1].text == "Red."


def test_blocks_of_anthropic_become_thinking_calls_and_answers() -> None:
    first = rows("anthropic_tools.jsonl")[0]
    assert isinstance(first, ChatExample)
    assert [m.role for m in first.messages] == ["system", "user", "assistant", "tool", "user", "assistant"]
    calling = first.messages[2]
    assert (calling.text, calling.reasoning) == ("I look.", "I look it up.")
    assert first.messages[3].text == "3 degrees" and first.messages[3].tool_call_id == "toolu_1"
    assert first.tools and set(first.tools[0]["function"]) == {"name", "description", "parameters"}


@pytest.mark.parametrize("name", ["axolotl_parts.jsonl", "axolotl_detail.jsonl"])
def test_the_trained_part_of_an_answer_is_kept(name: str) -> None:
    (row,) = rows(name)
    assert isinstance(row, ChatExample)
    answer = row.messages[1]
    assert [answer.text[begin:end] for begin, end in answer.loss_spans or ()] == [ANSWER]


def test_segments_are_a_text_of_which_parts_are_trained() -> None:
    first, second = rows("input_output.jsonl")
    assert first == TextExample(text=f"{QUESTION} {ANSWER}", loss_spans=[(31, 36)])
    assert second == TextExample(text="Hello. Good day.")


@pytest.mark.parametrize(
    "name", ["llamafactory_pair.jsonl", "gemini_preference.jsonl", "ranked_answers.jsonl"]
)
def test_pairs_of_every_format_prefer_the_better_answer(name: str) -> None:
    for row in rows(name):
        assert isinstance(row, PreferenceExample)
        texts = [m.text for m in (*row.prompt, *row.preferred, *row.rejected)]
        assert texts == [QUESTION, ANSWER, "No idea."]


def test_responses_keep_calls_reasoning_and_instructions() -> None:
    first, second = rows("openai_responses.jsonl")
    assert isinstance(first, ChatExample)
    assert [m.role for m in first.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert first.messages[-1].reasoning == "I know now."
    assert said(second) == PLAIN


def test_openais_own_client_reads_the_fixtures() -> None:
    """The shapes are those that its types describe."""
    for line in (GOOD / "openai_stored.jsonl").read_text().splitlines():
        ChatCompletion.model_validate(json.loads(line))
    for line in (GOOD / "openai_responses.jsonl").read_text().splitlines():
        Response.model_validate(json.loads(line))


def test_loss_on_a_part_is_refused_by_hosts_by_name_and_comes_back_whole(tmp_path: Path) -> None:
    path = str(GOOD / "axolotl_parts.jsonl")
    report = check({"train": path}, CheckOptions(hosts=hosts("openai", "together", "fireworks")))
    refused = {host for p in report.problems if p.code == "loss-spans-lost" for host in p.providers}
    assert refused == {"openai", "together", "fireworks"}
    convert(path, to("local"), tmp_path / "b.jsonl", allow_loss=True)
    assert list(Dataset.open(tmp_path / "b.jsonl").examples()) == rows("axolotl_parts.jsonl")


# -- columns that are not read

FIXTURES = sorted(p for p in GOOD.iterdir() if p.suffix == ".jsonl")


def told(data: Dataset, column: str) -> list[str]:
    """The problems of at least a warning that name a column, or lie within it."""
    serious = [p for p in data.problems if p.severity is not Severity.INFO]
    return [p.code for p in serious if column in (p.field or "").split(",") or f" {column}" in p.message]


@pytest.mark.parametrize("file", sorted(FORMATS.rglob("*.jsonl")), ids=lambda p: p.stem)
def test_no_unread_column_of_a_fixture_passes_in_silence(file: Path) -> None:
    try:
        data = Dataset.open(file)
    except Exception:
        return  # nothing of it is read, and that is told
    shape = known.BY_NAME[data.format]
    for line in file.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict) or not shape.fits(row):
            continue
        used = (shape.fields or row.keys()) | shape.notes
        for column in row.keys() - used - {"system_prompt"}:
            example = row_of(row, shape)
            pictures = column in ("images", "image") and "data:image" in repr(example.example)
            assert pictures or row[column] is None or told(data, column), column


def objects(value: Any, *path: str | int) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from objects(item, *path, i)
    elif isinstance(value, dict):
        yield path, value
        for name, item in value.items():
            yield from objects(item, *path, name)


@pytest.mark.parametrize("key", ["mood", "loss_mask"])
@pytest.mark.parametrize("file", FIXTURES, ids=lambda p: p.stem)
def test_no_field_of_any_object_of_a_row_passes_in_silence(file: Path, key: str) -> None:
    format_ = Dataset.open(file).format
    for line in file.read_text().splitlines()[:2]:
        for path, _ in objects(json.loads(line)):
            row = json.loads(line)
            held = row
            for step in path:
                held = held[step]
            held[key] = "glad and more"
            read = row_of(row, known.BY_NAME[format_])
            told_of = f"{read.problems}{msgspec.json.encode(read.example)}{read.unread}"
            is_schema = path[-1:] == ("properties",) and read.example is None  # a property that is a text
            assert key in told_of or is_schema or path == ("usage",), path  # numbers of tokens


def read(format_: str, row: dict[str, Any]) -> tuple[Example | None, list[str]]:
    made = row_of(row, known.BY_NAME[format_])
    return made.example, [p.code for p in made.problems if p.severity is not Severity.INFO]


CHAT = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [CHAT[0] | {"images": ["a.png"]}, CHAT[1]]},
        {"messages": [CHAT[0], CHAT[1] | {"reasoning": "One.", "reasoning_content": "Another."}]},
        {"messages": [CHAT[0], CHAT[1] | {"thinking": ["Hm."]}]},
        {
            "messages": [
                CHAT[0],
                {"role": "assistant", "content": [{"type": "text", "text": "A", "weight": 0}]},
            ]
        },
        {"messages": CHAT, "system": "Be brief.", "system_prompt": "Be long."},
        {
            "messages": CHAT,
            "tools": [{"type": "function", "function": FUNCTION}],
            "functions": [FUNCTION | {"name": "g"}],
        },
    ],
    ids=["images", "two thoughts", "thought", "part", "two systems", "two lists of tools"],
)
def test_what_has_a_meaning_and_is_not_read_is_an_error(row: dict[str, Any]) -> None:
    assert read("openai-chat", row) == (None, ["lost-meaning"])


@pytest.mark.parametrize(
    "part",
    [
        {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
        {"fileData": {"mimeType": "video/mp4", "fileUri": "gs://b/a.mp4"}},
    ],
    ids=["sound", "film"],
)
def test_sounds_and_films_are_no_pictures(part: dict[str, Any]) -> None:
    turns = [{"role": "user", "parts": [{"text": "?"}, part]}, {"role": "model", "parts": [{"text": "A"}]}]
    assert read("gemini", {"contents": turns})[1][:1] == ["bad-content"]
    url = {"type": "image_url", "image_url": {"url": "data:audio/wav;base64,AAAA"}}
    shown = {"messages": [CHAT[0] | {"content": [url]}, CHAT[1]]}
    assert read("openai-chat", shown) == (None, ["bad-image"])


def test_an_answer_without_an_id_is_that_to_the_call_of_its_function() -> None:
    calls = [{"functionCall": {"name": name, "args": {}}} for name in "abb"]
    given = [("b", "1"), ("a", "2"), ("b", "3")]
    turns = [
        ("user", [{"text": "Go"}]),
        ("model", calls),
        ("user", [{"functionResponse": {"name": n, "response": {"result": r}}} for n, r in given]),
        ("model", [{"text": "Done"}]),
    ]
    row = {
        "contents": [{"role": role, "parts": parts} for role, parts in turns],
        "tools": [{"functionDeclarations": [{"name": "a"}, {"name": "b"}]}],
    }
    example, found = read("gemini", row)
    assert isinstance(example, ChatExample) and found == []
    ids = [call.id for call in example.messages[1].tool_calls or ()]
    said_to = {m.tool_call_id: m.text for m in example.messages if m.role == "tool"}
    assert [said_to[id] for id in ids] == ["2", "1", "3"]


def test_thinking_and_calls_that_langchain_keeps_apart_are_read() -> None:
    extra = {"reasoning_content": "Hm.", "function_call": {"name": "f", "arguments": "{}"}}
    row = {
        "inputs": {"messages": [{"type": "human", "data": {"content": QUESTION, "name": "ada"}}]},
        "outputs": {"messages": [{"type": "ai", "data": {"content": "", "additional_kwargs": extra}}]},
    }
    example, _ = read("langsmith", row)
    assert isinstance(example, ChatExample)
    asked, answer = example.messages
    assert asked.name == "ada" and answer.reasoning == "Hm."
    assert [call.function.name for call in answer.tool_calls or ()] == ["f"]


@settings(max_examples=60, deadline=None)
@given(
    file=st.sampled_from([p for p in FIXTURES if p.stem != "rft"]),
    column=st.text("qwxyz", min_size=5, max_size=12),
    words=st.lists(st.text("abcdefgh", min_size=1), min_size=3, max_size=9),
)
def test_a_column_of_texts_beside_any_format_is_told(file: Path, column: str, words: list[str]) -> None:
    value = " ".join(words) + " zzzzz"
    shape = known.BY_NAME[Dataset.open(file).format]
    row: dict[str, Any] = json.loads(file.read_text().splitlines()[0]) | {column: value}
    assert row_of(row, shape).unread == {column: value}


def test_a_column_of_texts_asks_for_a_decision(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    base = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    lines = [json.dumps(base | {"notes": f"a note of its own {i}", "id": i}) for i in range(4)]
    file.write_text("\n".join(lines) + "\n")
    note, rest = Dataset.open(file).problems
    assert (note.field, rest.field) == ("notes", "id")
    assert note.severity is rest.severity is Severity.WARNING
    assert "4 of 4 rows" in note.message and "--ignore notes" in (note.fix or "")
    assert "--map FIELD=notes" in (note.fix or "")
    assert Dataset.open(file, columns={"notes": "", "id": ""}).problems == ()
    assert check({"train": str(file)}, CheckOptions(hosts=())).ok
    assert not check({"train": str(file)}, CheckOptions(hosts=(), strict=True)).ok


@pytest.mark.parametrize("column", ["article", "passage", "choices"])
def test_a_part_of_the_prompt_beside_a_question_is_an_error(tmp_path: Path, column: str) -> None:
    file = tmp_path / "a.jsonl"
    held: Any = ["Bergen", "Oslo"] if column == "choices" else "Norway is a country."
    file.write_text(json.dumps({"question": QUESTION, "answer": ANSWER, column: held}) + "\n")
    data = Dataset.open(file)
    assert data.rows == 0 and ("unused-prompt", column) in [(p.code, p.field) for p in data.problems]


@pytest.mark.parametrize(
    "fields",
    [{"audios": ["a.wav"]}, {"videos": ["a.mp4"]}, {"train_detail": [1]}, {"loss_weight": 0.5}],
    ids=lambda f: next(iter(f)),
)
def test_columns_without_which_something_else_is_taught_are_errors(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    base = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(base | fields) + "\n")
    data = Dataset.open(file)
    assert data.rows == 0 and data.problems[0].code == "lost-meaning"


def test_another_number_of_images_than_places_is_an_error(tmp_path: Path) -> None:
    row = json.loads((GOOD / "llamafactory_images.jsonl").read_text())
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row | {"images": row["images"] * 2}) + "\n")
    assert [p.code for p in Dataset.open(file).problems] == ["bad-image"]
