"""Inference for chats, evaluations, sandboxes and servers: one base model and its adapters. A server's
requests join and leave one continuous batch. An evaluation's prompts are processed in batches. Imports
torch."""

# torch, transformers and peft are only partially typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch

from orchestrate.data.rows import ChatMessage
from orchestrate.data.tokens.answers import CUT_WITHIN_THINKING
from orchestrate.errors import DataError, UsageError
from orchestrate.local.answers.forms import AnswerForm, ConstrainedAnswer, Forms
from orchestrate.local.answers.likelihoods import likelihoods
from orchestrate.local.answers.model_loader import (
    UNPACKED,
    AdaptedModel,
    Opening,
    is_adapter,
    template_and_sampler,
    too_large,
    unpacks,
)
from orchestrate.local.answers.provenance import four_bit_of, read_provenance, table_in
from orchestrate.local.answers.speech import EngineModel, Speech
from orchestrate.local.model import weights
from orchestrate.local.model.adapters import changes_base, is_removable
from orchestrate.local.model.adapters.starts import rows_of
from orchestrate.local.model.files import NF4, ModelFolder, fetch, weights_in
from orchestrate.local.model.loader import pick_device
from orchestrate.local.model.sampling import NO_FORM, NO_MEMORY, NO_NUMBERS, SamplingSettings, rounds, seeded
from orchestrate.local.model.sampling.batching import BASE, DecodingRow
from orchestrate.local.model.sampling.quick_pass import quicken
from orchestrate.types import Likelihood

MOST_ROWS = 64
"""Default number of prompts in one batch."""
CHOSEN_BY_SIZE = (
    "the base model was loaded in NF4 (4 bits) because its weights exceed 8 GiB "
    "(for 16 bits: local=MODEL:16-bit)"
)
ROUNDED_OTHERWISE = (
    "without batching, at least one token would be different, because batching changes 16-bit "
    "rounding (for exact results: --batch 1)"
)
_MEASURED_S = 1.0
"""Total measurement time in seconds for all adapters. The fastest of at least three passes counts, because
other programs can slow a pass down."""
_ROUNDS = 3
Send = Callable[[dict[str, Any]], None]
_FAILURES = {
    NO_FORM: "the schema is too complex to enforce with {}: simplify the schema",
    NO_NUMBERS: "{} produces non-finite numbers: its weights are corrupt or overflow on this machine",
    NO_MEMORY: "not enough memory for {} to answer this prompt, even without other requests: shorten the "
    "prompt",
}


class Loading(Opening, frozen=True, kw_only=True):
    """The models to load."""

    base_name: str = ""
    """Name under which the base model is served. Empty if the base model is not served."""
    models: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """Maps each name to the folder of an adapter or of a full tuned model. A full model must be the only
    entry."""
    batch_invariant: bool = False
    """True if prompts with temperature 0 are processed individually. Their answers are then bitwise identical
    to those of `eval --batch 1`, regardless of concurrent requests."""
    most_tokens: int = 2048
    """Default maximum number of tokens in an answer."""

    @property
    def folders(self) -> list[Path]:
        return [Path(folder) for folder in self.models.values()]

    @property
    def whole(self) -> Path | None:
        """The folder of the full tuned model, or `None` if there are only adapters. Raises `UsageError` if a
        full model is listed together with other models."""
        tuned = [folder for folder in self.folders if not is_adapter(folder)]
        if tuned and len(self.models) > 1:
            raise UsageError(
                "a full model must be served alone, because it shares no weights with other models"
            )
        return tuned[0] if tuned else None

    def in_precision(self) -> Loading:
        """Return a copy with `four_bit` set as in training. A value that is already set is kept. If it is
        unknown how the adapters were trained, `four_bit` stays `None`."""
        known = four_bit_of(self.four_bit, self.folders)
        if known is None and self.whole is not None:
            known = False
        return msgspec.structs.replace(self, four_bit=known)

    @property
    def is_removable(self) -> bool:
        """True if the adapters can be removed from the base model again."""
        return self.whole is None and all(map(is_removable, self.folders))


class PromptsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A batch of prompts for one model."""

    prompts: list[list[ChatMessage]]
    model: str = ""
    base: bool = False
    """True to query the base model instead of the tuned one."""
    max_tokens: int
    temperature: float
    seed: int
    tools: list[dict[str, Any]] | None = None
    stream: bool = False
    batch: int | None = None
    rounding: str = "left"
    form: AnswerForm | None = None


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
    """Number of most likely tokens to return. `None` returns no log-probabilities."""
    stream: bool = False
    tells_ids: bool = False
    form: AnswerForm | None = None


class RequestRefused(UsageError):
    """An invalid request. `code` is the API's error code."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Engine(AdaptedModel):
    def __init__(self, loading: Loading) -> None:
        self.loading = loading.in_precision()
        super().__init__(self.loading, self.loading.whole)
        quicken(self.inner)
        known = self.loading.four_bit
        self.four_bit = too_large(self.folder) if known is None else known
        self.by_size = known is None and self.four_bit
        """True if 4-bit loading was chosen automatically because of the model's size."""
        self._speeches: dict[int, Speech] = {}
        self.models: dict[str, EngineModel] = {}
        self.load_seconds: dict[str, float] = {}
        """Time taken to load each adapter, in seconds."""
        self._untouched: Any = None
        """A separate, unmodified base model. Loaded on demand if the tuned model changes or replaces its
        base."""
        self.fitting_rows: int | None = None
        """Number of prompts that fit in memory in one batch. `None` until memory runs out for the first
        time."""
        self._take()

    def _take(self) -> None:
        self._forms: dict[str, Forms] = {}
        self._removable = self.loading.is_removable
        """True if the adapters can be removed. Determined at load time, because an adapter's files may change
        later."""
        if self.loading.whole is not None:
            [name] = self.loading.models
            self.models[name] = self._described(name, BASE, self.loading.whole)
            return
        if self.loading.base_name:
            self.models[self.loading.base_name] = self._described(self.loading.base_name, BASE, None)
        for name, folder in self.loading.models.items():
            self._load(name, Path(folder))

    def _described(self, name: str, adapter: str, own: Path | None) -> EngineModel:
        template, sampler = template_and_sampler(own, self.folder, self.device)
        sampler.shares = True
        cut_at = table_in(read_provenance(own), "settings").get("max_seq_length")
        return EngineModel(
            name,
            adapter,
            template,
            sampler,
            own,
            replaced=own is not None and (adapter == BASE or changes_base(own)),
            trained_length=cut_at if isinstance(cut_at, int) else None,
        )

    # -- models --------------------------------------------------------------------------------------------

    def turn(self, loading: Loading) -> bool:
        """Replace the adapters on the base model and return True. If the base model must be reloaded instead,
        changes nothing and returns False. This is the case if the base, device, precision or batch size
        differs, or if an adapter changes more than its own layers."""
        other, mine = loading.in_precision(), self.loading
        if (fetch(other.base).path, pick_device(other.device)) != (self.folder.path, self.device):
            return False
        four_bit = too_large(self.folder) if other.four_bit is None else other.four_bit
        same = (four_bit, other.precision, other.most_rows) == (self.four_bit, mine.precision, mine.most_rows)
        if not same or not self._removable or not other.is_removable or any(weights.held_of(self.inner)):
            return False
        if self.model is not self.inner:
            with self.changing():
                self.model = self.inner = self.model.unload()
        self.loading, self.by_size = other, other.four_bit is None and four_bit
        self.models.clear()
        self.load_seconds.clear()
        self._take()
        return True

    def load(self, name: str, folder: str) -> float:
        """Load another adapter onto the base model and return the loading time in seconds. Raises
        `UsageError` if the name is taken or the adapter cannot be added."""
        path = Path(folder)
        if name in self.models:
            raise UsageError(f"a model named {name!r} already exists")
        if not is_adapter(path):
            raise UsageError(f"{folder} is not an adapter: only adapters can be added to a running server")
        if changes_base(path):
            raise UsageError(
                f"{folder} changes the base model, which the other adapters share",
                fix="merge it and serve the merged model alone",
            )
        try:
            self._load(name, path)
        except (RuntimeError, OSError) as error:
            raise UsageError(
                f"the adapter in {folder} does not fit this base model: {str(error)[:400]}"
            ) from error
        return self.load_seconds[name]

    def _load(self, name: str, path: Path) -> None:
        begun = time.perf_counter()
        if self.model is not self.inner and rows_of(path) > self.model.get_input_embeddings().weight.shape[0]:
            raise UsageError(f"{name} has added tokens, so it must be served without other adapters")
        self.models[name] = self._described(name, self.put(path), path)
        self.load_seconds[name] = time.perf_counter() - begun

    def costs(self) -> list[dict[str, Any]]:
        """Measure the cost of each adapter: its loading time, and the time per token with and without the
        adapter. Takes about a second in total. No other request may run at the same time."""
        found: list[dict[str, Any]] = []
        for name, load_s in self.load_seconds.items():
            model = self.models.get(name)
            if model is None or model.replaced:
                continue
            took: dict[str, list[float]] = {BASE: [], model.adapter: []}
            for one in took:
                self._token_s(model, one)  # the first one is never typical
            until = time.perf_counter() + _MEASURED_S / len(self.load_seconds)
            while len(took[BASE]) < _ROUNDS or time.perf_counter() < until:
                for one, seconds in took.items():
                    seconds.append(self._token_s(model, one))
            base_s, token_s = (min(seconds) for seconds in took.values())
            found.append({"model": name, "load_s": load_s, "token_s": token_s, "base_token_s": base_s})
        return found

    @torch.inference_mode()
    def _token_s(self, model: EngineModel, adapter: str) -> float:
        """Return the seconds per token after the first."""
        settings = SamplingSettings(bias=dict.fromkeys(model.sampler.stops, -100.0))
        self.batching.waiting.append(
            DecodingRow("", adapter, model.template.tokens("1 2 3 4")[0], settings, 3)
        )
        times: list[float] = []
        while not self.batching.idle:
            begun = time.perf_counter()
            list(self.batching.step())
            times.append(time.perf_counter() - begun)
        return min(times[1:] or times)

    def unload(self, name: str) -> None:
        found = self.models.get(name)
        if found is None or found.adapter == BASE:
            raise UsageError(f"unknown adapter {name!r}")
        if self.batching.uses(found.adapter):
            raise UsageError(f"{name} is in use: try again after its requests have finished")
        del self.models[name]
        self._forms.pop(name, None)
        self.drop(found.adapter)

    @contextmanager
    def weights_of(self, found: EngineModel, *, base: bool) -> Generator[Any]:
        """Yield the model that a batch uses: `found`, or its base model if `base` is set. All rows of the
        batch must use the same one."""
        if base and found.replaced:
            if self._untouched is None:
                self._untouched = self.loaded_base()
            yield self._untouched
            return
        with self.active(BASE if base else found.adapter) as model:
            yield model

    def precision(self, found: EngineModel, model: Any, *, base: bool) -> str:
        """Return the precision of the model or of its base."""
        own = None if base or found.adapter != BASE else found.folder
        folder = self.folder if own is None else ModelFolder(own)
        return weights_in(folder.config, four_bit=self.four_bit and own is None, dtype=_short(model.dtype))

    # -- requests ------------------------------------------------------------------------------------------

    def prompt(self, request: GenerationRequest) -> list[int]:
        """Return the token ids of a request's prompt. Raises `RequestRefused` for an unknown model or token
        id, and `DataError` if the chat template rejects the messages."""
        template = self._model(request.model).template
        if request.messages is not None:
            return template.asked(request.messages, request.tools)
        if request.ids is not None:
            if not all(0 <= id < len(template.tokenizer) for id in request.ids):
                raise RequestRefused(
                    "the prompt contains token ids that are not in the vocabulary", "invalid_prompt"
                )
            return request.ids
        ids = template.tokens(request.text or "")[0]
        start = template.tokenizer.bos_token_id
        return ids if start is None or ids[:1] == [start] else [start, *ids]

    def _model(self, name: str) -> EngineModel:
        found = self.models.get(name)
        if found is None:
            raise RequestRefused(
                f"The model {name!r} does not exist. Available models: {', '.join(self.models)}",
                "model_not_found",
            )
        return found

    def rows(self, request: GenerationRequest, prompt: list[int]) -> tuple[list[DecodingRow], list[Speech]]:
        """Build the row and the output parser of each requested answer. Usually returns only the first row,
        with the others in its `copies`, so that the prompt is prefilled only once. If rows must be processed
        individually, returns all of them. Raises `RequestRefused` for an invalid request."""
        model = self._model(request.model)
        if not prompt:
            raise RequestRefused("the prompt is empty", "invalid_prompt")
        if any(int(id) >= len(model.template.tokenizer) for id in request.logit_bias):
            raise RequestRefused(
                "logit_bias contains token ids that are not in the vocabulary", "invalid_logit_bias"
            )
        room = model.sampler.room(prompt, request.max_tokens or self.loading.most_tokens)
        if room < (request.max_tokens or 1):
            most = model.sampler.context
            raise RequestRefused(
                f"This model's maximum context length is {most} tokens: the prompt has {len(prompt)}, "
                f"and {request.max_tokens or 1} were requested for the completion",
                "context_length_exceeded",
            )
        alone = self.loading.batch_invariant and request.temperature == 0
        held = None if request.form is None else self._held(model, request.form, prompt)
        rows = [
            DecodingRow(
                request.id,
                model.adapter,
                prompt,
                self._settings_of(request, n, None if held is None else held.copy()),
                room,
                frozenset(model.sampler.stops),
                model.sampler.others,
                alone=alone,
            )
            for n in range(request.n)
        ]
        speeches = [
            Speech(
                row,
                model,
                n,
                chat=request.messages is not None,
                stream=request.stream,
                stop=request.stop,
                tools=request.tools,
                with_tokens=request.logprobs is not None or request.tells_ids,
            )
            for n, row in enumerate(rows)
        ]
        if alone:
            return rows, speeches
        rows[0].copies = rows[1:]
        return rows[:1], speeches

    def _held(self, model: EngineModel, form: AnswerForm, prompt: list[int]) -> ConstrainedAnswer:
        try:
            return self._forms_of(model).held(form, prompt)
        except UsageError as error:
            raise RequestRefused(error.message, "unsupported_form") from error

    def _forms_of(self, model: EngineModel) -> Forms:
        if model.name not in self._forms:
            self._forms[model.name] = Forms(model.template, model.sampler.stops)
        return self._forms[model.name]

    def _settings_of(
        self, request: GenerationRequest, n: int, held: ConstrainedAnswer | None
    ) -> SamplingSettings:
        return SamplingSettings(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            presence=request.presence_penalty,
            frequency=request.frequency_penalty,
            bias={int(id): bias for id, bias in request.logit_bias.items()},
            tops=request.logprobs,
            generator=seeded(request.seed, n),
            held=held,
        )

    def add(self, request: GenerationRequest, prompt: list[int], send: Send) -> None:
        rows, speeches = self.rows(request, prompt)
        for speech in speeches:
            self._speeches[id(speech.row)] = speech
        extra = {"prompt_ids": prompt} if request.tells_ids else {}
        send({"id": request.id, "prompt_tokens": len(prompt), **extra})
        self.batching.waiting += rows

    @torch.inference_mode()
    def step(self, send: Send) -> None:
        for row, drawn in self.batching.step():
            speech = self._speeches[id(row)]
            if drawn.failed:
                words = _FAILURES[drawn.failed].format(speech.model.name)
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

    # -- prompts of an evaluation --------------------------------------------------------------------------

    def answer(self, asked: PromptsRequest, send: Callable[[dict[str, Any]], None]) -> None:
        """Answer all prompts in one batch, and send all replies together at the end. With `stream`, also send
        the text of the first reply during generation. Text is sent as soon as it can no longer change."""
        found, form, close, turned = self._model(asked.model), asked.form, set[int](), set[int]()
        prompts = [self._prompt_of(found, messages, asked.tools) for messages in asked.prompts]
        fitting = [prompt for prompt in prompts if isinstance(prompt, list)]
        sampler, watch = found.sampler, None
        if asked.stream and fitting:
            watch = _watch(found, asked.tools, send)
        forms = None if form is None else self._forms_of(found)
        sampler.holds = None if form is None or forms is None else lambda prompt: forms.held(form, prompt)
        sampler.fitting_rows = self.fitting_rows

        def draw(model: Any, rows: int, prompts: list[list[int]], *, looks: bool) -> list[list[int]]:
            torch.manual_seed(asked.seed)
            return sampler.draw(
                model,
                prompts,
                max_tokens=asked.max_tokens,
                temperature=asked.temperature,
                most_rows=rows,
                watch=watch,
                close=close if looks else None,
            )

        with self.weights_of(found, base=asked.base) as model, torch.inference_mode():
            looks = asked.rounding != "left" and rounds(model, self.device) and form is None
            answers = draw(model, asked.batch or MOST_ROWS, fitting, looks=looks)
            self.fitting_rows = sampler.fitting_rows
            if asked.rounding == "mended":
                for number in sorted(close):
                    [answers[number]] = draw(model, 1, [fitting[number]], looks=False)
            else:
                turned = sampler.changed_by_rounding(model, fitting, answers, close)
            precision = self.precision(found, model, base=asked.base)
        notes = [UNPACKED] * (precision == NF4 and asked.rounding != "left" and unpacks(self.folder))
        drawn = iter(
            {
                **self._reply(found, prompt, ids, asked, [ROUNDED_OTHERWISE] * (number in turned) + notes),
                "precision": precision,
            }
            for number, (prompt, ids) in enumerate(zip(fitting, answers, strict=True))
        )
        send({"replies": [next(drawn) if isinstance(prompt, list) else prompt for prompt in prompts]})

    def _prompt_of(
        self, found: EngineModel, messages: list[ChatMessage], tools: list[dict[str, Any]] | None
    ) -> list[int] | dict[str, Any]:
        """Return the prompt, or the reason why it cannot be answered."""
        try:
            prompt = found.template.asked(messages, tools)
        except DataError as error:
            return {"refused": error.message, "fix": error.fix}
        if found.sampler.room(prompt, 1):
            return prompt
        most = found.sampler.context
        message = (
            f"the prompt has {len(prompt)} tokens, which leaves no room for an answer in the context of "
            f"{most} tokens"
        )
        return {"refused": message, "fix": "shorten the prompt or drop the row"}

    def _reply(
        self, found: EngineModel, prompt: list[int], ids: list[int], asked: PromptsRequest, notes: list[str]
    ) -> dict[str, Any]:
        own, stopped = found.sampler.said(ids)
        said = found.template.said(own, prompt, tools=asked.tools, cut=not stopped)
        noted, longest = [*said.notes], found.trained_length
        if not stopped and not said.content and not said.tool_calls and said.reasoning:
            noted.append(CUT_WITHIN_THINKING)
        if not stopped and found.sampler.room(prompt, asked.max_tokens) < asked.max_tokens:
            noted.append(f"cut off at the model's context length of {found.sampler.context} tokens")
        if self.by_size:
            noted.append(CHOSEN_BY_SIZE)
        if longest is not None and len(prompt) > longest:
            noted.append(f"the prompt is longer than the training run's max_seq_length ({longest} tokens)")
        return {
            "content": said.content,
            "reasoning": said.reasoning,
            "tool_calls": [msgspec.to_builtins(call) for call in said.tool_calls],
            "model": str(found.folder or self.folder.hub_id or self.folder.path),
            "prompt_tokens": len(prompt),
            "completion_tokens": len(ids),
            "finish_reason": "length" if not stopped else "tool_calls" if said.tool_calls else "stop",
            "notes": noted + notes,
        }

    def likelihoods(self, model: str, rows: Sequence[dict[str, Any]], *, base: bool) -> list[Likelihood]:
        found = self._model(model)
        with self.weights_of(found, base=base) as answers:
            return likelihoods(answers, found.template, self.device, rows, found.sampler.context)


def _short(dtype: object) -> str:
    """Return the precision as a short name such as `bf16`, from the loader's `DTYPES`."""
    name = str(dtype).removeprefix("torch.")
    return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(name, name)


def _watch(found: EngineModel, tools: Any, send: Send) -> Callable[[Sequence[DecodingRow]], None]:
    """Return a callback that streams the final part of the answer while it grows."""
    speeches: list[Speech] = []

    def watch(rows: Sequence[DecodingRow]) -> None:
        if not speeches:
            speeches.append(Speech(rows[0], found, 0, chat=True, stream=True, tools=tools, calls=True))
        if not rows[0].ended and (piece := speeches[0].take()) and piece["content"]:
            send({"piece": piece["content"]})

    return watch
