"""Find the traits and problems of a canonical row, in one pass over its messages.

A trait is a property that only some backends reject (see `orchestrate.data.rules`). A problem applies to
every backend.
"""

from __future__ import annotations

import base64
import io
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntFlag
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    ImageUrl,
    PreferenceExample,
    RLExample,
    TextExample,
    UnpairedExample,
    problem,
)
from orchestrate.types import Problem

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Function names that OpenAI and other backends accept."""
_TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})
_MOST_SCHEMAS = 1000
"""Maximum number of schema nodes checked per tool."""


def tool_name(tool: dict[str, Any]) -> str | None:
    function: Any = tool.get("function")
    if not isinstance(function, dict):
        return None
    name: Any = cast("dict[str, Any]", function).get("name")
    return name if isinstance(name, str) else None


def tool_problems(tools: list[dict[str, Any]]) -> list[Problem]:
    """Return the problems in tool definitions. At most one error and one warning are returned for each tool's
    parameters."""
    found: list[Problem] = []
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        name, field = tool_name(tool), f"tools[{i}]"
        if tool.get("type", "function") != "function" or not name:
            found.append(problem("bad-tools", "the tool is not a function with a name", field=field))
            continue
        if name in seen:
            found.append(problem("bad-tools", f"the tool {name!r} is defined twice", field=field))
        seen.add(name)
        if not _NAME.fullmatch(name):
            found.append(problem("odd-tool", f"the name {name[:80]!r}", field=f"{field}.function.name"))
        parameters: Any = tool["function"].get("parameters")
        place = f"{field}.function.parameters"
        if parameters is None:
            continue
        if not isinstance(parameters, dict) or cast("dict[str, Any]", parameters).get("type") != "object":
            message = f"the parameters of {name!r} are not a JSON Schema of type object"
            found.append(problem("bad-tools", message, field=place))
            continue
        first: dict[str, str] = {}
        for code, message in _schema(cast("dict[str, Any]", parameters)):
            first.setdefault(code, message)
        found += [problem(c, f"the parameters of {name!r}: {m}", field=place) for c, m in first.items()]
    return found


def _schema(parameters: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the code and message of each problem in a JSON schema and its subschemas."""
    pending: list[Any] = [parameters]
    for _ in range(_MOST_SCHEMAS):
        if not pending:
            return
        schema = pending.pop()
        if not isinstance(schema, dict):  # true and false are schemas too
            continue
        held = cast("dict[str, Any]", schema)
        kinds: Any = held.get("type")
        for kind in cast("list[Any]", kinds) if isinstance(kinds, list) else [kinds]:
            if kind is not None and (not isinstance(kind, str) or kind not in _TYPES):
                yield "odd-tool", f"{str(kind)[:40]!r} is not a JSON Schema type"
        properties: Any = held.get("properties", {})
        required: Any = held.get("required", [])
        if not isinstance(properties, dict):
            yield "bad-tools", "`properties` is not an object"
            continue
        named = cast("dict[str, Any]", properties)
        if any(not isinstance(value, dict | bool) for value in named.values()):
            yield "bad-tools", "a property is not a schema"
        if not isinstance(required, list) or not all(isinstance(r, str) for r in cast("list[Any]", required)):
            yield "bad-tools", "`required` is not a list of names"
        elif absent := [r for r in cast("list[str]", required) if r not in named]:
            yield "odd-tool", f"`required` lists {absent[0][:40]!r}, which is not in `properties`"
        pending += [*named.values(), held.get("items")]


MOST_IMAGES = 10
"""Together's maximum number of images per row."""


class Trait(IntFlag):
    TOOLS = 1
    MESSAGE_WEIGHTS = 2
    ROW_WEIGHT = 4
    REASONING = 8
    IMAGES = 16
    REMOTE_IMAGES = 32
    """An image is given by URL instead of inline base64."""
    IMAGES_NOT_FROM_USER = 64
    MANY_IMAGES = 128
    DEVELOPER = 256
    FUNCTION_ROLE = 512
    SYSTEM_LATER = 1024
    """A system message comes after the first message."""
    STARTS_WRONG = 2048
    """The first message is not a system, developer or user message."""
    NOT_ALTERNATING = 4096
    SEVERAL_ANSWERS = 8192
    """An unpaired answer, or one side of a preference pair, does not consist of exactly one message."""
    PARALLEL_TOOL_CALLS = 16384
    NAMES = 32768
    MULTI_TURN = 65536
    EXTRA_FIELDS = 131072
    TEXT_PARTS = 262144
    """Content is a list of text parts."""
    TEXT_WITH_CALLS = 524288
    """An assistant message has both text and tool calls."""
    ANSWERS_IN_ANOTHER_ORDER = 1048576
    """Tool results are in a different order than their calls."""
    EMPTY_SYSTEM = 2097152
    """The system prompt is empty. Chat templates then omit their default system prompt."""
    SEVERAL_TRAINED = 4194304
    """More than one assistant message is trained on."""
    LAST_TRAINED = 8388608
    """Weights select only the last of several assistant messages for training."""
    PARTLY_TRAINED = 16777216
    """Weights exclude some assistant messages from training. Not set if only the last one is trained on (see
    `LAST_TRAINED`)."""
    LOSS_SPANS = 33554432
    """Only parts of an answer or a text contribute to the loss."""
    LOCAL_IMAGES = 67108864
    """An image is a local file."""


_FOLLOWERS = {
    None: ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool", "function"),
    "tool": ("tool", "function", "assistant"),
    "function": ("tool", "function", "assistant"),
}


def examine(example: Example) -> tuple[int, list[Problem]]:
    """Return the row's `Trait` bits and its problems (without row numbers). Converts integral weights to
    integers."""
    match example:
        case ChatExample():
            return _chat(example)
        case PreferenceExample():
            return _preference(example)
        case UnpairedExample():
            return _answered(example, {"completion": example.completion}, "row")
        case RLExample():
            return _rl(example)
        case CompletionExample():
            return _completion(example)
        case TextExample():
            found = [] if example.text.strip() else [problem("empty-text", field="text")]
            if example.loss_spans is None:
                return 0, found
            return Trait.LOSS_SPANS.value, found + _spans(example.loss_spans, example.text, "loss_spans")


def _chat(example: ChatExample) -> tuple[int, list[Problem]]:
    messages = example.messages
    if not messages:
        return 0, [problem("no-messages", field="messages")]
    traits, found = _messages(messages, example.tools, "messages")
    if example.weight is not None:
        traits |= Trait.ROW_WEIGHT
        example.weight = _as_integer(example.weight)
        if example.weight < 0:
            found.append(problem("bad-weight", "the row's weight is negative", field="weight"))
    if example.parallel_tool_calls is not None:
        traits |= Trait.PARALLEL_TOOL_CALLS
    if traits & _MESSAGE_WEIGHTS:
        traits = _trained(messages, traits)
    if messages[-1].role != "assistant":
        code = "last-not-assistant" if any(m.role == "assistant" for m in messages) else "no-assistant"
        found.append(problem(code, field=f"messages[{len(messages) - 1}].role"))
    elif example.weight == 0:
        found.append(problem("nothing-trained", "the row's weight is 0", field="weight"))
    elif traits & _MESSAGE_WEIGHTS and all(m.weight == 0 for m in messages if m.role == "assistant"):
        found.append(problem("nothing-trained", field="messages"))
    return traits, found


def _trained(messages: Sequence[ChatMessage], traits: int) -> int:
    """Return the traits of a conversation with weights."""
    trained = [m.weight != 0 for m in messages if m.role == "assistant"]
    traits &= ~(Trait.SEVERAL_TRAINED | Trait.PARTLY_TRAINED)
    if sum(trained) > 1:
        traits |= Trait.SEVERAL_TRAINED
    if all(trained):
        return traits
    return traits | (Trait.LAST_TRAINED if trained[-1] and sum(trained) == 1 else Trait.PARTLY_TRAINED)


def _preference(example: PreferenceExample) -> tuple[int, list[Problem]]:
    sides = {"preferred": example.preferred, "rejected": example.rejected}
    traits, found = _answered(example, sides, "pair")
    if example.prompt and example.preferred == example.rejected:
        found.append(problem("same-answers", field="rejected"))
    return traits, found


def _answered(
    example: PreferenceExample | UnpairedExample, sides: Mapping[str, list[ChatMessage]], what: str
) -> tuple[int, list[Problem]]:
    """Check a prompt and its answers. `sides` maps field names to answers."""
    if not example.prompt:
        return 0, [problem("no-messages", f"the {what} has no prompt", field="prompt")]
    traits, found = _messages(example.prompt, example.tools, "prompt")
    found += _untrained(example.prompt, "prompt")
    if example.parallel_tool_calls is not None:
        traits |= Trait.PARALLEL_TOOL_CALLS
    for side, answers in sides.items():
        if len(answers) != 1:
            traits |= Trait.SEVERAL_ANSWERS
        if not answers or any(m.role != "assistant" for m in answers):
            found.append(problem("side-not-assistant", field=side))
            continue
        more, wrong = _messages(answers, example.tools, side, answers_only=True)
        traits |= more
        found += wrong
        if all(m.weight == 0 for m in answers):
            found.append(problem("nothing-trained", field=side))
    return traits, found


def _untrained(prompt: Sequence[ChatMessage], place: str) -> list[Problem]:
    """Return problems for weights on messages that cannot be trained on."""
    said = "the weight has no effect: only the answer to the prompt is trained on, not earlier answers"
    marked = [i for i, m in enumerate(prompt) if m.role == "assistant" and (m.weight == 1 or m.loss_spans)]
    return [problem("extra-fields", said, field=f"{place}[{i}].weight") for i in marked]


def _rl(example: RLExample) -> tuple[int, list[Problem]]:
    if not example.messages:
        return 0, [problem("no-messages", field="messages")]
    traits, found = _messages(example.messages, example.tools, "messages")
    found += _untrained(example.messages, "messages")
    if example.messages[-1].role == "assistant":
        last = len(example.messages) - 1
        found.append(problem("rl-ends-with-answer", field=f"messages[{last}].role"))
    return traits, found


def _completion(example: CompletionExample) -> tuple[int, list[Problem]]:
    found: list[Problem] = []
    if not example.completion.strip():
        found.append(problem("empty-completion", field="completion"))
    if not example.prompt.strip():
        found.append(problem("empty-prompt", field="prompt"))
    return 0, found


# Plain integers, because combining `IntFlag` values takes about a microsecond each time.
TOOLS, IMAGES, TEXT_PARTS, _MULTI_TURN, _MESSAGE_WEIGHTS, _SEVERAL_TRAINED = (
    t.value
    for t in (
        Trait.TOOLS,
        Trait.IMAGES,
        Trait.TEXT_PARTS,
        Trait.MULTI_TURN,
        Trait.MESSAGE_WEIGHTS,
        Trait.SEVERAL_TRAINED,
    )
)
_ROLE_TRAITS = {
    "developer": Trait.DEVELOPER.value,
    "function": Trait.FUNCTION_ROLE.value,
    "tool": Trait.TOOLS.value,
}


def _messages(
    messages: Sequence[ChatMessage],
    tools: list[dict[str, Any]] | None,
    place: str,
    *,
    answers_only: bool = False,
) -> tuple[int, list[Problem]]:
    """Check the messages of a conversation. This is the hot loop: a plain text message takes one
    dictionary lookup and a few comparisons, and `_Unusual` handles the rest."""
    before: str | None = "user" if answers_only else None
    users = answers = 0
    unusual = _Unusual(tools, place)
    for i, m in enumerate(messages):
        role, content = m.role, m.content
        if role not in _FOLLOWERS[before]:
            unusual.traits |= _misplaced(before, role)
        if role == "tool":
            unusual.answer(i, m, before)
        before = role
        if role == "user":
            users += 1
        elif role == "assistant":
            answers += 1
        elif role in _ROLE_TRAITS:
            unusual.traits |= _ROLE_TRAITS[role]
        if m.tool_calls:
            before = "call"
        if not isinstance(content, str) or not content or content.isspace() or m.tool_calls:
            unusual.content(i, m)
        if m.weight is not None or m.reasoning is not None or m.name is not None or m.loss_spans is not None:
            unusual.extras(i, m)
    if unusual.open_calls and not answers_only:
        unusual.unanswered(len(messages) - 1)
    if tools:
        unusual.traits |= TOOLS
        unusual.found += tool_problems(tools)
    if users > 1:
        unusual.traits |= _MULTI_TURN
    if answers > 1:
        unusual.traits |= _SEVERAL_TRAINED
    return unusual.traits, unusual.found


class _Unusual:
    """Checks for rare content: tool calls, images, weights, empty messages."""

    def __init__(self, tools: list[dict[str, Any]] | None, place: str) -> None:
        self.traits = 0
        self.found: list[Problem] = []
        self.open_calls: dict[str, int] = {}
        self._tools, self._place = tools, place
        self._images = 0

    def content(self, i: int, m: ChatMessage) -> None:
        place = f"{self._place}[{i}]"
        if m.tool_calls:
            self.traits |= Trait.TOOLS | (Trait.TEXT_WITH_CALLS if m.text else 0)
            self.found += _calls(m, self._tools, place)
            self.open_calls.update({call.id: i for call in m.tool_calls})
        elif not m.text.strip():
            self.found += _empty(m, place)
            if m.role in ("system", "developer") and not m.text:
                self.traits |= Trait.EMPTY_SYSTEM
        if isinstance(m.content, list):
            images, traits = _parts(m, self.found, place)
            self._images += images
            self.traits |= traits | (Trait.MANY_IMAGES if self._images > MOST_IMAGES else 0)

    def extras(self, i: int, m: ChatMessage) -> None:
        if m.weight == 0 and m.role != "assistant":
            m.weight = None  # the default for other roles
        if m.weight is not None:
            self.traits |= Trait.MESSAGE_WEIGHTS | Trait.PARTLY_TRAINED
            m.weight = _as_integer(m.weight)
            _weight(m, self.found, f"{self._place}[{i}].weight")
        if m.reasoning is not None:
            self.traits |= Trait.REASONING
        if m.name is not None:
            self.traits |= Trait.NAMES
        if m.loss_spans is not None:
            self.traits |= Trait.LOSS_SPANS
            place = f"{self._place}[{i}].loss_spans"
            if m.role == "assistant":
                self.found += _spans(m.loss_spans, m.text, place)
            else:
                self.found.append(problem("weight-on-input", field=place))

    def answer(self, i: int, m: ChatMessage, before: str | None) -> None:
        if self.open_calls and before not in ("call", "tool", "function"):
            message = "other messages appear between a call and its result"
            self.found.append(problem("unanswered-call", message, field=f"{self._place}[{i}]"))
        if m.tool_call_id != next(iter(self.open_calls), None):
            self.traits |= Trait.ANSWERS_IN_ANOTHER_ORDER
        if m.tool_call_id is None or self.open_calls.pop(m.tool_call_id, None) is None:
            self.found.append(problem("orphan-answer", field=f"{self._place}[{i}].tool_call_id"))

    def unanswered(self, last: int) -> None:
        """Report tool calls without a result. A call in the last message is the answer to learn and needs
        none."""
        for call, i in self.open_calls.items():
            if i != last:
                message = f"the call {call!r} has no result"
                self.found.append(problem("unanswered-call", message, field=f"{self._place}[{i}]"))


def _as_integer(weight: int | float) -> int | float:
    """Convert an integral float to an integer, so that 1.0 and 1 give the same digest."""
    return int(weight) if isinstance(weight, float) and weight.is_integer() else weight


def _misplaced(before: str | None, role: str) -> int:
    if before is None:
        return Trait.STARTS_WRONG
    return Trait.SYSTEM_LATER if role in ("system", "developer") else Trait.NOT_ALTERNATING


def _empty(m: ChatMessage, place: str) -> list[Problem]:
    """Return the problems of a message without text. For a user, an image is enough. An assistant must
    write text."""
    if isinstance(m.content, list) and any(part.image_url for part in m.content):
        return []
    if m.role == "assistant":
        return [] if m.weight == 0 else [problem("empty-content", field=f"{place}.content")]
    if m.role in ("user", "system", "developer"):
        return [problem("empty-input", field=f"{place}.content")]
    return []


def _weight(m: ChatMessage, found: list[Problem], field: str) -> None:
    if m.role != "assistant":
        found.append(problem("weight-on-input", field=field))
    elif m.weight not in (0, 1):
        found.append(
            problem("bad-weight", f"the weight must be 0 or 1, got {str(m.weight)[:20]}", field=field)
        )


def _spans(spans: list[tuple[int, int]], text: str, field: str) -> list[Problem]:
    at = -1
    for begin, end in spans:
        if not at < begin < end <= len(text):
            message = (
                f"the span {begin} to {end} is invalid: spans must be non-empty, in order, not adjacent, and "
                f"within the text ({len(text)} characters)"
            )
            fix = "write loss_spans as [start, end] pairs of character positions"
            return [msgspec.structs.replace(problem("bad-weight", message, field=field), fix=fix)]
        at = end
    return (
        []
        if spans
        else [problem("nothing-trained", "no part of the text is selected for training", field=field)]
    )


def _parts(m: ChatMessage, found: list[Problem], place: str) -> tuple[int, int]:
    images = traits = 0
    for j, part in enumerate(cast("list[Any]", m.content)):
        if part.type == "text":
            if part.text is None:
                found.append(problem("bad-content", "a text part has no text", field=f"{place}.content[{j}]"))
            continue
        if part.image_url is None:
            found.append(problem("bad-content", "an image part has no image", field=f"{place}.content[{j}]"))
            continue
        images += 1
        traits |= Trait.IMAGES
        url = part.image_url.url
        if url.startswith("data:") and not url.startswith("data:image/"):
            message = f"a data: URL contains {url[5:].partition(';')[0][:40] or 'no type'}, not an image"
            found.append(problem("bad-image", message, field=f"{place}.content[{j}]"))
        elif not url.startswith("data:"):
            traits |= Trait.REMOTE_IMAGES if "://" in url[:12] else Trait.LOCAL_IMAGES
        if m.role != "user":
            traits |= Trait.IMAGES_NOT_FROM_USER
    return images, traits if images else Trait.TEXT_PARTS


def _calls(m: ChatMessage, tools: list[dict[str, Any]] | None, place: str) -> list[Problem]:
    found: list[Problem] = []
    declared = {tool_name(tool) for tool in tools or []}
    for j, call in enumerate(m.tool_calls or []):
        field = f"{place}.tool_calls[{j}]"
        if m.role != "assistant":
            found.append(problem("bad-tool-call", "only assistant messages may call tools", field=field))
        try:
            arguments = msgspec.json.decode(call.function.arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            arguments = None
        if (first := next((c for c in (m.tool_calls or [])[:j] if c.id == call.id), None)) is not None:
            found.append(_shared(call.id, first == call, f"{field}.id"))
        if not isinstance(arguments, dict):
            found.append(problem("bad-arguments", field=f"{field}.function.arguments"))
        if call.function.name not in declared:
            message = f"the tool {call.function.name!r} is missing from `tools`"
            found.append(problem("undeclared-tool", message, field=f"{field}.function.name"))
    return found


def _shared(id: str, are_equal: bool, field: str) -> Problem:
    message = f"two {'equal' if are_equal else 'different'} calls have the id {id!r}"
    fix = "remove one of them (calls in the content count too), or give each an id of its own"
    return msgspec.structs.replace(problem("bad-tool-call", message, field=field), fix=fix)


# Image sizes from the first bytes of a file or data URL, without decoding or downloading.


MOST_SIZES = 1000
"""Number of image sizes that are counted separately. Width and height of other images are rounded up to a
multiple of `STEP` pixels."""
STEP = 32
_HEAD = 64 << 10
"""Number of leading bytes that contain the size of nearly every image. For other images, all bytes are
read."""


class Picture(NamedTuple):
    """Properties of an image that determine its cost. `width` and `height` are in pixels, or `None` for a
    remote image, an unknown file type or a missing file."""

    width: int | None
    height: int | None
    detail: str | None
    """The row's `detail` setting: `low`, `high` or `auto`. Hosts use `auto` if it is missing."""


def pictures(messages: Iterable[ChatMessage], folder: Path) -> Counter[Picture]:
    """Count the images of a row by size and detail. Relative paths are resolved from `folder`, by default the
    working folder."""
    found: Counter[Picture] = Counter()
    for m in messages:
        for part in m.content if isinstance(m.content, list) else ():
            if part.image_url is not None:
                found[picture(part.image_url, folder)] += 1
    return found


def picture(image: ImageUrl, folder: Path) -> Picture:
    width, height = _size(image.url, folder)
    return Picture(width, height, image.detail)


def add(total: Counter[Picture], more: Mapping[Picture, int]) -> None:
    """Add counts of image sizes to `total`. To limit memory, new sizes are rounded up once the table is
    full."""
    for size, count in more.items():
        if size not in total and len(total) >= MOST_SIZES and size.width and size.height:
            size = size._replace(width=_up(size.width), height=_up(size.height))
        total[size] += count


def _up(pixels: int) -> int:
    return -(-pixels // STEP) * STEP


def _size(url: str, folder: Path) -> tuple[int, int] | tuple[None, None]:
    if url.startswith("data:"):
        data = url.partition(",")[2]
        return _read(_decoded(data[: _HEAD // 3 * 4])) or _read(_decoded(data)) or (None, None)
    if "://" in url[:12] and not url.startswith("file://"):
        return None, None
    path = Path(url.removeprefix("file://")).expanduser()
    for file in (folder / path, path):
        try:
            with file.open("rb") as opened:
                return _read(opened.read(_HEAD)) or _read(file.read_bytes()) or (None, None)
        except (OSError, ValueError):
            continue
    return None, None


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data)
    except ValueError:
        return b""


def _read(head: bytes) -> tuple[int, int] | None:
    import imagesize  # pyright: ignore[reportMissingTypeStubs]

    try:
        width, height = cast("Any", imagesize).get(io.BytesIO(head))
    except (ValueError, OSError, IndexError, OverflowError, struct.error):  # an invalid header
        return None
    return (int(width), int(height)) if width > 0 and height > 0 else None
