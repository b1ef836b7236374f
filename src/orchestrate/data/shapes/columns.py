"""Rows with plain columns, as in well-known datasets: a `response` (Dolly, GPTeacher, OpenOrca), several
answers with scores, LLaMA-Factory's pairs, Axolotl's segments."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from orchestrate.data.rows import ChatExample, ChatMessage, PreferenceExample, TextExample, problem
from orchestrate.data.shapes import (
    Read,
    Row,
    RowFormat,
    are_lists,
    are_text,
    first_of,
    named,
    preferences,
    spans_of,
    strays,
)
from orchestrate.data.shapes.chat import message, tools_from, unread, written_calls
from orchestrate.data.shapes.preferences import with_system
from orchestrate.types import Problem


def _responded(row: Row) -> Read:
    """Read a row with a `response` to an instruction (with its input or context) or to a question."""
    if isinstance(row.get("instruction"), str):
        given = row.get("input") or row.get("context")
        question, wrong = preferences.instructed({"instruction": row["instruction"], "input": given})
    else:
        question, wrong = preferences.questioned(row)
    if wrong is not None:
        return None, [wrong]
    found: list[Problem] = []
    messages = with_system(row, [message("user", question), message("assistant", row["response"])], found)
    return ChatExample(messages=messages), found


_ANSWERS = ("answers", "responses", "completions", "candidates", "outputs")
_SCORES = tuple(
    ["score", "overall_score", "rating", "reward", "rank", "ranking", "scores", "ranks", "rewards", "ratings"]
)
_ASKED = ("prompt", "question", "instruction", "query")


_TEXTS = ("text", "response", "answer", "content", "completion", "output")


def _text_name(answer: Row) -> str | None:
    return next((name for name in _TEXTS if name in answer), None)


def _score(answer: Any) -> tuple[str | None, float | None]:
    """Return the text and the score of an answer. Ranks are negated, because the lowest rank is the best."""
    item = cast("Row", answer) if isinstance(answer, dict) else {}
    said: Any = answer if isinstance(answer, str) else item.get(_text_name(item) or "")
    name = next((n for n in _SCORES if isinstance(item.get(n), int | float)), None)
    value = None if name is None else float(item[name])
    if value is not None and name is not None and name.startswith("rank"):
        value = -value
    return said if isinstance(said, str) else None, value


def _ranked_fields(row: Row) -> tuple[str, str, str | None]:
    """Return the columns with the prompt, the answers and, unless they are in the answers, the scores."""
    place = next(name for name in _ANSWERS if isinstance(row.get(name), list))
    count = len(row[place])
    beside = next((n for n in _SCORES if isinstance(row.get(n), list) and len(row[n]) == count), None)
    asked = [name for name in _ASKED if name in row]
    return next((name for name in asked if row[name]), asked[0]), place, beside


def _unused_by_ranked(row: Row) -> Collection[str]:
    given = {name for name in (*_ASKED, *_ANSWERS, *_SCORES) if row.get(name) not in (None, "")}
    return given.difference(_ranked_fields(row))


def _ranked(row: Row) -> Read:
    """Read the best and the worst answer. Answers in between are reported as unused."""
    name, place, beside = _ranked_fields(row)
    scored = [_score(answer) for answer in cast("list[Any]", row[place])]
    if beside is not None:
        sign = -1 if beside.startswith("rank") else 1
        values = cast("list[Any]", row[beside])
        scored = [
            (said, sign * float(v) if isinstance(v, int | float) else None)
            for (said, _), v in zip(scored, values, strict=True)
        ]
    if any(said is None or score is None for said, score in scored) or len(scored) < 2:
        message_ = f"{place} must contain at least two answers, each with a text and a score"
        return None, [problem("bad-message", message_, field=place)]
    ordered = sorted(cast("list[tuple[str, float]]", scored), key=lambda each: -each[1])
    if ordered[0][1] == ordered[-1][1]:
        return None, [problem("same-answers", "all answers have the same score", field=place)]
    prompt, found = preferences.side(row[name], "user", name)
    found = [*found, *unread(_beside(row[place]), (), place)]
    if len(ordered) > 2:
        message_ = f"{len(ordered) - 2} answers between the best and the worst are not used"
        found = [*found, problem("extra-fields", message_, field=place)]
    example = PreferenceExample(
        prompt=with_system(row, prompt, found),
        preferred=[message("assistant", ordered[0][0])],
        rejected=[message("assistant", ordered[-1][0])],
    )
    return example, found


def _beside(answers: list[Any]) -> Row:
    """Return the fields of answers other than a text and a score."""
    left: Row = {}
    for answer in answers:
        if isinstance(answer, dict):
            item = cast("Row", answer)
            name = _text_name(item)
            same = {n for n in _TEXTS if n in item and item[n] == item[name or n]}
            left |= strays(item, {*same, *_SCORES}, "answer.")
    return left


def _is_ranked(row: Row) -> bool:
    place = next((name for name in _ANSWERS if isinstance(row.get(name), list) and row[name]), None)
    if place is None or not row.keys() & set(_ASKED):
        return False
    return any(isinstance(row.get(name), list) for name in _SCORES) or _score(row[place][0])[1] is not None


def _pair(row: Row) -> Read:
    """Read LLaMA-Factory's other pair format: two complete conversations."""
    renamed = {"chosen": row["chosen_messages"], "rejected": row["rejected_messages"]}
    return preferences.implicit(
        renamed | {n: row[n] for n in ("system", "system_prompt", "tools") if n in row}
    )


def _segments(row: Row) -> Read:
    """Read Axolotl's `input_output`: a text in pieces. Those with a true label contribute to the loss."""
    pieces: list[tuple[str, bool]] = []
    left: Row = {}
    for i, item in enumerate(cast("list[Any]", row["segments"])):
        piece = cast("Row", item) if isinstance(item, dict) else {}
        text, label = piece.get("text"), piece.get("label")
        if not isinstance(text, str) or not isinstance(label, bool):
            return None, [
                problem("bad-message", "a segment must have text and label", field=f"segments[{i}]")
            ]
        left |= strays(piece, {"text", "label"}, "segments.")
        pieces.append((text, label))
    text, spans = spans_of(pieces)
    made = TextExample(text=text, loss_spans=None if spans == [(0, len(text))] else spans)
    return made, unread(left, (), "segments")


def _called(row: Row) -> Read:
    """Read a row of xLAM: a query, its tool calls as JSON text, and the tools."""
    tools, found = tools_from(row)
    calls, wrong = written_calls(row["answers"], 0, "answers")
    messages = [message("user", row["query"]), ChatMessage(role="assistant", tool_calls=calls)]
    return ChatExample(messages=with_system(row, messages, found), tools=tools), [*found, *wrong]


def _is_called(row: Row) -> bool:
    return are_text("query", "answers")(row) and bool(row.get("tools")) and row["answers"].lstrip()[:1] == "["


def _in_turns(row: Row) -> Read:
    """Read a row of Capybara: a conversation as pairs of input and output."""
    turns: list[ChatMessage] = []
    found: list[Problem] = []
    for i, item in enumerate(cast("list[Any]", row["conversation"])):
        pair = cast("Row", item) if isinstance(item, dict) else {}
        place = f"conversation[{i}]"
        if not are_text("input", "output")(pair):
            return None, [problem("bad-message", "a turn must have input and output", field=place)]
        turns += [message("user", pair["input"]), message("assistant", pair["output"])]
        found += unread(strays(pair, {"input", "output"}, ""), (), place)
    return ChatExample(messages=with_system(row, turns, found)), found


def _is_in_turns(row: Row) -> bool:
    held: Any = row.get("conversation")
    turns = cast("list[Any]", held) if isinstance(held, list) else []
    return bool(turns) and isinstance(turns[0], dict) and "input" in turns[0]


SHAPES = (
    RowFormat("xlam-calls", "chat", named("query answers tools functions system"), _is_called, _called),
    RowFormat("input-output-turns", "chat", named("conversation system"), _is_in_turns, _in_turns),
    RowFormat(
        "ranked-answers",
        "preference",
        frozenset({*_ASKED, *_ANSWERS, *_SCORES, "system"}),
        _is_ranked,
        _ranked,
        unused=_unused_by_ranked,
    ),
    RowFormat(
        "llamafactory-pair",
        "preference",
        named("chosen_messages rejected_messages system tools functions"),
        are_lists("chosen_messages", "rejected_messages"),
        _pair,
    ),
    RowFormat(
        "instruction-response",
        "chat",
        named("instruction input context response system"),
        are_text("instruction", "response"),
        _responded,
        unused=first_of("input", "context"),
    ),
    RowFormat(
        "question-response",
        "chat",
        named("question context response system"),
        are_text("question", "response"),
        _responded,
    ),
    RowFormat("input-output-segments", "text", named("segments"), are_lists("segments"), _segments),
)
