"""Convert models to GGUF with llama.cpp's own scripts and library. This runs in a separate process, because
llama.cpp's code exits the process if it fails.

The critical part is the pre-tokenizer: the rules by which text is split before tokenization. llama.cpp knows
each set of rules by name, and its script finds the name by tokenizing a test string. Tokenizers that the
script doesn't know are rejected here, unless they split text exactly like one that it knows."""

# torch, gguf and llama.cpp have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingImports=false

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.errors import DataError, SetupError, UsageError
from orchestrate.local.weights import serve

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS = {
    GPT2: "gpt-2",
    rf"{_HEAD}\p{{N}}{{1,3}}{_TAIL}": "llama-bpe",
    rf"{_HEAD}\p{{N}}{_TAIL}": "qwen2",
}
"""Maps the regular expressions that tokenizers use for splitting text to llama.cpp's names for them."""
KINDS = {
    "Q4_0": 2, "Q8_0": 7, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15,
    "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
}  # fmt: skip
"""llama.cpp's codes for quantization types."""


def convert(llama_cpp: str, model: str, target: str, outtype: str) -> dict[str, Any]:
    """Convert a model folder to a GGUF file. `outtype` is f32, f16 or bf16."""
    _know_the_cut(Path(llama_cpp), Path(model))
    _run(llama_cpp, "convert_hf_to_gguf.py", [model, "--outfile", target, "--outtype", outtype])
    return _described(Path(target))


def convert_adapter(llama_cpp: str, adapter: str, base: str, target: str, outtype: str) -> dict[str, Any]:
    _run(
        llama_cpp,
        "convert_lora_to_gguf.py",
        [adapter, "--base", base, "--outfile", target, "--outtype", outtype],
    )
    return {"bytes": Path(target).stat().st_size}


def quantise(source: str, target: str, kind: str) -> dict[str, Any]:
    """Quantize a GGUF file with llama.cpp's library. Raises `SetupError` if the library is missing, and
    `UsageError` for an unknown type."""
    if kind not in KINDS:
        raise UsageError(f"unknown quantization {kind}; known: {', '.join(KINDS)}")
    try:
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib
    except ImportError as error:
        raise SetupError(
            "quantizing needs llama-quantize on the PATH, or the llama.cpp library",
            fix="install the library with `pip install llama-cpp-py-sync`, or build llama.cpp",
        ) from error
    lib: Any = get_lib()
    ffi: Any = get_ffi()
    lib.llama_backend_init()
    asked = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    asked.ftype, asked.nthread = KINDS[kind], os.cpu_count() or 1
    if code := lib.llama_model_quantize(source.encode(), target.encode(), asked):
        raise UsageError(f"llama.cpp could not quantize {source} to {kind} (code {code})")
    return {"bytes": Path(target).stat().st_size}


def _run(llama_cpp: str, script: str, arguments: Sequence[str]) -> None:
    path = Path(llama_cpp) / script
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise UsageError(f"{script} ended with {ended.code}") from ended
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0] or str(error)
        raise SetupError(
            f"llama.cpp's {script} needs the package {package!r}, which is not installed",
            fix=f"pip install {package}",
        ) from error
    except NotImplementedError as error:
        raise UsageError(
            f"llama.cpp cannot convert this model: {error}", fix="try a newer version of llama.cpp"
        ) from error


def _know_the_cut(llama_cpp: Path, model: Path) -> None:
    """Let the script accept a tokenizer that is not on its list, if it splits text like one that is."""
    sys.path.insert(0, str(llama_cpp))
    sys.path.insert(1, str(llama_cpp / "gguf-py"))
    try:
        from conversion.base import TextModel
    except ImportError:  # versions with all in one script, which says itself what it does not know
        return
    own: Callable[..., str] = TextModel.get_vocab_base_pre

    def known(self: Any, tokenizer: Any) -> str:
        try:
            return own(self, tokenizer)
        except NotImplementedError:
            if name := _cut_of(model):
                return name
            raise UsageError(
                "llama.cpp does not support this model's pre-tokenizer, so it would tokenize prompts "
                "differently than in training",
                fix="try a newer version of llama.cpp, or run  orchestrate export --to merged  and serve the "
                "model with transformers or vLLM",
            ) from None

    TextModel.get_vocab_base_pre = known


def _cut_of(model: Path) -> str | None:
    try:
        read: dict[str, Any] = msgspec.json.decode((model / "tokenizer.json").read_bytes())
    except (OSError, msgspec.MsgspecError):
        return None
    cut = read.get("pre_tokenizer") or {}
    parts: list[dict[str, Any]] = cut.get("pretokenizers", [cut])
    splits = [p["pattern"].get("Regex") for p in parts if p.get("type") == "Split"]
    levels = [p for p in parts if p.get("type") == "ByteLevel"]
    if len(levels) != 1 or len(splits) + 1 != len(parts) or levels[0].get("add_prefix_space"):
        return None
    if not splits and levels[0].get("use_regex"):
        return CUTS[GPT2]
    return CUTS.get(splits[0]) if len(splits) == 1 and not levels[0].get("use_regex") else None


def _described(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    fields = GGUFReader(path).fields

    def of(name: str) -> Any:
        return fields[name].contents() if name in fields else None

    return {
        "bytes": path.stat().st_size,
        "architecture": of("general.architecture"),
        "pre_tokenizer": of("tokenizer.ggml.pre"),
        "adds_bos": bool(of("tokenizer.ggml.add_bos_token")),
        "template": of("tokenizer.chat_template"),
        "eos": of("tokenizer.ggml.eos_token_id"),
    }


def read(file: str, rows: list[dict[str, Any]], adapter: str | None = None) -> dict[str, Any]:
    """Query a GGUF file as llama.cpp serves it, with llama.cpp's tokenizer and the file's own chat template.
    Takes the same rows as `worker.read`."""
    from orchestrate.local.weights.llama import LlamaReader

    reader = LlamaReader(file, adapter)
    answers: list[dict[str, Any]] = []
    for row in rows:
        answer: dict[str, Any] = {}
        if "messages" in row or row.get("text") is not None:
            try:
                ids = reader.prompt(row)
            except DataError as error:
                answers.append({"refused": error.message})
                continue
            answer["ids"] = ids
            if "max_tokens" in row:
                answer |= reader.answer(ids, row["max_tokens"])
        if "score" in row:
            answer["scores"] = [reader.scores(prompt, said) for prompt, said in row["score"]]
        answers.append(answer)
    return {"answers": answers, "precision": reader.precision}


if __name__ == "__main__":
    raise SystemExit(
        serve({"convert": convert, "adapter": convert_adapter, "quantise": quantise, "read": read})
    )
