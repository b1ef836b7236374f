"""Contenders by name: runs, their checkpoints and base models, and models at any URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from orchestrate.core import days
from orchestrate.core.retries import ONCE, Retry
from orchestrate.costing import Prices
from orchestrate.costing.lines import MTOK
from orchestrate.costing.rates import completion_price
from orchestrate.costing.ways import token_rates
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.evaluation import recordings
from orchestrate.evaluation.contenders import (
    Candidate,
    aliased,
    by_chat,
    by_generator,
    fingerprint,
    renamed,
    tokenizing,
)
from orchestrate.local.answers.worker import Worker
from orchestrate.local.model.files import NF4
from orchestrate.paid.paid_requests import Answer, Asking, Price, Question, Respondent, require_price
from orchestrate.profile import this_machine
from orchestrate.providers.base import AnswersHere, Chats, Deploys, Downloads, Provider, capability, prices_of
from orchestrate.providers.calls.clients import connect, wire_of
from orchestrate.providers.chat import Chat, ModelAt, Timed, chat_with, model_at
from orchestrate.runs import privacy
from orchestrate.runs.hosting.deployment import require_open
from orchestrate.spec import JobSpec
from orchestrate.text import SANDBOX_MARK, among
from orchestrate.types import NOT_PROVED, Contender, JobHandle, Message, Reply, Sampling

if TYPE_CHECKING:
    from orchestrate.local.answers.generation import Generator
    from orchestrate.runs.tracked import TrackedRun
    from orchestrate.workspace import Workspace

PLACES = ("auto", "host", "here")
"""Fixed values of `on`, which selects where contenders run. `on` may also be the name of a host on which a
run's adapter was deployed."""
EMBEDDED_AT_ONCE = 64
SANDBOX_THREADS = 32
"""Number of concurrent requests to a sandbox. Sandboxes batch waiting requests."""


BasePrecision = Literal["16-bit", "nf4", "both"]
BASE_PRECISIONS: Mapping[str, tuple[bool, ...]] = {"16-bit": (False,), "nf4": (True,), "both": (False, True)}
"""Precisions in which a base model can run on this machine, as {name: flags}. There is one flag for each
model to load: True loads it in 4 bits, False in 16 bits."""


def other_host(on: str) -> str | None:
    """Return the backend that `on` names, or `None` if `on` is one of `PLACES`."""
    return None if on in PLACES else on


def _played(candidate: Candidate) -> Candidate:
    """Mark a candidate in a sandbox, whose price is simulated."""
    return replace(candidate, respondent=replace(candidate.respondent, sandbox=True))


class Contenders:
    """Lookup of contenders (models to evaluate) by name. Never starts anything that is billed. Use it as a
    context manager: on exit, it stops the processes that it started on this machine."""

    def __init__(
        self,
        ft: Workspace,
        sampling: Sampling,
        on: str,
        key_variable: str | None = None,
        *,
        stream: bool = False,
        logprobs: bool = False,
        limit_usd: Decimal | None = None,
    ) -> None:
        """Set up the contenders. With `on="host"` they use a run's endpoint, with `here` they download the
        adapter and answer on this machine, with `auto` they use the first option that is possible, and with a
        backend's name they use the adapter deployed there. `key_variable` contains the key for models at a
        URL. With `stream`, hosts stream their answers, which measures the time to the first token. With
        `logprobs`, hosts return log-probabilities. With `limit_usd`, models with an unknown price are
        rejected."""
        self._limit_usd = limit_usd
        self._stream, self._logprobs = stream, logprobs
        self._ft, self._sampling, self._on, self._key_variable = ft, sampling, on, key_variable
        self._open = ExitStack()
        self._worker = Worker()
        """Worker that runs all models on this machine, one after the other, because only one base model fits
        in memory."""
        self._open.callback(self._worker.close)
        self._private: str | None = None
        """Id of a private run among the contenders, if any. Its rows must not be sent to models on machines
        that the user does not own."""

    def close(self) -> None:
        self._open.close()

    def of_run(
        self,
        handle: TrackedRun,
        checkpoint: str | None,
        *,
        base: bool,
        base_precision: BasePrecision = "16-bit",
    ) -> list[Candidate]:
        """Return the tuned model and, with `base`, the model that it was tuned from. On this machine, the
        base model runs in `base_precision`. `both` returns the 16-bit model first. Raises `UsageError` if the
        run cannot be served at the chosen place."""
        provider, run = handle.provider, handle.record
        if privacy.is_private(run):
            self._private = run.id
            if self._on not in PLACES:
                privacy.require_own(run, self._ft.provider(self._on))
        elsewhere = self._on not in (*PLACES, run.provider)
        if checkpoint is None:
            asked, reachable = None, elsewhere or self._reachable(handle)
        else:
            asked = None if elsewhere else _name_of(handle, checkpoint)
            reachable = asked is not None
        if (elsewhere or self._on in ("host", run.provider)) and not reachable:
            why = "does not serve checkpoints" if checkpoint else "has no running endpoint for this model"
            raise UsageError(
                f"{provider.name} {why}",
                fix="use --on here to run the model on this machine, or deploy it (billed hourly): "
                f"orchestrate deploy {run.id}",
            )
        name = f"{run.id}@{checkpoint}" if checkpoint else run.id
        tuned = Contender(
            name=name,
            kind="tuned",
            model=run.model,
            provider=run.provider,
            served_by="",
            run_id=run.id,
            checkpoint=checkpoint,
        )
        generator = (
            provider.generator(run.handle, checkpoint=checkpoint, worker=self._worker)
            if isinstance(provider, AnswersHere) and not elsewhere
            else None
        )
        on_host = generator is None and reachable and self._on != "here"
        if base and base_precision != "16-bit" and (elsewhere or on_host):
            host = self._on if elsewhere else run.provider
            raise UsageError(
                f"the precision of a base model that {host} serves cannot be chosen",
                fix="use --on here, or leave out --base-precision",
            )
        if elsewhere:
            return self._at_other_host(handle, tuned, base=base)
        if on_host:
            return self._on_host(handle, tuned, asked, base=base)
        return self._here(handle, tuned, generator, base_precision if base else None)

    def of_model(self, written: str) -> Candidate:
        """Return a model to evaluate that isn't a run. The name is a model that a host serves, a model on
        this machine (with the local backend's prefix), or `record:ID` for a recorded model. Append ` as NAME`
        to set the display name."""
        model, name = aliased(written)
        found = self._of_model(model)
        return found if name is None else renamed(found, name)

    def _of_model(self, written: str) -> Candidate:
        if written.startswith(recordings.WRITTEN):
            found = recordings.find(self._ft.store, written)
            if found.sampling.response_format != self._sampling.response_format:
                raise UsageError(f"{written} was recorded with a different --response-format")
            return recordings.candidate(found)
        host, equals, model = written.partition("=")
        if equals and host == this_machine().kind:
            return self._plain_here(model, written)
        at = self._at_address(written)
        chat = chat_with(
            at.host,
            at.model,
            max_tokens=self._sampling.max_tokens,
            temperature=self._sampling.temperature,
            retry=Retry.of(at.host),
        )
        contender = Contender(
            name=written,
            kind="model",
            model=at.model,
            provider=at.host.name,
            served_by=at.address + SANDBOX_MARK * at.host.sandbox,
            proof=self._proved_at(at.address, at.model),
        )
        own = privacy.is_near(self._ft.settings, at.address, at.host.name)
        found = self._candidate(contender, chat, completion_price(at.model, at.host.base_url), own=own)
        return _played(found) if at.host.sandbox else found

    def _candidate(self, contender: Contender, chat: Chat, price: Price | None, *, own: bool) -> Candidate:
        require_price(contender.name, self._limit_usd, price)
        if (format := self._sampling.response_format) is not None:
            chat = replace(chat, options={**chat.options, "response_format": format})
        if self._logprobs:
            chat = chat.with_logprobs()
        if not self._stream:
            return by_chat(contender, chat, self._sampling, price, own=own)
        timed = Timed(chat.create)
        streaming = replace(chat, create=timed)
        return by_chat(contender, streaming, self._sampling, price, lambda: timed.first_seconds, own=own)

    def embed(self, written: str, asking: Asking) -> Callable[[Sequence[str]], list[list[float]]]:
        """Return a function that computes embeddings of texts. Accepts the same model names as `of_model`.
        `asking` stores the responses and enforces the cost limit."""
        at = self._at_address(written)
        wire, client = wire_of(at.host), connect(at.host)

        def ask(questions: Sequence[Question]) -> list[Answer]:
            texts = [question.messages[0].content for question in questions]
            answer = wire.once(partial(client.embeddings.create, model=at.model, input=texts))
            vectors = [one.embedding for one in sorted(answer.data, key=lambda one: one.index)]
            return [Answer(text=msgspec.json.encode(vector).decode()) for vector in vectors]

        price = completion_price(at.model, at.host.base_url)
        require_price(written, self._limit_usd, price)
        respondent = Respondent(
            name=written,
            identity={"host": at.address, "model": at.model, "kind": "embedding"},
            ask=ask,
            batch=EMBEDDED_AT_ONCE,
            max_tokens=0,
            price=price,
            retry=wire.retry,
            place=at.address,
            backend=at.host.name,
            own=privacy.is_near(self._ft.settings, at.address, at.host.name),
            sandbox=at.host.sandbox,
        )

        def embed(texts: Sequence[str]) -> list[list[float]]:
            asked = [Question(messages=(Message(role="input", content=text),)) for text in texts]
            answers = asking.ask(respondent, asked)
            if (refused := next((a.error for a in answers if a.error), None)) is not None:
                raise UsageError(f"{written} rejected a text: {refused}")
            return [msgspec.json.decode(answer.text, type=list[float]) for answer in answers]

        return embed

    def _at_address(self, written: str) -> ModelAt:
        """Return a model at a URL. Also raises `UsageError` if a private run's rows would be sent to other
        people's machines."""
        at = model_at(self._ft.settings, written, self._key_variable)
        if self._private is not None:
            privacy.require_near(
                self._ft.settings, self._private, f"asking {written}", at.address, at.host.name
            )
        return at

    def respondent(self, written: str, max_tokens: int, temperature: float) -> Respondent:
        """Return a model to use as a judge or grader. Accepts the same model names as `of_model`."""
        sampling = msgspec.structs.replace(
            self._sampling, max_tokens=max_tokens, temperature=temperature, response_format=None
        )
        other = Contenders(self._ft, sampling, self._on, self._key_variable, limit_usd=self._limit_usd)
        other._private, other._worker = self._private, self._worker
        self._open.callback(other.close)
        return other.of_model(written).respondent

    # -- inside ---------------------------------------------------------------------------------------------

    def _reachable(self, handle: TrackedRun) -> bool:
        provider = handle.provider
        if not isinstance(provider, Chats):
            return False
        if isinstance(provider, Deploys):
            return provider.endpoint(handle.record.handle) is not None
        return True

    def _on_host(
        self, handle: TrackedRun, tuned: Contender, asked: str | None, *, base: bool
    ) -> list[Candidate]:
        """Return the models that the run's host serves. `asked` is the name of a checkpoint."""
        provider, job = handle.provider, handle.record.handle
        return [
            self._at(provider, job, one, self._host_price(handle, one), None if one.kind == "base" else asked)
            for one in self._kinds(provider, job, tuned, base=base)
        ]

    def _at_other_host(self, handle: TrackedRun, tuned: Contender, *, base: bool) -> list[Candidate]:
        """Return the run's adapter on the host where it was deployed. The price per token of its base is
        unknown there."""
        provider = self._ft.provider(self._on)
        deployment = require_open(self._ft, handle.id, self._on)
        named = msgspec.structs.replace(tuned, name=f"{tuned.name} at {self._on}", provider=self._on)
        return [
            self._at(provider, deployment.handle, one, None)
            for one in self._kinds(provider, deployment.handle, named, base=base)
        ]

    def _kinds(self, provider: Provider, job: JobHandle, tuned: Contender, *, base: bool) -> list[Contender]:
        served_by = provider.host + SANDBOX_MARK * provider.config.sandbox
        endpoint = provider.endpoint(job) if isinstance(provider, Deploys) else None
        per_hour = None if endpoint is None else endpoint.usd_per_hour or None
        asked = self._served(tuned, served_by, provider.host)
        kinds = [msgspec.structs.replace(asked, usd_per_hour=per_hour)]
        return [*kinds, _base_of(tuned, served_by)] if base else kinds

    def _at(
        self,
        provider: Provider,
        job: JobHandle,
        one: Contender,
        price: Price | None,
        asked: str | None = None,
    ) -> Candidate:
        self._ft.settings.require_to_spend(provider)
        sampling, base = self._sampling, one.kind == "base"
        by_the_hour = not base and isinstance(provider, Deploys)
        own = provider.own or provider.config.sandbox or by_the_hour
        provider = capability(provider, Chats)
        chat = provider.chat(job, base=base, max_tokens=sampling.max_tokens, temperature=sampling.temperature)
        if chat is not None:
            chat = replace(chat, threads=SANDBOX_THREADS) if provider.config.sandbox else chat
            found = self._candidate(
                one, chat if asked is None else replace(chat, model=asked), price, own=own
            )
            return _played(found) if provider.config.sandbox else found
        require_price(one.name, self._limit_usd, price)
        if sampling.response_format is not None:
            raise UsageError(f"{provider.name} does not support --response-format", fix="--on here")
        found = by_chat(one, _OneByOne(provider, job, base, sampling), sampling, price, own=own)
        return _played(found) if provider.config.sandbox else found

    def _host_price(self, handle: TrackedRun, contender: Contender) -> Price | None:
        """Return the price per token, or `None` if it is unknown or the deployment is billed hourly."""
        provider = handle.provider
        if contender.kind == "tuned" and isinstance(provider, Deploys):
            return None
        method = "inference_base" if contender.kind == "base" else "inference_tuned"
        today = days.today()
        try:
            resolved = provider.resolve(JobSpec.parse(handle.record.spec))
        except OrchestrateError:
            return None
        rates = token_rates(Prices(prices_of(provider), self._ft.rates, today), resolved, method)
        if rates is not None:
            into, out = (rate.usd for rate in rates)
            return lambda prompt, completion: (prompt * into + completion * out) / MTOK
        return completion_price(resolved.id) if contender.kind == "base" else None

    def _here(
        self,
        handle: TrackedRun,
        tuned: Contender,
        generator: Generator | None,
        base_precision: BasePrecision | None,
    ) -> list[Candidate]:
        at = handle.provider.host
        if generator is None:
            capability(handle.provider, Downloads)
            from orchestrate.local import Generator as LocalGenerator
            from orchestrate.providers.files import required_base

            artifact = handle.download(checkpoint=tuned.checkpoint)
            at = artifact.folder
            generator = LocalGenerator(required_base(artifact), adapter=Path(at), worker=self._worker)
        served_by = f"the adapter on this machine, with base model {Path(generator.model).name}"
        folders = [generator.model, *([generator.adapter] if generator.adapter is not None else [])]
        weights = " ".join([f"{tuned.run_id}@{tuned.checkpoint or ''}", *map(fingerprint, folders)])
        found = [
            by_generator(self._served(tuned, served_by, at), generator, self._sampling, weights, base=False)
        ]
        for four_bit in BASE_PRECISIONS[base_precision] if base_precision else ():
            # One process runs all of these models, and keeps only one base model in memory at a time.
            own = generator.in_precision(four_bit=four_bit)
            base = _base_of(tuned, f"the base model on this machine, {generator.model}")
            if four_bit and own.expected_precision not in (None, NF4):
                raise UsageError(
                    f"{generator.model} is already quantized: {own.expected_precision}",
                    fix="leave out --base-precision to use the precision of the model's files",
                )
            if four_bit:
                base = msgspec.structs.replace(base, name=f"{base.name} in NF4")
            # The base model uses the tokenizer and chat template of its adapter.
            written = "" if generator.adapter is None else tokenizing(generator.adapter)
            weights = f"{fingerprint(generator.model)} {handle.record.spec.get('adapter')} {written}"
            found.append(by_generator(base, own, self._sampling, weights, base=True))
        return found

    def _served(self, tuned: Contender, served_by: str, at: str) -> Contender:
        """Return the contender with its place and proof. `at` is the place as named in proofs. A proof of the
        run does not cover its checkpoints."""
        proofs = [p for p in self._ft.store.history.proofs(tuned.run_id or "") if p.at == at]
        found = proofs[-1].badge if proofs and tuned.checkpoint is None else NOT_PROVED
        return msgspec.structs.replace(tuned, served_by=served_by, proof=found)

    def _proved_at(self, address: str, model: str) -> str | None:
        """Return the badge of a tuned model that was proved at this URL under this name, or `None`."""
        root = address.rstrip("/").removesuffix("/v1")
        known = [
            p
            for p in self._ft.store.history.proofs()
            if p.at.removesuffix("/v1") == root and p.model == model
        ]
        return known[-1].badge if known else None

    def _plain_here(self, model: str, written: str) -> Candidate:
        """Return a base model on this machine. `model` may end with its precision: `tiny-chat:nf4`,
        `tiny-chat:16-bit`."""
        from orchestrate.local import Generator as LocalGenerator

        name, colon, precision = model.rpartition(":")
        four_bit = {"nf4": True, "16-bit": False}.get(precision) if colon else None
        name = model if four_bit is None else name
        generator = LocalGenerator(name, four_bit=four_bit, worker=self._worker)
        contender = Contender(
            name=written,
            kind="model",
            model=name,
            provider=this_machine().kind,
            served_by=f"this machine, {generator.model}",
        )
        return by_generator(contender, generator, self._sampling, fingerprint(generator.model), base=True)


@dataclass(frozen=True)
class _OneByOne:
    """Adapter for a backend that only has `generate`, which is assumed to send each request once."""

    provider: Chats
    job: JobHandle
    base: bool
    sampling: Sampling
    threads: int = 1
    retry: Retry = ONCE

    def ask_once(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Reply:
        if tools:
            raise UsageError(f"{self.provider.name} does not support tools", fix="--on here")
        [reply] = self.provider.generate(
            self.job,
            [messages],
            base=self.base,
            max_tokens=self.sampling.max_tokens,
            temperature=self.sampling.temperature,
        )
        return reply


def _name_of(handle: TrackedRun, checkpoint: str) -> str | None:
    """Return the model name under which the host serves a checkpoint, or `None` if it serves none. Raises
    `UsageError` for an unknown checkpoint."""
    if not handle.provider.profile.checkpoints_answer:
        return None
    known = {one.id: one.model for one in handle.checkpoints()}
    if checkpoint not in known:
        raise UsageError(
            f"run {handle.id} has no checkpoint {checkpoint!r}{among(checkpoint, known)}",
            fix=f"orchestrate checkpoints {handle.id}",
        )
    return known[checkpoint]


def _base_of(tuned: Contender, served_by: str) -> Contender:
    short = tuned.model.rstrip("/").rsplit("/", 1)[-1]
    return msgspec.structs.replace(
        tuned,
        name=f"base {short}",
        kind="base",
        served_by=served_by,
        run_id=None,
        checkpoint=None,
        usd_per_hour=None,
    )
