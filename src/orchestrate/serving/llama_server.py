"""Run llama.cpp's server from a Python package, with the flags of `llama-server`.

This script must not import `orchestrate`, because it runs in environments that may not have it. The package
xllamacpp contains llama.cpp's own server. llama-cpp-python has a different server, which answers one request
at a time and does not support adapters.
"""

from __future__ import annotations

import argparse
import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llama-server", description=__doc__)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--ctx-size", type=int, default=0, help="0: the model's")
    parser.add_argument("--threads", type=int, default=-1)
    parser.add_argument("--flash-attn", choices=("auto", "on", "off"), default="auto")
    for cache in ("-k", "-v"):
        parser.add_argument(f"--cache-type{cache}", choices=("f32", "f16", "bf16", "q8_0"), default="f16")
    parser.add_argument("--lora", action="append", default=[])
    parser.add_argument("--chat-template-file")
    parser.add_argument("--jinja", action="store_true", help="ignored: both packages always use Jinja")
    return parser


def native(asked: argparse.Namespace) -> None:
    """Serve with xllamacpp until the process is interrupted or terminated."""
    llama: Any = import_module("xllamacpp")
    given: Any = llama.CommonParams()
    given.model.path, given.model_alias = asked.model, {asked.alias}
    given.hostnames, given.port = [asked.host], asked.port
    given.n_parallel, given.n_ctx = asked.parallel, asked.ctx_size
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = asked.threads
    kinds: Any = llama.llama_flash_attn_type
    words = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}
    given.flash_attn_type = kinds[f"LLAMA_FLASH_ATTN_TYPE_{words[asked.flash_attn]}"]
    given.cache_type_k = llama.ggml_type[f"GGML_TYPE_{asked.cache_type_k.upper()}"]
    given.cache_type_v = llama.ggml_type[f"GGML_TYPE_{asked.cache_type_v.upper()}"]
    if asked.lora:
        given.lora_adapters = [llama.CommonAdapterLoraInfo(path) for path in asked.lora]
    if asked.chat_template_file:
        given.chat_template = Path(asked.chat_template_file).read_text(encoding="utf-8")
    server: Any = llama.Server(given)
    print(server.listening_address, flush=True)  # noqa: T201
    threading.Event().wait()


def bindings(asked: argparse.Namespace) -> None:
    """Serve with llama-cpp-python's server. Its default repetition penalty of 1.1 is disabled here, because
    it changes the model's answers even at temperature 0 and no flag disables it."""
    caches = {asked.cache_type_k, asked.cache_type_v}
    if asked.lora or asked.chat_template_file or asked.flash_attn != "auto" or caches != {"f16"}:
        raise SystemExit(
            "llama-cpp-python's server does not support these flags. Instead: pip install xllamacpp"
        )
    types: Any = import_module("llama_cpp.server.types")
    for request in (types.CreateCompletionRequest, types.CreateChatCompletionRequest):
        request.model_fields["repeat_penalty"].default = 1.0
        request.model_rebuild(force=True)
    words = ["--model", asked.model, "--model_alias", asked.alias, "--n_ctx", str(asked.ctx_size)]
    words += ["--host", asked.host, "--port", str(asked.port)]
    words += ["--n_threads", str(asked.threads)] if asked.threads > 0 else []
    sys.argv[1:] = words
    import_module("llama_cpp.server.__main__").main()


if __name__ == "__main__":
    (native if find_spec("xllamacpp") else bindings)(flags().parse_args())
