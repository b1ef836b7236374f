"""Counts with a Hugging Face tokenizer and its own chat template. The only importer of transformers here, and
that only where a tokenizer's files do not say all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from orchestrate.data.rows.examples import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    PreferenceExample,
    RLExample,
    UnpairedExample,
)
from orchestrate.data.tokens.chat_templates import CHATML, carries, chosen, is_marked, message, render
from orchestrate.data.tokens.lengths import Lengths, has_tokenizer
from orchestrate.data.tokens.tokenizer_files import HubTokenizer, read
from orchestrate.errors import SetupError
from orchestrate.packages import needed


def load(folder: Path) -> Any:
    """The transformers tokenizer of a folder. Raises `SetupError` when it holds none, `MissingExtra` without
    transformers."""
    if not has_tokenizer(folder):
        raise SetupError(f"no tokenizer in {folder}", fix="give the folder that holds tokenizer.json")
    with needed("local", "reading a hub tokenizer", "transformers"):
        from transformers import AutoTokenizer
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


def of_transformers(tokenizer: Any) -> HubTokenizer:
    def encode(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
        return out["input_ids"], out.get("offset_mapping", [])

    return HubTokenizer(encode, tokenizer.special_tokens_map, special_ids(tokenizer), tokenizer.chat_template)


class HubCounter:
    """Raises as `load` does."""

    error_band = 0.0

    def __init__(self, folder: Path) -> None:
        self.name = f"hf:{folder}"
        self._tokenizer = read(folder) or of_transformers(load(folder))
        self._template = chosen(self._tokenizer.template) or CHATML
        self._is_marked = is_marked(self._template)

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
                    total, spans = self._plain(example.text) + 1, example.loss_spans
                    _append(lengths, total, total if spans is None else self._part(example.text, spans))
        return lengths

    def _plain(self, text: str) -> int:
        return len(self._tokenizer.encode(text)[0])

    def _part(self, text: str, spans: list[tuple[int, int]]) -> int:
        """Tokens of the spans of a plain text, and the one that ends it where a span reaches the end."""
        _, offsets = self._tokenizer.encode(text)
        inside = sum(carries(text, place, spans, 0, text) for place in offsets)
        return inside + (spans[-1][1] == len(text))

    def _ids(
        self, messages: Sequence[ChatMessage], tools: list[dict[str, Any]] | None, *, prompt: bool = False
    ) -> Sequence[int]:
        shown = [message(m) for m in messages]
        names = self._tokenizer.names
        return self._tokenizer.encode(
            render(self._template, shown, tools, names=names, answer_next=prompt)[0]
        )[0]

    def _chat(
        self, lengths: Lengths, messages: Sequence[ChatMessage], tools: list[dict[str, Any]] | None
    ) -> None:
        """Trained tokens come from the template's own marks where it has them, else from the difference that
        each answer makes to the rendered conversation. Weight 0 takes an answer out."""
        masked = any(m.weight == 0 or m.loss_spans is not None for m in messages)
        if self._is_marked and not masked:
            shown = [message(m) for m in messages]
            text, spans = render(self._template, shown, tools, names=self._tokenizer.names)
            ids, offsets = self._tokenizer.encode(text)
            if len(offsets) == len(ids):
                _append(lengths, len(ids), _inside(offsets, spans))
                return
        trained = sum(
            self._answer(messages[:i], messages[: i + 1], tools)
            if m.loss_spans is None
            else self._answer_part(messages[:i], m, tools)
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
        ends = [i for i, token in enumerate(ids) if token in self._tokenizer.special]
        return ends[-1] + 1 if ends else len(ids)

    def _answer_part(
        self, before: Sequence[ChatMessage], answer: ChatMessage, tools: list[dict[str, Any]] | None
    ) -> int:
        """As `_answer`, of the spans of the answer alone."""
        names, prompt = self._tokenizer.names, [message(m) for m in before]
        text, _ = render(self._template, [*prompt, message(answer)], tools, names=names)
        begin = len(render(self._template, prompt, tools, names=names, answer_next=True)[0])
        ids, offsets = self._tokenizer.encode(text)
        at, spans = text.find(answer.text, begin), answer.loss_spans or []
        trained = 0
        for token, place in zip(ids, offsets, strict=True):
            if place[1] > at:
                trained += carries(text, place, spans, at, answer.text)
            if place[0] >= at + len(answer.text) and token in self._tokenizer.special:
                break
        return trained

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


def _inside(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> int:
    """Tokens that overlap a span; both are in order."""
    inside = at = 0
    for start, end in offsets:
        while at < len(spans) and start >= spans[at][1]:
            at += 1
        if at == len(spans):
            break
        inside += end > spans[at][0]
    return inside
