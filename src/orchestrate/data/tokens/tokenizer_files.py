"""Load a hub tokenizer from its files, with `tokenizers` alone.

Importing transformers takes 3 s and 320 MB. It is only needed for tokenizers that transformers modifies while
loading them. For these, `read` returns `None`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from orchestrate.data.tokens import PieceEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Json = dict[str, Any]

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_AS_THEY_STAND = {"TokenizersBackend", "PreTrainedTokenizerFast"}
"""Tokenizer classes in transformers that load `tokenizer.json` unchanged."""
_REBUILT_TYPES = {
    "qwen2": "Qwen2Tokenizer",
    "qwen3_5": "Qwen3_5Tokenizer",
    "qwen3_5_moe": "Qwen3_5Tokenizer",
    "qwen3_5_moe_text": "Qwen3_5Tokenizer",
}
"""Model types for which transformers chooses the class from its own table, regardless of the files."""
_UNSURE = ("mistral", "ministral", "voxtral", "pixtral", "siglip2", "hyperclovax", "qwen4")
"""Model types that transformers handles specially."""


def _byte_pairs(letters: str) -> Json:
    """Return the components of Qwen's tokenizers. `letters` is the pattern of characters in a word."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?LETTERS+|\p{N}| ?[^\sOTHERS\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    pattern = pattern.replace("LETTERS", letters).replace("OTHERS", letters.strip("[]"))
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "model": {"type": "BPE", "unk_token": None, "fuse_unk": False, "byte_fallback": False},
        "decoder": {"type": "ByteLevel"},
    }


_SPACE = {"String": " "}
REBUILT: Mapping[str, Json] = {
    "Qwen2Tokenizer": _byte_pairs(r"\p{L}"),
    "Qwen3_5Tokenizer": _byte_pairs(r"[\p{L}\p{M}]"),
    "GemmaTokenizer": {
        "normalizer": {"type": "Replace", "pattern": _SPACE, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": _SPACE,
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
    },
}
"""Components that transformers' tokenizer classes add, keyed by class name. These classes read only the
vocabulary and merges from the file. A file that already contains the same components is used unchanged."""


@dataclass(frozen=True)
class HubTokenizer:
    """Subset of a tokenizer's data and functions that is used for counting and encoding."""

    encode: Callable[[str], tuple[Sequence[int], Sequence[tuple[int, int]]]]
    """Function that encodes a string. Returns the token ids, without added special tokens, and the position
    of each token in the string."""
    decode: Callable[[Sequence[int]], str]
    """Function that decodes token ids, including special tokens, without any cleanup."""
    bos: int | None
    """Id of the beginning-of-sequence token, or `None` if there is none."""
    eos: int | None
    names: Mapping[str, str]
    """Special tokens, keyed by name such as `bos_token`."""
    special: frozenset[int]
    """Ids of control tokens, such as the end of a turn."""
    marks: frozenset[str]
    """Strings of the control tokens."""
    template: object
    """Chat template in transformers' format: a string, a dict of named templates, or `None`."""

    def marks_in(self, ids: Iterable[int]) -> set[str]:
        """Return the strings of the control tokens in a text."""
        return {self.decode([id]) for id in self.special.intersection(ids)}

    def started(self, ids: Sequence[int]) -> list[int]:
        """Return the tokens of a plain text with the token that begins every text."""
        return [*ids] if self.bos is None or (ids and ids[0] == self.bos) else [self.bos, *ids]

    def ended(self, ids: Sequence[int]) -> list[int]:
        """Return the tokens of a plain text with the end token."""
        return [*ids] if self.eos is None or (ids and ids[-1] == self.eos) else [*ids, self.eos]


def read(folder: Path, added_tokens: Sequence[str] = ()) -> HubTokenizer | None:
    """Read the tokenizer from a folder, and add tokens that it must not split. Returns `None` if transformers
    is needed to load it."""
    try:
        config = _json(folder / "tokenizer_config.json")
        file = _json(folder / "tokenizer.json")
        model_type = _json(folder / "config.json").get("model_type", "")
        extra = _json(folder / "special_tokens_map.json") if "added_tokens_decoder" not in config else {}
    except (OSError, msgspec.DecodeError):
        return None
    if not file or not config or not _reads_as_it_stands(config, file, str(model_type)):
        return None
    config = config | extra
    named = dict(_named(config))
    added = {token["content"]: token for token in file.get("added_tokens", ())}
    listed = [*named.values(), *_listed(config)]
    if any(token not in added for token in listed) or not _agree(config, folder, added):
        return None
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    cast("Any", tokenizer).add_tokens([AddedToken(text, normalized=False) for text in added_tokens])

    def encode(text: str) -> tuple[Sequence[int], Sequence[tuple[int, int]]]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    apart = _apart(tokenizer, file)
    marks = {text for text, token in added.items() if token["special"]} | set(listed)
    bos, eos = (added[named[name]]["id"] if name in named else None for name in ("bos_token", "eos_token"))
    return HubTokenizer(
        PieceEncoder(encode, apart) if apart else encode,
        lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        bos,
        eos,
        named,
        frozenset(added[text]["id"] for text in marks),
        frozenset(marks),
        _templates(folder, config.get("chat_template")),
    )


def _apart(tokenizer: Tokenizer, file: Json) -> Mapping[str, int]:
    """Return the added tokens between which a text can be encoded in pieces, with their ids. Returns none
    if the encoding of a piece depends on the text before it."""
    added = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.normalized]
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return {}
    if _has(file, {"prepend_scheme": "first"}) or _has(
        file.get("post_processor"), {"add_prefix_space": True}
    ):
        return {}
    ids = {token.content: tokenizer.token_to_id(token.content) for token in added if token.content}
    return {text: number for text, number in ids.items() if number is not None}


def _has(part: object, fields: Json) -> bool:
    """Return whether a component of a tokenizer, or one nested in it, has one of these properties."""
    if isinstance(part, list):
        return any(_has(one, fields) for one in cast("list[object]", part))
    if not isinstance(part, dict):
        return False
    own = cast("Json", part)
    return any(own.get(name) == value for name, value in fields.items()) or any(
        _has(value, fields) for name, value in own.items() if name not in ("vocab", "merges")
    )


def _json(file: Path) -> Json:
    return cast("Json", msgspec.json.decode(file.read_bytes())) if file.is_file() else {}


def _reads_as_it_stands(config: Json, file: Json, model_type: str) -> bool:
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    name = "PreTrainedTokenizerFast" if name == "PreTrainedTokenizer" else name
    name = _REBUILT_TYPES.get(model_type, name)
    odd = ("auto_map", "split_special_tokens", "fix_mistral_regex", "add_prefix_space")
    if any(config.get(key) for key in odd) or model_type.startswith(_UNSURE):
        return False
    if name == "LlamaTokenizer" and _is_byte_level(file):
        return True
    if (same := REBUILT.get(name)) is None:
        return name in _AS_THEY_STAND
    model = file["model"]
    return (
        file.get("normalizer") == same["normalizer"]
        and file.get("pre_tokenizer") == same["pre_tokenizer"]
        and {key: model.get(key) for key in same["model"]} == same["model"]
        and (file.get("decoder") or {}).items() >= same["decoder"].items()
        and not (model.get("dropout") or model.get("ignore_merges"))
        and all(config.get(key) for key in ("eos_token", "pad_token"))
    )


def _is_byte_level(file: Json) -> bool:
    parts: list[Json] = [file.get("pre_tokenizer") or {}, file.get("decoder") or {}]
    parts += [inner for part in parts for inner in part.get("pretokenizers", part.get("decoders", ()))]
    return any(part.get("type") == "ByteLevel" for part in parts)


def _named(config: Json) -> Iterator[tuple[str, str]]:
    given = config.get("extra_special_tokens")
    fields = config | cast("Json", given) if isinstance(given, dict) else config
    for name, value in fields.items():
        if value is not None and (name in NAMED or name.endswith("_token")):
            token = cast("Json", value).get("content") if isinstance(value, dict) else value
            if isinstance(token, str):
                yield name, token


def _listed(config: Json) -> Iterator[str]:
    """Yield the special tokens without a name."""
    given = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    if isinstance(given, list):
        for value in cast("list[Any]", given):
            yield cast("Json", value)["content"] if isinstance(value, dict) else str(value)


def _agree(config: Json, folder: Path, added: Mapping[str, Json]) -> bool:
    """Return whether `tokenizer.json` contains the tokens of the other files with the same properties."""
    decoder = cast("dict[str, Json]", config.get("added_tokens_decoder") or {})
    for number, token in decoder.items():
        mine = added.get(token["content"])
        if mine is None or mine["id"] != int(number) or any(mine.get(k) != v for k, v in token.items()):
            return False
    return all(token in added for token in _json(folder / "added_tokens.json"))


def chat_templates(folder: Path) -> object:
    """Return the chat template in transformers' format: a string, a dict of named templates, or `None`."""
    try:
        config = _json(folder / "tokenizer_config.json")
    except (OSError, msgspec.DecodeError):
        config = {}
    return _templates(folder, config.get("chat_template"))


def _templates(folder: Path, written: object) -> object:
    """Return the chat templates. Template files take precedence over the configuration."""
    found = {file.stem: file for file in (folder / "additional_chat_templates").glob("*.jinja")}
    if (default := folder / "chat_template.jinja").is_file():
        found = {"default": default, **found}
    texts = {name: file.read_text("utf-8") for name, file in found.items()}
    if texts:
        return texts["default"] if list(texts) == ["default"] else texts
    if isinstance(written, list):
        return {one["name"]: one["template"] for one in cast("list[dict[str, str]]", written)}
    return written
