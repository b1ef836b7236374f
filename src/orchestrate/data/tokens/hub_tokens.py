"""Counts with a Hugging Face tokenizer and its own chat template. The only importer of transformers here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate.data.rows.examples import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    PreferenceExample,
    RLExample,
    UnpairedExample,
)
from orchestrate.data.tokens.counting import Lengths, has_tokenizer
from orchestrate.errors import MissingExtra, SetupError

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


def load(folder: Path) -> Any:
    """The transformers tokenizer of a folder. Raises `SetupError` when it holds none, `MissingExtra` without
    transformers."""
    if not has_tokenizer(folder):
        raise SetupError(f"no tokenizer in {folder}", fix="give the folder that holds tokenizer.json")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra("local", "reading a hub tokenizer", "transformers") from error
    # A folder's own code is never run; left unsaid, transformers asks on the terminal.
    return cast("Any", AutoTokenizer).from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of a transformers tokenizer that mark something, such as the end of a turn."""
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    return frozenset(cast("list[int]", tokenizer.all_special_ids)) | {
        int(i) for i, token in added.items() if token.special
    }


CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For tokenizers that bring no chat template, as the local engine trains them."""


class HubCounter:
    """Raises as `load` does."""

    error_band = 0.0

    def __init__(self, folder: Path) -> None:
        self.name = f"hf:{folder}"
        self._tokenizer = load(folder)
        template: Any = self._tokenizer.chat_template
        if isinstance(template, dict):  # several named templates
            named = cast("dict[str, str]", template)
            template = named.get("default") or next(iter(named.values()))
        self._tokenizer.chat_template = template or CHATML
        self._special = special_ids(self._tokenizer)

    def count(self, examples: Sequence[Example]) -> Lengths:
        lengths = Lengths()
        for example in examples:
            match example:
                case ChatExample():
                    self._chat(lengths, example.messages, example.tools)
                case PreferenceExample():
                    for side in (example.preferred, example.rejected):
                        self._pair(lengths, example.prompt, side, example.tools)
                case UnpairedExample():
                    self._pair(lengths, example.prompt, example.completion, example.tools)
                case RLExample():
                    total = len(self._ids(example.messages, example.tools, prompt=True))
                    _append(lengths, total, 0)
                case CompletionExample():
                    prompt, answer = self._plain(example.prompt), self._plain(example.completion) + 1
                    _append(lengths, prompt + answer, answer)
                case _:
                    total = self._plain(example.text) + 1
                    _append(lengths, total, total)
        return lengths

    def _plain(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def _ids(
        self, messages: Sequence[ChatMessage], tools: list[dict[str, Any]] | None, *, prompt: bool = False
    ) -> list[int]:
        return self._tokenizer.apply_chat_template(
            plain(messages), tools=tools, tokenize=True, return_dict=False, add_generation_prompt=prompt
        )

    def _chat(
        self, lengths: Lengths, messages: Sequence[ChatMessage], tools: list[dict[str, Any]] | None
    ) -> None:
        """Trained tokens come from the template's own marks where it has them, else from the difference that
        each answer makes to the rendered conversation. Weight 0 takes an answer out."""
        masked = any(m.weight == 0 for m in messages)
        if _MARKED.search(self._tokenizer.chat_template) and not masked:
            encoded = self._tokenizer.apply_chat_template(
                plain(messages),
                tools=tools,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            _append(lengths, len(encoded["input_ids"]), sum(encoded["assistant_masks"]))
            return
        trained = sum(
            self._answer(messages[:i], messages[: i + 1], tools)
            for i, m in enumerate(messages)
            if m.role == "assistant" and m.weight != 0
        )
        _append(lengths, len(self._ids(messages, tools)), trained)

    def _answer(
        self,
        before: Sequence[ChatMessage],
        after: Sequence[ChatMessage],
        tools: list[dict[str, Any]] | None,
    ) -> int:
        """Tokens that an answer adds after the generation prompt, up to the mark that ends the turn."""
        ids = self._ids(after, tools)[len(self._ids(before, tools, prompt=True)) :]
        ends = [i for i, token in enumerate(ids) if token in self._special]
        return ends[-1] + 1 if ends else len(ids)

    def _pair(
        self,
        lengths: Lengths,
        prompt: Sequence[ChatMessage],
        answers: Sequence[ChatMessage],
        tools: list[dict[str, Any]] | None,
    ) -> None:
        whole = [*prompt, *answers]
        _append(lengths, len(self._ids(whole, tools)), self._answer(prompt, whole, tools))


def _append(lengths: Lengths, tokens: int, trained: int) -> None:
    lengths.tokens.append(tokens)
    lengths.trained.append(trained)


def plain(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as chat templates expect them: text content, tool arguments as objects."""
    shown: list[dict[str, Any]] = []
    for m in messages:
        item: dict[str, Any] = {"role": m.role, "content": m.text}
        if m.reasoning is not None:
            item["reasoning_content"] = m.reasoning
        if m.tool_calls:
            item["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {"name": call.function.name, "arguments": _object(call.function.arguments)},
                }
                for call in m.tool_calls
            ]
        if m.tool_call_id is not None:
            item["tool_call_id"] = m.tool_call_id
        if m.name is not None:
            item["name"] = m.name
        shown.append(item)
    return shown


def _object(arguments: str) -> Any:
    try:
        return msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
