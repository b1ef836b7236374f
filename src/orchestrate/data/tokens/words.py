"""Locate the texts of messages in a rendered conversation, and find missing ones."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, product
from typing import Any, NamedTuple, cast

import xxhash

from orchestrate.data.rows import ChatMessage
from orchestrate.data.tokens.chat_templates import message

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None

KEPT = re.compile(r"(</?[\w:]{0,32}think[\w:]{0,32}>|</?tool_(?:call|response)>)")
"""Markers in a message's own text that some templates look for."""
_WORD = "zq{}qz{}zq"
"""Placeholder for a message's text. It contains only letters and digits, which no template changes."""
_WORDS = re.compile(r"zq(\d+)qz\d+zq")


_INLINE = re.compile(r"<think>(.*?)(</think>)", re.DOTALL)

_CHOICE = "to choose how to train on such answers, set method.earlier_thinking"


class Cut(NamedTuple):
    """A rendered text, split into the template's own pieces and the message texts between them. `owners`
    gives the message that each of the message texts comes from."""

    texts: list[str]
    owners: list[tuple[int, int]]
    """Origin of the text in each gap between pieces, as (message index, index of the text within the
    message). A text may fill several gaps."""
    starts: list[int]
    """Position of each piece in the rendered text."""


def values(of: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of a message, in the order in which templates show them."""
    for name in ("reasoning_content", "content"):
        content = of.get(name)
        for text in [str(part["text"]) for part in parts(content)] or [str(content or "")]:
            yield from KEPT.split(text)[::2]
    for call in of.get("tool_calls") or ():
        yield call["function"]["name"]
        yield from texts_in(call["function"]["arguments"])


def parts(content: object) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", content) if isinstance(content, list) else []


def texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in cast("dict[str, Any]", value).values():
            yield from texts_in(one)
    elif isinstance(value, list):
        for one in cast("list[Any]", value):
            yield from texts_in(one)


def other_words(of: Mapping[str, Any], i: int) -> dict[str, Any]:
    """Replace the texts of a message without changing its form."""
    numbers = count()

    def word(text: str) -> str:
        return around(text, _WORD.format(i, next(numbers)))

    def other(text: str) -> str:
        pieces = KEPT.split(text)
        pieces[::2] = [word(piece) for piece in pieces[::2]]
        return "".join(pieces)

    def inside(value: Any) -> Any:
        if isinstance(value, str):
            return word(value)
        if isinstance(value, dict):
            return {name: inside(one) for name, one in cast("dict[str, Any]", value).items()}
        return [inside(one) for one in cast("list[Any]", value)] if isinstance(value, list) else value

    out = dict(of)
    for name in ("reasoning_content", "content"):
        content = out.get(name)
        if found := parts(content):
            out[name] = [{**part, "text": other(str(part["text"]))} for part in found]
        elif content:
            out[name] = other(content)
        else:
            next(numbers)  # `values` yields an empty text here
    if calls := out.get("tool_calls"):
        out["tool_calls"] = [
            {
                **call,
                "function": {
                    **call["function"],
                    "name": word(call["function"]["name"]),
                    "arguments": inside(call["function"]["arguments"]),
                },
            }
            for call in calls
        ]
    return out


def around(text: str, word: str) -> str:
    """Replace `text` with `word`, but keep its leading and trailing whitespace, because some templates depend
    on it."""
    core = text.strip()
    return text if not core else text.replace(core, word, 1)


def word_start(text: str, k: int) -> int:
    """Return where the placeholder with index `k` replaces a part of `text` (see `other_words`)."""
    pieces = KEPT.split(text)
    lead = pieces[2 * k]
    return sum(map(len, pieces[: 2 * k])) + len(lead) - len(lead.lstrip())


def cut_by_words(text: str) -> Cut:
    texts: list[str] = []
    owners: list[tuple[int, int]] = []
    starts, at = [0], 0
    for found in _WORDS.finditer(text):
        texts.append(text[at : found.start()])
        i, k = found[0][2:-2].split("qz")
        owners.append((int(i), int(k)))
        at = found.end()
        starts.append(at)
    return Cut([*texts, text[at:]], owners, starts)


def cut_by_values(text: str, messages: Messages, order: Sequence[tuple[int, int]] | None = None) -> Cut:
    """Split a rendered text at the messages' texts. Looks for the texts one by one in `order`, or in message
    order by default."""
    words = {(i, k): value.strip() for i, m in enumerate(messages) for k, value in enumerate(values(m))}
    texts: list[str] = []
    owners: list[tuple[int, int]] = []
    starts, at = [0], 0
    for owner in words if order is None else order:
        core = words.get(owner, "")
        found = min(
            ((place, form) for form in spelt(core) if (place := text.find(form, at)) >= 0), default=None
        )
        if core and found is not None:
            texts.append(text[at : found[0]])
            owners.append(owner)
            at = found[0] + len(found[1])
            starts.append(at)
    return Cut([*texts, text[at:]], owners, starts)


def spelt(core: str) -> tuple[str, ...]:
    """Return the forms in which a template may render a text: unchanged or escaped as in JSON."""
    return tuple(dict.fromkeys((core, json.dumps(core, ensure_ascii=False)[1:-1], json.dumps(core)[1:-1])))


def aligned(
    text: str, pieces: Sequence[str], owners: Sequence[tuple[int, int]], messages: Messages
) -> list[int] | None:
    """Find where each piece begins in `text`. Returns `None` if `text` contains anything other than the
    pieces and the messages' texts."""
    words = [[value.strip() for value in values(m)] for m in messages]
    starts, at = [0], 0
    for piece, (i, k) in zip(pieces, owners, strict=False):
        if not text.startswith(piece, at) or k >= len(words[i]):
            return None
        at += len(piece)
        for form in spelt(words[i][k]):
            if text.startswith(form, at) and text.startswith(pieces[len(starts)][:1], at + len(form)):
                at += len(form)
                break
        else:
            return None
        starts.append(at)
    return starts if text[at:] == pieces[-1] else None


def hidden(text: str, messages: Sequence[ChatMessage]) -> Iterator[str]:
    """Yield every message text that is missing from the rendered text, including names and arguments of
    calls."""
    for of in messages:
        yield from (word for word in _own_words(of) if not _has(text, [word]))
        yield from ("a call" for found in _calls_shown(text, of) if not found)


def left_out(
    text: str,
    messages: Sequence[ChatMessage],
    tools: Tools,
    said: Sequence[str],
    unthought: frozenset[int] = frozenset(),
    unnamed: frozenset[int] = frozenset(),
) -> Iterator[str]:
    """Yield a description of each kind of content that the template does not render. `said` contains, for
    each assistant message, the part of `text` that comes from this message. `unthought` has the indices of
    the messages whose reasoning is in `text` only as part of other text, and `unnamed` those of the messages
    whose name is dropped."""
    answers = [(i, of) for i, of in enumerate(messages) if of.role == "assistant"]
    for (i, of), mine in zip(answers, said, strict=True):
        nothing = (of.text.strip() or of.tool_calls) and not _any_shown(text, of)
        if nothing:
            yield "the chat template renders nothing for an assistant message"
        learnt = of.weight != 0
        thought = (of.reasoning or "").strip()
        if learnt and thought and (thought not in text or i in unthought):
            yield f"the chat template drops an assistant message's reasoning ({_CHOICE})"
        inline = inline_thought(of.text)
        if learnt and inline and (inline not in text or (i in unthought and not thought)):
            yield f"the chat template drops the <think> part of an earlier answer ({_CHOICE})"
        if of.tool_calls and not nothing and not _has(mine, (w for w in _own_words(of) if w != inline)):
            yield "the chat template drops the text next to a tool call"
        if not _calls_within(mine, of):
            yield "the chat template drops a tool call"
    for i, of in enumerate(messages):
        thought = (of.reasoning or "").strip()
        if of.role != "assistant" and thought and (thought not in text or i in unthought):
            yield f"the chat template drops the reasoning of a {of.role} message"
        if i in unnamed:
            yield f"the chat template drops the name of a message with the role {of.role}"
    named = [name for tool in tools or () if (name := _tool_name(tool))]
    if named and named[0] not in text:
        yield "the chat template drops the tools"


def _own_words(of: ChatMessage) -> list[str]:
    return [w for piece in KEPT.split(of.text)[::2] if (w := piece.strip())]


def _has(text: str, words: Iterable[str]) -> bool:
    return all(any(form in text for form in spelt(word)) for word in words)


def _calls_shown(text: str, of: ChatMessage) -> Iterator[bool]:
    for call in message(of).get("tool_calls") or ():
        for word in (call["function"]["name"], *texts_in(call["function"]["arguments"])):
            yield _has(text, [word.strip()])


def _calls_within(said: str, of: ChatMessage) -> bool:
    """Return whether all calls appear. Each name must occur as often as it is called."""
    named = Counter(call.function.name for call in of.tool_calls or ())
    often = all(said.count(name) >= times for name, times in named.items())
    return often and all(_calls_shown(said, of))


def _any_shown(text: str, of: ChatMessage) -> bool:
    words = [w for w in values(message(of)) if w.strip()]
    return any(form in text for word in words for form in spelt(word.strip()))


def inline_thought(text: str) -> str:
    found = _INLINE.search(text)
    return found[1].strip() if found else ""


def thought_of(of: ChatMessage) -> str:
    return (of.reasoning or "").strip() or inline_thought(of.text)


def apart_from_thought(of: ChatMessage) -> str:
    """Return all text of a message but its reasoning (see `thought_of`)."""
    said = of.text if (of.reasoning or "").strip() else _INLINE.sub("", of.text, 1)
    calls = values({"tool_calls": message(of).get("tool_calls")})
    return "\n".join([of.role, of.name or "", said, *calls])


def thought_words(of: ChatMessage) -> range:
    """Return the placeholders of a message's reasoning, if only the field that contains the reasoning is
    replaced (see `other_words`)."""
    if (thought := of.reasoning or "").strip():
        return range(len(KEPT.split(thought)[::2]))
    if (found := _INLINE.search(of.text)) is None:
        return range(0)
    # `other_words` counts an absent reasoning field as one text.
    before, through = (len(KEPT.split(of.text[: found.start(n)])[::2]) for n in (1, 2))
    return range(before, through + 1)


def _tool_name(tool: Mapping[str, Any]) -> str | None:
    function = tool.get("function", tool)
    return function.get("name") if isinstance(function, Mapping) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


class MessageFormat(NamedTuple):
    """Format in which messages are passed to a template. Templates expect different formats."""

    text_arguments: bool = False
    """True if the arguments of a call are a JSON string instead of an object."""
    no_content: bool = False
    """True if the content next to tool calls is `None` instead of an empty string."""
    short_ids: bool = False
    """True if tool call ids must have exactly nine characters, all letters or digits."""
    parts: bool = False
    """True if content is a list of parts."""


_FORMS = [MessageFormat(*flags) for flags in product((False, True), repeat=4)]
_FORMS.sort(key=lambda form: (sum(form), form))


def forms_for(messages: Sequence[ChatMessage]) -> Iterable[MessageFormat]:
    called = any(m.tool_calls for m in messages)
    return _FORMS if called else [form for form in _FORMS if not any(form[:3])]


def as_form(form: MessageFormat, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
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
    """Return an id of nine letters and digits. Equal ids give equal results."""
    return id if re.fullmatch(r"[A-Za-z0-9]{9}", id) else xxhash.xxh64_hexdigest(id.encode())[:9]


def signature(of: ChatMessage) -> tuple[object, ...]:
    """Return a key for the form of a message. A template adds the same text to messages with equal keys."""
    calls = tuple(
        (call.function.name, re.sub(r'(?<=")(?:[^"\\]|\\.)*(?=")', "", call.function.arguments))
        for call in of.tool_calls or ()
    )
    return (of.role, of.name, _outline(of.text), _outline(of.reasoning or ""), calls)


def _outline(text: str) -> tuple[str, ...]:
    pieces = KEPT.split(text)
    pieces[::2] = [around(piece, "x") for piece in pieces[::2]]
    return tuple(pieces)
