"""Find which parts of a rendered conversation belong to which message.

Few templates mark the text that the model should learn, so each conversation is rendered a second time with
placeholders for the texts of all messages. Text that occurs in both renderings comes from the template, and
the text between these pieces comes from the messages. The positions of messages are therefore exact, and
spans never overlap. Function names count as text of a message, so calls are found regardless of their
arguments. An answer starts after the generation prompt and ends with the end-of-turn token, which the model
must learn to write.

Conversations with the same form (roles, tool calls, reasoning, empty fields) share the template's pieces, so
only the first one is rendered twice.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from orchestrate.data.rows import ChatMessage, encode
from orchestrate.data.tokens.boundaries import AssistantTurn, Marks, Outline, TurnPieces, outline_of
from orchestrate.data.tokens.chat_templates import (
    CHATML,
    Spans,
    carries,
    chosen,
    is_marked,
    reads,
    render,
    with_settings,
)
from orchestrate.data.tokens.words import (
    KEPT,
    Cut,
    MessageFormat,
    Messages,
    Tools,
    aligned,
    apart_from_thought,
    as_form,
    cut_by_values,
    cut_by_words,
    forms_for,
    hidden,
    left_out,
    other_words,
    signature,
    thought_of,
    thought_words,
    word_start,
)
from orchestrate.errors import DataError

_MOST_KNOWN = 4096
"""Number of conversation forms that are cached. A dataset has few."""
_Order = Sequence[tuple[int, int]] | None
ASSISTANT = frozenset({"assistant"})
"""Roles whose messages are trained on, unless a method selects others."""
APART = "the text before an answer differs from the generation prompt"
_AGREEING = ("enable_thinking", "thinking")
"""Template settings that control whether the prompt opens the reasoning, closes it, or neither."""
_AS_GIVEN: list[tuple[int, int]] = []
"""Placeholder for the default search order: message by message."""
_SHORT = [ChatMessage(role="user", content="x"), ChatMessage(role="assistant", content="y")]
_THOUGHT_OUT = [_SHORT[0], ChatMessage(role="assistant", content="y", reasoning="z")]
_ASKED: list[dict[str, Any]] = [{"role": "user", "content": "x"}]


@dataclass(frozen=True)
class Rendered:
    text: str
    turns: tuple[AssistantTurn, ...]
    """The spans of each assistant message, in order."""
    messages: Sequence[ChatMessage] = field(repr=False)
    tools: Tools = field(default=None, repr=False)
    odd: tuple[str, ...] = ()
    """Warnings about how the template renders the turns."""
    others: Mapping[int, AssistantTurn] = field(default_factory=dict[int, AssistantTurn])
    """Spans of trained messages with other roles, keyed by message index."""
    written: Mapping[int, Sequence[int]] = field(default_factory=dict[int, list[int]], repr=False)
    """Positions at which the template wrote an answer's text, keyed by message index, for the answers with
    loss spans."""
    unthought: frozenset[int] = frozenset()
    """Indices of the messages whose reasoning is in `text` only as part of other text."""
    unnamed: frozenset[int] = frozenset()
    """Indices of the messages whose name the template drops."""

    def notes(self, *, has_end: bool, marks: Iterable[str] = ()) -> tuple[str, ...]:
        """Describe effects of the template that the conversation's author may not expect. Set `has_end` if
        the model has an end token. Training appends this token to an unfinished last answer (see `unended`),
        so a missing end of the last answer is then not reported. `marks` are the control tokens in `text`."""
        said = ["".join(self.text[start:end] for start, end in turn.spans) for turn in self.turns]
        found = [*left_out(self.text, self.messages, self.tools, said, self.unthought, self.unnamed)]
        found += self.odd
        turns = self.turns[:-1] if has_end and self.unended else self.turns
        if not all(turn.ends for turn in turns if turn.spans):
            found.append("no special token ends an assistant message, so the model cannot learn to stop")
        if own := sorted(mark for mark in marks if not KEPT.fullmatch(mark) and self._is_given(mark)):
            found.append(
                f"the text of a message contains control tokens of the model: {', '.join(own)} (remove them, "
                "because the chat template writes its own)"
            )
        for place, turn in self.others.items():
            if not turn.spans:
                found.append(
                    f"the template renders no text for a {self.messages[place].role} message, so "
                    "there is nothing to train on"
                )
        return tuple(dict.fromkeys(found))

    def _is_given(self, mark: str) -> bool:
        """Return whether a message contains the string of a control token."""
        return any(
            mark in text
            for m in self.messages
            for text in (m.text, m.reasoning or "", *(c.function.arguments for c in m.tool_calls or ()))
        )

    @property
    def unended(self) -> bool:
        """True if the text ends with an unfinished answer, to which the model's end token must be
        appended."""
        last = self.turns[-1] if self.turns else AssistantTurn((), True)
        return not last.ends and bool(last.spans) and last.spans[-1][1] >= len(self.text.rstrip())

    def weights(
        self,
        offsets: Sequence[tuple[int, int]],
        *,
        row: float = 1.0,
        inputs: bool = False,
    ) -> list[float]:
        """Return the loss weight of each token, given the position of each token in the text. With `inputs`,
        also train on text that the assistant didn't write. Raises `DataError` if the template changed part of
        an answer to train on."""
        weights = [row if inputs else 0.0] * len(offsets)
        ends = [end for _, end in offsets]
        answers = [(i, m) for i, m in enumerate(self.messages) if m.role == "assistant"]
        for (i, said), turn in zip(answers, self.turns, strict=True):
            weight = row if said.weight is None else said.weight * row
            for start, end in turn.spans:
                first = bisect_right(ends, start)
                for token in range(first, bisect_left(offsets, (end, 0), lo=first)):
                    weights[token] = weight
            if said.loss_spans is not None and said.weight != 0 and turn.spans:
                start, end = turn.spans[0][0], turn.spans[-1][1]
                at = self._place(i, said.text, start, end)
                for token in range(bisect_right(ends, start), bisect_left(offsets, (end, 0))):
                    if not carries(self.text, offsets[token], said.loss_spans, at, said.text):
                        weights[token] = 0.0
        for place, turn in self.others.items():
            given = self.messages[place].weight
            for start, end in turn.spans:
                first = bisect_right(ends, start)
                for token in range(first, bisect_left(offsets, (end, 0), lo=first)):
                    weights[token] = row if given is None else given * row
        return weights

    def _place(self, i: int, said: str, start: int, end: int) -> int:
        """Return where the text of the answer at index `i` begins in its turn, which is between `start` and
        `end`. The same text may also occur in the answer's reasoning or in the template's own text. Raises
        `DataError` if the place is not certain."""
        found = [
            at
            for at in self.written.get(i, ())
            if start <= at and at + len(said) <= end and self.text.startswith(said, at)
        ]
        if len(found) != 1:
            raise DataError(
                "the chat template changes an answer, so training cannot select part of it"
                if not found
                else "the chat template writes an answer several times, so training cannot select part of it",
                fix="train on the entire answer, or split it into turns with weight 0 and 1",
            )
        return found[0]


@dataclass
class Conversations:
    """Renderer of conversations with a tokenizer's chat templates. `names` contains the special tokens that
    the templates may write, keyed by name such as `bos_token`. `special` contains the text of every control
    token."""

    templates: object
    names: Mapping[str, str]
    special: frozenset[str]
    probing: bool = False
    """True if this object is only used to probe how a template behaves."""
    _known: dict[tuple[object, ...], tuple[MessageFormat, TurnPieces | None]] = field(default_factory=dict)  # pyright: ignore[reportUnknownVariableType]
    _prompts: dict[bool, str] = field(default_factory=dict[bool, str])

    @property
    def own(self) -> bool:
        """True if the tokenizer has its own template. Otherwise ChatML is used."""
        return chosen(self.templates) is not None

    @property
    def marked(self) -> bool:
        """True if the template itself marks what the model should learn."""
        return is_marked(self.source(None))

    def source(self, tools: Tools) -> str:
        """Return the template for a conversation with or without tools."""
        return chosen(self.templates, tools=bool(tools)) or CHATML

    def prompt(self, messages: Sequence[ChatMessage], tools: Tools = None) -> str:
        """Return the text that prompts the model for the next answer. Raises `DataError` if the template
        rejects the conversation."""
        return self._shown(messages, tools, answer_next=True)[1]

    def rendered(
        self, messages: Sequence[ChatMessage], tools: Tools = None, *, others: frozenset[str] = frozenset()
    ) -> Rendered:
        """Render a conversation. `others` names additional roles whose messages are trained on. Raises
        `DataError` if the template rejects the conversation."""
        form, text, spans = self._shown(messages, tools)
        places = tuple(i for i, m in enumerate(messages) if m.role in others)
        written = self._written(text, form, messages, tools)
        unthought = self._unthought(text, form, messages, tools)
        unnamed = self._unnamed(form, messages, tools)
        marked = spans and len(spans) == sum(m.role == "assistant" for m in messages)
        if marked and not places:
            turns = tuple(self._ended(text, [span]) for span in spans)
            return Rendered(text, turns, messages, tools, (), {}, written, unthought, unnamed)
        turns, odd, theirs = self._found(text, form, messages, tools, places)
        if marked:
            turns, odd = [self._ended(text, [span]) for span in spans], ()
        else:
            turns = self._marked(text, spans, turns)
        more = dict(zip(places, theirs, strict=True))
        return Rendered(text, tuple(turns), messages, tools, odd, more, written, unthought, unnamed)

    # -- inside ---------------------------------------------------------------------------------------------

    def _found(
        self,
        text: str,
        form: MessageFormat,
        messages: Sequence[ChatMessage],
        tools: Tools,
        others: tuple[int, ...],
    ) -> tuple[list[AssistantTurn], tuple[str, ...], list[AssistantTurn]]:
        """Return the assistant's turns, notes on them, and the turns of the messages at `others`."""
        key = (form, others, encode(tools), *(signature(m) for m in messages))
        given = as_form(form, messages)
        if key not in self._known:
            self._known[key] = (form, self._pieces(given, tools, others))
        pieces = self._known[key][1]
        places = aligned(text, pieces.texts, pieces.owners, given) if pieces else None
        if pieces is None or places is None:
            # The template's text depends on the messages, so their texts are located one by one.
            pieces = self._pieces(given, tools, others, order=pieces.owners if pieces else _AS_GIVEN)
            places = pieces.starts if pieces else None
        if pieces is None or places is None:
            nothing = AssistantTurn((), False)
            return [nothing for m in messages if m.role == "assistant"], (), [nothing for _ in others]
        theirs = [turn.placed(places) for turn in pieces.others]
        return [turn.placed(places) for turn in pieces.turns], pieces.notes, theirs

    def _written(
        self, text: str, form: MessageFormat, messages: Sequence[ChatMessage], tools: Tools
    ) -> dict[int, list[int]]:
        """Return where `text` contains the texts of the answers with loss spans. Only these texts are
        replaced with placeholders, so a copy of a text elsewhere in the row cannot be mistaken for it."""
        picked = [i for i, m in enumerate(messages) if m.loss_spans is not None and m.weight != 0]
        if not picked:
            return {}
        given = as_form(form, messages)
        own = [{"content": m["content"]} if i in picked else {} for i, m in enumerate(given)]
        cut = self._with_words(given, own, tools)
        starts = aligned(text, cut.texts, cut.owners, own) if cut else None
        if cut is None or starts is None:
            return {}
        ends = [at + len(piece) for at, piece in zip(starts, cut.texts, strict=True)]
        found: dict[int, list[int]] = {i: [] for i in picked}
        for i in picked:
            mine = [k for k, owner in enumerate(cut.owners) if owner[0] == i]
            for k in mine:
                if cut.owners[k] == cut.owners[mine[0]]:
                    found[i].append(ends[k] - word_start(messages[i].text, cut.owners[k][1] - 1))
        return found

    def _unthought(
        self, text: str, form: MessageFormat, messages: Sequence[ChatMessage], tools: Tools
    ) -> frozenset[int]:
        """Return the answers whose reasoning is dropped although its words are in `text`. Only reasoning
        whose words also occur elsewhere is replaced with placeholders."""
        thoughts = {i: t for i, m in enumerate(messages) if (t := thought_of(m)) and t in text}
        if not thoughts:
            return frozenset()
        others = [self.source(tools), encode(tools).decode(), *map(apart_from_thought, messages)]
        doubted = {
            i
            for i, thought in thoughts.items()
            if any(thought in other for other in others)
            or any(thought in other for k, other in thoughts.items() if k != i)
        }
        if not doubted:
            return frozenset()
        given = as_form(form, messages)
        fields = [("reasoning_content" if (m.reasoning or "").strip() else "content") for m in messages]
        own = [{fields[i]: m[fields[i]]} if i in doubted else {} for i, m in enumerate(given)]
        cut = self._with_words(given, own, tools)
        if cut is None:
            return frozenset()
        shown = set(cut.owners)
        return frozenset(i for i in doubted if not any((i, k) in shown for k in thought_words(messages[i])))

    def _unnamed(self, form: MessageFormat, messages: Sequence[ChatMessage], tools: Tools) -> frozenset[int]:
        """Return the messages whose name the template drops, except names of functions that calls show."""
        called = {call.function.name for m in messages for call in m.tool_calls or ()}
        words = {i: f"zqname{i}zq" for i, m in enumerate(messages) if m.name and m.name not in called}
        if not words:
            return frozenset()
        given = [
            m | ({"name": words[i]} if i in words else {}) for i, m in enumerate(as_form(form, messages))
        ]
        try:
            shown, _ = self._render(given, tools)
        except DataError:
            return frozenset()  # a template that rejects other names reads them
        return frozenset(i for i, word in words.items() if word not in shown)

    def _with_words(self, messages: Messages, own: Sequence[Mapping[str, Any]], tools: Tools) -> Cut | None:
        """Render a conversation with placeholders for only the texts in `own`, which contains some fields of
        each message."""
        shown = [{**m, **other_words(mine, i)} for i, (m, mine) in enumerate(zip(messages, own, strict=True))]
        return self._cut(shown, tools, None)

    def _marked(self, text: str, spans: Spans, turns: Sequence[AssistantTurn]) -> list[AssistantTurn]:
        """Replace the located turns with the spans that the template marks. Each mark belongs to the turn
        that contains it."""
        starts = [turn.spans[0][0] if turn.spans else 0 for turn in turns]
        mine: list[Spans] = [[] for _ in turns]
        for start, end in spans:
            if starts and end > start:
                mine[max(0, bisect_left(starts, end) - 1)].append((start, end))
        return [self._ended(text, marks) if marks else turn for marks, turn in zip(mine, turns, strict=True)]

    def _render(self, messages: Messages, tools: Tools, *, answer_next: bool = False) -> tuple[str, Spans]:
        return render(self.source(tools), messages, tools, names=self.names, answer_next=answer_next)

    def _shown(
        self, messages: Sequence[ChatMessage], tools: Tools, *, answer_next: bool = False
    ) -> tuple[MessageFormat, str, Spans]:
        """Render the messages in the first format that shows all of them, or otherwise in the format that
        shows most."""
        key = ("form", answer_next, bool(tools), *(signature(m) for m in messages))
        known = self._known.get(key)
        refused: DataError | None = None
        best: tuple[int, MessageFormat, str, Spans] | None = None
        # A format that works for one conversation may fail for another, because ids differ between rows.
        usual = known[0] if known else None
        for form in (*([usual] if usual else []), *forms_for(messages)):
            try:
                text, spans = self._render(as_form(form, messages), tools, answer_next=answer_next)
            except DataError as error:
                refused = refused or error  # the error for the unchanged row
                continue
            lost = 0 if form is usual else len(list(hidden(text, messages)))
            if best is None or lost < best[0]:
                best = (lost, form, text, spans)
            if not lost:
                break
        if best is None:
            raise refused or DataError("the model's chat template rejected the conversation")
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        self._known[key] = (best[1], None)
        return best[1], best[2], best[3]

    def _pieces(
        self, messages: list[dict[str, Any]], tools: Tools, others: tuple[int, ...], order: _Order = None
    ) -> TurnPieces | None:
        """Return the template's text around the messages. The messages are replaced with placeholders,
        unless an `order` is given."""
        if order is None:
            messages = [other_words(m, i) for i, m in enumerate(messages)]
        cut = self._cut(messages, tools, order)
        if cut is None:
            return None
        turns: list[Outline] = []
        theirs: list[Outline] = []
        notes: list[str] = []
        marks = Marks(self.special, self._opener(tools))
        for i, m in enumerate(messages):
            if m["role"] != "assistant" and i not in others:
                continue
            after = self._cut(messages[: i + 1], tools, order)
            if m["role"] != "assistant":
                # No generation prompt precedes such a message, so its turn starts with its own text.
                theirs.append(outline_of(cut, i, None, after, marks)[0])
                continue
            before = self._cut(messages[:i], tools, order, answer_next=True)
            asked = before.texts[-1] if before else self._usual_prompt(cut, i, tools)
            found, apart = outline_of(cut, i, asked, after, marks)
            turns.append(found)
            if apart and asked is not None and found.runs:
                place = found.runs[0].first
                notes.append(self._apart(asked, cut.texts[place.piece], marks))
        return TurnPieces(cut.texts, cut.owners, cut.starts, turns, theirs, tuple(dict.fromkeys(notes)))

    def _apart(self, asked: str, lead: str, marks: Marks) -> str:
        """Describe the difference between the prompt and the text before an answer in a row, and suggest a
        fix."""
        asked, lead = (
            text[max(text.rfind(marks.opener), 0) :] if marks.opener else text for text in (asked, lead)
        )
        note = (
            f"{APART}: at inference the prompt ends with {asked[-60:]!r}, but in training the "
            f"answer follows {lead[-60:]!r}"
        )
        if self.probing:
            return note
        for name in _AGREEING:
            for value in (False, True):
                if reads(self.templates, name) and self._agrees({name: value}, _SHORT):
                    settings = f"chat_template_kwargs: {{{name}: {str(value).lower()}}}"
                    return f"{note} (to make training match inference, set {settings})"
        if self._agrees({}, _THOUGHT_OUT):
            return f"{note} (to make training match inference, add each answer's reasoning to its row)"
        return (
            f"{note} (to make training match inference, use a chat_template whose assistant turns start "
            "with the generation prompt)"
        )

    def _agrees(self, settings: Mapping[str, Any], messages: Sequence[ChatMessage]) -> bool:
        """Return whether an answer directly follows the generation prompt under these settings."""
        probe = Conversations(with_settings(self.templates, settings), self.names, self.special, probing=True)
        try:
            shown = probe.rendered(messages)
        except DataError:
            return False
        return bool(shown.turns and shown.turns[-1].spans) and not shown.odd

    def _cut(
        self, messages: Messages, tools: Tools, order: _Order, *, answer_next: bool = False
    ) -> Cut | None:
        """Render and split a conversation. Returns `None` if the template rejects the messages."""
        try:
            text, _ = self._render(messages, tools, answer_next=answer_next)
        except DataError:
            return None
        if order is None:
            return cut_by_words(text)
        return cut_by_values(text, messages, None if order is _AS_GIVEN else order)

    def _opener(self, tools: Tools) -> str:
        """Return the special token that starts the generation prompt. No turn ends with it."""
        prompt = self._prompt_after_question(tools)
        return max((mark for mark in self.special if mark and prompt.startswith(mark)), key=len, default="")

    def _prompt_after_question(self, tools: Tools) -> str:
        """Return the generation prompt after a question."""
        key = bool(tools)
        if key not in self._prompts:
            texts: list[str] = []
            for answer_next in (False, True):
                try:
                    texts.append(self._render(_ASKED, tools, answer_next=answer_next)[0])
                except DataError:
                    texts.append("")
            without, asked = texts
            self._prompts[key] = asked.removeprefix(without).lstrip() if asked.startswith(without) else ""
        return self._prompts[key]

    def _usual_prompt(self, cut: Cut, i: int, tools: Tools) -> str | None:
        """Return the prompt for an answer that begins the conversation, as it would be after a question. Many
        templates reject a prompt without a question."""
        prompt = self._prompt_after_question(tools)
        opener = self._opener(tools) or prompt
        lead = next((text for text, (owner, _) in zip(cut.texts, cut.owners, strict=False) if owner == i), "")
        return lead[: lead.rfind(opener)] + prompt if opener and opener in lead else None

    def _ended(self, text: str, spans: Spans) -> AssistantTurn:
        """Return the marked spans as a turn, including a special token after the last span."""
        start, end = spans[-1]
        said = text[start:end].rstrip()
        if any(said.endswith(mark) for mark in self.special):
            return AssistantTurn(tuple(spans), True)
        behind = [end + len(mark) for mark in self.special if text.startswith(mark, end)]
        return AssistantTurn((*spans[:-1], (start, max(behind, default=end))), bool(behind))


def answered(prompt: Sequence[ChatMessage], answer: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the conversation with `answer` appended, in which only `answer` contributes to the loss. Used
    for preference pairs."""
    silent = [msgspec.structs.replace(m, weight=0.0) if m.role == "assistant" else m for m in prompt]
    return [*silent, *answer]


# Some chat templates drop an answer's reasoning when another turn follows.
#
# Templates of reasoning models only show the last answer's reasoning. If such a conversation is trained on
# as one row, its earlier answers teach the model to answer without reasoning.

Earlier = Literal["train", "split", "untrained"]
"""How to train on earlier answers that the template renders without their reasoning:

- `train`: train on them anyway.
- `split`: train on each of them at the end of its own row.
- `untrained`: use them only as context."""


def rows_of(
    chats: Conversations, messages: Sequence[ChatMessage], tools: Tools, earlier: Earlier
) -> list[Sequence[ChatMessage]]:
    """Split a row into the conversations to train on, in order. Raises `DataError` if the template rejects
    the row."""
    if earlier == "train" or not any(thought_of(m) for m in messages):
        return [messages]
    lost = _lost(chats.rendered(messages, tools))
    if not lost:
        return [messages]
    rows: list[Sequence[ChatMessage]] = []
    rest = list(messages)
    for place in lost:
        begun = [*map(untrained, messages[:place]), messages[place]]
        if earlier == "split":
            if place in _lost(chats.rendered(begun, tools)):
                continue  # the template shows no reasoning at all, so a separate row would not help
            rows.append(begun)
        rest[place] = untrained(messages[place])
    return [*rows, rest]


def _lost(shown: Rendered) -> list[int]:
    """Return the places of trained answers whose reasoning is missing from the trained text."""
    answers = [place for place, m in enumerate(shown.messages) if m.role == "assistant"]
    return [
        place
        for place, turn in zip(answers, shown.turns, strict=True)
        if (thought := thought_of(shown.messages[place]))
        and shown.messages[place].weight != 0
        and (
            place in shown.unthought or not any(thought in shown.text[start:end] for start, end in turn.spans)
        )
    ]


def untrained(message: ChatMessage) -> ChatMessage:
    return replace(message, weight=0.0) if message.role == "assistant" else message
