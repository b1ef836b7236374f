"""Find, start, wait for and stop third-party inference engines.

Each engine runs as a separate command, because its dependencies conflict with the trainer's.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import httpx

from orchestrate.errors import HostUnavailable, RunFailed, SetupError
from orchestrate.http.wire.openai import VLLM
from orchestrate.local.machine import gpus
from orchestrate.local.run.launcher import worker_environment
from orchestrate.serving.export.forms import VLLM_RANKS
from orchestrate.serving.tuned import TunedModel

SCRIPT = Path(__file__).with_name("llama_server.py")
"""The script that runs llama.cpp's server from one of its Python packages."""
_OF_ITS_SERVER = ("fastapi", "starlette_context", "pydantic_settings", "sse_starlette")
NOT_IN_VLLM = ("use_dora", "modules_to_save")
"""Fields of an adapter's configuration that vLLM does not support."""
PATIENCE_S = 900.0
"""Seconds to wait for an engine to load its model."""


@dataclass(frozen=True)
class EngineCommand:
    """A command that starts an engine, and the engine's URL."""

    words: tuple[str, ...]
    url: str
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    alive: str = "/health"
    """The path that returns 200 once the engine is ready."""

    def with_more(self, flags: Sequence[str]) -> EngineCommand:
        return replace(self, words=(*self.words, *flags))

    @property
    def line(self) -> str:
        """The command as you would type it."""
        return shlex.join([*(f"{k}={v}" for k, v in self.environment.items()), *self.words])


def vllm(
    tuned: Sequence[TunedModel],
    folders: Mapping[str, Path],
    base_name: str,
    *,
    host: str,
    port: int,
    python: Path | None,
) -> EngineCommand:
    """Build the command that serves with vLLM. `folders` maps each model name to the folder of an exported
    adapter, which includes the chat template. `python` is the interpreter of an environment with vLLM."""
    ranks = [t.rank for t in tuned if t.adapter]
    adapters = [_module(name, folder) for name, folder in folders.items()]
    model = tuned[0].base if ranks else str(tuned[0].folder)
    more = ["--host", host, "--port", str(port)]
    if ranks:
        most = next((r for r in VLLM_RANKS if r >= max(ranks)), VLLM_RANKS[-1])
        template = next(iter(folders.values())) / "chat_template.jinja"
        more += ["--served-model-name", base_name, "--enable-lora", "--max-lora-rank", str(most)]
        more += [
            "--max-loras",
            str(len(adapters)),
            "--chat-template",
            str(template),
            "--lora-modules",
            *adapters,
        ]
    else:
        more += ["--served-model-name", tuned[0].name]
    if python is not None:
        words = [str(python), "-m", VLLM, "--model", model, *more]
    else:
        words = [shutil.which("vllm") or "vllm", "serve", model, *more]
    return EngineCommand(tuple(words), _url(host, port), {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"})


def _module(name: str, folder: Path) -> str:
    """Format an adapter for `--lora-modules`. Uses JSON if vLLM would split the short form in the wrong
    place."""
    if "=" in f"{name}{folder}" or name.startswith("{"):
        return json.dumps({"name": name, "path": str(folder)})
    return f"{name}={folder}"


def load_into(url: str, name: str, folder: Path) -> float:
    """Add an adapter to a running vLLM, and return the seconds it took. The server must be able to read the
    folder, and must have been started with VLLM_ALLOW_RUNTIME_LORA_UPDATING. Raises `HostUnavailable`
    if the server does not answer, and `SetupError` if it cannot load the adapter."""
    begun = time.perf_counter()
    body = {"lora_name": name, "lora_path": str(folder)}
    try:
        done = httpx.post(f"{url}/v1/load_lora_adapter", json=body, timeout=300)
    except httpx.HTTPError as error:
        raise HostUnavailable(url, f"no answer: {error}") from error
    if done.status_code != 200:
        raise SetupError(
            f"{url} could not load {name} ({done.status_code}): {done.text[:300]}",
            fix="start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and a sufficient "
            "--max-lora-rank",
        )
    return time.perf_counter() - begun


def llama_server(
    tuned: TunedModel, file: Path, *, host: str, port: int, parallel: int, python: Path | None = None
) -> EngineCommand:
    """Build the command that serves a GGUF file with llama.cpp's server. If `python` is given, uses the
    server in a Python package of that interpreter's environment. Otherwise, uses `llama-server` from the PATH
    or, if that is missing, a Python package in this environment. The chat template is part of the GGUF
    file."""
    tool = shutil.which("llama-server")
    if python is None and tool is None and packaged():
        python = Path(sys.executable)
    words = (tool or "llama-server",) if python is None else (str(python), str(SCRIPT))
    flags = ("-m", str(file), "--alias", tuned.name, "--jinja", "--host", host, "--port", str(port))
    # llama-cpp-python has no /health. Servers from Python packages only respond once the model is loaded, so
    # any path shows that they are ready.
    alive = "/health" if python is None else "/v1/models"
    return EngineCommand((*words, *flags, "--parallel", str(parallel)), _url(host, port), alive=alive)


def packaged() -> bool:
    """Return whether a Python package with llama.cpp's server is installed."""
    bindings = all(find_spec(name) is not None for name in ("llama_cpp", *_OF_ITS_SERVER))
    return find_spec("xllamacpp") is not None or bindings


@dataclass(frozen=True, kw_only=True)
class LocalCapabilities:
    """The engines and hardware for serving on this machine."""

    torch: bool
    gpu: bool
    vllm: bool
    llama_cpp: bool

    @classmethod
    def seen(cls, vllm_python: Path | None, llama_python: Path | None) -> LocalCapabilities:
        """Detect the engines and the hardware on this machine. An engine also counts as available if the user
        named a Python interpreter for it."""
        llama = llama_python is not None or shutil.which("llama-server") is not None or packaged()
        vllm = vllm_python is not None or shutil.which("vllm") is not None
        return cls(torch=find_spec("torch") is not None, gpu=bool(gpus()), vllm=vllm, llama_cpp=llama)


def choose(tuned: Sequence[TunedModel], here: LocalCapabilities) -> tuple[str, str]:
    """Choose an engine. Returns its name and the reason for the choice. llama.cpp is chosen only if no other
    engine is available, because it serves a quantized file, whose answers differ slightly from the trained
    model's."""
    if not here.torch and here.llama_cpp and len(tuned) == 1:
        return "llama.cpp", "torch is not installed, but llama.cpp is"
    alone = [t.name for t in tuned if t.adapter and any(t.config.get(k) for k in NOT_IN_VLLM)]
    if tuned and here.gpu and here.vllm and not alone:
        return "vllm", "a GPU and vLLM are available"
    why = "vLLM is not installed (--vllm-python)" if here.gpu else "there is no GPU"
    if here.gpu and here.vllm:
        why = f"vLLM does not support {', '.join(alone)}" if alone else "there is no adapter to serve"
    return (
        "transformers",
        f"{why}. transformers keeps the trained precision and serves several adapters at once",
    )


def found(command: EngineCommand) -> bool:
    return shutil.which(command.words[0]) is not None


@contextmanager
def started(command: EngineCommand, *, patience_s: float = PATIENCE_S) -> Generator[str]:
    """Run the engine for the duration of the block, and yield its URL once it is ready.

    Raises `SetupError` if the engine is not installed on this machine. The message contains the command, so
    the user can run it on another machine. Raises `RunFailed` if the engine exits or does not become ready.
    """
    if not found(command):
        raise SetupError(
            f"{Path(command.words[0]).name} is not installed here. On a machine that has it, "
            f"run:\n  {command.line}",
            fix="then run  orchestrate verify RUN --at URL",
        )
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command.words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Without this, `python -m` and its child processes import modules from the working folder first.
            env={**worker_environment(None), **command.environment, "PYTHONSAFEPATH": "1"},
            start_new_session=True,
        )
        try:
            _wait(child, command, patience_s, log)
            yield command.url
        finally:
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait(child: subprocess.Popen[bytes], command: EngineCommand, patience_s: float, log: IO[bytes]) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RunFailed(
                f"{command.words[0]} ended with {child.returncode}:\n{_tail(log)}", fix=command.line
            )
        try:
            if httpx.get(f"{command.url}{command.alive}", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.25)
    raise RunFailed(
        f"{command.words[0]} did not respond within {patience_s:.0f} s:\n{_tail(log)}", fix=command.line
    )


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-2000:].decode(errors="replace").strip()


def _url(host: str, port: int) -> str:
    return f"http://{host}:{port}"
