"""Asking a model on this machine, base or tuned, from a process that need not have torch.

with Generator("path/to/base", adapter=folder) as model:
    tuned = model.generate([[Message(role="user", content="Hi")]])
    base = model.generate([[Message(role="user", content="Hi")]], base=True)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Generator as PyGenerator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Self

import msgspec

from orchestrate.errors import DataError, RunFailed
from orchestrate.local import pipe
from orchestrate.local.model.files.models import source
from orchestrate.local.run.launching import require_packages, worker_environment
from orchestrate.types import Message, Reply, decoding
from orchestrate.underway import work

Prompt = Sequence[Message | Mapping[str, Any]]
"""The messages so far. A mapping may carry what `Message` has no field for: tool calls, a tool's name."""
Rounding = Literal["left", "told", "mended"]


class Generator:
    """One worker process holds the model; base and tuned answers come from the same one, the adapter off or
    on.

    The process starts with the first question and ends with the context, or with this process. Raises
    `MissingExtra`, `UsageError` or `ConfigError` when the model cannot be had, `RunFailed` when the worker
    dies.
    """

    def __init__(
        self,
        model: str | Path,
        adapter: Path | None = None,
        *,
        threads: int | None = None,
        device: str | None = None,
        four_bit: bool | None = None,
    ) -> None:
        """`model`: catalog name, folder or hub id. `adapter`: folder of an adapter, or of a whole tuned
        model. `four_bit`: `None` takes the precision that the adapter was trained on, as its passport
        says."""
        self.model = source(str(model))
        self.adapter = None if adapter is None else str(adapter.resolve())
        self._options = {"threads": threads, "device": device, "four_bit": four_bit}
        self._worker: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Loads the model now instead of at the first question."""
        if self._worker is not None:
            return
        require_packages("answering on this machine")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the worker
        self._worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrate.local.answers.answering"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=worker_environment(
                self._options["threads"] if isinstance(self._options["threads"], int) else None
            ),
        )
        self._send({"model": self.model, "adapter": self.adapter, **self._options})
        with work("loading the model"):
            self._receive()

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        base: bool = False,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        tools: list[dict[str, Any]] | None = None,
        batch: int | None = None,
    ) -> list[Reply]:
        """One reply per prompt, in order. Temperature 0 takes the likeliest token each time. `batch`: the
        most prompts answered together; 1 gives to the bit what each prompt gets alone. Raises `DataError`
        for prompts that fill the model's context."""
        replies = self.attempt(
            prompts,
            base=base,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            tools=tools,
            batch=batch,
        )
        for reply in replies:
            if isinstance(reply, DataError):
                raise reply
        return [reply for reply in replies if isinstance(reply, Reply)]

    def attempt(
        self,
        prompts: Sequence[Prompt],
        *,
        base: bool = False,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        tools: list[dict[str, Any]] | None = None,
        batch: int | None = None,
        rounding: Rounding = "left",
    ) -> list[Reply | DataError]:
        """As `generate`, with the reason in the place of each reply that there cannot be. `rounding`, for
        temperature 0: that a batch of 16-bit products turned a reply is `told` in its notes, or replies that
        it may have turned are `mended`: asked for again, alone."""
        if not prompts:
            return []
        self.start()
        question = _question(prompts, base, max_tokens, temperature, seed, tools, stream=False)
        self._send({**question, "batch": batch, "rounding": rounding})
        return [_reply(told) for told in self._receive()["replies"]]

    def stream(
        self,
        prompt: Prompt,
        *,
        base: bool = False,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        tools: list[dict[str, Any]] | None = None,
    ) -> PyGenerator[str, None, Reply]:
        """The reply to one prompt, piece by piece as it is written, without thinking and calls of tools; then
        the whole of it is returned."""
        self.start()
        self._send(_question([prompt], base, max_tokens, temperature, seed, tools, stream=True))
        sent = ""
        while "piece" in (answer := self._receive()):
            sent += answer["piece"]
            yield answer["piece"]
        reply = _reply(answer["replies"][0])
        if isinstance(reply, DataError):
            raise reply
        whole = reply.content
        if whole.startswith(sent) and whole != sent:
            yield whole[len(sent) :]
        return reply

    def likelihoods(
        self, rows: Sequence[Mapping[str, Any]], *, base: bool = False
    ) -> list[tuple[float, int, bool]]:
        """For each row its nats, over how many tokens, and whether each of them was the likeliest: of a
        `text`, after a `context` where there is one, or of an `answer` to `messages` (with `tools`)."""
        if not rows:
            return []
        self.start()
        self._send({"likelihoods": [dict(row) for row in rows], "base": base})
        return decoding.convert(self._receive()["likelihoods"], list[tuple[float, int, bool]])

    def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            pipe.end(worker)
            assert worker.stdout is not None  # noqa: S101  opened as a pipe
            worker.stdout.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    # -- the wire --------------------------------------------------------------------------------------------

    def _send(self, message: dict[str, Any]) -> None:
        worker = self._worker
        assert worker is not None and worker.stdin is not None  # noqa: S101  started before
        try:
            worker.stdin.write(msgspec.json.encode(message) + b"\n")
            worker.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error

    def _receive(self) -> dict[str, Any]:
        worker = self._worker
        assert worker is not None and worker.stdout is not None  # noqa: S101  started before
        line = worker.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._died()
        answer = msgspec.json.decode(line, type=dict[str, Any])
        if "error" in answer:
            raise pipe.raised(answer)
        return answer

    def _died(self) -> RunFailed:
        tail = ""
        if self._log is not None:
            self._log.seek(0)
            tail = self._log.read()[-2000:].decode(errors="replace").strip()
        code = self._worker.wait() if self._worker else None
        self.close()
        return RunFailed(f"the process that answers ended with {code}:\n{tail}", fix="orchestrate doctor")


def _question(
    prompts: Sequence[Prompt],
    base: bool,
    max_tokens: int,
    temperature: float,
    seed: int,
    tools: list[dict[str, Any]] | None,
    *,
    stream: bool,
) -> dict[str, Any]:
    return {
        "prompts": [[m.to_dict() if isinstance(m, Message) else dict(m) for m in p] for p in prompts],
        "base": base,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "tools": tools,
        "stream": stream,
    }


def _reply(told: dict[str, Any]) -> Reply | DataError:
    return DataError(told["refused"], fix=told["fix"]) if "refused" in told else decoding.convert(told, Reply)
