"""Count the tokens of rows, by tokenizer name.

Names that `counter` accepts:

- `o200k`, `cl100k`, `harmony`, `qwen3.5`: vocabularies of the package `toktok-rs`, which work offline. The
  first two are exact, except for characters that are missing from tiktoken's letter tables (U+323B0 of
  Unicode 17: one token less). `harmony` and `qwen3.5` have a small error band, because part of the template
  or the origin of the vocabulary is uncertain. If the package has no wheel, `tiktoken` counts the first three
  and may download the vocabulary.
- `hf:FOLDER`: a Hugging Face tokenizer on this machine, with its own chat template.
- `FAMILY~COUNTER`, for example `llama-3~o200k`: a substitute. `COUNTER` counts for `FAMILY`, and the count
  has the family's error band from `STAND_IN_BANDS`, or `OTHER_BAND` if the family was not measured.

Chat overhead: for OpenAI's models, 3 tokens per message, 1 for its role, 1 for a name, and 3 per row, as in
OpenAI's cookbook ("How to count tokens with tiktoken"). The cookbook calls this an estimate. A training row
may lack the 3 tokens per row, which open the next answer, so the error band includes them. `qwen3.5` counts
ChatML piece by piece. Tool schemas and calls are counted as JSON, because OpenAI does not publish how it
renders them. Images count as 0 tokens. Such counts are not exact.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.core import installed
from orchestrate.core.files import private_folder, sha256, write_whole
from orchestrate.data import rows
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
from orchestrate.data.tokens import Counter, Counts, Lengths, Remark, has_tokenizer
from orchestrate.errors import SetupError, UsageError
from orchestrate.text import among

TOOL_BAND = 0.05
"""Relative half-width of the error band for rows with tools, because the host does not publish how it renders
tools."""

STAND_IN_BANDS = {"llama-3": 0.05, "qwen3": 0.12}
"""Error bands for counting a model family's tokens with o200k, as `{family: relative half-width}`. Based on
the ratio of the family's own token counts to o200k counts (Llama 3: 0.98-1.02, Qwen 3: 0.91-1.12). Measured
on English prose, Python code, short texts with numbers (orders), and Chinese, Japanese and Korean text."""
OTHER_BAND = 0.25
"""Relative half-width of the error band for families that were not measured."""


@dataclass(frozen=True)
class ChatOverhead:
    """Tokens that a chat template adds: fixed tokens per row and per message, and text before each message's
    content."""

    row: int
    message: int
    lead: Callable[[str], str] | None = None
    trained: int = 0
    """Correction that is added to the count of trained tokens for each trained message: marker tokens that
    contribute to the loss, minus prefix tokens that don't."""


PRIMING = 3
"""Number of reply-priming tokens that the OpenAI Cookbook's token count adds per conversation. Training rows
may not have them."""

_VOCABULARIES: dict[str, tuple[str, ChatOverhead, float]] = {
    "o200k": ("o200k_base", ChatOverhead(row=PRIMING, message=4), 0.0),
    "cl100k": ("cl100k_base", ChatOverhead(row=PRIMING, message=4), 0.0),
    # <|start|>role<|message|> ... <|end|>. Answers also name a channel (2 tokens), and each row has a
    # system message of about 60 tokens.
    "harmony": ("o200k_harmony", ChatOverhead(row=62, message=4), 0.05),
    # The band reflects that the package's vocabulary counts 0-10% more than the family's published one.
    # <|im_start|> role newline content <|im_end|> newline. Only the content and <|im_end|> are trained on.
    "qwen3.5": ("qwen3.5", ChatOverhead(row=0, message=3, lead="{}\n".format, trained=-1), 0.1),
}


def row_doubt(name: str) -> int:
    """Return the largest possible overcount per conversation, in tokens."""
    return PRIMING if name in ("o200k", "cl100k") else 0


def names() -> tuple[str, ...]:
    """Return the names of the counters that are always available."""
    return tuple(_VOCABULARIES)


@lru_cache(maxsize=16)
def counter(name: str) -> Counter:
    """Return the counter with this name. Raises `UsageError` for an unknown name and `SetupError` when a
    tokenizer cannot be loaded."""
    if name.startswith("hf:"):
        from orchestrate.data.tokens.hub_tokens import HubCounter

        _, _, given = name.partition("\n")
        chat: dict[str, Any] = msgspec.json.decode(given, type=dict[str, Any]) if given else {}
        return HubCounter(folder_of(name), **chat)
    band = error_band(name)
    vocabulary, overhead, _ = _VOCABULARIES[base(name)]
    return BpeCounter(name, vocabulary, overhead, band)


def base(name: str) -> str:
    """Return the counter's own name: for a substitute such as `llama-3~o200k`, the part after `~`."""
    return name if name.startswith("hf:") else name.rpartition("~")[2]


def error_band(name: str) -> float:
    """Return `Counter.error_band` without loading the counter. Raises `UsageError` for an unknown name."""
    if name.startswith("hf:"):
        return 0.0
    if base(name) not in _VOCABULARIES:
        raise UsageError(f"unknown tokenizer {name!r}{among(name, names())}, hf:FOLDER, FAMILY~COUNTER")
    family = name.rpartition("~")[0]
    return STAND_IN_BANDS.get(family, OTHER_BAND) if family else _VOCABULARIES[name][2]


def folder_of(name: str) -> Path:
    """Return the folder in a counter name such as `hf:FOLDER`."""
    return Path(display_name(name)[3:])


def display_name(name: str) -> str:
    """Return the name of a counter in readable form."""
    return name.partition("\n")[0]


def for_model(
    *,
    tokenizer: str | None = None,
    hub: str | None = None,
    folder: str | Path | None = None,
    chat: Mapping[str, Any] | None = None,
) -> str:
    """Return the name of the best counter on this machine for a model. Every argument is optional.

    `folder` is a local model folder. `tokenizer` is the value in the catalog: a counter's name, or a family
    such as `llama-3`. `hub` is the model's id on the hub, used if its tokenizer is in the hub's local cache.
    `chat` contains settings for a Hugging Face tokenizer: the `chat_template` that replaces its own,
    `chat_template_kwargs`, `added_tokens` (text that must not be split) and `earlier_thinking`."""
    given = f"\n{msgspec.json.encode(chat, order='deterministic').decode()}" if chat else ""
    if folder is not None and has_tokenizer(Path(folder)):
        return f"hf:{Path(folder).resolve()}{given}"
    if tokenizer in _VOCABULARIES:
        return tokenizer
    if hub is not None and (cached := _cached_tokenizer(hub)) is not None:
        return f"hf:{cached}{given}"
    return f"{tokenizer or 'unknown'}~o200k"


def of_tiktoken(model: str) -> str | None:
    """Return the counter for an OpenAI model name, including tuned models, or `None` for any other name."""
    import tiktoken

    try:
        vocabulary = tiktoken.encoding_name_for_model(model)
    except KeyError:
        return None
    return {"o200k_base": "o200k", "cl100k_base": "cl100k", "o200k_harmony": "harmony"}.get(vocabulary)


def _cached_tokenizer(hub: str) -> Path | None:
    """Return the folder of a tokenizer in the local hub cache."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(hub, "tokenizer.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


@lru_cache(maxsize=8)
def batch_counter(vocabulary: str) -> Callable[[list[str]], list[int]]:
    """Return a function that counts the tokens of each text in a list. The strings of special tokens count as
    ordinary text."""
    try:
        import toktok  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        return _tiktoken_counter(vocabulary)
    return lambda texts: toktok.batch_count(texts, vocabulary, threads=1)


def _tiktoken_counter(vocabulary: str) -> Callable[[list[str]], list[int]]:
    import tiktoken

    try:
        encoding = tiktoken.get_encoding(vocabulary)
    except Exception as error:  # raises the errors of its HTTP client or registry
        raise SetupError(
            f"the vocabulary {vocabulary} is not on this machine: {error}", fix="pip install toktok-rs"
        ) from error
    return lambda texts: [len(ids) for ids in encoding.encode_ordinary_batch(texts)]


class BpeCounter:
    """Counter with a byte-pair vocabulary. It adds the chat template's fixed overhead."""

    def __init__(self, name: str, vocabulary: str, overhead: ChatOverhead, error_band: float) -> None:
        self.name = name
        self.error_band = error_band
        self._overhead = overhead
        self._count = Counts(batch_counter(vocabulary))

    def count(self, examples: Sequence[Example]) -> Lengths:
        batch = _TextBatch(self._overhead)
        for example in examples:
            batch.add(example)
        return batch.settle(self._count(batch.texts))


class _TextBatch:
    """Collection of the texts of many rows, so that one call counts them all.

    A sequence is (fixed tokens, those of them with loss, end of its texts); `trained` marks the texts with
    loss.
    """

    def __init__(self, overhead: ChatOverhead) -> None:
        self.texts: list[str] = []
        self._overhead = overhead
        self._trained: list[bool] = []
        self._sequences: list[tuple[int, int, int]] = []

    def add(self, example: Example) -> None:
        match example:
            case ChatExample():
                self._chat(example.messages, example.tools, ())
            case PreferenceExample():
                for answers in (example.preferred, example.rejected):
                    self._chat(example.prompt, example.tools, answers)
            case UnpairedExample():
                self._chat(example.prompt, example.tools, example.completion)
            case RLExample():
                self._chat(example.messages, example.tools, ())
            case CompletionExample():
                self._text(example.prompt, False)
                self._text(example.completion, True)
                self._end(0, 0)
            case TextExample():
                self._text(example.text, True)
                self._end(0, 0)

    def _text(self, text: str, trained: bool) -> None:
        if text:
            self.texts.append(text)
            self._trained.append(trained)

    def _end(self, fixed: int, trained: int) -> None:
        self._sequences.append((fixed, trained, len(self.texts)))

    def _chat(
        self,
        messages: Sequence[ChatMessage],
        tools: list[dict[str, object]] | None,
        answers: Sequence[ChatMessage],
    ) -> None:
        """With `answers`, only they carry loss."""
        overhead, lead = self._overhead, self._overhead.lead
        fixed = overhead.row + overhead.message * (len(messages) + len(answers))
        marks = 0
        if tools:
            self._text(rows.encode(tools).decode(), False)
        for i, m in enumerate((*messages, *answers) if answers else messages):
            trained = i >= len(messages) if answers else m.role == "assistant" and m.weight != 0
            marks += trained
            text = m.content if isinstance(m.content, str) else m.text
            if lead is not None:
                text = lead(m.role) + text
            if text:
                self.texts.append(text)
                self._trained.append(trained)
            if m.reasoning or m.tool_calls or m.name:
                fixed += self._extras(m, trained)
        self._end(fixed, marks * overhead.trained)

    def _extras(self, m: ChatMessage, trained: bool) -> int:
        """Count the content that few messages have. Returns the fixed tokens of a name."""
        if m.reasoning:
            self._text(m.reasoning, trained)
        for call in m.tool_calls or ():
            self._text(call.function.name, trained)
            self._text(call.function.arguments, trained)
        if m.name:
            self._text(m.name, False)
            return 1
        return 0

    def settle(self, counts: list[int]) -> Lengths:
        lengths = Lengths()
        at = 0
        for fixed, marks, end in self._sequences:
            mine = counts[at:end]
            lengths.tokens.append(sum(mine) + fixed)
            lengths.trained.append(max(0, sum(compress(mine, self._trained[at:end])) + marks))
            at = end
        return lengths


# Cached token counts: in memory for this process, and in a folder for later ones.


MOST_FILES = 500
"""Maximum number of cached counts in a folder. The oldest are removed first."""
_LIBRARIES = ("toktok-rs", "tiktoken", "tokenizers", "jinja2", "transformers")
_TOKENIZER_FILES = (
    "tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
    "*.model", "*.tiktoken", "additional_chat_templates/*", "config.json",
)  # fmt: skip

_counts: dict[tuple[str, str], StoredCounts] = {}


class StoredCounts(msgspec.Struct, frozen=True):
    """Token counts of one dataset with one counter."""

    lengths: bytes
    """Tokens in each sequence, as an `array("I")`. Additional sequences of split rows come last."""
    trained: int
    remarks: tuple[Remark, ...] = ()

    def sequences(self) -> array[int]:
        return array("I", self.lengths)


def find(digest: str, counter: str, folder: Path | None) -> StoredCounts | None:
    """Look up the counts that `keep` stored for this digest and counter, in this or an earlier process."""
    found = _counts.get((digest, counter))
    if found is None and folder is not None:
        # If the cache file is damaged, missing or unreadable, tokens are counted again.
        with suppress(OSError, msgspec.MsgspecError):
            found = msgspec.msgpack.decode(_file(folder, digest, counter).read_bytes(), type=StoredCounts)
            if len(found.lengths) % array("I").itemsize:
                return None
            _counts[digest, counter] = found
    return found


def keep(digest: str, counter: str, lengths: Lengths, folder: Path | None) -> StoredCounts:
    kept = StoredCounts(
        lengths=(lengths.tokens + lengths.further).tobytes(),
        trained=sum(lengths.trained),
        remarks=tuple(lengths.remarks.values()),
    )
    _counts[digest, counter] = kept
    if folder is not None:
        _write(_file(folder, digest, counter), msgspec.msgpack.encode(kept))
    return kept


class StoredRange(msgspec.Struct, frozen=True, array_like=True):
    """`Lengths` of one range of a file."""

    tokens: bytes
    further: bytes
    trained: bytes
    remarks: tuple[Remark, ...] = ()

    @classmethod
    def of(cls, lengths: Lengths) -> StoredRange:
        return cls(
            lengths.tokens.tobytes(),
            lengths.further.tobytes(),
            lengths.trained.tobytes(),
            tuple(lengths.remarks.values()),
        )

    def lengths(self) -> Lengths:
        found = Lengths()
        for into, stored in zip(
            (found.tokens, found.further, found.trained),
            (self.tokens, self.further, self.trained),
            strict=True,
        ):
            into.frombytes(stored)
        found.remarks = {remark.text: remark for remark in self.remarks}
        return found


Ranges = dict[str, StoredRange]
"""Token counts of ranges, keyed by the hash of the range's bytes."""


def find_ranges(path: str, read_as: object, counter: str, folder: Path) -> Ranges:
    """Look up the counts that `keep_ranges` stored for this path, regardless of its content."""
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.msgpack.decode(_ranges_file(folder, path, read_as, counter).read_bytes(), type=Ranges)
    return {}


def keep_ranges(path: str, read_as: object, counter: str, found: Ranges, folder: Path) -> None:
    _write(_ranges_file(folder, path, read_as, counter), msgspec.msgpack.encode(found))


def _ranges_file(folder: Path, path: str, read_as: object, counter: str) -> Path:
    return folder / f"{_hash(os.path.realpath(path), repr(read_as), counter, _version(counter))}.ranges"


def seen(path: str, columns: object, folder: Path | None) -> str | None:
    """Return the digest that was stored for a file with this path, size and modification time. The content
    may still differ, so the digest is only a hint that cached counts apply."""
    if folder is None:
        return None
    with suppress(OSError, ValueError):  # or an invalid path
        return _seen_file(folder, path, columns).read_text("ascii")
    return None


def keep_seen(path: str, columns: object, digest: str, folder: Path | None) -> None:
    with suppress(OSError):
        if folder is not None:
            _write(_seen_file(folder, path, columns), digest.encode())


def _seen_file(folder: Path, path: str, columns: object) -> Path:
    """Return the cache file for a path. Raises `OSError` if the path is not a local file."""
    stat = Path(path).stat()
    return folder / f"{_hash(os.path.realpath(path), repr(columns), stat.st_size, stat.st_mtime_ns)}.seen"


def _file(folder: Path, digest: str, counter: str) -> Path:
    return folder / f"{_hash(digest, counter, _version(counter))}.counts"


@lru_cache(maxsize=64)
def _version(counter: str) -> str:
    """Return a hash of everything that affects a count, except the rows."""
    parts = [sha256(file) for file in sorted(Path(__file__).parent.glob("*.py"))]
    for library in _LIBRARIES:
        with suppress(ModuleNotFoundError):  # the base of `PackageNotFoundError`, whose import is slow
            parts.append(f"{library} {installed(library)}")
    if counter.startswith("hf:"):
        parts += _contents(folder_of(counter))
    return _hash(*parts)


def _contents(folder: Path) -> Iterator[str]:
    for pattern in _TOKENIZER_FILES:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                yield f"{file.relative_to(folder)} {sha256(file)}"


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:40]


def _write(file: Path, content: bytes) -> None:
    """Write a cache file atomically. Without write access, later counts are only slower."""
    with suppress(OSError):
        private_folder(file.parent)
        write_whole(file, content)
        _prune(file.parent)


def _prune(folder: Path) -> None:
    files = [entry for entry in os.scandir(folder) if entry.is_file()]
    if len(files) > MOST_FILES:
        files.sort(key=lambda entry: entry.stat().st_mtime)
        for entry in files[:-MOST_FILES]:
            Path(entry.path).unlink(missing_ok=True)
