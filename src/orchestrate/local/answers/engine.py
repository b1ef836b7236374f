"""The model behind a server: one base, its adapters, and the rows of all requests in one batch. Imports
torch."""

# torch, transformers and peft describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from orchestrate.data.rows import ChatMessage
from orchestrate.errors import UsageError
from orchestrate.local.answers.forms import AnswerForm, ConstrainedAnswer, Forms
from orchestrate.local.answers.loading import base_of, is_adapter, talk, whole
from orchestrate.local.answers.speech import EngineModel, Speech
from orchestrate.local.model import files as models
from orchestrate.local.model import loaded as threads
from orchestrate.local.model.adapters import changes_base
from orchestrate.local.model.adapters.starts import rows_of
from orchestrate.local.model.loading import DTYPES, add_adapter, load_adapter, pick_device
from orchestrate.local.model.sampling import NO_FORM, NO_MEMORY, NO_NUMBERS, Luck, seeded
from orchestrate.local.model.sampling.batching import BASE, Batching, DecodingRow

_MEASURED_S = 1.0
"""For all adapters together, as a server starts; the best of three or more counts, since others may use the
machine."""
_ROUNDS = 3
Send = Callable[[dict[str, Any]], None]
_WORDS = {
    NO_FORM: "the schema is too complex to constrain {}: simplify it",
    NO_NUMBERS: "{} produces non-finite numbers: its weights are broken or overflow on this machine",
    NO_MEMORY: "not enough memory for {} to answer this prompt, even without other requests: shorten it",
}


class Loading(msgspec.Struct, frozen=True, kw_only=True):
    """The models to serve."""

    base: str
    base_name: str
    """Under which the base answers."""
    models: dict[str, str] = {}
    """Name -> folder of an adapter, or of a whole tuned model, which is then the only one."""
    threads: int | None = None
    device: str | None = None
    four_bit: bool | None = None
    """Of the base; `None` is by its size."""
    precision: str | None = None
    """Of products and of weights that are not in 4 bits: bf16, fp16, fp32; `None` takes what suits the
    device."""
    batch_invariant: bool = False
    """Rows of temperature 0 are read and answered alone, so that they have to the bit the answers that
    `eval --batch 1` gets, whoever else is answered at the time."""
    most_rows: int = 32
    most_tokens: int = 2048
    """Of an answer to a request that does not say."""


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request, with the fields of the chat completions API."""

    id: str
    model: str
    messages: list[ChatMessage] | None = None
    text: str | None = None
    ids: list[int] | None = None
    tools: list[dict[str, Any]] | None = None
    n: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = {}
    logprobs: int | None = None
    """How many of the likeliest tokens are returned; `None` tells no log-probabilities."""
    stream: bool = False
    tells_ids: bool = False
    form: AnswerForm | None = None


class RequestRefused(UsageError):
    """An invalid request. `code` is the API's error code."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Engine:
    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self.device = pick_device(loading.device)
        torch.set_num_threads(threads.chosen(loading.threads, self.device))
        self.folder = models.fetch(loading.base)
        self.models: dict[str, EngineModel] = {}
        self._speeches: dict[int, Speech] = {}
        self._forms: dict[str, Forms] = {}
        self._numbered = 0
        self.load_seconds: dict[str, float] = {}
        """Of each adapter."""
        tuned = [Path(f) for f in loading.models.values() if not is_adapter(Path(f))]
        if tuned and len(loading.models) > 1:
            raise UsageError("a fully tuned model is served alone, because it shares no weights with others")
        dtype = None if loading.precision is None else DTYPES[loading.precision]
        if tuned:
            self.model = whole(tuned[0], self.device, dtype)
        else:
            self.model = base_of(self.folder, four_bit=loading.four_bit, device=self.device, dtype=dtype)
        self.batching = Batching(self.model, most_rows=loading.most_rows)
        if tuned:
            [name] = loading.models
            self.models[name] = self._described(name, BASE, tuned[0])
            return
        self.models[loading.base_name] = self._described(loading.base_name, BASE, None)
        for name, folder in loading.models.items():
            self.load(name, folder)

    def _described(self, name: str, adapter: str, own: Path | None) -> EngineModel:
        template, sampler = talk(own, self.folder, self.device)
        return EngineModel(name, adapter, template, sampler, None if own is None else str(own))

    # -- models --------------------------------------------------------------------------------------------

    def load(self, name: str, folder: str) -> float:
        """Load another adapter onto the base and return the seconds that it took. Raises `UsageError`."""
        begun, path = time.perf_counter(), Path(folder)
        if name in self.models:
            raise UsageError(f"a model called {name!r} already exists")
        if not is_adapter(path):
            raise UsageError(f"{folder} is not an adapter: only adapters can be added to a running server")
        if changes_base(path):
            raise UsageError(
                f"{folder} changes the base model that the other adapters share",
                fix="merge and serve it alone",
            )
        self._numbered += 1
        adapter = f"a{self._numbered}"
        self.batching.changing()
        try:
            if not hasattr(self.model, "peft_config"):
                self.model = load_adapter(self.model, path, name=adapter).eval()
            elif rows_of(path) > self.model.get_input_embeddings().weight.shape[0]:
                raise UsageError(f"{name} has added tokens, so it must be served without other adapters")
            else:
                add_adapter(self.model, path, adapter)
                self.model.eval()
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            raise UsageError(f"the adapter in {folder} does not fit this base: {str(error)[:400]}") from error
        finally:
            self.batching.use(self.model)
        self.models[name] = self._described(name, adapter, path)
        self.load_seconds[name] = time.perf_counter() - begun
        return self.load_seconds[name]

    def costs(self) -> list[dict[str, Any]]:
        """Measure what each adapter costs: seconds to load it, of a token with it and with its base alone, in
        turns for about a second in all. Nothing else may be answered meanwhile."""
        found: list[dict[str, Any]] = []
        for name, load_s in self.load_seconds.items():
            if name not in self.models or self.loading.base_name not in self.models:
                continue
            took: dict[str, list[float]] = {self.loading.base_name: [], name: []}
            for one in took:
                self._token_s(one)  # the first one is never typical
            until = time.perf_counter() + _MEASURED_S / len(self.load_seconds)
            while len(took[name]) < _ROUNDS or time.perf_counter() < until:
                for one, seconds in took.items():
                    seconds.append(self._token_s(one))
            base_s, token_s = (min(seconds) for seconds in took.values())
            found.append({"model": name, "load_s": load_s, "token_s": token_s, "base_token_s": base_s})
        return found

    def _token_s(self, model: str) -> float:
        """Return the seconds per token after the first."""
        bias = {str(id): -100.0 for id in self._model(model).sampler.stops}
        wish = GenerationRequest(
            id="", model=model, text="1 2 3 4", temperature=0, max_tokens=3, logit_bias=bias
        )
        self.add(wish, self.prompt(wish), lambda _: None)
        times: list[float] = []
        while not self.batching.idle:
            begun = time.perf_counter()
            self.step(lambda _: None)
            times.append(time.perf_counter() - begun)
        return min(times[1:] or times)

    def unload(self, name: str) -> None:
        found = self.models.get(name)
        if found is None or found.adapter == BASE:
            raise UsageError(f"unknown adapter {name!r}")
        if self.batching.uses(found.adapter):
            raise UsageError(f"{name} is in use: try again when its answers are finished")
        del self.models[name]
        self._forms.pop(name, None)
        if len(self.model.peft_config) > 1:
            others = [a for a in self.model.peft_config if a != found.adapter]
            self.batching.changing()
            self.model.set_adapter(others[0])
            self.model.delete_adapter(found.adapter)
            self.batching.use(self.model)

    # -- requests ------------------------------------------------------------------------------------------

    def prompt(self, wish: GenerationRequest) -> list[int]:
        """Return the token ids of a request's prompt. Raises `RequestRefused`, `DataError`."""
        template = self._model(wish.model).template
        if wish.messages is not None:
            return template.asked(wish.messages, wish.tools)
        if wish.ids is not None:
            if not all(0 <= id < len(template.tokenizer) for id in wish.ids):
                raise RequestRefused(
                    "the prompt has token ids that the tokenizer does not have", "invalid_prompt"
                )
            return wish.ids
        ids = template.tokens(wish.text or "")[0]
        start = template.tokenizer.bos_token_id
        return ids if start is None or ids[:1] == [start] else [start, *ids]

    def _model(self, name: str) -> EngineModel:
        found = self.models.get(name)
        if found is None:
            raise RequestRefused(
                f"The model {name!r} does not exist; this server has {', '.join(self.models)}",
                "model_not_found",
            )
        return found

    def rows(self, wish: GenerationRequest, prompt: list[int]) -> tuple[list[DecodingRow], list[Speech]]:
        """Build the rows of a request that the model reads, the first with its copies, and the speech of
        each answer. Raises `RequestRefused`."""
        model = self._model(wish.model)
        if not prompt:
            raise RequestRefused("the prompt is empty", "invalid_prompt")
        if any(int(id) >= len(model.template.tokenizer) for id in wish.logit_bias):
            raise RequestRefused(
                "logit_bias has token ids that the tokenizer does not have", "invalid_logit_bias"
            )
        room = model.sampler.room(prompt, wish.max_tokens or self.loading.most_tokens)
        if room < (wish.max_tokens or 1):
            most = model.sampler.context
            raise RequestRefused(
                f"This model's maximum context length is {most} tokens: the prompt has {len(prompt)}, "
                f"and {wish.max_tokens or 1} were requested for the completion",
                "context_length_exceeded",
            )
        alone = self.loading.batch_invariant and wish.temperature == 0
        held = None if wish.form is None else self._held(model, wish.form, prompt)
        rows = [
            DecodingRow(
                wish.id,
                model.adapter,
                prompt,
                self._luck(wish, n, None if held is None else held.copy()),
                room,
                frozenset(model.sampler.stops),
                model.sampler.others,
                alone=alone,
            )
            for n in range(wish.n)
        ]
        speeches = [
            Speech(
                row,
                model,
                n,
                chat=wish.messages is not None,
                stream=wish.stream,
                stop=wish.stop,
                tools=wish.tools,
                tells_tokens=wish.logprobs is not None or wish.tells_ids,
            )
            for n, row in enumerate(rows)
        ]
        if alone:
            return rows, speeches
        rows[0].copies = rows[1:]
        return rows[:1], speeches

    def _held(self, model: EngineModel, form: AnswerForm, prompt: list[int]) -> ConstrainedAnswer:
        try:
            if model.name not in self._forms:
                self._forms[model.name] = Forms(model.template, model.sampler.stops)
            return self._forms[model.name].held(form, prompt)
        except UsageError as error:
            raise RequestRefused(error.message, "unsupported_form") from error

    def _luck(self, wish: GenerationRequest, n: int, held: ConstrainedAnswer | None) -> Luck:
        return Luck(
            temperature=wish.temperature,
            top_p=wish.top_p,
            top_k=wish.top_k,
            presence=wish.presence_penalty,
            frequency=wish.frequency_penalty,
            bias={int(id): bias for id, bias in wish.logit_bias.items()},
            tops=wish.logprobs,
            generator=seeded(wish.seed, n),
            held=held,
        )

    def add(self, wish: GenerationRequest, prompt: list[int], send: Send) -> None:
        rows, speeches = self.rows(wish, prompt)
        for speech in speeches:
            self._speeches[id(speech.row)] = speech
        told = {"prompt_ids": prompt} if wish.tells_ids else {}
        send({"id": wish.id, "prompt_tokens": len(prompt), **told})
        self.batching.waiting += rows

    @torch.inference_mode()
    def step(self, send: Send) -> None:
        for row, drawn in self.batching.step():
            speech = self._speeches[id(row)]
            if drawn.failed:
                words = _WORDS[drawn.failed].format(speech.model.name)
                send({"id": row.key, "error": words, "code": drawn.failed})
            elif message := speech.take(drawn):
                send({"id": row.key, **message})
            if row.ended:
                self._speeches.pop(id(row), None)

    def cancel(self, key: str) -> None:
        self.batching.cancel(key)
        for number, speech in list(self._speeches.items()):
            if speech.row.key == key:
                del self._speeches[number]
