"""Query a GGUF file with llama.cpp's library: token ids, greedy answers and log-probabilities."""

# The library's bindings have no type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingImports=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrate.data.rows import ChatMessage
from orchestrate.data.tokens.chat_templates import message, render
from orchestrate.errors import SetupError, UsageError
from orchestrate.types import decoding

CONTEXT = 4096


class LlamaReader:
    """Runs a GGUF model on the CPU, one sequence at a time. Raises `SetupError` if the library is missing,
    and `UsageError` if the file cannot be loaded."""

    def __init__(self, file: str, adapter: str | None = None) -> None:
        try:
            from llama_cpp_py_sync.llama import Llama
        except ImportError as error:
            raise SetupError(
                "reading GGUF files requires llama.cpp's library", fix="pip install llama-cpp-py-sync"
            ) from error
        try:
            self._llama: Any = Llama(
                file, n_ctx=CONTEXT, n_batch=CONTEXT, type_k="f32", type_v="f32", flash_attn_type=0
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise UsageError(f"llama.cpp cannot load {file}: {error}") from error
        self._lib, self._ffi = self._llama._lib, self._llama._ffi
        if adapter is not None:
            self._lora = self._lib.llama_adapter_lora_init(self._llama._model, adapter.encode())
            if not self._lora:
                raise UsageError(f"llama.cpp cannot load the adapter {adapter} onto the base model {file}")
            one = self._ffi.new("struct llama_adapter_lora *[1]", [self._lora])
            self._lib.llama_set_adapters_lora(self._llama._ctx, one, 1, self._ffi.new("float[1]", [1.0]))
        self._words = int(self._lib.llama_vocab_n_tokens(self._llama._vocab))
        self.precision = self._meta("general.file_type") or "gguf"

    def prompt(self, row: dict[str, Any]) -> list[int]:
        """Return the token ids of `text`, or of the prompt that the file's own template renders for
        `messages`."""
        if row.get("text") is not None:
            return self._llama.tokenize(row["text"], add_special=True, parse_special=True)
        template = self._meta("tokenizer.chat_template")
        if template is None:
            raise UsageError("the GGUF file has no chat template")
        names = {f"{n}_token": self._mark(n) for n in ("bos", "eos")}
        text = render(
            template, [_shown(m) for m in row["messages"]], row.get("tools"), names=names, answer_next=True
        )[0]
        # As in llama.cpp's server, no second BOS token is added if the template starts with one.
        begins = bool(names["bos_token"]) and text.startswith(names["bos_token"])
        return self._llama.tokenize(text, add_special=not begins, parse_special=True)

    def answer(self, prompt: Sequence[int], most: int) -> dict[str, Any]:
        """Generate a greedy answer of at most `most` tokens. Stops at a token that the file marks as the end
        of generation."""
        ids: list[int] = []
        ended = False
        logits = self._begin(prompt)
        while len(ids) < most and not ended:
            ids.append(max(range(self._words), key=logits.__getitem__))
            ended = bool(self._lib.llama_vocab_is_eog(self._llama._vocab, ids[-1]))
            if not ended and len(ids) < most:
                logits = self._read([ids[-1]])
        text = self._llama.detokenize(ids[:-1] if ended else ids)
        return {"answer": ids, "text": text, "ended": ended}

    def scores(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Compute the log-probability, in nats, of each token of the answer."""
        import numpy as np

        found: list[float] = []
        logits = self._begin(prompt)
        for id in answer:
            values = np.array(logits, dtype=np.float64)
            values -= values.max()
            found.append(float(values[id] - np.log(np.exp(values).sum())))
            logits = self._read([id])
        return found

    def _begin(self, prompt: Sequence[int]) -> list[float]:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._llama._ctx), True)
        self._past = 0
        return self._read(prompt)

    def _read(self, ids: Sequence[int]) -> list[float]:
        self._past = self._llama._eval_tokens(list(ids), self._past)
        return self._ffi.unpack(self._lib.llama_get_logits_ith(self._llama._ctx, -1), self._words)

    def _meta(self, key: str) -> str | None:
        room = self._ffi.new("char[]", 1 << 18)
        length = self._lib.llama_model_meta_val_str(self._llama._model, key.encode(), room, 1 << 18)
        return None if length < 0 else self._ffi.string(room).decode()

    def _mark(self, name: str) -> str:
        id = self._meta(f"tokenizer.ggml.{name}_token_id")
        return "" if id is None else self._llama.detokenize([int(id)], unparse_special=True)


def _shown(given: dict[str, Any]) -> dict[str, Any]:
    return message(decoding.convert(given, ChatMessage))
