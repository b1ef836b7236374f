"""Count tokens with a Hugging Face tokenizer and its own chat template. Only this module imports
transformers, and only for tokenizers that can't be loaded from their files alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from orchestrate.core import needed
from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    PreferenceExample,
    RLExample,
    UnpairedExample,
)
from orchestrate.data.tokens import Lengths, Remark, has_tokenizer
from orchestrate.data.tokens.chat_templates import carries, with_settings
from orchestrate.data.tokens.tokenizer_files import HubTokenizer, read
from orchestrate.data.tokens.turns import Conversations, Earlier, answered, rows_of
from orchestrate.errors import DataError, SetupError

_SPACE = "\u2581"
"""Character that SentencePiece puts before a word."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def load(folder: Path, added_tokens: Sequence[str] = ()) -> Any:
    """Load the transformers tokenizer from a folder, and add tokens that it must not split. Raises
    `SetupError` if the folder has no tokenizer, and `MissingExtra` if transformers is not installed."""
    if not has_tokenizer(folder):
        raise SetupError(f"no tokenizer in {folder}", fix="use the folder that contains tokenizer.json")
    with needed("local", "reading a Hugging Face tokenizer", "transformers"):
        from transformers import AddedToken, AutoTokenizer
    # Never run a folder's code. If `trust_remote_code` is not set, transformers asks on the terminal.
    tokenizer = cast("Any", AutoTokenizer).from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added_tokens])
    return tokenizer


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of a transformers tokenizer's control tokens, such as the end of a turn."""
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    return frozenset(cast("list[int]", tokenizer.all_special_ids)) | {
        int(i) for i, token in added.items() if token.special
    }


def opened(folder: Path, added_tokens: Sequence[str] = ()) -> HubTokenizer:
    """Load a tokenizer from a folder, using transformers only if the folder's files are not sufficient.
    Raises the same errors as `load`."""
    return read(folder, added_tokens) or of_transformers(load(folder, added_tokens))


def of_transformers(tokenizer: Any) -> HubTokenizer:
    """Wrap a transformers tokenizer."""

    quick = _own(tokenizer)

    def encode(text: str) -> tuple[Sequence[int], Sequence[tuple[int, int]]]:
        if quick is not None and quick.truncation is None and quick.padding is None:
            found = quick.encode(text, add_special_tokens=False)
            return found.ids, found.offsets
        out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
        return out["input_ids"], out.get("offset_mapping", [])

    added: dict[int, Any] = tokenizer.added_tokens_decoder
    marks = {str(token.content) for token in added.values() if token.special}
    return HubTokenizer(
        encode,
        lambda ids: tokenizer.decode(list(ids), clean_up_tokenization_spaces=False),
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.special_tokens_map,
        special_ids(tokenizer),
        frozenset(marks | set(cast("list[str]", tokenizer.all_special_tokens))),
        tokenizer.chat_template,
    )


def _own(tokenizer: Any) -> Any:
    """Return the fast tokenizer inside a transformers tokenizer if the wrapper changes nothing. A direct
    call takes an eighth of the time."""
    import transformers

    fast: Any = transformers.PreTrainedTokenizerFast
    kind = cast("Any", type(tokenizer))
    plain = issubclass(kind, fast) and kind._encode_plus is fast._encode_plus
    return tokenizer.backend_tokenizer if plain and not tokenizer.split_special_tokens else None


class HubCounter:
    """Counter with a Hugging Face tokenizer. Raises the same errors as `load`."""

    error_band = 0.0

    def __init__(
        self,
        folder: Path,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        added_tokens: Sequence[str] = (),
        earlier_thinking: Earlier = "train",
    ) -> None:
        self.name = f"hf:{folder}"
        self._earlier: Earlier = earlier_thinking
        self._tokenizer = opened(folder, added_tokens)
        templates = with_settings(chat_template or self._tokenizer.template, chat_template_kwargs)
        self._chats = Conversations(templates, self._tokenizer.names, self._tokenizer.marks)

    def count(self, examples: Sequence[Example]) -> Lengths:
        lengths = Lengths()
        for place, example in enumerate(examples):
            try:
                sequences, notes = self._row(example)
            except DataError as error:
                lengths.remark(Remark(error.message, True, 1, (place,), error.fix))
                sequences, notes = [(0, 0)] * (2 if isinstance(example, PreferenceExample) else 1), ()
            own = 2 if isinstance(example, PreferenceExample) else 1
            # The last sequence of a split row is the complete row.
            lengths.tokens.extend(tokens for tokens, _ in sequences[-own:])
            lengths.further.extend(tokens for tokens, _ in sequences[:-own])
            lengths.trained.extend(trained for _, trained in sequences)
            for note in notes:
                lengths.remark(Remark(note, False, 1, (place,)))
        return lengths

    def _row(self, example: Example) -> tuple[list[tuple[int, int]], Iterable[str]]:
        """Return the numbers of tokens and trained tokens in each sequence, and notes on the row. Raises
        `DataError` if the template rejects the row."""
        match example:
            case ChatExample():
                sides = rows_of(self._chats, example.messages, example.tools, self._earlier)
            case PreferenceExample():
                sides = [answered(example.prompt, side) for side in (example.preferred, example.rejected)]
            case UnpairedExample():
                sides = [answered(example.prompt, example.completion)]
            case RLExample():
                prompt = self._chats.prompt(example.messages, example.tools)
                return [(len(self._tokenizer.encode(prompt)[0]), 0)], ()
            case CompletionExample():
                prompt, answer = (self._tokenizer.encode(t)[0] for t in (example.prompt, example.completion))
                trained = len(self._tokenizer.ended(answer))
                return [(len(self._tokenizer.started(prompt)) + trained, trained)], ()
            case _:
                return [self._text(example.text, example.loss_spans)], ()
        counted = [self._chat(messages, example.tools) for messages in sides]
        if isinstance(example, ChatExample):  # sequences without trained tokens are left out
            counted = [one for one in counted if one[0][1]] or counted[-1:]
        return [count for count, _ in counted], dict.fromkeys(note for _, notes in counted for note in notes)

    def _text(self, text: str, spans: list[tuple[int, int]] | None) -> tuple[int, int]:
        """Count a plain text. Its end token is trained if a span reaches the end."""
        ids, offsets = self._tokenizer.encode(text)
        whole = self._tokenizer.ended(ids)
        total = len(self._tokenizer.started(whole))
        if spans is None:
            return total, total
        inside = sum(carries(text, place, spans, 0, text) for place in offsets)
        return total, inside + (len(whole) - len(ids)) * (spans[-1][1] == len(text))

    def _chat(
        self, messages: Sequence[ChatMessage], tools: list[dict[str, Any]] | None
    ) -> tuple[tuple[int, int], Iterable[str]]:
        """As training has it: what carries loss, and an end where the template writes none."""
        shown = self._chats.rendered(messages, tools)
        ids, offsets = self._tokenizer.encode(shown.text)
        weights = shown.weights(offsets) if len(offsets) == len(ids) else []
        trained = sum(1 for weight in weights if weight)
        has_end = "eos_token" in self._tokenizer.names
        end = int(shown.unended and has_end)
        count = (len(ids) + end, trained + end * bool(weights and weights[-1]))
        return count, shown.notes(has_end=has_end, marks=self._tokenizer.marks_in(ids))


def text_of(tokenizer: Any, id: int) -> str:
    """Decode one token id with a transformers tokenizer. Special tokens are decoded too."""
    text: str = tokenizer.decode([id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def bytes_of(tokenizer: Any, id: int) -> bytes:
    """Return the bytes of one token. They may be an incomplete UTF-8 sequence, or begin with a space that is
    stripped only at the start of an answer."""
    text, word = text_of(tokenizer, id), str(tokenizer.convert_ids_to_tokens(id))
    if "\ufffd" not in text:
        return (" " + text if word.startswith(_SPACE) and not text.startswith(" ") else text).encode()
    if found := _BYTE.fullmatch(word):
        return bytes([int(found[1], 16)])
    known = _letters()
    return bytes(known[c] for c in word) if all(c in known for c in word) else text.encode()


def _letters() -> dict[str, int]:
    """Map the letters that byte-level tokenizers use for bytes to these bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [n for n in range(256) if n not in shown]
    return {chr(n): n for n in shown} | {chr(256 + place): n for place, n in enumerate(hidden)}
