"""The model behind chats and evaluations: a base and at most one adapter, with batched answers."""

# torch, transformers and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import torch

from orchestrate.data.rows import ChatMessage, Example, PreferenceExample, UnpairedExample
from orchestrate.data.tokens.answers import CUT_WITHIN_THINKING
from orchestrate.errors import DataError
from orchestrate.local.answers.forms import AnswerForm, ConstrainedAnswer, Forms
from orchestrate.local.answers.loading import (
    UNPACKED,
    base_of,
    is_adapter,
    talk,
    too_large,
    unpacks,
    whole,
)
from orchestrate.local.answers.passports import four_bit_of, read_passport, table_in
from orchestrate.local.answers.speech import EngineModel, Speech
from orchestrate.local.encoding import Template, decode_row, encode, encode_answer, encode_pair
from orchestrate.local.model import files, loaded, weights
from orchestrate.local.model.adapters import changes_base, lies_apart
from orchestrate.local.model.files import NF4, ModelFolder, weights_in
from orchestrate.local.model.loaded import halving
from orchestrate.local.model.loading import load_adapter, pick_device
from orchestrate.local.model.sampling import rounds
from orchestrate.local.model.sampling.batching import DecodingRow
from orchestrate.types import Likelihood, decoding

ROWS = 8
"""Answered together; logits of a whole row are large."""


def likelihoods(
    model: Any,
    template: Template,
    device: torch.device,
    rows: Sequence[dict[str, Any]],
    most_tokens: int | None = None,
) -> list[Likelihood]:
    """Compute how likely each row is: a `text`, after a `context` where there is one, an `answer` to
    `messages`, or what training learns from a canonical `example`, cut at `most_tokens`, with `alone`
    without its prompt."""
    encoded = [_encoded(template, row, most_tokens) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i][0]))

    def compute(most: int) -> dict[int, Likelihood]:
        parts = (order[start : start + most] for start in range(0, len(order), most))
        return {
            i: one
            for part in parts
            for i, one in zip(part, _of_part(model, device, [encoded[i] for i in part]), strict=True)
        }

    found, _ = halving(ROWS, device, compute)
    return [found[i] for i in range(len(rows))]


def _of_part(
    model: Any, device: torch.device, part: Sequence[tuple[list[int], list[bool]]]
) -> list[Likelihood]:
    """Of rows in one pass, the longest of which is the last."""
    longest = len(part[-1][0])
    ids = torch.zeros((len(part), longest), dtype=torch.long)
    told = torch.zeros((len(part), longest), dtype=torch.bool)
    there = torch.zeros((len(part), longest), dtype=torch.long)
    for row, (tokens, scored) in enumerate(part):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        told[row, : len(tokens)] = torch.tensor(scored)
        there[row, : len(tokens)] = 1
    ids, told = ids.to(device), told.to(device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=there.to(device)).logits[:, :-1].float()
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    nats = nats * told[:, 1:]
    likeliest = (logits.argmax(dim=-1) == ids[:, 1:]) | ~told[:, 1:]
    counts = told[:, 1:].sum(dim=1)
    means = nats.sum(dim=1, keepdim=True) / counts.clamp(min=1)[:, None]
    spreads = ((((nats - means) * told[:, 1:]) ** 2).sum(dim=1) / counts.clamp(min=1)).sqrt()
    return [
        Likelihood(float(nats[n].sum()), int(counts[n]), bool(likeliest[n].all()), float(spreads[n]))
        for n in range(len(part))
    ]


def _encoded(template: Template, row: dict[str, Any], most: int | None) -> tuple[list[int], list[bool]]:
    """Return the token ids, and which of them count."""
    if "text" in row:
        context = str(row.get("context", ""))
        ids: list[int] = template.tokenizer(context + row["text"])["input_ids"]
        before = len(template.tokenizer(context)["input_ids"]) if context else 0
        return ids, [i >= before for i in range(len(ids))]
    if "example" in row:
        example = decode_row(msgspec.json.encode(row["example"]))
        ids, counted = _learnt(template, example, alone=bool(row.get("alone")))
        return ids[:most], counted[:most]
    prompt = [decoding.convert(m, ChatMessage) for m in row["messages"]]
    answer = ChatMessage(role="assistant", content=row["answer"])
    example = UnpairedExample(prompt=prompt, completion=[answer], label=True, tools=row.get("tools") or None)
    encoded = encode_answer(example, template)
    return encoded.ids, [w > 0 for w in encoded.weights]


def _learnt(template: Template, example: Example, *, alone: bool) -> tuple[list[int], list[bool]]:
    """Return what a row teaches: the preferred answer of a pair, the answer of an unpaired row."""
    match example:
        case PreferenceExample():
            encoded = encode_pair(example, template).preferred
        case UnpairedExample():
            encoded = encode_answer(example, template)
        case _:
            encoded = encode(example, template)
    counted = [n > 0 and weight > 0 for n, weight in enumerate(encoded.weights)]
    kept = [n for n, counts in enumerate(counted) if counts or not n or not alone]
    return [encoded.ids[n] for n in kept], [counted[n] for n in kept]


MOST_ROWS = 64
CHOSEN_BY_SIZE = (
    "answered in NF4 (4 bits) because it has more than 8 GiB of weights (local=MODEL:16-bit for 16 bits)"
)
ROUNDED_OTHERWISE = (
    "16-bit rounding in a batch can change an answer: read alone, another token would have been "
    "more likely (use --batch 1 for exact results)"
)

Send = Callable[[dict[str, Any]], None]


def _short(dtype: object) -> str:
    """Return the precision as a short name such as `bf16`, from the loader's `DTYPES`."""
    name = str(dtype).removeprefix("torch.")
    return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(name, name)


class Answerer:
    """Holds the model. `answer` handles one request."""

    def __init__(self, load: dict[str, Any]) -> None:
        self.device = pick_device(load.get("device"))
        torch.set_num_threads(loaded.chosen(load.get("threads"), self.device))
        self.folder = files.fetch(load["model"])
        self.fitting_rows: int | None = None
        """As many as memory did for, once it has run out."""
        self._base: Any = None
        self._tuned: Any = None
        self._untouched: Any = None
        """The base, where the one under the tuned model is not itself any more, or there is none."""
        self._take(load)
        self._load()

    def turn(self, load: dict[str, Any]) -> bool:
        """Replace the adapter on the base with another one. Returns False where the model has to be
        reloaded, because it is a different one, or because what is on the base changes more than an
        adapter's own layers."""
        base = (files.fetch(load["model"]).path, pick_device(load.get("device")))
        if base != (self.folder.path, self.device) or not self._apart:
            return False
        precision = self.four_bit
        self._take(load)
        if self.four_bit != precision or not self._apart or self._has_packed_experts():
            return False
        if self._tuned is not None:
            self._base, self._tuned = self._tuned.unload(), None
        if self.adapter is not None:
            self._tuned = load_adapter(self._base, self.adapter).eval()
        return True

    def _take(self, load: dict[str, Any]) -> None:
        """What belongs to the adapter: its tokenizer, and how it was trained."""
        self.adapter = Path(load["adapter"]) if load.get("adapter") else None
        self.whole = self.adapter is not None and not is_adapter(self.adapter)
        self._apart = self._lies_apart()
        """Now: its files may be others by the time that it is taken off."""
        self._replaced = self.whole or (self.adapter is not None and changes_base(self.adapter))
        self.passport = read_passport(self.adapter)
        known = four_bit_of(load.get("four_bit"), [self.adapter])
        self.four_bit = (not self.whole and too_large(self.folder)) if known is None else known
        self.by_size = known is None and self.four_bit
        """Whether nothing but the size of the files chose 4 bits."""
        cut_at = table_in(self.passport, "settings").get("max_seq_length")
        self.trained_length: int | None = cut_at if isinstance(cut_at, int) else None
        self.template, self.sampler = talk(self.adapter, self.folder, self.device)
        self.sampler.shares = True
        self._forms: Forms | None = None

    def _lies_apart(self) -> bool:
        return self.adapter is None or (not self.whole and lies_apart(self.adapter))

    def _has_packed_experts(self) -> bool:
        return any(weights.held_of(self._base))

    def precision(self, *, base: bool) -> str:
        """Name the precision in which the base or the tuned model answers."""
        own = self.whole and not base
        model, _ = self.model(base)
        folder = ModelFolder(self.adapter) if own and self.adapter is not None else self.folder
        return weights_in(folder.config, four_bit=self.four_bit and not own, dtype=_short(model.dtype))

    def _load(self) -> None:
        if not self.whole:
            self._base = self._loaded_base()
        if self.whole and self.adapter is not None:
            self._tuned = whole(self.adapter, self.device)
        elif self.adapter is not None:
            self._tuned = load_adapter(self._base, self.adapter).eval()

    def _loaded_base(self) -> Any:
        return base_of(self.folder, four_bit=self.four_bit, device=self.device)

    def model(self, base: bool) -> tuple[Any, AbstractContextManager[Any]]:
        if base and self._replaced:
            if self._untouched is None:
                self._untouched = self._loaded_base()
            return self._untouched, nullcontext()
        if self._tuned is None:
            return self._base, nullcontext()
        without = not self.whole and (base or self.adapter is None)
        return self._tuned, self._tuned.disable_adapter() if without else nullcontext()

    def answer(self, request: dict[str, Any], send: Send) -> None:
        tools, most = request.get("tools"), request["max_tokens"]
        close: set[int] = set()
        asked = [self._asked(p, tools) for p in request["prompts"]]
        fitting = [prompt for prompt in asked if isinstance(prompt, list)]
        model, adapter = self.model(request["base"])
        rounding = request.get("rounding", "left")
        looks = rounding != "left" and rounds(model, self.device) and request.get("form") is None
        watch = self._watch(tools, send) if request["stream"] and fitting else None

        def draw(rows: int, prompts: list[list[int]] = fitting) -> list[list[int]]:
            torch.manual_seed(request["seed"])
            close.clear()
            return self.sampler.draw(
                model,
                prompts,
                max_tokens=most,
                temperature=request["temperature"],
                most_rows=rows,
                watch=watch,
                close=close if looks else None,
            )

        self.sampler.holds = None if request.get("form") is None else self._form(request["form"])
        self.sampler.fitting_rows = self.fitting_rows
        with adapter, torch.inference_mode():
            answers = draw(request.get("batch") or MOST_ROWS)
            self.fitting_rows = self.sampler.fitting_rows
            turned = set[int]()
            if rounding == "mended":
                for number in sorted(close):
                    [answers[number]] = draw(1, [fitting[number]])
            else:
                turned = self.sampler.turned(model, fitting, answers, close)
        drawn, precision = iter(enumerate(answers)), self.precision(base=request["base"])
        unpacked = [UNPACKED] * (precision == NF4 and rounding != "left" and unpacks(self.folder))
        replies: list[dict[str, Any]] = []
        for prompt in asked:
            if not isinstance(prompt, list):
                replies.append(prompt)
                continue
            number, ids = next(drawn)
            reply: dict[str, Any] = {**self._reply(prompt, ids, tools, most), "precision": precision}
            reply["notes"] += [ROUNDED_OTHERWISE] * (number in turned) + unpacked
            replies.append(reply)
        send({"replies": replies})

    def _form(self, asked: dict[str, Any]) -> Callable[[Sequence[int]], ConstrainedAnswer]:
        """Return a function that creates the constraint for the answer to a prompt. Raises `UsageError`,
        `MissingExtra`."""
        if self._forms is None:
            self._forms = Forms(self.template, self.sampler.stops)
        forms, form = self._forms, decoding.convert(asked, AnswerForm)
        return lambda prompt: forms.held(form, prompt)

    def likelihoods(self, request: dict[str, Any], send: Send) -> None:
        model, adapter = self.model(request["base"])
        with adapter:
            rows, most = request["likelihoods"], self.sampler.context
            send({"likelihoods": likelihoods(model, self.template, self.device, rows, most)})

    def _prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[int]:
        return self.template.asked([decoding.convert(m, ChatMessage) for m in messages], tools)

    def _asked(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
    ) -> list[int] | dict[str, Any]:
        """Return the prompt, or why it cannot be answered."""
        try:
            prompt = self._prompt(messages, tools)
        except DataError as error:
            return {"refused": error.message, "fix": error.fix}
        if self.sampler.room(prompt, 1):
            return prompt
        most = self.sampler.context
        told = (
            f"the question has {len(prompt)} tokens, but the model's context is {most} tokens including "
            "the answer"
        )
        return {"refused": told, "fix": "shorten it or drop the row"}

    def _reply(self, prompt: list[int], ids: list[int], tools: Any, most: int) -> dict[str, Any]:
        own, stopped = self.sampler.said(ids)
        said = self.template.said(own, prompt, tools=tools, cut=not stopped)
        notes = list(said.notes)
        if not stopped and not said.content and not said.tool_calls and said.reasoning:
            notes.append(CUT_WITHIN_THINKING)
        if not stopped and self.sampler.room(prompt, most) < most:
            notes.append(f"cut off at the model's context of {self.sampler.context} tokens")
        if self.by_size:
            notes.append(CHOSEN_BY_SIZE)
        if self.trained_length is not None and len(prompt) > self.trained_length:
            notes.append(f"the question is longer than the training rows ({self.trained_length} tokens)")
        return {
            "content": said.content,
            "reasoning": said.reasoning,
            "tool_calls": [msgspec.to_builtins(call) for call in said.tool_calls],
            "model": str(self.adapter or self.folder.hub_id or self.folder.path),
            "prompt_tokens": len(prompt),
            "completion_tokens": len(ids),
            "finish_reason": "length" if not stopped else "tool_calls" if said.tool_calls else "stop",
            "notes": notes,
        }

    def _watch(self, tools: Any, send: Send) -> Callable[[Sequence[DecodingRow]], None]:
        """Return a callback that streams the part of the answer that is certain, as it is written."""
        model = EngineModel("", "", self.template, self.sampler)
        speeches: list[Speech] = []

        def watch(rows: Sequence[DecodingRow]) -> None:
            if not speeches:
                speeches.append(Speech(rows[0], model, 0, chat=True, stream=True, tools=tools, calls=True))
            if not rows[0].ended and (piece := speeches[0].take()) and piece["content"]:
                send({"piece": piece["content"]})

        return watch
