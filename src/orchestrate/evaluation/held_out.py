"""Turn a file's rows into evaluation items, each with its cluster and slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from orchestrate.data import Dataset
from orchestrate.data.files.sources import source
from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    RLExample,
    UnpairedExample,
)
from orchestrate.data.shapes import known
from orchestrate.data.shapes.preferences import prompt_of
from orchestrate.data.shapes.row_reader import parse, row_of, visible
from orchestrate.data.shapes.unread import UnreadColumn, note, with_own_text
from orchestrate.data.tokens.answers import read_answer
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation import Item, item_id
from orchestrate.types import Message, Severity

MOST_LABELS = 20
"""Maximum number of distinct expected answers for slicing by label."""
_LENGTHS = ("short", "medium", "long")


@dataclass(frozen=True)
class HeldOut:
    """The items of a file, and the reasons why other rows were left out."""

    items: tuple[Item, ...]
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])
    repeated: int = 0
    """Number of items that duplicate an earlier item. Each is in the same cluster as the item it
    duplicates."""
    unread: tuple[str, ...] = ()
    """Columns that the questions leave out, although in most rows they contain text that appears in no used
    column."""

    @property
    def expects(self) -> bool:
        """True if each item has an expected answer."""
        return all(item.expected or item.expected_calls for item in self.items)


def held_out(
    dataset: Dataset,
    *,
    limit: int | None = None,
    cluster: str | None = None,
    slices: Sequence[str] = (),
    turns: bool = False,
) -> HeldOut:
    """Convert up to `limit` rows to items. Rows that cannot be used as questions are skipped.

    With `turns`, each earlier message with tool calls also becomes an item, in the same cluster as the row's
    other items.

    `cluster` is the column whose values define the clusters. Each entry of `slices` is a column name,
    `length` (length of the question) or `label` (the expected answer). Raises `DataError` if no row can be
    used, and `UsageError` if a requested column is missing from every row."""
    items: list[Item] = []
    left_out: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    together: dict[str, str] = {}
    rows = 0
    for _, row in dataset.read():
        if limit is not None and rows >= limit:
            break
        if row.example is None:
            # Blank lines have no error and are not rows.
            if error := next((p for p in row.problems if p.severity is Severity.ERROR), None):
                left_out[f"rows that could not be read ({error.code})"] += 1
            continue
        found = item_of(row.example, row.unread)
        own = _calls_before(row.example, row.unread) if turns else []
        if isinstance(found, Item):
            own.append(found)
        elif not own:
            left_out[found] += 1
            continue
        rows += 1
        # Identical items share one answer, so they belong to the same cluster. Each of them counts.
        cluster_id = next((together[one.id] for one in own if one.id in together), own[-1].id)
        for one in own:
            together[one.id] = cluster_id
            seen[one.id] += 1
            id = one.id if seen[one.id] == 1 else f"{one.id}#{seen[one.id]}"
            items.append(replace(one, id=id, cluster=cluster_id))
    if not items:
        raise DataError(
            f"{dataset.path}: no row ends with an assistant message or a completion, so there is nothing to "
            "compare answers with",
            fix="use chat rows that end with the expected answer, prompt/completion "
            "rows, desirable unpaired rows, or rows for a grader",
        )
    sizes = Counter(item.cluster for item in items)
    items = [item if sizes[item.cluster] > 1 else replace(item, cluster="") for item in items]
    items = _clustered(dataset, items, cluster)
    repeated = sum(n - 1 for n in seen.values())
    return HeldOut(tuple(_sliced(dataset, items, slices)), dict(left_out), repeated)


def _calls_before(example: Example, unread: Mapping[str, Any]) -> list[Item]:
    """Return an item for each message with tool calls before the row's last message."""
    if not isinstance(example, ChatExample):
        return []
    found: list[Item] = []
    for at, message in enumerate(example.messages[:-1]):
        if message.role == "assistant" and message.tool_calls and message.weight != 0 and at:
            calls = tuple(msgspec.to_builtins(call) for call in message.tool_calls)
            made = _made(example.messages[:at], message.text, calls, example.tools or (), dict(unread))
            if isinstance(made, Item):
                found.append(made)
    return found


def item_of(example: Example, unread: Mapping[str, Any]) -> Item | str:
    """Convert a row to an item, or return the reason why the row cannot be used."""
    tools: Sequence[dict[str, Any]] = getattr(example, "tools", None) or ()
    fields = dict(unread)
    if isinstance(example, CompletionExample):
        return _made([ChatMessage(role="user", content=example.prompt)], example.completion, (), (), fields)
    if isinstance(example, RLExample):
        return _made(example.messages, "", (), tools, {**example.fields, **fields})
    if isinstance(example, ChatExample) and example.messages and example.messages[-1].role == "assistant":
        *prompt, answer = example.messages
    elif isinstance(example, UnpairedExample):
        if not example.label:
            return "undesirable answers, which cannot be used as expected answers"
        prompt, answer = example.prompt, example.completion[-1]
    else:
        return "rows that end without an answer"
    calls = tuple(msgspec.to_builtins(call) for call in answer.tool_calls or ())
    if not prompt or not (answer.text or calls):
        return "rows that end without an answer"
    # The answer's text may include reasoning, which is not part of the expected answer.
    expected = read_answer(answer.text, calls=False).content or answer.text
    return _made(prompt, expected, calls, tools, fields)


def _made(
    prompt: Sequence[ChatMessage],
    expected: str,
    calls: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]],
    fields: dict[str, Any],
) -> Item | str:
    if any(isinstance(m.content, list) and any(part.image_url for part in m.content) for m in prompt):
        return "rows with images, which evaluations do not support"
    messages = tuple(message(m) for m in prompt)
    return Item(
        id=item_id(messages, tools, expected, calls),
        prompt=messages,
        expected=expected,
        expected_calls=tuple(calls),
        tools=tuple(tools),
        fields=fields,
    )


def message(m: ChatMessage) -> Message:
    calls = tuple(msgspec.to_builtins(call) for call in m.tool_calls or ())
    return Message(role=m.role, content=m.text, tool_calls=calls, tool_call_id=m.tool_call_id, name=m.name)


def _clustered(dataset: Dataset, items: Sequence[Item], column: str | None) -> list[Item]:
    if column is None:
        return list(items)
    _require_column(dataset, items, column)
    return [replace(item, cluster=_shown(item.fields.get(column)) or item.cluster) for item in items]


def _sliced(dataset: Dataset, items: Sequence[Item], wanted: Sequence[str]) -> list[Item]:
    names: list[list[str]] = [[] for _ in items]
    for one in wanted:
        if one == "length":
            found = _lengths(items)
        elif one == "label":
            found = _labels(items)
        else:
            _require_column(dataset, items, one, other="length, label or ")
            found = [_shown(item.fields.get(one)) for item in items]
        for place, value in zip(names, found, strict=True):
            if value:
                place.append(f"{one}:{value}")
    return [replace(item, slices=tuple(own)) for item, own in zip(items, names, strict=True)]


def _lengths(items: Sequence[Item]) -> list[str]:
    """Return each item's length slice: a third of the items each, by the characters of the question."""
    sizes = [sum(len(m.content) for m in item.prompt) for item in items]
    order = sorted(range(len(items)), key=lambda i: sizes[i])
    found = [""] * len(items)
    for rank, i in enumerate(order):
        found[i] = _LENGTHS[rank * len(_LENGTHS) // len(items)]
    return found


def _labels(items: Sequence[Item]) -> list[str]:
    labels = {item.expected.strip() for item in items}
    if len(labels) > MOST_LABELS:
        raise UsageError(
            f"cannot slice by label: there are {len(labels)} distinct answers", fix="slice by a column"
        )
    return [item.expected.strip() for item in items]


def _require_column(dataset: Dataset, items: Sequence[Item], column: str, other: str = "") -> None:
    if not any(column in item.fields for item in items):
        there = sorted({name for item in items for name in item.fields})
        raise UsageError(
            f"{dataset.path}: no row has a column named {column!r}",
            fix=f"use {other}one of its columns: {', '.join(there) or 'none'}",
        )


def _shown(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()


def prompts(path: str) -> HeldOut:
    """Read prompts from rows in mixed formats, such as a log with different kinds of requests. Rows don't
    need an answer. Raises `DataError` if no row contains a prompt."""
    items: list[Item] = []
    left_out: Counter[str] = Counter()
    columns: dict[str, UnreadColumn] = {}
    for line in _lines(path):
        value, _ = parse(line)
        found = "rows that are not objects"
        if isinstance(value, dict):
            found = _item(cast("dict[str, Any]", value), columns)
        if isinstance(found, str):
            left_out[found] += 1
        else:
            items.append(found)
    if not items:
        why = ", ".join(f"{n:,} {what}" for what, n in left_out.items()) or "the file has no rows"
        raise DataError(
            f"{path} has no usable prompt: {why}",
            fix="use rows with a messages, prompt, input or question field. To record a log: "
            "orchestrate record --help",
        )
    return HeldOut(tuple(items), dict(left_out), unread=tuple(with_own_text(columns, len(items))))


def _item(row: dict[str, Any], columns: dict[str, UnreadColumn]) -> Item | str:
    """Return the item of a row, or the reason why there is none. Adds columns that are not part of the
    question to `columns`."""
    shape = known.recognize(row)
    read = row_of(row, shape) if shape is not None else None
    found = item_of(read.example, read.unread) if read is not None and read.example is not None else None
    if isinstance(found, Item) and read is not None and read.example is not None:
        note(columns, read.unread, visible(read.example))
        return found
    prompt = prompt_of(row)
    if not isinstance(prompt, list):
        return item_of(prompt, {})
    if found is not None:
        return found
    problems = [*prompt, *(read.problems if read is not None else ())]
    errors = [p.message for p in problems if p.severity is Severity.ERROR]
    return f"rows that could not be read ({errors[0]})" if errors else "rows without a question"


def _lines(path: str) -> Iterator[bytes]:
    with Path(source(path).lines).open("rb") as file:
        for line in file:
            if text := line.strip():
                yield text
