"""Rows to token ids and the weight that each token has in the loss.

The same code feeds training and `orchestrate data preview`. Which tokens an assistant message owns comes from
the chat template: from its `{% generation %}` spans where it marks them, otherwise from rendering the
conversation twice, once with the message's content replaced, and keeping what follows the generation prompt.
The token that ends the turn is always the assistant's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orchestrate.data.rows.examples import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    PreferenceExample,
    RLExample,
    TextExample,
    UnpairedExample,
)
from orchestrate.data.tokens.chat_templates import CHATML, Spans, carries, chosen, is_marked, message, render
from orchestrate.errors import DataError

_SENTINEL = "\u241f\u241fX\u241f"
"""Stands for an assistant's words; characters that no real answer begins with."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one row and, for each, its weight in the loss (0 is context only). Same lengths."""

    ids: list[int]
    weights: list[float]
    truncated: int = 0
    """Tokens cut off at the length limit."""
    notes: tuple[str, ...] = ()
    """What the template did with the row that its author may not expect."""

    @property
    def trained(self) -> int:
        """Tokens that carry loss; the first token of a row has nothing to be predicted from."""
        return sum(1 for w in self.weights[1:] if w)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    preferred: Encoded
    rejected: Encoded


@dataclass
class Template:
    """A tokenizer with its chat template, and what has been learnt about it."""

    tokenizer: Any
    """A fast transformers tokenizer."""
    source: str = ""
    own: bool = True
    """False when the tokenizer brings no template and ChatML stands in."""
    marked: bool = False
    prompt: str = ""
    """The generation prompt: what the template puts before an answer."""
    special: frozenset[int] = frozenset()
    _tools_shown: dict[str, bool] = field(default_factory=dict[str, bool])

    @classmethod
    def of(cls, tokenizer: Any) -> Template:
        given = chosen(tokenizer.chat_template)
        template = cls(tokenizer, source=given or CHATML, own=given is not None)
        template.marked = is_marked(template.source)
        added = tokenizer.added_tokens_decoder
        template.special = frozenset(int(i) for i, t in added.items() if t.special) | frozenset(
            tokenizer.all_special_ids
        )
        question = [{"role": "user", "content": "Hi"}]
        before, _ = template.render(question)
        after, _ = template.render(question, answer_next=True)
        template.prompt = after[len(before) :] if after.startswith(before) else ""
        return template

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        answer_next: bool = False,
    ) -> tuple[str, Spans]:
        """The text and the template's own assistant spans; see `chat_templates.render`."""
        names = self.tokenizer.special_tokens_map
        return render(self.source, messages, tools, names=names, answer_next=answer_next)

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and, for each, its place in the text."""
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return out["input_ids"], out["offset_mapping"]


def encode(
    example: Example, template: Template, *, max_length: int | None = None, train_on_inputs: bool = False
) -> Encoded:
    """One row for supervised training. Raises `DataError` when the template refuses it or it is a preference
    pair."""
    if isinstance(example, ChatExample):
        encoded = _encode_chat(example, template, train_on_inputs)
    elif isinstance(example, CompletionExample):
        encoded = _encode_completion(example, template, train_on_inputs)
    elif isinstance(example, TextExample):
        encoded = _encode_text(example, template)
    else:
        raise DataError(f"a {type(example).__name__} cannot be trained on by supervised fine-tuning")
    return _cut(encoded, max_length)


def encode_pair(
    example: PreferenceExample, template: Template, *, max_length: int | None = None
) -> EncodedPair:
    """The preferred and the rejected answer, each after the prompt; only the answer's tokens carry weight."""
    sides = (
        _answered(example, answer, template, max_length) for answer in (example.preferred, example.rejected)
    )
    return EncodedPair(*sides)


def encode_answer(example: UnpairedExample, template: Template, *, max_length: int | None = None) -> Encoded:
    """The answer after the prompt, whatever its label; only the answer's tokens carry weight."""
    return _answered(example, example.completion, template, max_length)


def _answered(
    example: PreferenceExample | UnpairedExample,
    answer: list[ChatMessage],
    template: Template,
    max_length: int | None,
) -> Encoded:
    silent = [msgspec.structs.replace(m, weight=0.0) if m.role == "assistant" else m for m in example.prompt]
    chat = ChatExample(messages=[*silent, *answer], tools=example.tools)
    return _cut(_encode_chat(chat, template, False), max_length)


def _encode_chat(example: ChatExample, template: Template, train_on_inputs: bool) -> Encoded:
    messages = [message(m) for m in example.messages]
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    row = 1.0 if example.weight is None else example.weight
    asked = [(1.0 if (w := example.messages[i].weight) is None else w) * row for i in turns]
    notes: list[str] = []
    text, spans = template.render(messages, example.tools)
    if len(spans) != len(turns):
        spans = [_span(template, messages, example.tools, text, i) for i in turns]
    for i, (start, end) in zip(turns, spans, strict=True):
        if end <= start and (messages[i]["content"] or messages[i].get("tool_calls")):
            notes.append("the chat template shows nothing of an assistant message")
        reasoning = messages[i].get("reasoning_content")
        if reasoning and reasoning.strip() not in text:
            notes.append("the chat template leaves out an assistant message's reasoning")
    if example.tools and (name := _tool_name(example.tools)) and name not in text:
        notes.append("the chat template leaves out the tools")
    ids, offsets = template.tokens(text)
    weights = [row] * len(ids) if train_on_inputs else [0.0] * len(ids)
    ends = [end for _, end in offsets]
    for i, (start, end), weight in zip(turns, spans, asked, strict=True):
        if end <= start:
            continue
        first = bisect_right(ends, start)
        last = first
        while last < len(ids) and offsets[last][0] < end:
            last += 1
        said = last
        while said > first and not text[slice(*offsets[said - 1])].strip():
            said -= 1  # marks may take in the line feed behind the end of the turn
        if said > first and ids[said - 1] not in template.special:
            # The span stops before the token that ends the turn.
            if last < len(ids) and ids[last] in template.special:
                last += 1
            else:
                notes.append("no special token ends an assistant message; the model cannot learn to stop")
        said_of = example.messages[i]
        if said_of.loss_spans is None:
            weights[first:last] = [weight] * (last - first)
            continue
        at = text.find(said_of.text, start, end)
        if at < 0:
            raise DataError(
                "the chat template changes an answer of which only a part is to be trained",
                fix="train the whole answer, or split it into turns with weight 0 and 1",
            )
        for token in range(first, last):
            trained = carries(text, offsets[token], said_of.loss_spans, at, said_of.text)
            weights[token] = weight if trained else 0.0
    return Encoded(ids, weights, notes=tuple(dict.fromkeys(notes)))


def _encode_text(example: TextExample, template: Template) -> Encoded:
    ids, offsets = template.tokens(example.text)
    spans = example.loss_spans
    if spans is None:
        weights = [1.0] * len(ids)
    else:
        weights = [float(carries(example.text, place, spans, 0, example.text)) for place in offsets]
    whole = _with_end(template, ids)
    stops = spans is None or spans[-1][1] == len(example.text)
    weights += [float(stops)] * (len(whole) - len(ids))
    started = _with_start(template, whole)
    return Encoded(started, [float(spans is None)] * (len(started) - len(whole)) + weights)


def _span(
    template: Template,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    text: str,
    turn: int,
) -> tuple[int, int]:
    """Where message `turn` lies in `text`: between what a rendering with other words shares with it before
    and after."""
    bare = {"role": "assistant", "content": _SENTINEL}
    other, _ = template.render([*messages[:turn], bare, *messages[turn + 1 :]], tools)
    start = _common_prefix(text, other)
    rest = min(len(text), len(other)) - start
    end = len(text) - _common_prefix(text[::-1][:rest], other[::-1][:rest])
    if template.prompt:
        # A template may write fixed words, such as an empty thought; the model must learn to write them.
        found = text.rfind(template.prompt, 0, start)
        between = text[found + len(template.prompt) : start] if found >= 0 else ""
        if found >= 0 and len(between) < 200:
            start = found + len(template.prompt)
    return start, end


def _common_prefix(a: str, b: str) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:  # binary search: slices compare at memory speed
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _tool_name(tools: list[dict[str, Any]]) -> str | None:
    function = tools[0].get("function", tools[0])
    return function.get("name") if isinstance(function, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def _encode_completion(example: CompletionExample, template: Template, train_on_inputs: bool) -> Encoded:
    prompt = _with_start(template, template.tokens(example.prompt)[0])
    answer = _with_end(template, template.tokens(example.completion)[0])
    weights = [1.0 if train_on_inputs else 0.0] * len(prompt) + [1.0] * len(answer)
    return Encoded([*prompt, *answer], weights)


def _with_start(template: Template, ids: list[int]) -> list[int]:
    bos = template.tokenizer.bos_token_id
    return ids if bos is None or (ids and ids[0] == bos) else [bos, *ids]


def _with_end(template: Template, ids: list[int]) -> list[int]:
    eos = template.tokenizer.eos_token_id
    return ids if eos is None or (ids and ids[-1] == eos) else [*ids, eos]


def _cut(encoded: Encoded, limit: int | None) -> Encoded:
    if limit is None or len(encoded.ids) <= limit:
        return encoded
    return Encoded(
        encoded.ids[:limit], encoded.weights[:limit], truncated=len(encoded.ids) - limit, notes=encoded.notes
    )


class _Given(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class _PairRow(msgspec.Struct, forbid_unknown_fields=True):
    """A pair as `orchestrate.data` writes it for this machine."""

    input: _Given
    preferred_output: list[ChatMessage]
    non_preferred_output: list[ChatMessage]


def decode_row(line: bytes) -> Example:
    """One line of a file that `Dataset.write("local")` made, or of canonical examples. Raises `DataError`
    when it is none of the kinds."""
    try:
        keys = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        if "preferred_output" in keys:
            row = msgspec.json.decode(line, type=_PairRow)
            return PreferenceExample(
                prompt=row.input.messages,
                preferred=row.preferred_output,
                rejected=row.non_preferred_output,
                tools=row.input.tools,
                parallel_tool_calls=row.input.parallel_tool_calls,
            )
        if "preferred" in keys:
            return msgspec.json.decode(line, type=PreferenceExample)
        if "messages" in keys:
            return msgspec.json.decode(line, type=ChatExample)
        if "label" in keys:
            return msgspec.json.decode(line, type=UnpairedExample)
        if "completion" in keys:
            return msgspec.json.decode(line, type=CompletionExample)
        return msgspec.json.decode(line, type=TextExample)
    except msgspec.MsgspecError as error:
        raise DataError(f"not a canonical row: {error}") from error


def decode_prompt(line: bytes) -> RLExample:
    """One RL row of a file that `Dataset.write("local")` made: a prompt beside the fields of the grader.
    Raises `DataError` when it is none."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        messages = msgspec.json.decode(fields.pop("messages"), type=list[ChatMessage])
        tools = msgspec.json.decode(fields.pop("tools", b"null"), type=list[dict[str, Any]] | None)
        read = {name: msgspec.json.decode(value) for name, value in fields.items()}
    except (msgspec.MsgspecError, KeyError) as error:
        raise DataError(f"not a prompt with a grader's fields: {error}") from error
    return RLExample(messages=messages, fields=read, tools=tools)
