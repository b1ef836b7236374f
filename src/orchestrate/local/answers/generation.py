"""Query a model on this machine, base or tuned, from a process without torch.

with Generator("path/to/base", adapter=folder) as model:
    tuned = model.generate([[Message(role="user", content="Hi")]])
    base = model.generate([[Message(role="user", content="Hi")]], base=True)
"""

from __future__ import annotations

from collections.abc import Generator as PyGenerator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from orchestrate.errors import DataError
from orchestrate.local.answers.provenance import four_bit_of
from orchestrate.local.answers.worker import Worker
from orchestrate.local.model import expected_device, precision
from orchestrate.local.model.files import ModelFolder, source, weights_in
from orchestrate.types import Likelihood, Message, Reply, decoding
from orchestrate.types.serving import AdapterCost

Prompt = Sequence[Message | Mapping[str, Any]]
"""The conversation to answer. Pass mappings for messages with fields that `Message` lacks, such as tool calls
or a tool's name."""
Rounding = Literal["left", "told", "mended"]


class Generator:
    """Generates answers in a worker process that holds the model. The same process serves the tuned model
    and, by disabling the adapter, its base.

    The process starts at the first prompt. It ends when the context exits or the parent process ends. Several
    generators may share a `worker`, which the caller must close. A worker holds one base model and one of its
    adapters at a time. Raises `MissingExtra`, `UsageError` or `ConfigError` if the model is unavailable, and
    `RunFailed` if the worker crashes."""

    def __init__(
        self,
        model: str | Path,
        adapter: Path | None = None,
        *,
        threads: int | None = None,
        device: str | None = None,
        four_bit: bool | None = None,
        worker: Worker | None = None,
    ) -> None:
        """Prepare a generator. `model` is a catalog name, folder or Hub id. `adapter` is the folder of an
        adapter, or of a full tuned model. `None` for `four_bit` uses the precision that the adapter was
        trained with, according to its provenance record."""
        self.model = source(str(model))
        self.adapter = None if adapter is None else str(adapter.resolve())
        self._name = "base" if adapter is None else "tuned"
        self._load: dict[str, Any] = {
            "base": self.model,
            "base_name": "" if adapter else self._name,
            "models": {} if self.adapter is None else {self._name: self.adapter},
            "threads": threads,
            "device": device,
            "four_bit": four_bit,
        }
        self._threads, self._device = threads, device
        self._own = worker is None
        self._worker = worker or Worker()

    @property
    def four_bit(self) -> bool | None:
        """True if the base model is loaded in 4-bit. `None` if the model's size decides at load time."""
        return four_bit_of(self._load["four_bit"], [None if self.adapter is None else Path(self.adapter)])

    @property
    def expected_precision(self) -> str | None:
        """The precision that the model will run in. `None` if it is unknown until the model is loaded."""
        folder = Path(self.model)
        if self.four_bit is None or not folder.is_dir():
            return None
        dtype = precision(None, expected_device(self._device)).name
        return weights_in(ModelFolder(folder).config, four_bit=self.four_bit, dtype=dtype)

    def in_precision(self, *, four_bit: bool) -> Generator:
        """Return a generator for the same model in 4 or 16 bits. Both generators share one process, which
        holds one precision at a time."""
        if self.four_bit == four_bit:
            return self
        adapter = None if self.adapter is None else Path(self.adapter)
        return Generator(
            self.model,
            adapter,
            threads=self._threads,
            device=self._device,
            four_bit=four_bit,
            worker=self._worker,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Load the model now instead of at the first prompt."""
        with self._worker.holding(self._load):
            pass

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
        """Generate one reply per prompt, in order. Temperature 0 always takes the most likely token. `batch`
        is the maximum batch size. With 1, answers are bitwise independent of the other prompts. Raises
        `DataError` for prompts that fill the model's context."""
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

    def attempt(  # noqa: PLR0913  each is a setting of its own
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
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply | DataError]:
        """Generate replies like `generate`, but return a `DataError` in place of each reply that fails.
        `schema` constrains each reply to JSON with this schema, or to a call of one of `tools`.

        Batching changes 16-bit rounding, which can change replies at temperature 0. `rounding` says what to
        do with a reply that may have changed:

        - `left`: keep it.
        - `told`: check it, and add a note if it changed.
        - `mended`: generate it again individually.
        """
        if not prompts:
            return []
        question = self._question(prompts, base, max_tokens, temperature, seed, tools, stream=False)
        with self._worker.holding(self._load) as worker:
            form = None if schema is None else {"schema": schema, "calls": tools or None}
            worker.send("prompts", {**question, "batch": batch, "rounding": rounding, "form": form})
            return [_reply(answer) for answer in worker.receive()["replies"]]

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
        """Stream the reply to one prompt as it is generated, without reasoning and tool calls. Returns the
        entire reply at the end."""
        sent = ""
        with self._worker.holding(self._load) as worker:
            question = self._question([prompt], base, max_tokens, temperature, seed, tools, stream=True)
            worker.send("prompts", question)
            while "piece" in (answer := worker.receive()):
                sent += answer["piece"]
                yield answer["piece"]
        reply = _reply(answer["replies"][0])
        if isinstance(reply, DataError):
            raise reply
        whole = reply.content
        if whole.startswith(sent) and whole != sent:
            yield whole[len(sent) :]
        return reply

    def likelihoods(self, rows: Sequence[Mapping[str, Any]], *, base: bool = False) -> list[Likelihood]:
        """Compute the likelihood of each row. Tokens beyond the model's context are not scored. A row
        contains one of:

        - `text`, with an optional `context` before it.
        - `messages` and their `answer`, with optional `tools`.
        - `example`, a canonical row. Only its trained part is scored. Set `alone` to score it without its
          prompt.
        """
        if not rows:
            return []
        with self._worker.holding(self._load) as worker:
            asked = {"model": self._name, "rows": [dict(row) for row in rows], "base": base}
            worker.send("likelihoods", asked)
            return decoding.convert(worker.receive()["likelihoods"], list[Likelihood])

    def adapter_cost(self, name: str) -> AdapterCost | None:
        """Measure the additional cost of the adapter over its base model. Takes about a second. Returns
        `None` if the model has no adapter, or if the adapter changes its base model. `name` is the model's
        name in the returned record."""
        with self._worker.holding(self._load) as worker:
            worker.send("costs", {})
            found = worker.receive()["costs"]
        return decoding.convert({**found[0], "model": name}, AdapterCost) if found else None

    def close(self) -> None:
        if self._own:
            self._worker.close()

    def _question(
        self,
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
            "model": self._name,
            "prompts": [[m.to_dict() if isinstance(m, Message) else dict(m) for m in p] for p in prompts],
            "base": base,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "tools": tools,
            "stream": stream,
        }


def _reply(answer: dict[str, Any]) -> Reply | DataError:
    return (
        DataError(answer["refused"], fix=answer["fix"])
        if "refused" in answer
        else decoding.convert(answer, Reply)
    )
