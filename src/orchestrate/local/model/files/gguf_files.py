"""GGUF in: a file becomes a folder of safetensors once, in the user's cache, and is then a model like any
other. transformers reads the file. Quantised weights are unpacked: training holds them in NF4 or 16 bits,
whatever the file had."""

# gguf, torch and transformers describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate.errors import ConfigError, UsageError
from orchestrate.files import whole_folder

NAMES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
}
"""What a file says about its model -> what a config.json calls it."""


def config(path: Path) -> dict[str, Any]:
    """The model's shape from the file's header, without torch: enough for a memory plan.

    Raises `UsageError` when the file is no GGUF, `ConfigError` when the package `gguf` is missing.
    """
    fields = _read(path).fields
    architecture = str(fields["general.architecture"].contents())
    found: dict[str, Any] = {"model_type": architecture}
    for theirs, ours in NAMES.items():
        if field := fields.get(f"{architecture}.{theirs}"):
            found[ours] = field.contents()
    if "vocab_size" not in found and "tokenizer.ggml.tokens" in fields:
        found["vocab_size"] = len(fields["tokenizer.ggml.tokens"].data)
    return found


def parameters(path: Path) -> int:
    return sum(int(t.n_elements) for t in _read(path).tensors)


def _read(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ConfigError("GGUF needs the package gguf", fix="pip install 'orchestrate-ft[local]'") from error
    try:
        reader = GGUFReader(path)
    except (ValueError, KeyError, OSError, IndexError) as error:
        raise UsageError(f"{path} is not a GGUF file that can be read: {error}") from error
    if "general.architecture" not in reader.fields:
        raise UsageError(f"{path} is a GGUF file that does not name an architecture")
    return reader


def unpacked(path: Path) -> Path:
    """The folder with the same model in safetensors, made on the first call. Called by workers.

    Tokenizer files that lie beside the file (tokenizer.json, chat_template.jinja) go before the vocabulary
    inside it. Raises `UsageError` for an architecture or quantisation that transformers does not read.
    """
    shape = config(path)
    folder = _home(path)
    if (folder / "config.json").is_file():
        return folder
    try:
        with whole_folder(folder, replace=False) as draft:
            _unpack(path, draft, shape["model_type"])
    except OSError as error:
        if not (folder / "config.json").is_file():  # another process was faster
            raise ConfigError(
                f"{path} could not be unpacked into {folder.parent}: {error}",
                fix="free disk space (16 bits for each parameter are needed), then try again",
            ) from error
    return folder


def _home(path: Path) -> Path:
    import platformdirs

    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return Path(platformdirs.user_cache_dir("orchestrate")) / "gguf" / f"{path.stem}-{key}"


def _unpack(path: Path, draft: Path, architecture: str) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()
    beside = any((path.parent / n).is_file() for n in ("tokenizer.json", "tokenizer_config.json"))
    inside: dict[str, Any] = {} if beside else {"gguf_file": path.name}
    options: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.bfloat16, "local_files_only": True}
    options["output_loading_info"] = True
    if hasattr(transformers, "GgufConfig"):
        # Later versions would leave the weights in their blocks.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, local_files_only=True, **inside)
        model, told = cast("Any", AutoModelForCausalLM.from_pretrained(path.parent, **options))
    except OSError:
        raise
    # What it raises for what it does not know differs by architecture and quantisation.
    except Exception as error:
        raise UsageError(
            f"transformers {transformers.__version__} does not read {path.name} ({architecture}): {error}",
            fix="use the model's safetensors; if only its tokenizer is not read, put its tokenizer.json "
            "beside the .gguf file",
        ) from error
    if lacking := sorted({*told["missing_keys"], *map(str, told["mismatched_keys"])}):
        raise UsageError(
            f"{path.name} lacks {len(lacking)} of its model's weights, such as {lacking[0]}: "
            "they would be random",
            fix="take another file; join the parts of a split model (-00001-of-...) with llama.cpp's "
            "gguf-split --merge",
        )
    model.config.quantization_config = None
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    _drop_strangers(draft / "tokenizer.json", int(model.config.get_text_config().vocab_size))


def _drop_strangers(path: Path, vocabulary: int) -> None:
    """transformers adds tokens of a family that the file does not have; the model has no row for them."""
    if not path.is_file():
        return
    tokenizer = msgspec.json.decode(path.read_bytes())
    tokenizer["added_tokens"] = [t for t in tokenizer.get("added_tokens", []) if t["id"] < vocabulary]
    path.write_bytes(msgspec.json.encode(tokenizer))
