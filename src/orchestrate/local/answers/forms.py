"""Constrained decoding: JSON that follows a schema, or a tool call. Imports torch.

Before each token, `llguidance` determines which tokens the grammar allows, and one of them is sampled as
usual. Reasoning is unconstrained: the constraint applies only after the reasoning ends. Calls use the chat
template's own format, which is inferred from a rendered call."""

# torch, transformers and llguidance are only partially typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import commonprefix
from typing import Any

import msgspec
import torch
from torch import Tensor

from orchestrate.data.rows import ChatMessage, FunctionCall, ToolCall
from orchestrate.errors import DataError, MissingExtra, UsageError
from orchestrate.local.encoding import Template

_ANNOTATIONS = frozenset({"description", "title", "default", "examples", "$comment", "deprecated"})
"""Schema keywords that don't restrict the answer."""
_OF_AN_OBJECT = _ANNOTATIONS | {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "$defs",
    "definitions",
    "$schema",
    "strict",
}
_NAME, _KEY, _VALUE, _KEY_2, _VALUE_2 = "zq1name", "zq2key", "zq3value", "zq4key", "zq5value"
_ARGUMENTS = re.compile(rf'\{{\s*"{_KEY}"\s*:\s*"{_VALUE}"\s*\}}')
_SPACE = "WS: /[ \\n]{1,4}/\n"
_LAYOUT = {"whitespace_pattern": "[ \\n\\t\\r]{0,64}"}
"""Whitespace allowed between JSON tokens. Without a limit, a model may generate whitespace forever."""
_ANYTHING: dict[str, Any] = {"type": "object"}
_KEPT = 32


class AnswerForm(msgspec.Struct, frozen=True, kw_only=True):
    """The required form of an answer: JSON that follows `schema`, a call to one of `calls`, or either if both
    are set."""

    schema: dict[str, Any] | None = None
    calls: list[dict[str, Any]] | None = None
    """Tools in the format of the chat completions API."""


@dataclass(frozen=True)
class CallFormat:
    """Text that the chat template puts around a tool call: `before` the name, `between` the name and the
    arguments, and `behind` the arguments. Some templates write all arguments as one JSON object, others write
    each argument separately (see `apart`)."""

    before: str
    between: str
    behind: str
    apart: tuple[str, str, str] | None = None
    """For arguments that are written separately: the text before an argument's name, between its name and its
    value, and after its value. `None` if the arguments are one JSON object."""


class Forms:
    """Compiles the constraints for one model's answers. An instance holds no per-answer state, so it can be
    reused."""

    def __init__(self, template: Template, stops: Sequence[int]) -> None:
        """Prepare forms for a tokenizer. `stops` are the tokens that end an answer. Raises `MissingExtra` or
        `UsageError`."""
        try:
            import llguidance
            import llguidance.hf
        except ImportError as error:
            raise MissingExtra("local", "structured output", "llguidance") from error
        self._template, self._lib = template, llguidance
        tokenizer = template.tokenizer
        if not tokenizer.is_fast:
            raise UsageError("structured output needs a fast tokenizer")
        ends = [id for id in stops if id < len(tokenizer)]
        self._tokens = llguidance.hf.from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=ends)
        self._compiled: dict[bytes, Any] = {}
        """Cache of compiled grammars for recently used answer forms."""

    def held(self, form: AnswerForm, prompt: Sequence[int]) -> ConstrainedAnswer:
        """Create the constraint for one answer to this prompt. Raises `UsageError` if the form cannot be
        enforced."""
        key = msgspec.json.encode(form)
        if key not in self._compiled:
            while len(self._compiled) >= _KEPT:
                self._compiled.pop(next(iter(self._compiled)))
            self._compiled[key] = self._matcher(form)
        matcher = self._compiled[key].deep_copy()
        asked = self._template.hub.decode(prompt[-64:]).rstrip()
        pairs = [pair for pair in self._pairs if pair[2] in self._template.chats.source(None)]
        within = next((closing for _, closing, opening in pairs if asked.endswith(opening)), None)
        return ConstrainedAnswer(
            matcher, self._tokens.vocab_size, tuple((o, c) for o, c, _ in pairs), closing=within
        )

    def _matcher(self, form: AnswerForm) -> Any:
        if self._template.shape.around[0] or "<|message|>" in self._template.chats.source(None):
            raise UsageError(
                "this model wraps its answers in special markers, so structured output is not supported"
            )
        self._require_no_marks(form)
        rules = [_SPACE]
        ways = [] if form.schema is None else [f"%json {self._json(form.schema)}"]
        ways += [self._calling(tool["function"], n, rules) for n, tool in enumerate(form.calls or ())]
        rules += [f"way{n}: {way}\n" for n, way in enumerate(ways)]
        grammar = f"start: WS? ({' | '.join(f'way{n}' for n in range(len(ways)))})\n{''.join(rules)}"
        compiled = self._lib.LLMatcher.grammar_from_lark(grammar)
        matcher = self._lib.LLMatcher(self._tokens, compiled, log_level=0)
        if matcher.is_error():
            raise UsageError(f"this JSON schema is not supported: {_reason(matcher.get_error())}")
        return matcher

    @cached_property
    def _pairs(self) -> list[tuple[tuple[int, ...], tuple[int, ...], str]]:
        """Return the tokens that open and close thinking, and the opening text."""
        shape = self._template.shape
        return [
            (tuple(self._template.tokens(opening)[0]), tuple(self._template.tokens(closing)[0]), opening)
            for opening, closing in shape.thinking
        ]

    def _require_no_marks(self, form: AnswerForm) -> None:
        """Raise `UsageError` for texts that contain a special token, which would end the answer or a turn."""
        marks = [str(token) for token in self._template.tokenizer.added_tokens_decoder.values()]
        functions = [tool["function"] for tool in form.calls or ()]
        for text in _texts([form.schema, *(function.get("parameters") for function in functions)]):
            if found := next((mark for mark in marks if mark and mark in text), None):
                raise UsageError(f"{found} is a special token of this model and cannot be part of a schema")

    def _json(self, schema: Mapping[str, Any]) -> str:
        return json.dumps({**schema, "x-guidance": _LAYOUT})

    def _calling(self, function: Mapping[str, Any], number: int, rules: list[str]) -> str:
        """Return the grammar of a call to one tool. Its rules are added to `rules`."""
        parameters: dict[str, Any] = function.get("parameters") or _ANYTHING
        call = self._call
        head = self._literals(call.before + str(function["name"]) + call.between)
        if call.apart is None:
            parts = [f"%json {self._json(parameters)}"]
        else:
            parts = self._each(parameters, call.apart, number, rules)
        return " ".join([*head, *parts, *self._literals(call.behind)])

    def _each(
        self, parameters: Mapping[str, Any], apart: tuple[str, str, str], number: int, rules: list[str]
    ) -> list[str]:
        """Return the grammar of arguments that are written one by one, in the order of the schema."""
        opens, names, closes = apart
        closing = self._literals(closes)
        unknown = parameters.keys() - _OF_AN_OBJECT
        required, properties = parameters.get("required", []), parameters.get("properties", {})
        if unknown or not properties.keys() >= set(required):
            what = ", ".join(sorted(unknown)) or "required without properties"
            raise UsageError(f"this model writes each argument separately, so {what} cannot be enforced")
        shared = {name: parameters[name] for name in ("$defs", "definitions") if name in parameters}
        parts: list[str] = []
        for place, (name, schema) in enumerate(properties.items()):
            if not re.fullmatch(r"[\w .:-]+", name) or not isinstance(schema, dict):
                raise UsageError(
                    f"the argument {name!r} cannot be enforced: it needs a plain name and a schema"
                )
            value, rule, end = f"value{number}_{place}", f"argument{number}_{place}", closing
            if schema.get("type") != "string":
                rules.append(f"{value}: %json {self._json({**shared, **schema})}\n")
            elif (words := _choices(schema, closes)) is not None:
                rules.append(f"{value}: {' | '.join(map(json.dumps, words))}\n")
            else:
                # The text ends where `closes` begins. If `closes` contains a special token, whitespace before
                # that token is part of the text.
                tokens = [n for n, one in enumerate(closing) if one.startswith("<[")]
                until = "" if tokens else f"[suffix={json.dumps(closes)}]"
                rules.append(f"{value}{until}: /{_text(schema)}/\n")
                end = closing[tokens[0] :] if tokens else []
            rules.append(f"{rule}: {' '.join([*self._literals(opens + name + names), value, *end])}\n")
            parts.append(rule if name in required else f"{rule}?")
        return parts

    @cached_property
    def _call(self) -> CallFormat:
        """Return how the template writes tool calls. Raises `UsageError` if that is unknown."""
        one = self._shown({_KEY: _VALUE})
        before, named, after = one.partition(_NAME)
        if not named or _NAME in after:
            raise _unlike()
        if len(found := list(_ARGUMENTS.finditer(after))) == 1:
            return CallFormat(before.lstrip(), after[: found[0].start()], after[found[0].end() :].rstrip())
        two = self._shown({_KEY: _VALUE, _KEY_2: _VALUE_2}).partition(_NAME)[2]
        try:
            head, names, behind = _cut(after, _KEY, _VALUE)
            head_2, names_2, rest = _cut(two, _KEY, _VALUE)
            between, names_3, behind_2 = _cut(rest, _KEY_2, _VALUE_2)
        except ValueError:
            raise _unlike() from None
        common = commonprefix([between, behind])  # noqa: RUF071  of texts
        closes = common[: max(common.rfind(">"), common.rfind("\n")) + 1]
        opens = between[len(closes) :]
        if head != head_2 or not names == names_2 == names_3 or behind != behind_2:
            raise _unlike()
        if not (closes and opens and names and head.endswith(opens)):
            raise _unlike()
        behind = behind[len(closes) :].rstrip()
        return CallFormat(before.lstrip(), head.removesuffix(opens), behind, (opens, names, closes))

    def _shown(self, arguments: Mapping[str, str]) -> str:
        """Render a call with the template, without the text that ends the turn."""
        call = ToolCall(id="call_0", function=FunctionCall(name=_NAME, arguments=json.dumps(arguments)))
        each = {name: {"type": "string", "description": "A key."} for name in arguments}
        function = {
            "name": _NAME,
            "description": "A.",
            "parameters": {"type": "object", "properties": each, "required": list(each)},
        }
        tools = [{"type": "function", "function": function}]
        user = ChatMessage(role="user", content="q")
        calling = ChatMessage(role="assistant", content="", tool_calls=[call])
        chats = self._template.chats
        try:
            prompt = chats.prompt([user], tools)
            shown = chats.rendered([user, calling], tools)
        except DataError:
            raise _unlike() from None
        for opening, _ in self._template.shape.thinking:
            prompt = prompt.rstrip().removesuffix(opening) if prompt.rstrip().endswith(opening) else prompt
        if not shown.text.startswith(prompt) or not shown.turns[-1].spans:
            raise _unlike()
        said = shown.text[len(prompt) : shown.turns[-1].spans[-1][1]].rstrip()
        while mark := next((m for m in self._template.shape.ends if m and said.endswith(m)), ""):
            said = said.removesuffix(mark).rstrip()
        for opening, closing in self._template.shape.thinking:  # empty thinking is left out
            if said.startswith(opening):
                said = said.partition(closing)[2].lstrip()
        return said

    def _literals(self, text: str) -> list[str]:
        """Write the text as grammar literals. Tokens that the tokenizer never merges with others are named by
        their id."""
        added = {str(token): id for id, token in self._template.tokenizer.added_tokens_decoder.items()}
        if not added:
            return [json.dumps(text)] if text else []
        either = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
        pieces = re.split(f"({either})", text)
        return [f"<[{added[piece]}]>" if piece in added else json.dumps(piece) for piece in pieces if piece]


def _unlike() -> UsageError:
    return UsageError(
        "the tool call format of this model's chat template is unknown, so a call cannot be forced"
    )


def _texts(value: Any) -> Iterator[str]:
    """Return the texts of a schema that an answer may have to repeat."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            yield str(name)
            if name not in _ANNOTATIONS:
                yield from _texts(one)


def _choices(schema: Mapping[str, Any], closes: str) -> list[str] | None:
    """Return the texts to choose from, or `None` if the text is free. Raises `UsageError`."""
    if not {"enum", "const"} & schema.keys():
        return None
    if unknown := schema.keys() - _ANNOTATIONS - {"type", "enum", "const"}:
        raise UsageError(f"{', '.join(sorted(unknown))} cannot be combined with enum")
    words = [schema["const"]] if "const" in schema else list(schema["enum"])
    if not words or not all(isinstance(word, str) and closes.strip() not in word for word in words):
        raise UsageError(
            "enum must be a non-empty list of strings, none of which contains the end marker of an argument"
        )
    if "enum" in schema and any(word not in schema["enum"] for word in words):
        raise UsageError("const is not one of the enum values")
    return words


def _text(schema: Mapping[str, Any]) -> str:
    """Return the regular expression of a text that is not written as JSON. Raises `UsageError`."""
    if unknown := schema.keys() - _ANNOTATIONS - {"type", "pattern", "minLength", "maxLength"}:
        raise UsageError(
            f"this model writes each argument separately, so {', '.join(sorted(unknown))} cannot be enforced"
        )
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if not all(isinstance(n, int) and n >= 0 for n in (least, most or 0)):
        raise UsageError("minLength and maxLength must be non-negative integers")
    pattern = schema.get("pattern")
    if pattern is None:
        return f"(?s:.{{{least},{'' if most is None else most}}})"
    if least or most is not None:
        raise UsageError(
            "this model writes each argument separately, so pattern cannot be combined with "
            "minLength or maxLength"
        )
    if not isinstance(pattern, str) or not (pattern.startswith("^") and pattern.endswith("$")):
        raise UsageError(
            "this model writes each argument separately, so a pattern must match the entire value: ^...$"
        )
    if not pattern.isprintable():
        raise UsageError(
            "this model writes each argument separately, so a pattern may only contain printable characters"
        )
    return re.sub(r"(\\.)|/", lambda found: found[1] or "\\/", f"(?:{pattern[1:-1]})")


def _cut(text: str, key: str, value: str) -> tuple[str, str, str]:
    """Return the text before a key, between key and value, and after the value. Raises `ValueError`."""
    if text.count(key) != 1 or text.count(value) != 1:
        raise ValueError
    before, _, rest = text.partition(key)
    between, found, behind = rest.partition(value)
    if not found:
        raise ValueError
    return before, between, behind


def _reason(message: str) -> str:
    """Strip the position in the generated grammar from an error message."""
    first = re.split(r"\n\s*\d+ \|", message)[0]
    return re.sub(r"^at \d+\(\d+\): ", "", " ".join(first.split()))[:400]


@dataclass
class ConstrainedAnswer:
    """The constraint on one answer in progress. Advances with each token."""

    _matcher: Any
    _vocabulary: int
    _thinking: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    """The opening and closing marker of each kind of reasoning."""
    closing: tuple[int, ...] | None = None
    """The marker that ends the reasoning in progress."""
    _ids: list[int] = field(default_factory=list[int])
    _opening: tuple[int, ...] = ()
    """The rest of a partly generated opening marker."""

    def copy(self) -> ConstrainedAnswer:
        return ConstrainedAnswer(self._matcher.deep_copy(), self._vocabulary, self._thinking, self.closing)

    def allowed(self, logits: Tensor) -> Tensor:
        """Return the logits [vocabulary] with all tokens that are not allowed next set to -inf. Raises
        `ValueError` if the form is too complex."""
        if self.closing is not None and not self._opening:
            return logits
        kept = torch.zeros(logits.shape[0], dtype=torch.bool)
        if self._opening:
            kept[self._opening[0]] = True
        else:
            kept[: self._vocabulary] = self._mask()[: len(kept)]
            if not self._ids:
                for opening, _ in self._thinking:
                    kept[opening[0]] = True
        return logits.masked_fill(~kept, float("-inf"))

    def _mask(self) -> Tensor:
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        bits = allocate_token_bitmask(1, self._vocabulary)
        fill_next_token_bitmask(self._matcher, bits)
        if self._matcher.is_error():
            raise ValueError(_reason(self._matcher.get_error()))
        words = torch.from_numpy(bits[0])
        each = (words.unsqueeze(1) >> torch.arange(32, dtype=torch.int32)) & 1
        return each.flatten()[: self._vocabulary].bool()

    def take(self, id: int) -> None:
        """Advance the constraint by the sampled token."""
        self._ids.append(id)
        if self._opening:
            self._opening = self._opening[1:]
            return
        if self.closing is not None:
            if tuple(self._ids[-len(self.closing) :]) == self.closing:
                self.closing, self._thinking = None, ()
            return
        if len(self._ids) == 1:
            for opening, closing in self._thinking:
                if opening[0] == id:
                    self._opening, self.closing = opening[1:], closing
                    return
        self._matcher.consume_token(id)
