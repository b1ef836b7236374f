"""Answers of a loaded model, for talking to it and for training by rewards. Imports torch."""

# torch, transformers and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from orchestrate.data.rows.examples import ChatExample, ChatMessage
from orchestrate.local.encoding.encoding import Template, encode
from orchestrate.local.model.models import ModelFolder


@dataclass(frozen=True)
class Sampler:
    """Draws answers. `stops` are the tokens that end one."""

    stops: tuple[int, ...]
    pad: int
    device: torch.device

    @classmethod
    def of(cls, template: Template, folder: ModelFolder, device: torch.device) -> Sampler:
        return cls(stop_tokens(template, folder), template.tokenizer.pad_token_id or 0, device)

    def settings(self, max_tokens: int, temperature: float) -> dict[str, Any]:
        """For `generate`: what the model itself says, or for temperature 0 the likeliest token each time."""
        sampling = {
            "do_sample": True,
            "temperature": temperature,
            "top_k": 0,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
        }
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
    ) -> list[list[int]]:
        """Token ids of one answer to each prompt, in order, the stop token included where there was one.
        Prompts of like length are answered together. `look_up` runs before each token and may raise."""

        def looking(ids: torch.Tensor, _scores: Any, **_more: Any) -> torch.Tensor:
            look_up()
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers: list[list[int]] = [[]] * len(prompts)
        for start in range(0, len(order), most_rows):
            part = order[start : start + most_rows]
            longest = max(len(prompts[i]) for i in part)
            empty = [longest - len(prompts[i]) for i in part]
            rows = [[self.pad] * n + list(prompts[i]) for n, i in zip(empty, part, strict=True)]
            mask = [[0] * n + [1] * (longest - n) for n in empty]
            out = model.generate(
                input_ids=torch.tensor(rows, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                stopping_criteria=[looking],
                **self.settings(max_tokens, temperature),
            )
            for i, row in zip(part, out[:, longest:].tolist(), strict=True):
                answers[i] = self._ended(row)
        return answers

    def _ended(self, ids: list[int]) -> list[int]:
        end = next((n for n, i in enumerate(ids) if i in self.stops), len(ids))
        return ids[: end + 1]


def stop_tokens(template: Template, folder: ModelFolder) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's, the model's, and the one that the template puts
    there."""
    talk = ChatExample(
        messages=[ChatMessage(role="user", content="Hi"), ChatMessage(role="assistant", content="Hello")]
    )
    encoded = encode(talk, template)
    trained = [i for i, w in zip(encoded.ids, encoded.weights, strict=True) if w]
    stops = {i for i in trained[-1:] if i in template.special}
    path = folder.path / "generation_config.json"
    given: Any = msgspec.json.decode(path.read_bytes()).get("eos_token_id") if path.is_file() else None
    more: list[Any] = [*(given if isinstance(given, list) else [given]), template.tokenizer.eos_token_id]
    return tuple(sorted(stops | {i for i in more if i is not None}))
