"""Encode rows as token ids with the loss weight of each token."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import msgspec

from orchestrate.data.dataset import Dataset
from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    PreferenceExample,
    RLExample,
    TextExample,
    UnpairedExample,
)
from orchestrate.data.tokens import counters
from orchestrate.data.tokens.answers import AnswerShape, ReadAnswer, read_answer, shape_of
from orchestrate.data.tokens.chat_templates import CHATML, carries, with_settings
from orchestrate.data.tokens.hub_tokens import of_transformers, opened
from orchestrate.data.tokens.tokenizer_files import HubTokenizer
from orchestrate.data.tokens.turns import (
    ASSISTANT,
    Conversations,
    Earlier,
    Rendered,
    answered,
    rows_of,
    thought_of,
    untrained,
)
from orchestrate.errors import DataError, UsageError
from orchestrate.types import decoding

# Encode rows as token ids, with a loss weight for each token.


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token ids of one row and the loss weight of each token (0 for context)."""

    ids: list[int]
    weights: list[float]
    truncated: int = 0
    """Number of tokens cut off at the length limit."""
    dropped: bool = False
    """True if the row was dropped because it exceeds the length limit."""
    notes: tuple[str, ...] = ()
    """Notes on unexpected effects of the chat template on the row."""

    @property
    def trained(self) -> int:
        """Number of tokens that contribute to the loss. The first token never does, because nothing predicts
        it."""
        return sum(1 for w in self.weights[1:] if w)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    preferred: Encoded
    rejected: Encoded

    @property
    def alike(self) -> bool:
        """True if nothing remains in which the answers differ, after truncation or in the text that the chat
        template renders."""
        return self.preferred.ids == self.rejected.ids


_END_OF_PROMPT = 64
"""Number of tokens at the end of the prompt that are used to detect where the answer starts."""


class Template:
    """A tokenizer with its chat templates."""

    def __init__(self, tokenizer: Any) -> None:
        """Wrap a tokenizer: a fast transformers tokenizer, or a `HubTokenizer`, which is enough to encode
        rows."""
        self.tokenizer = tokenizer
        self.hub = tokenizer if isinstance(tokenizer, HubTokenizer) else of_transformers(tokenizer)
        self.special = self.hub.special
        self.chats = Conversations(self.hub.template, self.hub.names, self.hub.marks)

    def asked(self, messages: Sequence[ChatMessage], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Render the conversation as a prompt for the next answer, and return its token ids."""
        return self.tokens(self.chats.prompt(messages, tools))[0]

    @cached_property
    def shape(self) -> AnswerShape:
        """Answer format of the chat template."""
        return shape_of(self.chats)

    def skipped_thinking(
        self, shown: Rendered, offsets: Sequence[tuple[int, int]], weights: Sequence[float]
    ) -> frozenset[int]:
        """Return the indices of trained tokens that belong to empty reasoning blocks. If the generation
        prompt already contains the start of a block, only the rest of the block counts."""
        found: set[int] = set()
        answers = (m for m in shown.messages if m.role == "assistant")
        for message, turn in zip(answers, shown.turns, strict=True):
            if not turn.spans or thought_of(message):
                continue
            start, end = turn.spans[0]
            before, said = shown.text[:start].rstrip(), shown.text[start:end]
            for opening, closing in self.shape.thinking:
                begun = "" if before.endswith(opening) else opening.strip()
                rest = said.lstrip()
                if not rest.startswith(begun):
                    continue
                rest = rest.removeprefix(begun).lstrip()
                if rest.startswith(closing.strip()):
                    until = end - len(rest.removeprefix(closing.strip()).lstrip())
                    found |= {n for n, (a, b) in enumerate(offsets) if start <= a < b <= until and weights[n]}
                    break
        return frozenset(found)

    def said(
        self,
        ids: Sequence[int],
        asked: Sequence[int],
        *,
        tools: Any = None,
        cut: bool = False,
        calls: bool = True,
        growing: bool = False,
    ) -> ReadAnswer:
        """Parse an answer. `ids` are its token ids without the end token, `asked` are the prompt's token ids,
        and `tools` are the tools in the request. Set `cut` if the answer was cut off, and `growing` to parse
        only the part that can no longer change. Without `calls`, tool calls remain text."""
        text, prompt = (self.hub.decode(part) for part in (ids, asked[-_END_OF_PROMPT:]))
        return read_answer(
            text, prompt=prompt, shape=self.shape, tools=tools, cut=cut, calls=calls, growing=growing
        )

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenize the text. Returns the token ids and their character offsets (start, end). Raises
        `UsageError` if the tokenizer does not report offsets."""
        ids, places = self.hub.encode(text)
        if len(places) != len(ids):
            raise UsageError("slow tokenizers do not report token offsets")
        return list(ids), list(places)


Truncation = Literal["right", "left", "drop"]
TrainOn = Literal["all", "last"] | tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Settings for truncating rows and choosing the trained tokens, as in `spec.SFT` and `spec.JobSpec`."""

    max_length: int | None = None
    truncation: Truncation = "right"
    train_on_inputs: bool = False
    train_on: TrainOn = "all"
    earlier: Earlier = "train"
    ignore_empty_think: bool = False

    @classmethod
    def of(cls, method: Mapping[str, Any], max_length: int | None, truncation: Truncation | None) -> Rules:
        """Build the rules from the method settings of a spec or job. Settings that are missing or `None` get
        their defaults."""
        train_on = method.get("train_on") or "all"
        return cls(
            max_length=max_length,
            truncation=truncation or "right",
            train_on_inputs=bool(method.get("train_on_inputs")),
            train_on=cast("TrainOn", train_on if isinstance(train_on, str) else tuple(train_on)),
            earlier=method.get("earlier_thinking") or "train",
            ignore_empty_think=bool(method.get("ignore_empty_think")),
        )

    @property
    def roles(self) -> frozenset[str]:
        """Roles of the messages to train on."""
        return ASSISTANT if isinstance(self.train_on, str) else frozenset(self.train_on)


EVERYTHING = Rules()
SKIPS_THINKING = (
    "the chat template adds an empty reasoning block before an answer, and training on it teaches "
    "the model not to reason (method.ignore_empty_think: true excludes it from the loss)"
)
NO_ROLES = "method.train_on has no effect, because it selects messages and the row is not a conversation"


def encode_row(example: Example, template: Template, rules: Rules = EVERYTHING) -> list[Encoded]:
    """Encode one row for training. Works like `encode`, except that `rules.earlier` may be `split`, which
    turns each earlier answer with reasoning into a separate row."""
    if not isinstance(example, ChatExample):
        return [encode(example, template, rules)]
    messages = _chosen(example.messages, rules)
    rows = rows_of(template.chats, messages, example.tools, rules.earlier)
    chats = [msgspec.structs.replace(example, messages=list(messages)) for messages in rows]
    # Messages of other roles are trained only once, in the row with the entire conversation.
    alone = replace(rules, train_on_inputs=False, train_on="all")
    parts = [alone] * (len(chats) - 1) + [rules]
    return [encode(chat, template, part) for chat, part in zip(chats, parts, strict=True)]


def _chosen(messages: Sequence[ChatMessage], rules: Rules) -> list[ChatMessage]:
    """Return the messages, with weight 0 for assistant messages that are not to be trained."""
    if rules.train_on == "last":
        last = max((k for k, m in enumerate(messages) if m.role == "assistant"), default=-1)
        return [untrained(m) if k != last else m for k, m in enumerate(messages)]
    return list(messages) if "assistant" in rules.roles else [untrained(m) for m in messages]


def encode(example: Example, template: Template, rules: Rules = EVERYTHING) -> Encoded:
    """Encode one row for supervised training. Raises `DataError` if the row is a preference pair or the
    template rejects it."""
    if isinstance(example, ChatExample):
        chat = msgspec.structs.replace(example, messages=_chosen(example.messages, rules))
        encoded = _encode_chat(chat, template, rules)
    elif isinstance(example, CompletionExample):
        encoded = _encode_completion(example, template, rules.train_on_inputs)
    elif isinstance(example, TextExample):
        encoded = _encode_text(example, template)
    else:
        raise DataError(f"supervised fine-tuning does not support rows of type {type(example).__name__}")
    if rules.train_on != "all" and not isinstance(example, ChatExample):
        encoded = replace(encoded, notes=(*encoded.notes, NO_ROLES))
    whole = isinstance(example, TextExample) or rules.train_on_inputs
    return _cut(encoded, template, rules, whole=whole)


def encode_pair(example: PreferenceExample, template: Template, rules: Rules = EVERYTHING) -> EncodedPair:
    """Encode the preferred and the rejected answer, each after the prompt. Only the tokens of the answers are
    trained. If the start is truncated, both sides lose the same number of tokens, so that both answers still
    follow the same prompt."""
    sides = [_answered(example, answer, template) for answer in (example.preferred, example.rejected)]
    most = max(_over(side, rules) for side in sides)
    return EncodedPair(*(_cut(side, template, rules, most) for side in sides))


def encode_answer(example: UnpairedExample, template: Template, rules: Rules = EVERYTHING) -> Encoded:
    """Encode the prompt and its answer. The label is ignored. Only the answer's tokens are trained."""
    return _cut(_answered(example, example.completion, template), template, rules)


def _answered(
    example: PreferenceExample | UnpairedExample, answer: list[ChatMessage], template: Template
) -> Encoded:
    chat = ChatExample(messages=answered(example.prompt, answer), tools=example.tools)
    return _encode_chat(chat, template, None)


def _encode_chat(example: ChatExample, template: Template, rules: Rules | None) -> Encoded:
    """Encode a conversation. `rules` are those of supervised training, where a single answer decides what the
    model learns to say."""
    row = 1.0 if example.weight is None else example.weight
    roles, inputs = (rules.roles, rules.train_on_inputs) if rules else (ASSISTANT, False)
    shown = template.chats.rendered(example.messages, example.tools, others=roles - ASSISTANT)
    ids, offsets = template.tokens(shown.text)
    weights = shown.weights(offsets, row=row, inputs=inputs)
    notes: tuple[str, ...] = ()
    if rules is not None and (skipped := template.skipped_thinking(shown, offsets, weights)):
        if rules.ignore_empty_think:
            weights = [0.0 if n in skipped else weight for n, weight in enumerate(weights)]
        else:
            notes = (SKIPS_THINKING,)
    end = template.hub.eos
    said = shown.notes(has_end=end is not None, marks=template.hub.marks_in(ids))
    if shown.unended and end is not None:
        ids, weights = [*ids, end], [*weights, weights[-1] if ids else 0.0]
    return Encoded(ids, weights, notes=(*said, *notes))


def _encode_text(example: TextExample, template: Template) -> Encoded:
    ids, offsets = template.tokens(example.text)
    spans = example.loss_spans
    if spans is None:
        weights = [1.0] * len(ids)
    else:
        weights = [float(carries(example.text, place, spans, 0, example.text)) for place in offsets]
    whole = template.hub.ended(ids)
    stops = spans is None or spans[-1][1] == len(example.text)
    weights += [float(stops)] * (len(whole) - len(ids))
    started = template.hub.started(whole)
    return Encoded(started, [float(spans is None)] * (len(started) - len(whole)) + weights)


def _encode_completion(example: CompletionExample, template: Template, train_on_inputs: bool) -> Encoded:
    prompt = template.hub.started(template.tokens(example.prompt)[0])
    answer = template.hub.ended(template.tokens(example.completion)[0])
    weights = [1.0 if train_on_inputs else 0.0] * len(prompt) + [1.0] * len(answer)
    return Encoded([*prompt, *answer], weights)


def _over(encoded: Encoded, rules: Rules) -> int:
    return 0 if rules.max_length is None else max(0, len(encoded.ids) - rules.max_length)


def _cut(
    encoded: Encoded, template: Template, rules: Rules, least: int = 0, *, whole: bool = False
) -> Encoded:
    """Cut the row to the limit. If it is cut at its start, by at least `least` tokens, it keeps the token
    that begins every text. An answer without its start is not trained, unless the `whole` row is."""
    over = _over(encoded, rules)
    if rules.truncation == "left":
        over = max(over, least)
    if not over:
        return encoded
    ids, weights, limit = encoded.ids, encoded.weights, len(encoded.ids) - over
    if rules.truncation == "drop":
        return replace(encoded, weights=[0.0] * len(ids), truncated=over, dropped=True)
    if rules.truncation == "right":
        return replace(encoded, ids=ids[:limit], weights=weights[:limit], truncated=over)
    start = [ids[0]] if ids[0] == template.hub.bos else []
    at = over + len(start)
    left = weights[at:]
    if not whole and at < len(weights) and weights[at] and weights[at - 1]:
        end = next((n for n, weight in enumerate(left) if not weight), len(left))
        left = [0.0] * end + left[end:]
    return replace(encoded, ids=[*start, *ids[at:]], weights=[0.0] * len(start) + left, truncated=over)


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
    """Parse one line of a file of canonical examples, such as one written by `Dataset.write("local")`. Raises
    `DataError` for an unknown kind of row."""
    try:
        keys = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        if "preferred_output" in keys:
            row = decoding.decode(line, type=_PairRow)
            return PreferenceExample(
                prompt=row.input.messages,
                preferred=row.preferred_output,
                rejected=row.non_preferred_output,
                tools=row.input.tools,
                parallel_tool_calls=row.input.parallel_tool_calls,
            )
        if "preferred" in keys:
            return decoding.decode(line, type=PreferenceExample)
        if "messages" in keys:
            return decoding.decode(line, type=ChatExample)
        if "label" in keys:
            return decoding.decode(line, type=UnpairedExample)
        if "completion" in keys:
            return decoding.decode(line, type=CompletionExample)
        return decoding.decode(line, type=TextExample)
    except msgspec.MsgspecError as error:
        raise DataError(f"not a canonical row: {error}") from error


def decode_prompt(line: bytes) -> RLExample:
    """Parse one RL row of a file written by `Dataset.write("local")`: a prompt with the grader's fields.
    Raises `DataError` for any other row."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        messages = decoding.decode(fields.pop("messages"), type=list[ChatMessage])
        tools = msgspec.json.decode(fields.pop("tools", b"null"), type=list[dict[str, Any]] | None)
        read = {name: msgspec.json.decode(value) for name, value in fields.items()}
    except (msgspec.MsgspecError, KeyError) as error:
        raise DataError(f"not a prompt with grader fields: {error}") from error
    return RLExample(messages=messages, fields=read, tools=tools)


# Check before training whether the encoded rows contain any tokens to train on.


@dataclass(frozen=True)
class TemplateCheck:
    trains: bool
    """True if any row has a token to train on."""
    lost: tuple[int, ...]
    """Numbers of the rows that contain no token to train on, or two answers that are the same. Only lists
    rows in `long` (see `check_rows`)."""


def check_rows(
    dataset: Dataset, counter: str, chat: dict[str, Any], rules: Rules, long: Collection[int]
) -> TemplateCheck:
    """Check whether rows contain tokens to train on. Checks every row whose number is in `long`. Checks other
    rows only until it finds one that has a token to train on. `counter` names the tokenizer as `hf:FOLDER`.
    `chat` contains `chat_template`, `chat_template_kwargs` and `added_tokens`. Raises `DataError` for a row
    that cannot be encoded."""
    tokenizer = opened(counters.folder_of(counter), chat.get("added_tokens") or ())
    own = chat.get("chat_template") or tokenizer.template or CHATML
    template = Template(replace(tokenizer, template=with_settings(own, chat.get("chat_template_kwargs"))))
    trains, lost, left = False, list[int](), len(long)
    for number, example in dataset.numbered():
        if trains and not left:
            break
        left -= number in long
        if trains and number not in long:
            continue
        if _trained(example, template, rules):
            trains = True
        elif number in long:
            lost.append(number)
    return TemplateCheck(trains, tuple(lost))


def _trained(example: Any, template: Template, rules: Rules) -> bool:
    """Return whether a row has tokens to train. A pair needs them on both sides, and sides that differ."""
    if isinstance(example, PreferenceExample):
        pair = encode_pair(example, template, rules)
        return bool(pair.preferred.trained and pair.rejected.trained and not pair.alike)
    if isinstance(example, UnpairedExample):
        return bool(encode_answer(example, template, rules).trained)
    return any(one.trained for one in encode_row(example, template, rules))
