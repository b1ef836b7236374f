"""Shared functions for converting rows of all known formats to canonical examples."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from orchestrate.data import rows
from orchestrate.data.rows import ChatMessage, Example, ImageUrl, Kind, Part, problem
from orchestrate.types import Problem

# Convert multipart content of other tools to the fields of OpenAI's messages.


# Loss settings of messages in other trainers' formats: swift's `loss`, the Tinker cookbook's
# `trainable`, Axolotl's `train` and `train_detail`, LLaMA-Factory's `loss_weight`, Axolotl's segments.

FLAGS = ("loss", "train", "trainable")
"""Boolean fields that apply to an entire message."""

Spans = list[tuple[int, int]]
"""Character ranges that contribute to the loss, as (start, end) pairs, end exclusive."""


@dataclass
class Loss:
    """A message's loss settings. `used` contains the names of the fields that were read."""

    weight: int | float | None = None
    spans: Spans | None = None
    used: set[str] = field(default_factory=set[str])
    strays: dict[str, Any] = field(default_factory=dict[str, Any])
    """Unknown fields in the entries of `train_detail`."""
    found: list[Problem] = field(default_factory=list[Problem])


def loss_of(item: dict[str, Any], role: Any, text: str, place: str) -> Loss:
    """Read a message's loss settings. `item` is the message as given in the row, and `text` is its text. Only
    assistant messages can be trained on. For any other message, a setting that selects it for training is
    reported as a problem, and a setting that excludes it has no effect."""
    read = Loss()
    flags = {name: item[name] for name in FLAGS if isinstance(item.get(name), bool)}
    weight: Any = item.get("loss_weight")
    if weight is not None:
        read.used.add("loss_weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            read.found.append(
                problem("bad-weight", "loss_weight is not a number", field=f"{place}.loss_weight")
            )
            weight = None
    read.used |= flags.keys()
    spans = _detailed(item, text, place, read)
    if role != "assistant":
        wanted = [name for name, value in flags.items() if value] + ["loss_weight"] * bool(weight)
        wanted += ["train_detail"] * bool(spans)
        if wanted:
            said = (
                f"{wanted[0]} marks a {str(role)[:20]} message for training, but only assistant "
                "messages can be trained on"
            )
            read.found.append(problem("lost-meaning", said, field=f"{place}.{wanted[0]}"))
        return read
    read.found += _conflict(item, flags, spans, place)
    read.weight = 0 if False in flags.values() else weight
    if spans is not None and read.weight != 0:
        read.weight, read.spans = (0, None) if not spans else (read.weight, spans)
    if read.spans == [(0, len(text))]:
        read.spans = None
    return read


def _conflict(item: Item, flags: Mapping[str, bool], spans: Spans | None, place: str) -> list[Problem]:
    """Report two loss settings of an answer that contradict each other."""
    weights = {name: item[name] for name in ("weight", "loss_weight") if is_number(item.get(name))}
    says: Item = {name: bool(weight) for name, weight in weights.items()} | dict(flags)
    if weights and spans is not None:
        says["train_detail"] = bool(spans)
    trained, left_out = (
        [name for name, says_so in says.items() if says_so is given] for given in (True, False)
    )
    if trained and left_out:
        said = f"{trained[0]} marks the message for training, but {left_out[0]} excludes it"
        pair = f"{trained[0]} or {left_out[0]}"
    elif len({*weights.values()}) > 1:
        said, pair = "weight and loss_weight differ", "weight or loss_weight"
    else:
        return []
    found = problem("bad-weight", said, field=place)
    return [msgspec.structs.replace(found, fix=f"remove {pair}, or make them agree")]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_DETAIL = frozenset({"begin_offset", "end_offset", "train"})


def _detailed(item: dict[str, Any], text: str, place: str, read: Loss) -> Spans | None:
    """Read Axolotl's offsets. The last offset is inclusive."""
    details: Any = item.get("train_detail")
    if details is None:
        return None
    read.used.add("train_detail")
    spans: Spans = []
    for detail in cast("list[Any]", details) if isinstance(details, list) else [None]:
        part = cast("dict[str, Any]", detail) if isinstance(detail, dict) else {}
        read.strays |= {f"train_detail.{name}": part[name] for name in part.keys() - _DETAIL}
        begin, end, trained = (part.get(name) for name in ("begin_offset", "end_offset", "train"))
        if not (isinstance(begin, int) and isinstance(end, int) and isinstance(trained, bool)):
            message = "train_detail must contain {begin_offset, end_offset, train}"
            read.found.append(problem("bad-weight", message, field=f"{place}.train_detail"))
            return None
        if not 0 <= begin <= end < max(1, len(text)):
            message = f"train_detail spans {begin} to {end}, but the text has {len(text)} characters"
            read.found.append(problem("bad-weight", message, field=f"{place}.train_detail"))
            return None
        if trained:
            spans.append((begin, end + 1))
    return joined(spans)


def joined(spans: Iterable[tuple[int, int]]) -> Spans:
    """Sort the spans and merge adjacent ones."""
    made: Spans = []
    for begin, end in sorted(spans):
        if begin >= end:
            continue
        if made and begin <= made[-1][1]:
            made[-1] = (made[-1][0], max(end, made[-1][1]))
        else:
            made.append((begin, end))
    return made


def spans_of(pieces: Iterable[tuple[str, bool]]) -> tuple[str, Spans]:
    """Join (text, trained) pieces. Returns the joined text and the spans of the trained pieces."""
    text, spans = "", Spans()
    for piece, trained in pieces:
        if trained:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text, joined(spans)


# Insert images from a column at their placeholders in the messages.
#
# LLaMA-Factory's placeholder is `<image>` in the text. Transformers and TRL use a part `{type: image}`.
# If a row has no placeholders, TRL puts its images before the first question.

COLUMNS = ("images", "image")
MARK = "<image>"
_HEADS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


def images_of(row: dict[str, Any]) -> list[Any]:
    """Return the values of the row's image columns."""
    held: list[Any] = []
    for name in COLUMNS:
        value: Any = row.get(name)
        held += cast("list[Any]", value) if isinstance(value, list) else [] if value is None else [value]
    return held


def place(messages: Sequence[ChatMessage], held: Sequence[Any]) -> list[Problem]:
    """Fill the image placeholders in `messages` with the images, in order. The text must have one placeholder
    per image."""
    urls = [_url(item) for item in held]
    if None in urls:
        return [
            problem(
                "bad-image", f"image {urls.index(None) + 1} is not a path, a URL or bytes", field="images"
            )
        ]
    marked = [m for m in messages if MARK in m.text or _places(m)]
    if not marked and (first := next((m for m in messages if m.role == "user"), None)) is not None:
        first.content = [*(Part(type="image_url") for _ in urls), *_parts(first)]
    elif (count := sum(m.text.count(MARK) + _places(m) for m in marked)) != len(urls):
        return [
            problem(
                "bad-image",
                f"the text has {count} image placeholders, but there are {len(urls)} images",
                field="images",
            )
        ]
    waiting = iter(cast("list[str]", urls))
    for m in messages:
        if MARK in m.text:
            m.content = [piece for part in _parts(m) for piece in _split(part)]
        for part in m.content if isinstance(m.content, list) else ():
            if part.type == "image_url" and part.image_url is None:
                part.image_url = ImageUrl(url=next(waiting))
    return []


def _places(m: ChatMessage) -> int:
    parts = m.content if isinstance(m.content, list) else ()
    return sum(part.type == "image_url" and part.image_url is None for part in parts)


def _parts(m: ChatMessage) -> list[Part]:
    if isinstance(m.content, list):
        return m.content
    return [Part(type="text", text=m.content)] if m.content else []


def _split(part: Part) -> list[Part]:
    if part.text is None or MARK not in part.text:
        return [part]
    pieces: list[Part] = []
    for i, text in enumerate(part.text.split(MARK)):
        pieces += [Part(type="image_url")] if i else []
        pieces += [Part(type="text", text=text)] if text else []
    return pieces


def _url(item: Any) -> str | None:
    """Return a path or URL unchanged, and bytes as a data URL. `datasets` stores images as `{bytes,
    path}`."""
    if isinstance(item, str):
        return item or None
    if not isinstance(item, dict):
        return None
    named = cast("dict[str, Any]", item)
    data: Any = named.get("bytes") or named.get("base64")
    if isinstance(data, dict):  # bytes from a table's column
        data = cast("dict[str, Any]", data).get("base64")
    if isinstance(data, str):
        try:
            head = base64.b64decode(data[:16])
        except ValueError:
            return None
        kind = next((kind for start, kind in _HEADS.items() if head.startswith(start)), "png")
        return f"data:image/{kind};base64,{data}"
    url: Any = named.get("url") or named.get("path")
    return url if isinstance(url, str) else None


Item = dict[str, Any]

PLACEHOLDER: Item = {"type": "image_url"}
"""Placeholder for an image that the row stores elsewhere. The reader of the row's format replaces it."""
_TEXTS = ("text", "input_text", "output_text", "refusal")
_IMAGES = ("image", "input_image", "image_url")
_SPELLINGS = ("image_url", "image", "url", "path", "value")
"""Fields that may contain an image. The first one with a value is used."""
_READ: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(_TEXTS, frozenset({"text", "value"})),
    "refusal": frozenset({"refusal", "value"}),
    **dict.fromkeys(_IMAGES, frozenset({*_SPELLINGS, "source", "base64", "mime_type", "detail"})),
    **dict.fromkeys(("thinking", "reasoning"), frozenset({"thinking", "value", "text"})),
    "tool_use": frozenset({"id", "name", "input"}),
    "tool_call": frozenset({"value"}),
    "tool_result": frozenset({"tool_use_id", "content"}),
}
"""Supported kinds of parts, with the fields used from each."""
_SAYING: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_TEXTS, ("text", "value")),
    "refusal": ("refusal", "value"),
    **dict.fromkeys(("thinking", "reasoning"), ("thinking", "value", "text")),
    **dict.fromkeys(_IMAGES, ("source", "base64", *_SPELLINGS)),
}
"""Fields that may contain what a part shows. The first one with a value is used."""
_NOTES = frozenset(
    {"cache_control", "signature", "annotations", "logprobs", "citations", "is_error", "index", "status"}
)
"""Fields of parts that are irrelevant to training."""


NOTHING: tuple[Any, ...] = (None, [], {}, "")
"""Values of a field that count as none."""


def strays(item: Mapping[str, Any], known: Container[str], place: str) -> Item:
    """Return the unknown fields of an object, with `place` as a prefix of their names. The caller adds these
    fields to the message, and the message reader reports them."""
    unread = {name: value for name, value in item.items() if name not in known and name not in _NOTES}
    return {f"{place}{name}": value for name, value in unread.items() if value not in NOTHING}


def replaced(item: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """Return the fields among `names` that are not used because an earlier one has another value."""
    given = [name for name in names if item.get(name) not in NOTHING]
    return {name for name in given[1:] if item[name] != item[given[0]]}


def unfolded(item: Any) -> list[Any]:
    """Convert a message into one or more messages in OpenAI's format. Unknown fields are preserved, so that
    the message reader can report them."""
    content: Any = cast("Item", item).get("content") if isinstance(item, dict) else None
    parts = cast("list[Any]", content) if isinstance(content, list) else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        return [item]
    if all(part.keys() <= {"type", "text", "image_url"} and part.get("type") in _PLAIN for part in parts):
        return [item]
    return _Unfolding(cast("Item", item), cast("list[Item]", parts)).messages()


_PLAIN = ("text", "image_url")


class _Unfolding:
    """Conversion of one message to several. Tool results precede the text of the same message, as in the
    conversation."""

    def __init__(self, item: Item, parts: list[Item]) -> None:
        self._item = item
        self._parts: list[Item] = []
        self._trained: list[bool] = []
        self._flagged = False
        self._others: list[tuple[str, bool]] = []
        self._thoughts: list[str] = []
        self._calls: list[Item] = []
        self._answers: list[Item] = []
        self._strays: Item = {}
        for part in parts:
            self._add(part)

    def _add(self, part: Item) -> None:
        kind = part.get("type")
        value: Any = part.get("value")
        flags = [name for name in FLAGS if isinstance(part.get(name), bool)]
        if kind not in _TEXTS:
            self._others += [(name, part[name]) for name in flags]
        if isinstance(kind, str) and kind in _READ:  # other kinds of parts are errors anyway
            known = _READ[kind] - replaced(part, _SAYING.get(kind, ()))
            self._strays |= strays(part, {"type", *known, *flags}, "content.")
        if kind in ("thinking", "reasoning") and isinstance(thought := _said_in(part), str):
            self._thoughts.append(thought)
        elif kind == "tool_use":
            self._calls.append(call(part.get("id"), part.get("name"), part.get("input")))
        elif kind == "tool_call" and (made := written_call(value)) is not None:
            self._strays |= strays(made, call_fields(made, CALL), "tool_calls.")
            self._calls.append(call("", made["name"], arguments_of(made)))
        elif kind == "tool_result":
            said = part.get("content")
            answer = {"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": said or ""}
            self._answers += unfolded(answer)
        else:
            self._parts.append(self._image(part) if kind in _IMAGES else _text(part))
            self._trained.append(self._is_trained(part))

    def _image(self, part: Item) -> Item:
        """Return the image of a part in any spelling, or `PLACEHOLDER` if the part contains none."""
        source: Any = part.get("source")
        if isinstance(source, dict):
            named = cast("Item", source)
            self._strays |= strays(named, {"type", "data", "media_type", "url"}, "content.source.")
            data, kind = named.get("data"), named.get("media_type")
            return image(f"data:{kind};base64,{data}" if data else named.get("url"), part.get("detail"))
        if part.get("base64"):
            return image(f"data:{part.get('mime_type', 'image/png')};base64,{part['base64']}")
        given: Any = next((part[name] for name in _SPELLINGS if part.get(name)), None)
        if isinstance(given, dict):
            named = cast("Item", given)
            self._strays |= strays(named, {"url", "path", "detail"}, "content.image.")
            return image(named.get("url", named.get("path")), named.get("detail", part.get("detail")))
        return image(given, part.get("detail")) if given is not None else PLACEHOLDER

    def _is_trained(self, part: Item) -> bool:
        """Return whether a part is trained on. A part without a flag follows its message."""
        flag = next((part[name] for name in FLAGS if isinstance(part.get(name), bool)), None)
        if flag is not None and part.get("type") in _TEXTS:
            self._flagged = True
            return flag
        return all(self._item.get(name) is not False for name in FLAGS)

    def messages(self) -> list[Any]:
        rest = {name: value for name, value in self._item.items() if name != "content"} | self._strays
        if self._thoughts:
            thought = "\n\n".join(self._thoughts)
            # A message has one reasoning, so another one is returned as an unknown field.
            name = "reasoning" if rest.get("reasoning") in (None, "", thought) else "content.thinking"
            rest[name] = thought
        if self._calls:
            given: Any = rest.get("tool_calls")
            rest["tool_calls"] = _with_blocks(cast("list[Any]", given) if given else [], self._calls)
        rest |= self._loss()
        content: Any = self._parts
        if all(part.keys() == {"type", "text"} and isinstance(_said_in(part), str) for part in self._parts):
            content = "".join(cast("str", part["text"]) for part in self._parts)
        if self._answers and not self._parts:
            beside = {name: value for name, value in rest.items() if name != "role"}
            return [*self._answers[:-1], self._answers[-1] | beside]
        return [*self._answers, rest | {"content": content or None}]

    def _loss(self) -> Item:
        """Return the message's loss settings that follow from the flags of its parts. A flag of a part that
        is not text has no effect, so it is returned as an unknown field unless all of the message is trained
        as it says."""
        texts = [text if isinstance(text := part.get("text"), str) else "" for part in self._parts]
        whole, spans = spans_of(zip(texts, self._trained, strict=True))
        is_answer = self._item.get("role") == "assistant"
        made: Item = {}
        trained: bool | None = is_answer and self._item.get("weight") != 0 and self._is_trained({})
        if self._flagged and is_answer:
            trained = bool(spans) if spans in ([], [(0, len(whole))]) else None
            # The flags of text parts take precedence over the message's own.
            made = dict.fromkeys(name for name in FLAGS if name in self._item)
            made |= {"loss_spans": spans} if spans else {"train": False}
            if spans and self._item.get("weight") == 0:
                made["train"] = True  # the reader reports the conflict
        elif self._flagged and spans:
            made["train"] = True  # the reader reports that only answers can be trained on
        return made | {f"content.{name}": flag for name, flag in self._others if flag is not trained}


def _text(part: Item) -> Item:
    """Return the text of a part. Parts of unknown kinds are returned unchanged."""
    said = _said_in(part)
    return {"type": "text", "text": said} if part.get("type") in _TEXTS and isinstance(said, str) else part


def _said_in(part: Item) -> Any:
    """Return what a part shows: the first of its fields in `_SAYING` with a value."""
    given: list[Any] = [
        part[name] for name in _SAYING.get(str(part.get("type")), ()) if part.get(name) is not None
    ]
    return next((value for value in given if value), given[0] if given else None)


def image(url: Any, detail: Any = None) -> Item:
    return {"type": "image_url", "image_url": {"url": url} | ({"detail": detail} if detail else {})}


def call(id: Any, name: Any, arguments: Any) -> Item:
    """Build a tool call. Arguments can be an object, a JSON string, or missing."""
    text = arguments if isinstance(arguments, str) else rows.spaced(arguments or {})
    return {"id": id, "type": "function", "function": {"name": name, "arguments": text or "{}"}}


ARGUMENTS = ("arguments", "parameters", "args", "input")
"""Names for the arguments of a call: OpenAI's, Llama 3's, LangChain's and Anthropic's. The first one with a
value is used."""


def arguments_of(call: Item, default: Any = None) -> Any:
    """Return the arguments of a call, whatever their name (see `ARGUMENTS`)."""
    return call.get(_arguments_field(call), default)


def _arguments_field(call: Item) -> str:
    return next((name for name in ARGUMENTS if call.get(name) is not None), "arguments")


def same_call(one: Item, other: Item) -> bool:
    """Return whether two calls have the same name and arguments. Arguments can be objects or JSON text."""
    first, second = (
        cast("Item", c["function"]) if isinstance(c.get("function"), dict) else c for c in (one, other)
    )
    return first.get("name") == second.get("name") and _arguments(first) == _arguments(second)


def _arguments(call: Item) -> Any:
    given = arguments_of(call, "{}")
    try:
        return rows.decode(given) if isinstance(given, str) else given
    except (msgspec.DecodeError, RecursionError):
        return given


def _with_blocks(calls: Sequence[Any], blocks: Sequence[Item]) -> list[Any]:
    """Append the calls in a message's content to its `tool_calls`, except those that repeat one of these."""
    made = list(calls)
    left = [k for k, c in enumerate(made) if isinstance(c, dict)]
    for block in blocks:
        ids = {k: made[k].get("id") or block["id"] for k in left}
        same = (k for k in left if ids[k] == (block["id"] or ids[k]) and same_call(made[k], block))
        if (k := next(same, None)) is None:
            made.append(block)
        else:
            left.remove(k)
            made[k] = {**made[k], "id": ids[k]}
    return made


CALL = frozenset({"name", "arguments"})
"""Fields of a call."""


def call_fields(call: Item, known: frozenset[str]) -> frozenset[str]:
    """Return the known fields of a call, including the one that contains the call's arguments."""
    return known | {_arguments_field(call)}


def written_call(value: Any) -> Item | None:
    """Parse LLaMA-Factory's call: JSON text with a name and arguments."""
    try:
        made: Any = rows.decode(value) if isinstance(value, str) else value
    except (msgspec.DecodeError, RecursionError):
        return None
    return cast("Item", made) if isinstance(made, dict) and "name" in made else None


def text_of(content: Any) -> str | None:
    """Return a string, or the text of a list of text parts, as one string. Returns `None` for any other
    value."""
    if isinstance(content, str):
        return content
    parts = cast("list[Any]", content) if isinstance(content, list) else [None]
    texts = [cast("Item", part).get("text") if isinstance(part, dict) else None for part in parts]
    return "\n\n".join(cast("list[str]", texts)) if all(isinstance(text, str) for text in texts) else None


# Definition of a row format.


Row = dict[str, Any]
Read = tuple[Example | None, list[Problem]]
"""The example (`None` if the row is unusable) and the row's problems."""


@dataclass(frozen=True)
class RowFormat:
    """A row format. `fits` only checks the names and types of the fields, and `read` reports everything
    else."""

    name: str
    kind: Kind
    fields: frozenset[str]
    """Fields that `read` uses. Other fields are reported as unused. An empty set means that all fields are
    used."""
    fits: Callable[[Row], bool]
    read: Callable[[Row], Read]
    notes: frozenset[str] = frozenset()
    """Fields that usually hold short labels in this format. They are reported as unused only if they contain
    more."""
    unused: Callable[[Row], Collection[str]] = lambda row: ()
    """Return the fields among `fields` that `read` does not use in this row, because another field takes
    their place."""


def named(fields: str) -> frozenset[str]:
    """Split space-separated field names into a set."""
    return frozenset(fields.split())


def first_of(*names: str) -> Callable[[Row], Collection[str]]:
    """Return the unused fields of a format that reads the first of `names` with a value."""
    return lambda row: replaced(row, names)


def are_text(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row.get(name), str) for name in names)


def are_lists(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row.get(name), list) for name in names)
