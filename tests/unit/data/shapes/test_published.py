"""Rows as data sets, cookbooks and recorders publish them, and columns that decide what is learned."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.targets import to

from orchestrate.data import Dataset
from orchestrate.data.operations.check import CheckOptions, check
from orchestrate.data.operations.convert import convert, join_batch
from orchestrate.data.operations.fix import fix
from orchestrate.data.operations.split import Division, split
from orchestrate.data.rows import ChatExample, PreferenceExample, UnpairedExample
from orchestrate.errors import DataError
from orchestrate.types import Severity

ASK, REPLY = {"role": "user", "content": "Capital of Norway?"}, {"role": "assistant", "content": "Oslo."}
SAID = [("user", "Capital of Norway?"), ("assistant", "Oslo.")]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def only(path: Path, row: dict[str, Any]) -> Any:
    data = Dataset.open(write(path / "rows.jsonl", [row]))
    assert not [p for p in data.problems if p.severity is Severity.ERROR]
    [example] = data.examples()
    return example


def talk(example: Any) -> list[tuple[str, str]]:
    assert isinstance(example, ChatExample)
    return [(m.role, m.text) for m in example.messages]


def errors(path: str, split: str = "train") -> set[str]:
    return {p.code for p in check({split: path}, CheckOptions()).problems if p.severity is Severity.ERROR}


LIGHT = {"name": "control_light", "arguments": {"room": "living room", "state": "on"}}
SCHEMA = {"type": "object", "properties": {"room": {"type": "string"}, "state": {"type": "string"}}}


def test_tool_calls_as_trl_documents_them(tmp_path: Path) -> None:
    """Arguments as an object, no ids, and answers that name their function."""
    music = {"name": "play_music", "arguments": {"playlist": "Jazz"}}
    row = {
        "messages": [
            {"role": "user", "content": "Turn on the lights and play jazz."},
            {
                "role": "assistant",
                "tool_calls": [{"type": "function", "function": f} for f in (LIGHT, music)],
            },
            {"role": "tool", "name": "play_music", "content": "It plays."},
            {"role": "tool", "name": "control_light", "content": "They are on."},
            {"role": "assistant", "content": "Done!"},
        ],
        "tools": [
            {"type": "function", "function": {"name": f["name"], "parameters": SCHEMA}}
            for f in (LIGHT, music)
        ],
    }
    example = only(tmp_path, row)
    light, jazz = example.messages[1].tool_calls
    assert json.loads(light.function.arguments) == LIGHT["arguments"]
    assert light.id and jazz.id and light.id != jazz.id
    assert [(m.tool_call_id, m.text) for m in example.messages[2:4]] == [
        (jazz.id, "It plays."),
        (light.id, "They are on."),
    ]


def test_weight_zero_on_what_is_not_trained_anyway_is_no_error(tmp_path: Path) -> None:
    """SlimOrca's rows."""
    turns = [("system", "Be brief.", None), ("human", "Capital of Norway?", 0.0), ("gpt", "Oslo.", 1.0)]
    row = {"conversations": [{"from": who, "value": said, "weight": w} for who, said, w in turns]}
    assert talk(only(tmp_path, row)) == [("system", "Be brief."), *SAID]
    row["conversations"][1]["weight"] = 1.0
    assert errors(write(tmp_path / "rows.jsonl", [row])) == {"weight-on-input"}


def test_pythons_types_in_schemas_and_one_message_with_all_results(tmp_path: Path) -> None:
    """LLaMA-Factory's reason_tool_use_demo_50, of which both occur."""
    calls = [
        {"type": "tool_call", "value": json.dumps({"name": "area", "arguments": {"r": r}})} for r in (1, 2)
    ]
    results = [{"tool_call_id": f"x{r}", "name": "area", "content": f"{r} m2"} for r in (3, 12)]
    bare = {"r": {"type": "float"}, "unit": {"type": "str, optional", "default": "m"}}
    bare["example"] = {"type": "int"}
    tools = [
        {
            "type": "function",
            "function": {"name": "area", "parameters": {"type": "dict", "properties": bare}},
        },
        {"type": "function", "function": {"name": "other", "parameters": bare}},
    ]
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "Areas?"}]},
            {"role": "assistant", "content": calls},
            {"role": "tool", "content": [{"type": "text", "value": json.dumps(results)}]},
            {"role": "assistant", "content": [{"type": "text", "value": "3 and 12."}]},
        ],
        "tools": json.dumps(tools),
    }
    example = only(tmp_path, row)
    schema = {
        "type": "object",
        "properties": {
            "r": {"type": "number"},
            "unit": {"type": "string", "default": "m"},
            "example": {"type": "integer"},
        },
    }
    assert [tool["function"]["parameters"] for tool in example.tools] == [schema, schema]
    ids = [call.id for call in example.messages[1].tool_calls]
    assert [(m.tool_call_id, m.text) for m in example.messages[2:4]] == [(ids[0], "3 m2"), (ids[1], "12 m2")]
    plain = row | {"tools": [tools[0]], "messages": [ASK, REPLY]}  # read without going around
    assert only(tmp_path, plain).tools[0]["function"]["parameters"] == schema


def test_pairs_with_their_messages_one_level_down(tmp_path: Path) -> None:
    """Fireworks' cookbook."""
    row = {
        "chosen": {"messages": [ASK, REPLY]},
        "rejected": {"messages": [ASK, REPLY | {"content": "Bergen."}]},
    }
    pair = only(tmp_path, row)
    assert isinstance(pair, PreferenceExample)
    assert [[m.text for m in side] for side in (pair.prompt, pair.preferred, pair.rejected)] == [
        ["Capital of Norway?"],
        ["Oslo."],
        ["Bergen."],
    ]
    row["chosen"]["weights"] = [0, 1]  # type: ignore[assignment]
    assert "lost-meaning" in errors(write(tmp_path / "rows.jsonl", [row]))


COMPLETION = {"id": "c", "model": "m", "choices": [{"index": 0, "message": REPLY, "finish_reason": "stop"}]}
BLOCKS = {
    "id": "msg",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Oslo."}],
    "stop_reason": "end_turn",
    "usage": {},
}
LOG = {"response_id": "r", "response_status": 200, "request_id": "q", "delay_ms": 3, "scores": {}}


@pytest.mark.parametrize("answer", [COMPLETION, BLOCKS], ids=["completion", "blocks"])
@pytest.mark.parametrize("wrap", ["bodies", "text", "fetched"])
def test_a_gateways_log_is_a_conversation(tmp_path: Path, answer: dict[str, Any], wrap: str) -> None:
    """Helicone's export."""
    request: Any = {"model": "m", "messages": [ASK], "temperature": 0}
    bodies = {
        "bodies": {"request_body": request, "response_body": answer},
        "text": {"request_body": json.dumps(request), "response_body": json.dumps(answer)},
        "fetched": {
            "request_body": {"model": "m"},
            "response_body": {"request": request, "response": answer},
        },
    }[wrap]
    assert talk(only(tmp_path, LOG | bodies)) == SAID
    failed = write(tmp_path / "rows.jsonl", [LOG | bodies | {"response_status": 429}])
    assert errors(failed) == {"bad-message"}
    disliked = write(tmp_path / "rows.jsonl", [LOG | bodies | {"feedback_rating": False}])
    assert errors(disliked) == {"lost-meaning"}


@pytest.mark.parametrize(
    ("request_", "result"),
    [
        (
            {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [ASK]}},
            {
                "id": "b",
                "custom_id": "a",
                "response": {"status_code": 200, "body": COMPLETION},
                "error": None,
            },
        ),
        (
            {"custom_id": "a", "params": {"model": "m", "max_tokens": 9, "messages": [ASK]}},
            {"custom_id": "a", "result": {"type": "succeeded", "message": BLOCKS}},
        ),
    ],
    ids=["openai", "anthropic"],
)
def test_results_of_a_batch_are_joined_with_their_requests(
    tmp_path: Path, request_: dict[str, Any], result: dict[str, Any]
) -> None:
    alone = write(tmp_path / "results.jsonl", [result])
    [told] = [p for p in Dataset.open(alone).problems if p.severity is Severity.ERROR]
    assert told.code == "no-messages" and "--requests" in (told.fix or "")
    failed = result | {"custom_id": "z"}
    both = write(tmp_path / "results.jsonl", [result, failed])
    asked = write(tmp_path / "asked.jsonl", [request_, request_ | {"custom_id": "never"}])
    report = join_batch(both, asked, tmp_path / "joined.jsonl")
    assert (report.joined, report.unasked, report.unanswered) == (1, 1, 1)
    data = Dataset.open(tmp_path / "joined.jsonl")
    assert [talk(example) for example in data.examples()] == [SAID]
    twice = write(tmp_path / "asked.jsonl", [request_, request_])
    with pytest.raises(DataError, match="repeats"):
        join_batch(both, twice, tmp_path / "joined.jsonl")


def choice(reason: str, **message: Any) -> dict[str, Any]:
    return COMPLETION | {
        "choices": [{"index": 0, "message": REPLY | message, "finish_reason": reason}],
    }


def langchain(**noted: Any) -> dict[str, Any]:
    said = {"type": "ai", "content": "Oslo.", **noted}
    return {"inputs": {"messages": [ASK]}, "outputs": {"messages": [said]}}


RESPONSE = {
    "status": "completed",
    "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Os"}]}],
}
REFUSAL = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}


def batch(answer: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": "a", "response": {"body": answer}, "batch_request": {"messages": [ASK]}}


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (batch(choice("length")), "cut-answer"),
        (batch(choice("content_filter")), "refused-answer"),
        (batch(choice("stop", content=None, refusal="I can't.")), "refused-answer"),
        (batch(choice("stop", refusal=None)), None),
        (
            {"custom_id": "a", "batch_request": {"messages": [ASK]},
             "result": {"type": "succeeded", "message": BLOCKS | {"stop_reason": "max_tokens"}}},
            "cut-answer",
        ),
        (LOG | {"request_body": {"messages": [ASK]}, "response_body": choice("length")}, "cut-answer"),
        (LOG | {"request_body": {"messages": [ASK]}, "response_body": BLOCKS | {"stop_reason": "refusal"}},
         "refused-answer"),
        ({"messages": [ASK], **choice("length")}, "cut-answer"),
        ({"input": "Capital?", **RESPONSE}, None),
        ({"input": "Capital?", **RESPONSE, "status": "incomplete",
          "incomplete_details": {"reason": "max_output_tokens"}}, "cut-answer"),
        ({"input": "Capital?", **RESPONSE, "output": [REFUSAL]}, "refused-answer"),
        ({"proxy_server_request": {"messages": [ASK]}, "response": choice("length")}, "cut-answer"),
        ({"inputs": {"messages": [ASK]}, "outputs": choice("length")}, "cut-answer"),
        (langchain(response_metadata={"finish_reason": "length"}), "cut-answer"),
        (langchain(response_metadata={"finish_reason": "stop"}), None),
        (langchain(additional_kwargs={"refusal": "No."}, content=""), "refused-answer"),
    ],
)  # fmt: skip
def test_an_answer_that_was_cut_or_refused_is_not_learnt(
    tmp_path: Path, row: dict[str, Any], code: str | None
) -> None:
    file = write(tmp_path / "rows.jsonl", [row])
    assert (code in errors(file)) if code else not errors(file)
    assert Dataset.open(file).rows == (code is None)


def test_calls_as_text_beside_a_query_and_pairs_of_input_and_output(tmp_path: Path) -> None:
    """xLAM's and Capybara's rows."""
    tool = {"name": "find", "parameters": {"what": {"type": "str", "description": "It."}}}
    call = {"name": "find", "arguments": {"what": "keys"}}
    made = only(tmp_path, {"query": "Keys?", "answers": json.dumps([call]), "tools": json.dumps([tool])})
    assert made.messages[1].tool_calls[0].function.arguments == '{"what": "keys"}'
    turns = [{"input": "Capital of Norway?", "output": "Oslo."}]
    assert talk(only(tmp_path, {"conversation": turns})) == SAID


# Columns that decide what is learned.


def pair(n: int) -> dict[str, Any]:
    return {"prompt": f"question {n}", "completion": f"answer {n}"}


@pytest.mark.parametrize(
    "labels",
    [
        ("good", "bad"), ("chosen", "rejected"), ("desirable", "undesirable"), ("thumbs_up", "thumbs_down"),
        (1.0, 0.0), (1, -1), ("1", "0"), ("\N{THUMBS UP SIGN}", "\N{THUMBS DOWN SIGN}"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_answers_are_never_trained_as_good_ones(tmp_path: Path, labels: tuple[Any, Any]) -> None:
    file = write(tmp_path / "rows.jsonl", [pair(n) | {"label": labels[n % 2]} for n in range(4)])
    assert errors(file) == {"bad-label"} and Dataset.open(file).rows == 0
    fix(file, tmp_path / "fixed.jsonl")
    repaired = list(Dataset.open(tmp_path / "fixed.jsonl").examples())
    assert [e.label for e in repaired if isinstance(e, UnpairedExample)] == [True, False] * 2


def test_a_boolean_tag_beside_a_prompt_is_the_label(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [pair(n) | {"kto_tag": n % 2 == 0} for n in range(2)])
    labels = [e.label for e in Dataset.open(file).examples() if isinstance(e, UnpairedExample)]
    assert labels == [True, False]


@pytest.mark.parametrize(
    "column",
    [
        {"feedback": "thumbs_down"}, {"feedback": 0}, {"thumbs": "down"}, {"thumbs_up": False},
        {"sample_weight": 0.1}, {"sample_weight": 0}, {"rating": "bad"}, {"is_correct": False},
        {"label": "incorrect"}, {"weight": 0}, {"status": "rejected"}, {"reward": -0.5},
        {"upvotes": -3}, {"flagged": True}, {"user_feedback": "thumbs_down"},
    ],
    ids=str,
)  # fmt: skip
def test_a_column_that_judges_or_weighs_a_row_is_read_or_an_error(
    tmp_path: Path, column: dict[str, Any]
) -> None:
    file = write(tmp_path / "rows.jsonl", [pair(n) | column for n in range(3)])
    assert errors(file) == {"lost-meaning"}
    ignored = Dataset.open(file, columns=dict.fromkeys(column, ""))
    assert ignored.rows == 3


@pytest.mark.parametrize(
    "column",
    [
        {"label": "billing"},
        {"rating": 4},
        {"label": "answer 0"},
        {"status": "done"},
        {"skip": False},
        {"reward": 2},
    ],
    ids=str,
)
def test_a_class_a_grade_and_the_answer_again_are_no_verdict(tmp_path: Path, column: dict[str, Any]) -> None:
    assert not errors(write(tmp_path / "rows.jsonl", [pair(0) | column]))


@pytest.mark.parametrize("label", ["sports", 2])
def test_a_text_is_not_trained_without_its_label(tmp_path: Path, label: Any) -> None:
    file = write(tmp_path / "rows.jsonl", [{"text": f"News {n}.", "label": label} for n in range(3)])
    assert errors(file) == {"lost-meaning"}
    if label == "sports":
        assert Dataset.open(file, columns={"question": "text", "answer": "label"}).rows == 3
    assert Dataset.open(file, columns={"label": ""}).rows == 3


def test_an_answer_that_is_not_to_be_trained_is_not(tmp_path: Path) -> None:
    """The Tinker cookbook's field."""
    messages = [ASK, REPLY | {"trainable": False}, ASK, REPLY | {"trainable": True}]
    example = only(tmp_path, {"messages": messages})
    assert [m.weight for m in example.messages if m.role == "assistant"] == [0, None]
    asked = {"messages": [ASK | {"trainable": True}, REPLY]}
    assert errors(write(tmp_path / "rows.jsonl", [asked])) == {"lost-meaning"}


@pytest.mark.parametrize(
    "said",
    [{"loss_scale": 0}, {"masked": True}, {"ignore": 1}, {"is_trained": False}, {"learn": "false"}],
    ids=str,
)
def test_a_message_that_asks_not_to_be_trained_is_an_error(tmp_path: Path, said: dict[str, Any]) -> None:
    assert errors(write(tmp_path / "rows.jsonl", [{"messages": [ASK, REPLY | said]}])) == {"lost-meaning"}


@pytest.mark.parametrize(
    "column",
    [{"subset": "holdout"}, {"fold": "eval"}, {"is_test": True}, {"metadata": {"split": "test"}}],
    ids=str,
)
def test_rows_of_a_held_out_part_are_not_trained_on(tmp_path: Path, column: dict[str, Any]) -> None:
    file = write(tmp_path / "rows.jsonl", [pair(0) | column])
    assert errors(file) == {"held-out"} and not errors(file, "test")


def test_rows_for_test_are_not_trained_on(tmp_path: Path) -> None:
    """OpenPipe's column."""
    chats = [{"messages": [ASK | {"content": f"{n}?"}, REPLY]} for n in range(10)]
    mixed = write(
        tmp_path / "rows.jsonl", [c | {"split": "TEST" if n > 7 else "TRAIN"} for n, c in enumerate(chats)]
    )
    assert errors(mixed) == {"held-out"}
    with pytest.raises(DataError, match="for test"):
        convert(mixed, to("openai"), tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="for test"):
        split(mixed, Division((0.8, 0.2), near_duplicates=False), tmp_path / "split")
    with pytest.raises(DataError, match="for test"):
        fix(mixed, tmp_path / "fixed.jsonl")
    assert not (tmp_path / "fixed.jsonl").exists()
    alone = write(tmp_path / "test.jsonl", [c | {"split": "test"} for c in chats])
    assert errors(alone) == {"held-out"} and not errors(alone, "test")
    assert not errors(write(tmp_path / "train.jsonl", [c | {"split": "train"} for c in chats]))


def test_a_file_of_which_nothing_can_be_repaired_gives_no_copy(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"messages": [ASK]}] * 3)
    with pytest.raises(DataError, match="no copy was written"):
        fix(file, tmp_path / "fixed.jsonl")
    assert not list(tmp_path.glob("fixed*"))


NUMBERS = '{"gold": 12345678901234567.89, "tiny": 1e-400, "many": [0.1, 123456789012345678901234567890]}'


@pytest.mark.parametrize("container", ["jsonl", "json"])
def test_numbers_of_a_graders_fields_keep_every_digit(tmp_path: Path, container: str) -> None:
    file = tmp_path / f"rows.{container}"
    row = f'{{"messages": [{json.dumps(ASK)}], {NUMBERS[1:]}'
    file.write_text(row if container == "jsonl" else f"[{row}]")
    convert(str(file), to("openai"), tmp_path / "out.jsonl", allow_loss=True)
    written = (tmp_path / "out.jsonl").read_text()
    for number in ("12345678901234567.89", "1e-400", "0.1", "123456789012345678901234567890"):
        assert number in written
    other = file.with_name(f"other.{container}")
    other.write_text(file.read_text().replace("567.89", "567.88"))
    assert Dataset.open(file).digest != Dataset.open(other).digest


def test_numbers_of_arguments_and_schemas_keep_every_digit(tmp_path: Path) -> None:
    schema = '{"type": "object", "properties": {"n": {"type": "number", "maximum": 12345678901234567.89}}}'
    tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {schema}}}}}'
    call = (
        '{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"n": 98765432109876543.21}}}'
    )
    answer = f'{{"role": "assistant", "content": null, "tool_calls": [{call}]}}'
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"messages": [{json.dumps(ASK)}, {answer}], "tools": [{tool}]}}\n')
    for target in ("openai", "local", "sharegpt"):
        convert(str(file), to(target), tmp_path / target, allow_loss=True)
        written = (tmp_path / target).read_text()
        assert "12345678901234567.89" in written and "98765432109876543.21" in written
