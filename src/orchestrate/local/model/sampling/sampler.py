"""Sample answers from a loaded model, for inference and reinforcement fine-tuning. Imports torch."""

# The type annotations of torch, transformers and numpy are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from orchestrate.data.rows import ChatExample, ChatMessage
from orchestrate.errors import RunFailed, UsageError
from orchestrate.local.encoding import Template, encode
from orchestrate.local.model import sampling
from orchestrate.local.model.files import ModelFolder
from orchestrate.local.model.sampling import NO_FORM, NO_MEMORY, DrawnToken, Holds, SamplingSettings
from orchestrate.local.model.sampling.batching import AS_IT_IS, Batching, DecodingRow, Read
from orchestrate.local.model.shortcuts.probes import distance

ROUNDED = 0.05
"""Largest relative distance between logits that 16-bit rounding alone can cause."""


@dataclass
class Sampler:
    """Samples answers."""

    stops: tuple[int, ...]
    """Tokens that end an answer."""
    others: tuple[tuple[int, ...], ...]
    """Token sequences that begin another speaker's turn. They also end the answer."""
    pad: int
    device: torch.device
    context: int | None
    """Context length in tokens, for prompt and answer together. `None` if it is unknown."""
    shares: bool = False
    """True to compute a prefix only once if all prompts of a batch share it."""
    fitting_rows: int | None = None
    """Number of rows that fit in memory. `None` until memory runs out for the first time."""
    holds: Callable[[Sequence[int]], Holds] | None = None
    """Function that creates the constraint for the answer to a prompt."""
    _bears_padding: bool | None = None
    _bears_sharing: bool | None = None
    _beginning: tuple[list[int], Any] | None = None
    """The common prefix of the current prompts, and the prefix's cache."""

    @classmethod
    def of(cls, template: Template, folder: ModelFolder, device: torch.device) -> Sampler:
        others = tuple(tuple(template.tokens(text)[0]) for text in sorted(template.shape.others))
        pad = template.tokenizer.pad_token_id or 0
        return cls(stop_tokens(template, folder), others, pad, device, folder.context)

    def draw(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float,
        most_rows: int,
        check_requests: Callable[[], None] = lambda: None,
        watch: Callable[[Sequence[DecodingRow]], None] | None = None,
        close: set[int] | None = None,
    ) -> list[list[int]]:
        """Sample one answer to each prompt, in order. Answers are token ids and include the end token, if
        any. Prompts of similar length are prefilled in one pass if this changes no answer.

        `check_requests` is called before each step and may raise. `watch` is called with the rows after each
        step. If batching may have changed an answer through 16-bit rounding, the index of its prompt is added
        to `close`. Raises `RunFailed` if the model's outputs are not finite."""
        looks = False if close is not None and len(prompts) > 1 and most_rows > 1 else None
        rows = [
            DecodingRow(
                str(place),
                AS_IT_IS,
                list(prompt),
                SamplingSettings(temperature, held=None if self.holds is None else self.holds(prompt)),
                self.room(prompt, max_tokens),
                frozenset(self.stops),
                self.others,
                close=looks,
            )
            for place, prompt in enumerate(prompts)
        ]
        most = min(most_rows, self.fitting_rows or most_rows)
        batching = Batching(model, most_rows=most, reader=self)
        batching.waiting += sorted((row for row in rows if row.room), key=lambda row: len(row.prompt))
        self._beginning = None
        try:
            while not batching.idle:
                check_requests()
                for _, drawn in batching.step():
                    _require_token(drawn)
                if watch is not None:
                    watch(rows)
        finally:
            self._beginning = None
        if batching.most_rows < most:
            self.fitting_rows = batching.most_rows
        if close is not None:
            close |= {place for place, row in enumerate(rows) if row.close}
        return [row.ids for row in rows]

    def changed_by_rounding(
        self, model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], close: set[int]
    ) -> set[int]:
        """Return the indices of the answers that 16-bit rounding changed. Only checks the candidates in
        `close`, which `draw` collected."""
        places = sorted(close)
        asked, given = ([rows[i] for i in places] for rows in (prompts, answers))
        share = self.shares and self._bears_sharing is True
        found = sampling.changed_by_batching(model, asked, given, share=share) if places else []
        return {i for i, one in zip(places, found, strict=True) if one}

    def said(self, ids: list[int]) -> tuple[list[int], bool]:
        """Strip the tokens that end an answer. Returns the remaining tokens, and True if the model ended the
        answer itself rather than being cut off."""
        if ids and ids[-1] in self.stops:
            return ids[:-1], True
        for other in self.others:
            if tuple(ids[-len(other) :]) == other:
                return ids[: -len(other)], True
        return ids, False

    def room(self, prompt: Sequence[int], max_tokens: int) -> int:
        """Return the maximum number of tokens in the answer: `max_tokens`, or the context that remains after
        the prompt if that is smaller."""
        return max_tokens if self.context is None else max(0, min(max_tokens, self.context - len(prompt)))

    # -- prefilling, as in `batching.PromptReader` -----------------------------------------------------------

    @property
    def joins(self) -> bool:
        return self._bears_padding is True

    def at_once(self, model: Any, rows: Sequence[DecodingRow]) -> int:
        first = rows[0].read
        if self._bears_padding is None and len(rows) > 1:
            longer = next((row.read for row in rows if len(row.read) > len(first)), [*first, *first[:1]])
            self._bears_padding = self._same(model, first, self._rows(model, [first, longer]))
        if self._bears_padding:
            return len(rows)
        return next((n for n, row in enumerate(rows) if len(row.read) != len(first)), len(rows))

    def read(self, model: Any, rows: Sequence[DecodingRow]) -> Read:
        prompts = [row.read for row in rows]
        columns = max(len(row.prompt) + row.room for row in rows)
        begins = self._begins(model, prompts, columns)
        return self._rows(model, prompts, begins)

    def _begins(self, model: Any, prompts: list[list[int]], columns: int) -> int:
        """Return the length of the common prefix to compute only once. Returns 0 if that changes the next
        token, which is checked the first time. A window with fewer columns than prompt and answer would lose
        tokens to the padding."""
        if not self.shares or self._bears_sharing is False or columns > (sampling.window(model) or columns):
            return 0
        if self._beginning is not None and all(
            len(prompt) > len(self._beginning[0]) and prompt[: len(self._beginning[0])] == self._beginning[0]
            for prompt in prompts
        ):
            return len(self._beginning[0])
        begins = sampling.in_common(prompts)
        if not begins:
            return 0
        cache = sampling.read_once(model, prompts[0][:begins])
        self._beginning = (prompts[0][:begins], cache)
        if self._bears_sharing is None:
            short, long = min(prompts, key=len), max(prompts, key=len)
            self._bears_sharing = cache is not None and self._same(
                model, short, self._rows(model, [short, long], begins)
            )
        return begins if self._bears_sharing else 0

    def _same(self, model: Any, prompt: list[int], beside: Read) -> bool:
        """Return whether a prompt has the same next token alone as in the first prefilled row."""
        alone, other = self._rows(model, [prompt]).logits[0].float(), beside.logits[0].float()
        exact = not sampling.rounds(model, self.device)
        centred = alone - alone.mean()
        return distance(other - alone + centred, centred) <= (1e-3 if exact else ROUNDED)

    def _rows(self, model: Any, prompts: Sequence[list[int]], begins: int = 0) -> Read:
        """Build the padded input. Padding comes before each prompt, after the `begins` tokens that were
        already computed."""
        longest = max(map(len, prompts))
        empty = [longest - len(prompt) for prompt in prompts]
        ids = [[*[self.pad] * n, *p[begins:]] for n, p in zip(empty, prompts, strict=True)]
        seen = [[1] * begins + [0] * n + [1] * (longest - begins - n) for n in empty]
        mask = torch.tensor(seen, device=self.device)
        name, only_last = sampling.takes(model)
        given: dict[str, Any] = {"logits_to_keep": 1} if only_last else {}
        if any(empty) or begins:
            given["attention_mask"] = mask
            given["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, begins:]
        if begins and self._beginning is not None:
            cache = sampling.for_rows(self._beginning[1], len(prompts))
        else:
            cache = sampling.new_cache(model)
        given = {"input_ids": torch.tensor(ids, device=self.device), "use_cache": True, name: cache, **given}
        return Read(model(**given).logits[:, -1], cache, mask)


def _require_token(drawn: DrawnToken) -> None:
    if drawn.failed == NO_MEMORY:
        raise torch.OutOfMemoryError(
            "this machine has too little memory to answer this prompt, even in a batch of one"
        )
    if drawn.failed == NO_FORM:
        raise UsageError("the schema is too complex to enforce: simplify the schema")
    if drawn.failed:
        raise RunFailed(
            "the model produces non-finite numbers: its weights are corrupt or overflow on this machine"
        )


def stop_tokens(template: Template, folder: ModelFolder) -> tuple[int, ...]:
    """Return the tokens that end an answer: the end-of-sequence tokens of the tokenizer and the model, and
    the tokens that the chat template writes after an answer or after tool calls."""
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
