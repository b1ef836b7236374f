"""Conversions there and back lose nothing, or say what they lose; writers send what each host takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.paths import DATASETS
from tests.targets import to

from orchestrate.data import Dataset
from orchestrate.data.operations.convert import convert
from orchestrate.errors import DataError, UsageError

GOOD = DATASETS / "formats" / "good"

text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60).filter(lambda s: s.strip())


def chats(*, tools: bool = True, weights: bool = True) -> st.SearchStrategy[dict[str, Any]]:
    """Valid conversations: system or not, turns, weights on answers, tool calls with answers."""

    @st.composite
    def make(draw: st.DrawFn) -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        if draw(st.booleans()):
            messages.append({"role": "system", "content": draw(text)})
        called = False
        for turn in range(draw(st.integers(1, 3))):
            messages.append({"role": "user", "content": draw(text)})
            if tools and draw(st.booleans()):
                called = True
                arguments = json.dumps({"q": draw(text)})
                function = {"name": "find", "arguments": arguments}
                messages.append(
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": f"call_{turn}", "type": "function", "function": function}],
                    }
                )
                messages.append({"role": "tool", "tool_call_id": f"call_{turn}", "content": draw(text)})
            answer: dict[str, Any] = {"role": "assistant", "content": draw(text)}
            if weights and draw(st.booleans()):
                answer["weight"] = 1
            messages.append(answer)
        row: dict[str, Any] = {"messages": messages}
        if called:
            row["tools"] = [
                {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
            ]
        return row

    return make()


def written(rows: list[dict[str, Any]], folder: Path) -> Path:
    file = folder / "rows.jsonl"
    file.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return file


_settings = settings(max_examples=30, suppress_health_check=list(HealthCheck))


@_settings
@given(rows=st.lists(chats(), min_size=1, max_size=5))
@pytest.mark.parametrize("target", ["openai", "together", "fireworks", "local", "parquet"])
def test_chat_rows_survive_the_way_there_and_back(
    target: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = written(rows, tmp_path)
    report = convert(str(file), to(target), tmp_path / f"out.{target}")
    back = Dataset.open(report.output)
    assert (report.written, report.left_out) == (len(rows), 0)
    assert back.digest == Dataset.open(file).digest


@_settings
@given(rows=st.lists(chats(), min_size=1, max_size=4))
def test_sharegpt_there_and_back(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    file = written(rows, tmp_path)
    report = convert(str(file), to("sharegpt"), tmp_path / "out.jsonl")
    # The format has no ids of calls: they are numbered anew, and the numbering is told.
    had_tools = any("tools" in row for row in rows)
    assert [p.code for p in report.losses] == (["call-ids-renumbered"] if had_tools else [])
    mine = [_without_ids(e) for e in Dataset.open(file).examples()]
    assert [_without_ids(e) for e in Dataset.open(report.output).examples()] == mine


def _without_ids(example: object) -> Any:
    row = msgspec.to_builtins(example)
    for m in row["messages"]:
        m.pop("tool_call_id", None)
        for call in m.get("tool_calls") or ():
            call.pop("id")
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return row


@_settings
@given(rows=st.lists(chats(tools=False, weights=False), min_size=1, max_size=4))
@pytest.mark.parametrize("target", ["alpaca", "trl"])
def test_plain_chats_survive_alpaca_and_trl(target: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    file = written(rows, tmp_path)
    report = convert(str(file), to(target), tmp_path / "out.jsonl")
    assert Dataset.open(report.output).digest == Dataset.open(file).digest


@pytest.mark.parametrize("name", ["openai_preference.jsonl", "prompt_completion.jsonl", "text.jsonl"])
@pytest.mark.parametrize("target", ["local", "trl", "parquet"])
def test_other_kinds_survive(name: str, target: str, tmp_path: Path) -> None:
    report = convert(str(GOOD / name), to(target), tmp_path / f"out.{target}")
    assert Dataset.open(report.output).digest == Dataset.open(GOOD / name).digest


def test_pictures_survive_parquet(tmp_path: Path) -> None:
    report = convert(str(GOOD / "openai_images.jsonl"), to("parquet"), tmp_path / "out.parquet")
    assert Dataset.open(report.output).digest == Dataset.open(GOOD / "openai_images.jsonl").digest


@pytest.mark.parametrize("target", ["local", "parquet"])
def test_the_masks_of_texts_survive(target: str, tmp_path: Path) -> None:
    pieces = [("a", True), (" SECRET PROMPT", False), ("c", True)]
    masked = {"segments": [{"label": label, "text": text} for text, label in pieces]}
    path = str(written([masked, {"segments": [{"label": True, "text": "all of it"}]}], tmp_path))
    report = convert(path, to(target), tmp_path / f"out.{target}")
    back = Dataset.open(report.output)
    assert (report.written, report.losses, back.digest) == (2, (), Dataset.open(path).digest)
    assert [msgspec.to_builtins(e).get("loss_spans") for e in back.examples()] == [[(0, 1), (15, 16)], None]


def test_texts_without_masks_have_one_column_in_parquet(tmp_path: Path) -> None:
    from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

    report = convert(str(GOOD / "text.jsonl"), to("parquet"), tmp_path / "out.parquet")
    assert cast("Any", parquet).read_schema(report.output).names == ["text"]


# -- loss ----------------------------------------------------------------------------------------------------


def test_loss_is_refused_then_reported(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="thinking") as refused:
        convert(str(GOOD / "reasoning.jsonl"), to("openai"), out)
    assert [p.code for p in refused.value.problems] == ["reasoning-lost"] and not out.exists()
    report = convert(str(GOOD / "reasoning.jsonl"), to("openai"), out, allow_loss=True)
    assert [p.code for p in report.losses] == ["reasoning-lost"] and report.written == 3
    assert "think" not in out.read_text()


def test_rows_that_cannot_be_held_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    twice = [{"role": "user", "content": "a"}, *plain]
    file.write_text(json.dumps({"messages": plain}) + "\n" + json.dumps({"messages": twice}) + "\n")
    with pytest.raises(DataError, match="alternate"):
        convert(str(file), to("together"), tmp_path / "out.jsonl")
    report = convert(str(file), to("together"), tmp_path / "out.jsonl", allow_loss=True)
    assert (report.written, report.left_out) == (1, 1)


def test_rows_with_errors_are_not_left_out_unasked(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "id": 7}
    bad = {"messages": [{"role": "user", "content": "q"}]}
    path = str(written([good, bad, {"prompt": "p", "completion": "c"}], tmp_path))
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"2 of 3 rows have errors .*mixed-format 1") as refused:
        convert(path, to("openai"), out)
    assert refused.value.fix is not None
    assert "--fix" in refused.value.fix
    assert not out.exists()
    report = convert(path, to("openai"), out, allow_loss=True)
    assert (report.rows, report.written, report.left_out) == (3, 1, 2)
    assert [p.code for p in report.losses] == ["rows-left-out", "unread-column"]


def test_a_file_without_a_single_good_row_makes_no_file(tmp_path: Path) -> None:
    path = str(written([{"messages": [{"role": "user", "content": "q"}]}], tmp_path))
    with pytest.raises(DataError, match="can be converted to"):
        convert(path, to("openai"), tmp_path / "out.jsonl", allow_loss=True)
    assert not list(tmp_path.glob("*out*"))


def test_a_refused_kind_is_told_where_it_can_go(tmp_path: Path) -> None:
    path = str(written([{"text": "a"}], tmp_path))
    with pytest.raises(DataError) as refused:
        convert(path, to("openai"), tmp_path / "out.jsonl")
    assert refused.value.fix == "convert text rows to one of: together, local, trl, parquet"


def test_a_kind_that_cannot_be_held_is_refused_even_with_loss(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only on conversations"):
        convert(str(GOOD / "text.jsonl"), to("openai"), tmp_path / "out.jsonl", allow_loss=True)


def test_completions_become_chats_for_openai(tmp_path: Path) -> None:
    report = convert(str(GOOD / "prompt_completion.jsonl"), to("openai"), tmp_path / "out.jsonl")
    assert Dataset.open(report.output).digest == Dataset.open(GOOD / "question_answer.jsonl").digest


def test_unknown_target() -> None:
    with pytest.raises(UsageError, match="openai, together"):
        convert(str(GOOD / "text.jsonl"), to("nowhere"), Path("out"))


# -- what each host is sent
# ------------------------------------------------------------------------------------


def _sent(name: str, target: str, folder: Path, **options: Any) -> list[dict[str, Any]]:
    path = Dataset.open(GOOD / name).write(to(target), folder, **options)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_reasoning_has_the_hosts_own_name(tmp_path: Path) -> None:
    assert _sent("reasoning.jsonl", "together", tmp_path)[0]["messages"][1]["reasoning"] == "Let me think."
    fireworks = _sent("reasoning.jsonl", "fireworks", tmp_path)[0]["messages"][1]
    assert fireworks["reasoning_content"] == "Let me think." and "reasoning" not in fireworks


def test_developer_messages_are_system_where_the_role_is_unknown(tmp_path: Path) -> None:
    roles = {
        host: _sent("openai_developer.jsonl", host, tmp_path)[0]["messages"][0]["role"]
        for host in ("openai", "together", "fireworks", "local")
    }
    assert roles == {"openai": "developer", "together": "system", "fireworks": "system", "local": "developer"}


def test_weights_are_integers(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text((GOOD / "openai_weights.jsonl").read_text().replace('"weight": 0', '"weight": 0.0'))
    data = Dataset.open(file)
    assert data.digest == Dataset.open(GOOD / "openai_weights.jsonl").digest
    sent = json.loads(data.write(to("openai"), tmp_path / "out").read_text().splitlines()[0])
    weights = [m["weight"] for m in sent["messages"] if "weight" in m]
    assert weights == [0, 1] and all(type(w) is int for w in weights)


def test_parallel_flag_goes_where_it_is_known(tmp_path: Path) -> None:
    assert _sent("openai_tools.jsonl", "openai", tmp_path)[0]["parallel_tool_calls"] is False
    assert "parallel_tool_calls" not in _sent("openai_tools.jsonl", "together", tmp_path)[0]


def test_grader_fields_stay_at_the_top(tmp_path: Path) -> None:
    assert _sent("rft.jsonl", "openai", tmp_path)[0]["reference"] == "Oslo."


def test_written_file_is_named_by_content_and_used_again(tmp_path: Path) -> None:
    data = Dataset.open(GOOD / "openai_chat.jsonl")
    first = data.write(to("openai"), tmp_path)
    before = first.stat().st_mtime_ns
    assert data.digest[:16] in first.name
    assert Dataset.open(GOOD / "sharegpt.jsonl").write(to("openai"), tmp_path) == first
    assert first.stat().st_mtime_ns == before and len(list(tmp_path.iterdir())) == 1


def test_an_empty_system_text_is_not_lost_in_silence(tmp_path: Path) -> None:
    """Alpaca's columns hold an empty one in rows that have none; in a conversation it is one."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    file = written([{"messages": [{"role": "system", "content": ""}, *turns]}, {"messages": turns}], tmp_path)
    with pytest.raises(DataError, match="empty system prompt"):
        convert(str(file), to("alpaca"), tmp_path / "out.jsonl")
    report = convert(str(file), to("alpaca"), tmp_path / "out.jsonl", allow_loss=True)
    assert [p.code for p in report.losses] == ["not-held"] and report.written == 2
    alpaca = written([{"instruction": "q", "input": "", "system": "", "output": "a"}], tmp_path)
    there = convert(str(alpaca), to("openai"), tmp_path / "there.jsonl")
    back = convert(there.output, to("alpaca"), tmp_path / "back.jsonl")
    digests = [Dataset.open(path).digest for path in (alpaca, there.output, back.output)]
    assert len(set(digests)) == 1 and back.losses == ()


U1, U2 = {"role": "user", "content": "One?"}, {"role": "user", "content": "Two?"}
A1, A2 = {"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}


def rows_for(target: str, rows: list[dict[str, Any]], folder: Path, *, loss: bool = False) -> list[Any]:
    out = folder / "out.jsonl"
    convert(str(written(rows, folder)), to(target), out, allow_loss=loss)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_graded_prompt_has_trls_name_and_all_its_fields(tmp_path: Path) -> None:
    beside = {"solution": "2", "weight": 3, "parallel_tool_calls": False}
    for name in ("prompt", "messages"):
        assert rows_for("trl", [{name: [U1], **beside}], tmp_path) == [{"prompt": [U1], **beside}]


def test_a_field_that_trls_prompt_would_hide_is_refused(tmp_path: Path) -> None:
    row = {"messages": [U1], "prompt": "One?", "solution": "2"}
    with pytest.raises(DataError, match="field named 'prompt'"):
        rows_for("trl", [row], tmp_path)
    assert not (tmp_path / "out.jsonl").exists()
    assert rows_for("trl", [row], tmp_path, loss=True) == [{"prompt": [U1], "solution": "2"}]


def test_trls_prompts_with_completions_stay_such(tmp_path: Path) -> None:
    rows = [{"prompt": [U1, A1, U2], "completion": [A2]}, {"prompt": [U1], "completion": [A1]}]
    assert rows_for("trl", rows, tmp_path) == rows
    chats = [{"messages": [U1, A1 | {"weight": 0}, U2, A2]}, {"messages": [U1, A1]}]
    assert rows_for("trl", chats, tmp_path) == rows
    evenly = [{"messages": [U1, A1 | {"weight": 1}, U2, A2]}]
    assert rows_for("trl", evenly, tmp_path) == [{"messages": [U1, A1, U2, A2]}]


@pytest.mark.parametrize(
    "messages",
    [
        [[U1, A1 | {"weight": 0}, U2, A2], [U1, A1, U2, A2]],
        [[U1, A1, U2, A2 | {"weight": 0}]],
        [[U1, A1 | {"weight": 0}, U2, A1, U2, A2]],
    ],
)
def test_weights_that_trl_has_no_form_for_are_refused(
    messages: list[list[dict[str, Any]]], tmp_path: Path
) -> None:
    rows = [{"messages": each} for each in messages]
    with pytest.raises(DataError, match="message weights"):
        rows_for("trl", rows, tmp_path)
    plain = [[{k: v for k, v in m.items() if k != "weight"} for m in each] for each in messages]
    assert rows_for("trl", rows, tmp_path, loss=True) == [{"messages": each} for each in plain]


CALL = '<tool_call>{"name": "find", "arguments": {}}</tool_call>'
FIND = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
FOUND = [
    {"id": "a", "type": "function", "function": {"name": "find", "arguments": "{}"}},
]


@pytest.mark.parametrize(
    "messages",
    [
        [U1, {"role": "assistant", "content": f"Write {CALL}"}],
        [
            U1,
            {"role": "assistant", "tool_calls": FOUND},
            {"role": "tool", "tool_call_id": "a", "content": "<tool_response>3</tool_response>"},
            A1,
        ],
    ],
)
def test_text_that_sharegpt_reads_as_calls_is_refused(messages: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = [{"messages": messages, "tools": [FIND]}]
    with pytest.raises(DataError, match=r"looks like a tool call or its result .* \(1 row\)"):
        rows_for("sharegpt", rows, tmp_path)
    assert len(rows_for("sharegpt", rows, tmp_path, loss=True)) == 1
    mentioned = [
        {"messages": [U1 | {"content": CALL}, {"role": "assistant", "content": "<tool_call> opens"}]}
    ]
    assert len(rows_for("sharegpt", mentioned, tmp_path)) == 1


def test_alpacas_inputs_are_told_to_be_joined(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": "1 1", "output": "2"}]
    report = convert(str(written(rows, tmp_path)), to("alpaca"), tmp_path / "out.jsonl")
    assert [loss.code for loss in report.losses] == ["input-joined"]
