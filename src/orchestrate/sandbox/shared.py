"""Code shared by several simulated hosts."""

from __future__ import annotations

import json
import re
import struct
import tarfile
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import msgspec
from pydantic import ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from orchestrate import costing
from orchestrate.catalog import HostModel, lookup, resolve
from orchestrate.core.files import new_folder, whole
from orchestrate.core.zstd import zstd
from orchestrate.costing import lines
from orchestrate.data.rows import ChatExample, CompletionExample, Example, TextExample
from orchestrate.errors import DataError, OrchestrateError
from orchestrate.http.wire.openai import chat
from orchestrate.profile import profile
from orchestrate.sandbox import uploads
from orchestrate.sandbox.host import Body, Host, HostError, json_answer, parse
from orchestrate.sandbox.jobs import BROUGHT, SandboxJob, brought_at
from orchestrate.sandbox.state import token
from orchestrate.spec import DPO, RFT, SFT, Full, JobSpec, LoRA
from orchestrate.types import Message, Reply, decoding

# The models of a host, and the price of a job, calculated with the same rates and rules as in quotes.


MTOK = Decimal(1_000_000)


def base_model(name: str, host: str, *, undated: bool = False) -> HostModel | None:
    """Return the catalog's entry for a base model on the host, or `None` if the host does not know the name.
    With `undated`, names without a date are also accepted."""
    model = lookup(name)
    if model is None or (found := model.hosts.get(host)) is None:
        return None
    known = (model.name, *model.aliases) if undated else model.aliases
    return found if name in (found.id, *known) else None


def context_of(name: str, host: str, kind: str) -> int | None:
    """Return a model's maximum number of tokens per training row."""
    return resolve(name, host).context(kind)


def tokenizer_of(base: str, host: str) -> str:
    """Return the tokenizer that quotes use for this model."""
    return costing.tokenizer_for(resolve(base, host))


def training_usd(
    host: str, job: SandboxJob, *, full: bool = False, tokens: int | None = None
) -> Decimal | None:
    """Return the price of the entire job, including the minimum charge, or `None` if no price is published.
    `tokens` is the number of billed tokens (default: the file's tokens times the epochs)."""
    today = datetime.fromtimestamp(job.created_at, UTC).date()
    try:
        resolved = resolve(job.base, host, today)
    except OrchestrateError:
        return None
    method = {"sft": SFT(), "dpo": DPO(), "rft": RFT(grader={"type": "any"})}[job.kind]
    spec = JobSpec(model=job.base, train="-", method=method, adapter=Full() if full else LoRA())
    prices = costing.Prices(host, on=today)
    rate = costing.training_rate(resolved, spec, profile(host), prices)
    if rate is None or rate.usd_per_mtok is None:
        return None
    usd = rate.usd_per_mtok * (job.tokens * job.epochs if tokens is None else tokens) / MTOK
    minimum = prices.of("minimum", resolved)
    if minimum is not None:
        usd += lines.minimum_top_up(usd, minimum.usd)
    return usd


def nano_usd(usd: Decimal | None) -> int:
    """Convert dollars to Together's price unit, 1e-9 dollars."""
    return int((usd or Decimal(0)) * 1_000_000_000)


def money(usd: Decimal) -> dict[str, object]:
    """Format an amount as Fireworks does: integer units as a string, and nanos."""
    dollars = int(usd)
    return {"currencyCode": "USD", "units": str(dollars), "nanos": int((usd - dollars) * 1_000_000_000)}


# Chat completions in the hosts' format.


DEFAULT_MAX_TOKENS = 256


class SandboxChatMessage(Body):
    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class SandboxChatRequest(Body):
    """The supported fields of a chat request. The hosts' other parameters are accepted but ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: Annotated[list[SandboxChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    stream: bool | None = None


def parse_chat(values: dict[str, Any]) -> SandboxChatRequest:
    return parse(SandboxChatRequest, values)


def complete(
    host: Host, chat: SandboxChatRequest, job: SandboxJob | None, step: int | None = None
) -> Response:
    """Generate an answer with a job's tuned model. Without a job, use the small model that replaces the
    base model in the sandbox."""
    messages = [Message(role=m.role, content=m.text()) for m in chat.messages]
    most = chat.max_completion_tokens or chat.max_tokens or DEFAULT_MAX_TOKENS
    try:
        reply = host.trainer.reply(job, step, messages, max_tokens=most, temperature=chat.temperature or 0.0)
    except FileNotFoundError as error:
        raise HostError(404, f"the weights of {chat.model} were not found", code="model_not_found") from error
    except DataError as error:
        raise HostError(400, error.message, code="context_length_exceeded", param="messages") from error
    body = _body(host, chat, reply)
    if chat.stream:
        return StreamingResponse(_stream(body, reply), media_type="text/event-stream")
    return json_answer(body)


def _body(host: Host, parsed: SandboxChatRequest, reply: Reply) -> dict[str, Any]:
    message = chat.message(reply.content, refusal=None)
    body = chat.completion(
        f"chatcmpl-{token()}",
        int(host.clock.now()),
        parsed.model,
        [chat.choice(0, message, reply.finish_reason or "stop")],
        chat.usage(reply.prompt_tokens or 0, reply.completion_tokens or 0),
    )
    return {**body, "sandbox": True, "sandbox_model": reply.model}


def _stream(body: dict[str, Any], reply: Reply) -> Iterator[str]:
    """Yield a chunk for each word, with the space before it, and a final chunk."""
    base = {**body, "object": chat.CHUNK}
    del base["usage"]
    first, *more = re.findall(r"\s*\S+|\s+", reply.content) or [""]
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": first}]
    for delta in [*deltas, *({"content": word} for word in more)]:
        yield chat.event({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    ended = reply.finish_reason or "stop"
    yield chat.event({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": ended}]})
    yield chat.DONE


# The tuned weights as files, or as an archive in Together's format.


_SHIPPED = {".safetensors", ".json", ".jinja", ".txt", ".model"}


def weights(host: Host, job: SandboxJob, step: int | None = None) -> list[Path]:
    """List the adapter's files, except those that only the trainer needs. Raises `HostError` 404 if there are
    none."""
    try:
        folder = host.trainer.adapter(job, step)
    except FileNotFoundError as error:
        raise HostError(404, f"the weights of job {job.id} were not found", code="not_found") from error
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _SHIPPED)


def pack(host: Host, job: SandboxJob, *, merged: bool, step: int | None) -> Path:
    """Pack a job's adapter or, with `merged`, its merged model into a .tar.zst archive, and return the
    archive's path. An existing archive is reused."""
    target = host.state.files / f"{job.id}-{'merged' if merged else 'adapter'}-{step or 'final'}.tar.zst"
    if target.exists():
        return target
    files = host.trainer.merged(job, step) if merged else weights(host, job, step)
    with (
        whole(target) as draft,
        zstd.ZstdFile(draft, "w", level=3) as out,
        tarfile.open(fileobj=out, mode="w|") as tar,
    ):
        for file in files:
            tar.add(file, arcname=file.name)
    return target


# Adapters that users upload. Each is stored as a placeholder job that has already succeeded.


KIND = BROUGHT
FILES = {"adapter_config.json", "adapter_model.safetensors"}


def folder_of(host: Host, id: str) -> Path:
    """Return the folder for an adapter's files, and create it if needed."""
    return new_folder(brought_at(host.state.runs, host.name, id))


def add(host: Host, id: str, name: str, base: str) -> SandboxJob:
    """Register uploaded files as a deployable adapter. Raises `HostError` if the files are not an adapter."""
    job = made(host, id, name, base)
    keep(host, job)
    return job


def keep(host: Host, job: SandboxJob) -> None:
    host.state.put(host.name, KIND, job.id, job.to_dict())


def every(host: Host) -> Iterator[SandboxJob]:
    for values in host.state.all(host.name, KIND):
        yield SandboxJob.from_dict(values)


def found(host: Host, id: str) -> SandboxJob | None:
    values = host.state.get(host.name, KIND, id)
    return SandboxJob.from_dict(values) if values else None


def made(host: Host, id: str, name: str, base: str) -> SandboxJob:
    """Build the placeholder job for an uploaded adapter, without storing it."""
    config = _config(folder_of(host, id))
    now = host.clock.now()
    return SandboxJob(
        id=id,
        host=host.name,
        kind=KIND,
        model=base,
        base=base,
        body={"config": config},
        training_file="",
        trained=True,
        lora_rank=int(config["r"]),
        output=name,
        created_at=now,
        validated_at=now,
        started_at=now,
        trained_at=now,
        finished_at=now,
    )


def _config(folder: Path) -> dict[str, Any]:
    there = {file.name for file in folder.iterdir()}
    if there != FILES:
        raise HostError(
            400,
            f"an adapter must have the files {', '.join(sorted(FILES))} (got "
            f"{', '.join(sorted(there)) or 'none'})",
        )
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        with (folder / "adapter_model.safetensors").open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            names = [n for n in json.loads(file.read(length)) if n != "__metadata__"]
    except (ValueError, struct.error) as error:
        raise HostError(400, f"the files are not a PEFT adapter: {error}") from error
    if config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise HostError(400, "adapter_config.json does not describe a LoRA adapter")
    if other := [name for name in names if ".lora_A." not in name and ".lora_B." not in name]:
        raise HostError(400, f"unexpected tensors: {', '.join(other[:3])}")
    return config


# Uploaded files. All hosts store them as bytes on disk and a record with the result of the validation.


class StoredFile(msgspec.Struct, kw_only=True):
    """A stored file. `checked_at` is the time when the host's validation finishes."""

    id: str
    name: str
    purpose: str
    bytes: int
    created_at: float
    checked_at: float
    report: uploads.UploadReport | None = None
    extra: dict[str, Any] = {}


class SandboxFiles:
    """The files of one host."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def path(self, id: str) -> Path:
        return self.host.state.files / id

    def add(self, id: str, name: str, purpose: str, size: int, **extra: Any) -> StoredFile:
        """Register a file whose bytes are already at `path(id)`. If the file is for training, check its
        rows."""
        now = self.host.clock.now()
        file = StoredFile(
            id=id,
            name=name,
            purpose=purpose,
            bytes=size,
            created_at=now,
            checked_at=now + self.host.wait("file"),
            extra=extra,
        )
        if purpose in ("fine-tune", "eval") and not name.endswith(".parquet"):
            file.report = uploads.examine(self.path(id), self.host.taken)
        self.save(file)
        return file

    def save(self, file: StoredFile) -> None:
        self.host.state.put(self.host.name, "file", file.id, msgspec.to_builtins(file))

    def get(self, id: str) -> StoredFile | None:
        values = self.host.state.get(self.host.name, "file", id)
        return decoding.convert(values, StoredFile) if values else None

    def all(self, *, after: str | None = None) -> Iterable[StoredFile]:
        for values in self.host.state.all(self.host.name, "file", after=after):
            yield decoding.convert(values, StoredFile)

    def remove(self, id: str) -> bool:
        self.path(id).unlink(missing_ok=True)
        return self.host.state.delete(self.host.name, "file", id)

    def ready(self, file: StoredFile) -> bool:
        return self.host.clock.now() >= file.checked_at

    def tokens(self, file: StoredFile, tokenizer: str) -> int:
        """Count the tokens of all rows of a file. The count is cached for each tokenizer."""
        if file.report is None or file.report.error is not None:
            return 0
        if tokenizer not in file.report.tokens:
            file.report.tokens[tokenizer] = uploads.tokens(self.path(file.id), self.host.taken, tokenizer)
            self.save(file)
        return file.report.tokens[tokenizer]


async def store_stream(path: Path, chunks: AsyncIterator[bytes], most: int | None = None) -> int:
    """Write a request's body to `path` atomically. Raises `HostError` 413 if the body has more than `most`
    bytes."""
    size = 0
    with whole(path) as draft, draft.open("wb") as out:
        async for chunk in chunks:
            size += len(chunk)
            if most is not None and size > most:
                raise HostError(413, f"the upload is larger than {most} bytes")
            out.write(chunk)
    return size


# Tokenization and loss masks of rows, for the hosts that report them.


def trainer_tokenizer(host: Host) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(host.trainer.model) / "tokenizer.json"))


def encoded(tokenizer: Any, example: Example, *, inputs: bool = False) -> tuple[list[int], list[bool]]:
    """Return a row's token ids and its loss mask. With `inputs`, all tokens contribute to the loss."""
    ids: list[int] = []
    learnt: list[bool] = []
    for text, trained in _pieces(example, inputs):
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        ids += found
        learnt += [trained] * len(found)
    return ids, learnt


def _pieces(example: Example, inputs: bool) -> Iterator[tuple[str, bool]]:
    """Yield the text of a row in pieces, and whether each piece contributes to the loss."""
    match example:
        case ChatExample():
            for message in example.messages:
                learnt = inputs or (message.role == "assistant" and message.weight != 0)
                yield f"<|im_start|>{message.role}\n", inputs
                yield f"{message.text}<|im_end|>", learnt
                yield "\n", inputs
        case CompletionExample():
            yield example.prompt, inputs
            yield example.completion, True
        case TextExample():
            yield example.text, True
        case _:
            return
