"""Engines of others as commands: found, started, waited for, and ended. None of them is a dependency: their
own ones clash with the trainer's."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import httpx

from orchestrate.errors import HostUnavailable, RunFailed, SetupError
from orchestrate.local.run.launching import worker_environment
from orchestrate.serving.export.forms import VLLM_RANKS
from orchestrate.serving.tuned import Tuned
from orchestrate.wire.openai.servers import VLLM

PATIENCE_S = 900.0
"""For an engine to load its model."""


@dataclass(frozen=True)
class Command:
    """What starts an engine, and where it then answers."""

    words: tuple[str, ...]
    url: str
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def with_more(self, flags: Sequence[str]) -> Command:
        return replace(self, words=(*self.words, *flags))

    @property
    def line(self) -> str:
        """As one would type it."""
        return shlex.join([*(f"{k}={v}" for k, v in self.environment.items()), *self.words])


def vllm(
    tuned: Sequence[Tuned],
    folders: Mapping[str, Path],
    base_name: str,
    *,
    host: str,
    port: int,
    python: Path | None,
) -> Command:
    """`folders`: name -> the adapter's export, with its chat template. `python`: of the environment that has
    vLLM."""
    ranks = [t.rank for t in tuned if t.adapter]
    adapters = [f"{name}={folder}" for name, folder in folders.items()]
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
    return Command(tuple(words), _url(host, port), {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"})


def load_into(url: str, name: str, folder: Path) -> float:
    """Adds an adapter to a vLLM that runs; the seconds that it took. It must be able to read the folder, and
    must have been started with VLLM_ALLOW_RUNTIME_LORA_UPDATING. Raises `HostUnavailable`, `SetupError`."""
    begun = time.perf_counter()
    body = {"lora_name": name, "lora_path": str(folder)}
    try:
        done = httpx.post(f"{url}/v1/load_lora_adapter", json=body, timeout=300)
    except httpx.HTTPError as error:
        raise HostUnavailable(url, f"no answer: {error}") from error
    if done.status_code != 200:
        raise SetupError(
            f"{url} does not add {name} ({done.status_code}): {done.text[:300]}",
            fix="start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and a --max-lora-rank "
            "that fits",
        )
    return time.perf_counter() - begun


def llama_server(tuned: Tuned, file: Path, *, host: str, port: int, parallel: int) -> Command:
    """llama.cpp's own server for a GGUF file, which brings its chat template."""
    words = [
        shutil.which("llama-server") or "llama-server",
        "-m",
        str(file),
        "--alias",
        tuned.name,
        "--jinja",
    ]
    return Command(
        (*words, "--host", host, "--port", str(port), "--parallel", str(parallel)), _url(host, port)
    )


def found(command: Command) -> bool:
    return shutil.which(command.words[0]) is not None


@contextmanager
def started(command: Command, *, patience_s: float = PATIENCE_S) -> Generator[str]:
    """Runs the engine for as long as the block lasts; gives its URL once it answers. Raises `SetupError`
    where it is not on this machine, with the command to run elsewhere, `RunFailed` when it ends or does not
    answer."""
    if not found(command):
        raise SetupError(
            f"{Path(command.words[0]).name} is not on this machine; where it is, run:\n  {command.line}",
            fix="then  orchestrate verify RUN --at URL",
        )
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command.words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**worker_environment(None), **command.environment},
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


def _wait(child: subprocess.Popen[bytes], command: Command, patience_s: float, log: IO[bytes]) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RunFailed(
                f"{command.words[0]} ended with {child.returncode}:\n{_tail(log)}", fix=command.line
            )
        try:
            if httpx.get(f"{command.url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.25)
    raise RunFailed(
        f"{command.words[0]} did not answer within {patience_s:.0f} s:\n{_tail(log)}", fix=command.line
    )


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-2000:].decode(errors="replace").strip()


def _url(host: str, port: int) -> str:
    return f"http://{host}:{port}"
