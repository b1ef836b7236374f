"""What a conversion does not refuse it loses nothing of: every kind of row, with everything that a row can
have, to every target and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.targets import to

from orchestrate.data import Dataset
from orchestrate.data.operations.convert import convert
from orchestrate.data.rows import Kind
from orchestrate.data.tools import FORMATS
from orchestrate.errors import DataError
from orchestrate.profile import built_in
from orchestrate.types import Severity

SLOW = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large)
TOLD = {"call-ids-renumbered", "parts-joined"}
"""What may change without a refusal; it is told, and compared apart."""

text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40).filter(lambda s: s.strip())
arguments = st.dictionaries(
    text, text | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
).map(lambda value: json.dumps(value, ensure_ascii=False))
FIND: dict[str, Any] = {
    "type": "function",
    "function": {"name": "find", "parameters": {"type": "object", "nullable": None}},
}
INLINE = "data:image/png;base64,AAAA"
PICTURE = {"type": "image_url", "image_url": {"url": INLINE, "detail": "low"}}
Draw = Callable[[st.SearchStrategy[Any]], Any]


def _call(draw: Draw, name: str) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": "find", "arguments": draw(arguments)}}


def _turns(draw: Draw, has: set[str]) -> list[dict[str, Any]]:
    user: dict[str, Any] = {"role": "user", "content": draw(text)}
    if "parts" in has:
        user["content"] = [{"type": "text", "text": draw(text)}, {"type": "text", "text": draw(text)}]
    if "image" in has:
        user["content"] = [{"type": "text", "text": draw(text)}, PICTURE]
    if "name" in has:
        user["name"] = "ada"
    turns = [user]
    if "twice" in has:
        turns.append({"role": "user", "content": draw(text)})
    if "function" in has:
        turns.append({"role": "function", "name": "find", "content": draw(text)})
    if has & {"call", "call and text", "swapped"}:
        calls = {"role": "assistant", "tool_calls": [_call(draw, "a"), _call(draw, "b")]}
        if "call and text" in has:
            calls["content"] = draw(text)
        if "weight" in has:
            calls["weight"] = 0
        order = "ba" if "swapped" in has else "ab"
        answers = [{"role": "tool", "tool_call_id": i, "content": draw(text)} for i in order]
        if "shown" in has:
            picture = {"type": "image_url", "image_url": {"url": INLINE}}
            answers[0]["content"] = [{"type": "text", "text": draw(text)}, picture]
        turns += [calls, *answers]
    return turns


def _answer(draw: Draw, has: set[str]) -> dict[str, Any]:
    answer: dict[str, Any] = {"role": "assistant", "content": draw(text)}
    if "reasoning" in has:
        answer["reasoning"] = draw(text)
    if "weight" in has:
        answer["weight"] = draw(st.sampled_from([0, 1]))
    return answer


def _beside(has: set[str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if has & {"call", "call and text", "swapped", "tools"}:
        row["tools"] = [FIND]
    if "strict" in has:
        row["tools"] = [{"type": "function", "function": FIND["function"] | {"strict": True}}]
    if "parallel" in has:
        row["parallel_tool_calls"] = False
    return row


def chat(draw: Draw, has: set[str]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if has & {"system", "developer", "empty"}:
        said = "" if "empty" in has else draw(text)
        messages.append({"role": "developer" if "developer" in has else "system", "content": said})
    if "assistant first" in has:
        messages.append(_answer(draw, set()))
    for _ in range(2 if "turns" in has else 1):
        messages += [*_turns(draw, has), _answer(draw, has)]
    if "system later" in has:
        messages[-1:-1] = [{"role": "system", "content": draw(text)}]
    messages[-1].pop("weight", None)
    row = {"messages": messages, **_beside(has)}
    return row | ({"weight": draw(st.floats(0.125, 8))} if "row weight" in has else {})


def preference(draw: Draw, has: set[str]) -> dict[str, Any]:
    given = {"messages": _turns(draw, has - {"weight"}), **_beside(has)}
    if has & {"system", "empty"}:
        said = "" if "empty" in has else draw(text)
        given["messages"].insert(0, {"role": "system", "content": said})
    good = [{"role": "assistant", "content": "good " + draw(text)}]
    if "several" in has:
        good.append(_answer(draw, set()))
    return {
        "input": given,
        "preferred_output": good,
        "non_preferred_output": [{"role": "assistant", "content": "bad"}],
    }


def unpaired(draw: Draw, has: set[str]) -> dict[str, Any]:
    pair = preference(draw, has)
    given = pair["input"]
    label = draw(st.booleans())
    answer = pair["preferred_output" if label else "non_preferred_output"]
    return {"prompt": given.pop("messages"), "completion": answer, "label": label, **given}


def rl(draw: Draw, has: set[str]) -> dict[str, Any]:
    row = {
        "messages": _turns(draw, has & {"parts", "image", "name"}),
        "reference": {"answer": draw(text), "n": None},
    }
    return row | ({"tools": [FIND]} if "tools" in has else {})


def completion(draw: Draw, has: set[str]) -> dict[str, Any]:
    return {"prompt": draw(text), "completion": draw(text)}


def bare(draw: Draw, has: set[str]) -> dict[str, Any]:
    return {"text": draw(text)}


CHAT = (
    "system", "developer", "empty", "assistant first", "turns", "parts", "image", "name", "twice", "function",
    "call", "call and text", "swapped", "tools", "reasoning", "weight", "parallel", "row weight",
    "system later", "strict", "shown",
)  # fmt: skip
KINDS: dict[Kind, tuple[Callable[[Draw, set[str]], dict[str, Any]], tuple[str, ...]]] = {
    "chat": (chat, CHAT),
    "preference": (
        preference,
        (
            "system",
            "empty",
            "parts",
            "image",
            "strict",
            "shown",
            "name",
            "call",
            "call and text",
            "swapped",
            "tools",
            "parallel",
            "several",
        ),
    ),
    "unpaired": (
        unpaired,
        ("system", "parts", "name", "call", "call and text", "swapped", "tools", "parallel", "several"),
    ),
    "rl": (rl, ("parts", "image", "name", "tools")),
    "completion": (completion, ()),
    "text": (bare, ()),
}


TARGETS = pytest.mark.parametrize("target", [*built_in(), *FORMATS])


@TARGETS
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_what_is_not_refused_comes_back(kind: Kind, target: str, data: st.DataObject, tmp_path: Path) -> None:
    _comes_back(kind, target, data, tmp_path)


@pytest.mark.slow
@TARGETS
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_what_is_not_refused_comes_back_in_a_long_search(
    kind: Kind, target: str, data: st.DataObject, tmp_path: Path
) -> None:
    _comes_back(kind, target, data, tmp_path)


def _comes_back(kind: Kind, target: str, data: st.DataObject, tmp_path: Path) -> None:
    make, features = KINDS[kind]
    has = data.draw(st.sets(st.sampled_from(features), max_size=3)) if features else set[str]()
    rows = [make(data.draw, has) for _ in range(2)]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    before = Dataset.open(file)
    assert before.rows == 2, before.problems
    taken = to(target).rules.kinds[kind] is None or kind == "completion"
    output = tmp_path / f"out.{target}"
    output.unlink(missing_ok=True)
    try:
        report = convert(str(file), to(target), output)
    except DataError as error:
        assert (has or not taken) and error.problems and error.fix and not output.exists()
        return
    halved = kind == "preference" and target == "unpaired"
    assert taken and (report.written, report.left_out) == (4 if halved else 2, 0)
    assert {p.severity for p in report.losses} <= {Severity.INFO, Severity.WARNING}
    changed = {p.code for p in report.losses} & TOLD
    after = Dataset.open(output)
    if halved:
        assert [_halves(e) for e in before.examples()] == _two_by_two(after)
        return
    came, went = list(after.examples()), list(before.examples())
    assert [_compared(e, changed) for e in came] == [_compared(e, changed) for e in went]
    if came == went:
        assert after.digest == before.digest


def _halves(example: object) -> list[Any]:
    row = msgspec.to_builtins(example)
    preferred, rejected = row.pop("preferred"), row.pop("rejected")
    return [row | {"completion": preferred, "label": True}, row | {"completion": rejected, "label": False}]


def _two_by_two(data: Dataset) -> list[list[Any]]:
    rows = [msgspec.to_builtins(e) for e in data.examples()]
    return [rows[i : i + 2] for i in range(0, len(rows), 2)]


def _compared(example: object, changed: set[str]) -> Any:
    row = msgspec.to_builtins(example)
    if "completion" in row and "label" not in row:  # where only conversations are taken, it becomes one
        return {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
    for m in row.get("messages", ()):
        if m.get("weight") == 1:  # as is an answer without one; formats without weights drop it
            del m["weight"]
        if "call-ids-renumbered" in changed:
            m.pop("tool_call_id", None)
            for call in m.get("tool_calls", ()):
                call.pop("id")
        if "parts-joined" in changed and isinstance(m.get("content"), list):
            m["content"] = "".join(part["text"] for part in m["content"])
    return row


@pytest.mark.parametrize("feature", CHAT)
@pytest.mark.parametrize("target", ["sharegpt", "alpaca", "trl", "openai", "together", "fireworks"])
def test_what_is_refused_is_written_when_loss_is_allowed_or_left_out(
    feature: str, target: str, tmp_path: Path
) -> None:
    """With --allow-loss each row is in the file or counted, and the reason is told."""
    row = chat(lambda s: _plain(s), {feature})
    file = tmp_path / "rows.jsonl"
    file.write_bytes(msgspec.json.encode(row) + b"\n" + msgspec.json.encode(chat(_plain, set())) + b"\n")
    refused = False
    try:
        convert(str(file), to(target), tmp_path / "strict.jsonl")
    except DataError:
        refused = True
    report = convert(str(file), to(target), tmp_path / "out.jsonl", allow_loss=True)
    assert report.written + report.left_out == report.rows == 2
    assert not refused or report.losses
    assert Dataset.open(report.output).rows == report.written


def _plain(strategy: st.SearchStrategy[Any]) -> Any:
    """Something plain that the strategy can give."""
    if strategy is arguments:
        return "{}"
    return "words" if strategy is text else 1
