"""Whose words are whose in a conversation that a chat template has rendered.

A template is a program, and few say which part of their text the model is to learn. So a conversation is
rendered a second time with other words in the place of every message's own. What both texts share is the
template's; between its pieces lie the messages, each of them found for certain, and no span can reach into
another. An answer begins where the generation prompt ends (the text with which the model will be asked for it)
and ends with the token that ends the turn, which the model must learn to write.

Conversations of one form (roles, tool calls, thinking, what is empty) share their pieces, so that all but the
first are rendered once.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import msgspec
import xxhash

from orchestrate.data.rows.examples import ChatMessage
from orchestrate.data.tokens.chat_templates import (
    CHATML,
    Spans,
    carries,
    chosen,
    is_marked,
    message,
    render,
)
from orchestrate.errors import DataError

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None

_KEPT = re.compile(r"(</?[\w:]*think[\w:]*>|</?tool_(?:call|response)>)")
"""Marks in a message's own words that some templates look for."""
_WORD = "zq{}qz{}zq"
"""Stands for somebody's words: letters and digits, which no template changes."""
_WORDS = re.compile(r"zq(\d+)qz\d+zq")


class Turn(NamedTuple):
    """What is said by one assistant message."""

    spans: tuple[tuple[int, int], ...]
    """In characters: from behind the generation prompt to behind what ends the turn. Several where a template
    writes somebody else's words between its own; none where it shows nothing."""
    ends: bool
    """Whether a special token ends it, which the model can learn to stop with."""


@dataclass(frozen=True)
class Rendered:
    text: str
    turns: tuple[Turn, ...]
    """Of each assistant message, in order."""
    notes: tuple[str, ...] = ()
    """What the template did with the conversation that its author may not expect."""

    @property
    def unended(self) -> bool:
        """Whether the text stops with an answer that nothing ends: the model's own end token has to be put
        there."""
        last = self.turns[-1] if self.turns else Turn((), True)
        return not last.ends and bool(last.spans) and last.spans[-1][1] >= len(self.text.rstrip())

    def weights(
        self,
        offsets: Sequence[tuple[int, int]],
        messages: Sequence[ChatMessage],
        *,
        row: float = 1.0,
        inputs: bool = False,
    ) -> list[float]:
        """The weight in the loss of each token at its place in the text; `inputs` trains what is not said by
        the assistant too. Raises `DataError` where a part of an answer is to be trained that the template
        changed."""
        weights = [row if inputs else 0.0] * len(offsets)
        ends = [end for _, end in offsets]
        answers = [m for m in messages if m.role == "assistant"]
        for said, turn in zip(answers, self.turns, strict=True):
            weight = row if said.weight is None else said.weight * row
            for start, end in turn.spans:
                first = bisect_right(ends, start)
                for token in range(first, bisect_left(offsets, (end, 0), lo=first)):
                    weights[token] = weight
            if said.loss_spans is not None and turn.spans:
                start, end = turn.spans[0][0], turn.spans[-1][1]
                if (at := self.text.find(said.text, start, end)) < 0:
                    raise DataError(
                        "the chat template changes an answer of which only a part is to be trained",
                        fix="train the whole answer, or split it into turns with weight 0 and 1",
                    )
                for token in range(bisect_right(ends, start), bisect_left(offsets, (end, 0))):
                    if not carries(self.text, offsets[token], said.loss_spans, at, said.text):
                        weights[token] = 0.0
        return weights


class Form(NamedTuple):
    """How messages are handed to a template; templates of the field disagree on it."""

    text_arguments: bool = False
    """Arguments of a call as JSON text, not as an object."""
    no_content: bool = False
    """`None`, not an empty text, beside tool calls."""
    short_ids: bool = False
    """Nine letters and digits."""
    parts: bool = False
    """Content as a list of parts."""


_FORMS = [Form(*flags) for flags in product((False, True), repeat=4)]
_FORMS.sort(key=lambda form: (sum(form), form))


@dataclass
class Conversations:
    """A tokenizer's chat templates. `names` are the special tokens that they may write, `special` the texts
    of all tokens that mark something."""

    templates: object
    names: Mapping[str, str]
    special: frozenset[str]
    _known: dict[tuple[object, ...], tuple[Form, _Pieces | None]] = field(default_factory=dict)  # pyright: ignore[reportUnknownVariableType]

    @property
    def own(self) -> bool:
        """False when the tokenizer brings no template and ChatML stands in."""
        return chosen(self.templates) is not None

    @property
    def marked(self) -> bool:
        """Whether the template says itself what the model is to learn."""
        return is_marked(self.source(None))

    def source(self, tools: Tools) -> str:
        """The template for a conversation with or without tools."""
        return chosen(self.templates, tools=bool(tools)) or CHATML

    def prompt(self, messages: Sequence[ChatMessage], tools: Tools = None) -> str:
        """The text with which the model is asked for the next answer. Raises `DataError` when the template
        refuses the conversation."""
        form, _, _ = self._shown(messages, tools, answer_next=True)
        return self._render(_as(form, messages), tools, answer_next=True)[0]

    def rendered(self, messages: Sequence[ChatMessage], tools: Tools = None) -> Rendered:
        """Raises `DataError` when the template refuses the conversation."""
        form, text, spans = self._shown(messages, tools)
        answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
        notes = list(_left_out(text, messages, tools))
        if is_marked(self.source(tools)) and len(spans) == len(answers):
            turns = [self._ended(text, start, end) for start, end in spans]
            return Rendered(text, tuple(turns), tuple(notes))
        key = (form, bool(tools), *(_signature(m) for m in messages))
        if key not in self._known:
            self._known[key] = (form, self._pieces(_as(form, messages), tools, other=True))
        pieces = self._known[key][1]
        places = _aligned(text, pieces.texts, pieces.owners, messages) if pieces else None
        if pieces is None or places is None:
            # The template's own words depend on those of the messages: they are looked for one by one.
            pieces = self._pieces(_as(form, messages), tools, other=False)
            places = pieces.starts if pieces else None
        if pieces is None or places is None:
            return Rendered(text, tuple(Turn((), False) for _ in answers), tuple(notes))
        turns = [turn.placed(places) for turn in pieces.turns]
        notes += pieces.notes
        return Rendered(text, tuple(turns), tuple(notes))

    # -- inside ---------------------------------------------------------------------------------------------

    def _render(self, messages: Messages, tools: Tools, *, answer_next: bool = False) -> tuple[str, Spans]:
        return render(self.source(tools), messages, tools, names=self.names, answer_next=answer_next)

    def _shown(
        self, messages: Sequence[ChatMessage], tools: Tools, *, answer_next: bool = False
    ) -> tuple[Form, str, Spans]:
        """The first form in which the template takes the messages and shows all of them, else the one in
        which it shows most."""
        key = ("form", answer_next, bool(tools), *(_signature(m) for m in messages))
        known = self._known.get(key)
        refused: DataError | None = None
        best: tuple[int, Form, str, Spans] | None = None
        for form in [known[0]] if known else _forms(messages):
            try:
                text, spans = self._render(_as(form, messages), tools, answer_next=answer_next)
            except DataError as error:
                refused = refused or error
                continue
            hidden = sum(1 for _ in _hidden(text, messages))
            if best is None or hidden < best[0]:
                best = (hidden, form, text, spans)
            if not hidden:
                break
        if best is None:
            raise refused or DataError("the model's chat template refuses the conversation")
        self._known[key] = (best[1], None)
        return best[1], best[2], best[3]

    def _pieces(self, messages: list[dict[str, Any]], tools: Tools, *, other: bool) -> _Pieces | None:
        """The template's own words around those of the messages, with others in their place (`other`)."""
        replaced = [_other(m, i) for i, m in enumerate(messages)] if other else messages
        try:
            text, _ = self._render(replaced, tools)
        except DataError:
            return None
        cut = _cut_by_words(text) if other else _cut_by_values(text, messages)
        turns: list[_Outline] = []
        notes: list[str] = []
        for i, m in enumerate(messages):
            if m["role"] != "assistant":
                continue
            before = self._upto(replaced[:i], tools, other=other, answer_next=True)
            after = self._upto(replaced[: i + 1], tools, other=other)
            found, apart = _turn(cut, i, before.texts[-1] if before else None, after, self.special)
            turns.append(found)
            if apart:
                notes.append("what precedes an answer is not the generation prompt")
        return _Pieces(cut.texts, cut.owners, cut.starts, turns, tuple(dict.fromkeys(notes)))

    def _upto(
        self, messages: Messages, tools: Tools, *, other: bool, answer_next: bool = False
    ) -> _Cut | None:
        """The first messages alone; `None` where the template refuses them."""
        try:
            text, _ = self._render(messages, tools, answer_next=answer_next)
        except DataError:
            return None
        return _cut_by_words(text) if other else _cut_by_values(text, messages)

    def _ended(self, text: str, start: int, end: int) -> Turn:
        """A span that the template marks, with the special token behind it."""
        said = len(text[start:end].rstrip())
        if any(text[start : start + said].endswith(mark) for mark in self.special):
            return Turn(((start, end),), True)
        stop = _special_at(text, start + said, self.special)
        return Turn(((start, stop or end),), stop is not None)


class _Place(NamedTuple):
    piece: int
    offset: int


class _Run(NamedTuple):
    """Where a turn, or a part of it, begins and ends."""

    first: _Place
    last: _Place
    ends: bool


class _Outline(NamedTuple):
    runs: list[_Run]

    def placed(self, places: Sequence[int]) -> Turn:
        spans = ((places[a.piece] + a.offset, places[b.piece] + b.offset) for a, b, _ in self.runs)
        return Turn(tuple(spans), bool(self.runs) and self.runs[-1].ends)


class _Cut(NamedTuple):
    """A text as the template's pieces, and whose words lie between one and the next."""

    texts: list[str]
    owners: list[tuple[int, int]]
    """Message, and which of its words: one fewer than the pieces."""
    starts: list[int]
    """Of each piece."""


class _Pieces(NamedTuple):
    texts: list[str]
    owners: list[tuple[int, int]]
    starts: list[int]
    turns: list[_Outline]
    notes: tuple[str, ...]


def _turn(
    cut: _Cut, i: int, before: str | None, upto: _Cut | None, special: frozenset[str]
) -> tuple[_Outline, bool]:
    """The turn of message `i`, and whether something else than the generation prompt precedes it. `before`
    ends with that, `upto` is the conversation with this message as its last."""
    mine = [k for k, (owner, _) in enumerate(cut.owners) if owner == i]
    if not mine:  # nothing of it is shown, or it is empty
        earlier = [k for k, (owner, _) in enumerate(cut.owners) if owner < i]
        after = upto.texts[-1] if upto else None
        return _empty(cut, earlier[-1] + 1 if earlier else 0, before, after, special)
    groups = [[mine[0]]]
    for k in mine[1:]:
        if k == groups[-1][-1] + 1:
            groups[-1].append(k)
        else:
            groups.append([k])
    lead = cut.texts[mine[0]]
    start, apart = _begin(lead, before, special)
    runs: list[_Run] = []
    for group in groups:
        first = _Place(group[0], start if not runs else len(cut.texts[group[0]]))
        behind = cut.texts[group[-1] + 1]
        after = _behind(upto, cut.owners[group[-1]])
        closing = behind if after is None else behind[: _common_prefix(behind, after)]
        end, ends = _end(closing, behind, special)
        runs.append(_Run(first, _Place(group[-1] + 1, end), ends))
    return _Outline(runs), apart


def _behind(cut: _Cut | None, word: tuple[int, int]) -> str | None:
    """What the template writes after a word."""
    return cut.texts[cut.owners.index(word) + 1] if cut is not None and word in cut.owners else None


def _empty(
    cut: _Cut, piece: int, before: str | None, after: str | None, special: frozenset[str]
) -> tuple[_Outline, bool]:
    """The turn of a message without words: what the model says is that it ends at once."""
    text = cut.texts[piece]
    if before is None or after is None:
        return _Outline([]), False
    start, apart = _begin(text, before, special)
    behind = text[start:]
    end, ends = _end(behind[: _common_prefix(behind, after[start:])], behind, special)
    return _Outline([_Run(_Place(piece, start), _Place(piece, start + end), ends)]), apart


def _begin(lead: str, before: str | None, special: frozenset[str]) -> tuple[int, bool]:
    """How much of the text before an answer is no part of it, and whether that is another text than the
    generation prompt's `before`."""
    if before is None:
        return len(lead), False
    start = _common_prefix(lead, before)
    if start == len(before):
        return start, False
    # They part in the middle of something; what was begun there is the answer's.
    marks = [at + len(mark) for mark in special if (at := lead.rfind(mark, 0, start)) >= 0]
    return max([*marks, lead.rfind("\n", 0, start) + 1]), True


def _end(closing: str, behind: str, special: frozenset[str]) -> tuple[int, bool]:
    """How far a turn reaches behind its last word, where the template closes it with `closing`, and whether a
    special token ends it. A template may leave it to the next turn's first token."""
    last = max((at + len(mark) for mark in special if (at := closing.rfind(mark)) >= 0), default=0)
    if last:
        return last, True
    stop = _special_at(behind, len(closing), special)
    return (stop, True) if stop is not None else (len(closing.rstrip()), False)


def _special_at(text: str, at: int, special: frozenset[str]) -> int | None:
    """Behind the special token that comes next, white space left out, or that `at` is in the middle of."""
    after = at + len(text[at:]) - len(text[at:].lstrip())
    found = [
        start + len(mark)
        for mark in special
        if 0 <= (start := text.find(mark, max(0, at - len(mark) + 1), after + len(mark))) <= after
    ]
    return max(found, default=None)


def _common_prefix(a: str, b: str) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:  # binary search: slices compare at memory speed
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def answered(prompt: Sequence[ChatMessage], answer: Sequence[ChatMessage]) -> list[ChatMessage]:
    """A conversation of which only `answer` carries loss, as in a preference pair."""
    silent = [msgspec.structs.replace(m, weight=0.0) if m.role == "assistant" else m for m in prompt]
    return [*silent, *answer]


# -- words -------------------------------------------------------------------------------------------------


def _values(of: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a message that are its own, in the order in which templates show them."""
    for name in ("reasoning_content", "content"):
        content = of.get(name)
        texts = [part["text"] for part in content] if isinstance(content, list) else [content or ""]
        for text in texts:
            yield from (piece for piece in _KEPT.split(text)[::2])
    for call in of.get("tool_calls") or ():
        yield from _texts(call["function"]["arguments"])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inside in value.values():
            yield from _texts(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _texts(inside)


def _other(of: Mapping[str, Any], i: int) -> dict[str, Any]:
    """The message with other words, of the same form."""
    numbers = iter(range(1 << 30))

    def text(value: str) -> str:
        pieces = _KEPT.split(value)
        pieces[::2] = [_around(piece, _WORD.format(i, next(numbers))) for piece in pieces[::2]]
        return "".join(pieces)

    def inside(value: Any) -> Any:
        if isinstance(value, str):
            return _around(value, _WORD.format(i, next(numbers)))
        if isinstance(value, Mapping):
            return {name: inside(one) for name, one in value.items()}
        return [inside(one) for one in value] if isinstance(value, list) else value

    out = dict(of)
    for name in ("reasoning_content", "content"):
        content = out.get(name)
        if isinstance(content, list):
            out[name] = [{**part, "text": text(part["text"])} for part in content]
        elif content:
            out[name] = text(content)
        else:
            next(numbers)  # `_values` has an empty text here
    if calls := out.get("tool_calls"):
        out["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _other_arguments(call, inside)}}
            for call in calls
        ]
    return out


def _other_arguments(call: Mapping[str, Any], inside: Any) -> Any:
    arguments = call["function"]["arguments"]
    return inside(arguments)


def _around(text: str, word: str) -> str:
    """`word` with the white space of `text` around it, by which some templates go."""
    core = text.strip()
    return text if not core else text.replace(core, word, 1)


def _cut_by_words(text: str) -> _Cut:
    texts, owners, starts, at = [], [], [0], 0
    for found in _WORDS.finditer(text):
        texts.append(text[at : found.start()])
        i, k = found[0][2:-2].split("qz")
        owners.append((int(i), int(k)))
        at = found.end()
        starts.append(at)
    return _Cut([*texts, text[at:]], owners, starts)


def _cut_by_values(text: str, messages: Messages) -> _Cut:
    texts, owners, starts, at = [], [], [0], 0
    for i, m in enumerate(messages):
        for k, value in enumerate(_values(m)):
            core = value.strip()
            found = min(
                ((place, form) for form in _spelt(core) if (place := text.find(form, at)) >= 0), default=None
            )
            if core and found is not None:
                texts.append(text[at : found[0]])
                owners.append((i, k))
                at = found[0] + len(found[1])
                starts.append(at)
    return _Cut([*texts, text[at:]], owners, starts)


def _spelt(core: str) -> tuple[str, ...]:
    """As it is, and as JSON has it."""
    return tuple(dict.fromkeys((core, json.dumps(core, ensure_ascii=False)[1:-1], json.dumps(core)[1:-1])))


def _aligned(
    text: str, pieces: Sequence[str], owners: Sequence[tuple[int, int]], messages: Sequence[ChatMessage]
) -> list[int] | None:
    """Where each piece begins in `text`; `None` when it is not made of them and the messages' own words."""
    words = [[value.strip() for value in _values(message(m))] for m in messages]
    starts, at = [0], 0
    for piece, (i, k) in zip(pieces, owners, strict=False):
        if not text.startswith(piece, at) or k >= len(words[i]):
            return None
        at += len(piece)
        for form in _spelt(words[i][k]):
            if text.startswith(form, at) and text.startswith(pieces[len(starts)][:1], at + len(form)):
                at += len(form)
                break
        else:
            return None
        starts.append(at)
    return starts if text[at:] == pieces[-1] else None


# -- forms -------------------------------------------------------------------------------------------------


def _forms(messages: Sequence[ChatMessage]) -> Iterable[Form]:
    called = any(m.tool_calls for m in messages)
    return _FORMS if called else [form for form in _FORMS if not any(form[:3])]


def _as(form: Form, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for of in messages:
        shown = message(of)
        if form.parts:
            shown["content"] = [{"type": "text", "text": shown["content"]}]
        if calls := shown.get("tool_calls"):
            if form.no_content and not shown["content"]:
                shown["content"] = None
            for call, given in zip(calls, of.tool_calls or (), strict=True):
                if form.text_arguments:
                    call["function"]["arguments"] = given.function.arguments
                if form.short_ids:
                    call["id"] = _short(call["id"])
        if form.short_ids and "tool_call_id" in shown:
            shown["tool_call_id"] = _short(shown["tool_call_id"])
        out.append(shown)
    return out


def _short(id: str) -> str:
    """Nine letters and digits, the same for the same id."""
    return id if re.fullmatch(r"[A-Za-z0-9]{9}", id) else xxhash.xxh64_hexdigest(id.encode())[:9]


def _signature(of: ChatMessage) -> tuple[object, ...]:
    """Messages of one signature are written by the same words of a template."""
    calls = tuple(
        (call.function.name, re.sub(r'(?<=")(?:[^"\\]|\\.)*(?=")', "", call.function.arguments))
        for call in of.tool_calls or ()
    )
    return (of.role, of.name, of.tool_call_id, _outline(of.text), _outline(of.reasoning or ""), calls)


def _outline(text: str) -> tuple[str, ...]:
    pieces = _KEPT.split(text)
    pieces[::2] = [_around(piece, "x") for piece in pieces[::2]]
    return tuple(pieces)


# -- what is not shown -------------------------------------------------------------------------------------


def _hidden(text: str, messages: Sequence[ChatMessage]) -> Iterator[str]:
    """Words of messages that the text does not have, names and arguments of calls among them."""
    for of in messages:
        words = [w for piece in _KEPT.split(of.text)[::2] if (w := piece.strip())]
        for call in of.tool_calls or ():
            words.append(call.function.name)
        yield from (word for word in words if not any(form in text for form in _spelt(word)))
        yield from ("a call" for found in _calls_shown(text, of) if found is None)


def _left_out(text: str, messages: Sequence[ChatMessage], tools: Tools) -> Iterator[str]:
    for of in messages:
        if of.role != "assistant":
            continue
        if (of.text.strip() or of.tool_calls) and not _any_shown(text, of):
            yield "the chat template shows nothing of an assistant message"
        if (thought := (of.reasoning or "").strip()) and thought not in text:
            yield "the chat template leaves out an assistant message's reasoning"
        if (inline := _inline_thought(of.text)) and inline not in text:
            yield "the chat template drops the <think> part of an earlier answer"
        if any(form is None for form in _calls_shown(text, of)):
            yield "the chat template leaves out a tool call"
    named = [name for tool in tools or () if (name := _tool_name(tool))]
    if named and named[0] not in text:
        yield "the chat template leaves out the tools"


def _calls_shown(text: str, of: ChatMessage) -> Iterator[str | None]:
    for call in message(of).get("tool_calls") or ():
        for word in (call["function"]["name"], *_texts(call["function"]["arguments"])):
            yield next((form for form in _spelt(word.strip()) if form in text), None)


def _any_shown(text: str, of: ChatMessage) -> bool:
    words = [w for w in _values(message(of)) if w.strip()] + [c.function.name for c in of.tool_calls or ()]
    return any(form in text for word in words for form in _spelt(word.strip()))


def _inline_thought(text: str) -> str:
    found = re.search(r"<think>(.*?)</think>", text, re.DOTALL)
    return found[1].strip() if found else ""


def _tool_name(tool: Mapping[str, Any]) -> str | None:
    function = tool.get("function", tool)
    return function.get("name") if isinstance(function, Mapping) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
