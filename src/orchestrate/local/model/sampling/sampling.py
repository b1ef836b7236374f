"""Answers of a loaded model, for talking to it and for training by rewards. Imports torch."""

# torch, transformers and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from transformers import GenerationConfig

from orchestrate.data.rows.examples import ChatExample, ChatMessage
from orchestrate.local.encoding.encoding import Template, encode
from orchestrate.local.model.files.models import ModelFolder
from orchestrate.local.model.sampling import caches, rounding
from orchestrate.local.model.shortcuts.probes import distance

ROUNDED = 0.05
"""Relative distance of logits that rounding to 16 bits explains."""


@dataclass
class Sampler:
    """Draws answers."""

    stops: tuple[int, ...]
    """The tokens that end an answer."""
    others: tuple[tuple[int, ...], ...]
    """Tokens that begin somebody else's turn: what has written them has ended its answer too."""
    pad: int
    device: torch.device
    context: int | None
    """The most tokens of prompt and answer together."""
    shares: bool = False
    """Whether what all prompts of a batch begin with is read once."""
    _bears_padding: bool | None = None
    _bears_sharing: bool | None = None

    @classmethod
    def of(cls, template: Template, folder: ModelFolder, device: torch.device) -> Sampler:
        others = tuple(tuple(template.tokens(text)[0]) for text in sorted(template.shape.others))
        pad = template.tokenizer.pad_token_id or 0
        return cls(stop_tokens(template, folder), others, pad, device, folder.context)

    def settings(self, max_tokens: int, temperature: float) -> dict[str, Any]:
        """For `generate`: what the model itself says, or for temperature 0 the likeliest token each time."""
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        return {
            "max_new_tokens": max_tokens,
            "eos_token_id": list(self.stops),
            "pad_token_id": self.pad,
            **(sampling if temperature > 0 else {"do_sample": False}),
        }

    def draw(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float,
        most_rows: int,
        look_up: Callable[[], None] = lambda: None,
        watch: Callable[[list[list[int]]], None] | None = None,
        close: set[int] | None = None,
    ) -> list[list[int]]:
        """Token ids of one answer to each prompt, in order, the token that ended it included where there was
        one. Prompts of like length are answered together, as far as that changes no answer. `look_up` runs
        before each token and may raise; `watch` gets what has been drawn so far of each row; `close` gets the
        places of prompts that were answered beside others and whose answer rounding may have turned (see
        `rounding`)."""
        answers: list[list[int]] = [[]] * len(prompts)
        with _plainly(model):
            for part, room in self._parts(model, prompts, max_tokens, most_rows):
                asked = [prompts[i] for i in part]
                longest = max(map(len, asked))

                def looking(
                    ids: torch.Tensor, _scores: Any, start: int = longest, **_more: Any
                ) -> torch.Tensor:
                    look_up()
                    if watch is not None:
                        watch(ids[:, start:].tolist())
                    return self._ended_otherwise(ids[:, start:])

                leads = rounding.Leads() if close is not None and len(part) > 1 else None
                out = model.generate(
                    **self._inputs(asked, longest, **self._shared(model, asked, longest + room)),
                    stopping_criteria=[looking],
                    logits_processor=[] if leads is None else [leads],
                    **self.settings(room, temperature),
                )
                for i, row in zip(part, out[:, longest:].tolist(), strict=True):
                    answers[i] = self._ended(row)
                if close is not None and leads is not None:
                    near = leads.close([len(answers[i]) for i in part])
                    close |= {i for i, one in zip(part, near, strict=True) if one}
        return answers

    def turned(
        self, model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], close: set[int]
    ) -> set[int]:
        """Which of the answers at the places that `draw` gave as `close` rounding did turn."""
        places = sorted(close)
        asked, given = ([rows[i] for i in places] for rows in (prompts, answers))
        share = self.shares and self._bears_sharing is True
        found = rounding.otherwise_alone(model, asked, given, share=share) if places else []
        return {i for i, one in zip(places, found, strict=True) if one}

    def said(self, ids: list[int]) -> tuple[list[int], bool]:
        """An answer without what ended it, and whether the model ended it itself."""
        if ids and ids[-1] in self.stops:
            return ids[:-1], True
        for other in self.others:
            if tuple(ids[-len(other) :]) == other:
                return ids[: -len(other)], True
        return ids, False

    def room(self, prompt: Sequence[int], max_tokens: int) -> int:
        """The most tokens of its answer; none or fewer where the prompt fills the model's context."""
        return max_tokens if self.context is None else max(0, min(max_tokens, self.context - len(prompt)))

    def _parts(
        self, model: Any, prompts: Sequence[Sequence[int]], max_tokens: int, most_rows: int
    ) -> Iterator[tuple[list[int], int]]:
        """Prompts that are answered together, and the most tokens of their answers."""
        part: list[int] = []
        room = 0
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
            mine = self.room(prompts[i], max_tokens)
            first = prompts[part[0]] if part else ()
            together = len(part) < most_rows and mine == room
            if part and not (
                together and (len(first) == len(prompts[i]) or self._pads(model, first, prompts[i]))
            ):
                yield part, room
                part = []
            part, room = [*part, i], mine
        if part:
            yield part, room

    def _pads(self, model: Any, short: Sequence[int], long: Sequence[int]) -> bool:
        """Whether a prompt has the same next token behind padding as alone: some architectures look at the
        padding."""
        if self._bears_padding is None:
            self._bears_padding = self._same(model, short, self._inputs([short, long], len(long)))
        return self._bears_padding

    def _shared(self, model: Any, prompts: Sequence[Sequence[int]], columns: int) -> dict[str, Any]:
        """For `_inputs`: what all prompts begin with, read once; nothing where that changes what comes next,
        which is looked at the first time. A window of fewer columns than prompt and answer may have would
        lose tokens to the padding within."""
        begins = caches.in_common(prompts) if self.shares and self._bears_sharing is not False else 0
        if not begins or columns > (caches.window(model) or columns):
            return {}
        if self._bears_sharing is None:
            short, long = min(prompts, key=len), max(prompts, key=len)
            cache = caches.read_once(model, short[:begins], 2)
            both = self._inputs([short, long], len(long), begins, cache)
            self._bears_sharing = bool(cache) and self._same(model, short, both)
            return self._shared(model, prompts, columns)
        return {"begins": begins, "cache": caches.read_once(model, prompts[0][:begins], len(prompts))}

    def _same(self, model: Any, prompt: Sequence[int], beside: dict[str, Any]) -> bool:
        """Whether a prompt has the same next token alone as in the first row of other inputs."""
        once = {**self.settings(1, 0.0), "output_logits": True, "return_dict_in_generate": True}
        with torch.no_grad():
            alone, other = (
                model.generate(**inputs, **once).logits[0][0]
                for inputs in (self._inputs([prompt], len(prompt)), beside)
            )
        exact = not rounding.rounds(model, self.device)
        centred = alone - alone.mean()
        return distance(other - alone + centred, centred) <= (1e-3 if exact else ROUNDED)

    def _inputs(
        self,
        prompts: Sequence[Sequence[int]],
        longest: int,
        begins: int = 0,
        cache: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Padding stands before a prompt, behind the `begins` tokens that `cache` holds of all of them."""
        empty = [longest - len(prompt) for prompt in prompts]
        rows = [
            [*prompt[:begins], *[self.pad] * n, *prompt[begins:]]
            for n, prompt in zip(empty, prompts, strict=True)
        ]
        seen = [[1] * begins + [0] * n + [1] * (longest - begins - n) for n in empty]
        return {
            "input_ids": torch.tensor(rows, device=self.device),
            "attention_mask": torch.tensor(seen, device=self.device),
            **(cache or {}),
        }

    def _ended_otherwise(self, drawn: torch.Tensor) -> torch.Tensor:
        """[rows] Which answers end with what begins somebody else's turn."""
        ended = torch.zeros(len(drawn), dtype=torch.bool, device=self.device)
        for other in self.others:
            if drawn.shape[1] >= len(other):
                wanted = torch.tensor(other, device=self.device)
                ended |= (drawn[:, -len(other) :] == wanted).all(dim=1)
        return ended

    def _ended(self, ids: list[int]) -> list[int]:
        for n in range(len(ids)):
            if ids[n] in self.stops or any(tuple(ids[: n + 1][-len(o) :]) == o for o in self.others):
                return ids[: n + 1]
        return ids


@contextmanager
def _plainly(model: Any) -> Generator[None]:
    """Without what the model's `generation_config` does to the odds of tokens, such as a penalty for
    repeating: the likeliest token is the model's own, and training by rewards draws from what it trains."""
    holders = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    kept = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, own in zip(holders, kept, strict=True):
            holder.generation_config = own


def stop_tokens(template: Template, folder: ModelFolder) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's, the model's, and those with which the template ends an
    answer or calls of tools."""
    talk = ChatExample(
        messages=[ChatMessage(role="user", content="Hi"), ChatMessage(role="assistant", content="Hello")]
    )
    encoded = encode(talk, template)
    trained = [i for i, w in zip(encoded.ids, encoded.weights, strict=True) if w]
    stops = {i for i in trained[-1:] if i in template.special}
    stops |= {ids[0] for end in template.shape.ends if len(ids := template.tokens(end)[0]) == 1}
    path = folder.path / "generation_config.json"
    given: Any = msgspec.json.decode(path.read_bytes()).get("eos_token_id") if path.is_file() else None
    more: list[Any] = [*(given if isinstance(given, list) else [given]), template.tokenizer.eos_token_id]
    return tuple(sorted(stops | {i for i in more if i is not None}))
