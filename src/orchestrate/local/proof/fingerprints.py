"""Build the fingerprint of a tuned model: the prompts on which it differs most from its base, with the
answers and log-probabilities computed during training. Imports torch."""

# torch, transformers and numpy have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor
from torch.nn.functional import log_softmax

from orchestrate.data.rows import ChatMessage
from orchestrate.data.tokens.hub_tokens import bytes_of
from orchestrate.errors import DataError
from orchestrate.local.encoding import Template
from orchestrate.local.model.sampling.sampler import Sampler
from orchestrate.local.proof import (
    ANSWER_TOKENS,
    CANARIES,
    CANDIDATES,
    CLEAR,
    ENDING_TOKENS,
    LONGEST_PROMPT,
    ProbePrompt,
    probes,
)
from orchestrate.types import Canary, Fingerprint, Probe, Said


@dataclass(frozen=True)
class BaseAndTuned:
    """A tuned model and its base. `using(True)` yields the base model, and `using(False)` the tuned model."""

    using: Callable[[bool], AbstractContextManager[Any]]
    template: Template
    sampler: Sampler


def find(
    models: BaseAndTuned,
    data: Sequence[ProbePrompt],
    *,
    base_model: str,
    base_hash: str,
    precision: str,
    context: int | None = None,
) -> Fingerprint:
    """Build the fingerprint of a tuned model, with prompts on which it differs from its base (canaries). The
    prompts in `data` are tried as canaries before the built-in prompts. `context` is the model's maximum
    context length in tokens."""
    template = models.template
    asked = probes(sorted(str(t) for t in template.tokenizer.all_special_tokens))
    shown, refused = _rendered(template, asked)
    room = min(LONGEST_PROMPT, (context or LONGEST_PROMPT) - ANSWER_TOKENS)
    fitting = [(a, ids) for a in data if (ids := _ids(template, a)) and len(ids) <= room]
    candidates = [*fitting, *((a, list(p.ids)) for a, p in shown)][:CANDIDATES]
    canaries = _canaries(models, candidates)
    return Fingerprint(
        base_model=base_model,
        base_hash=base_hash,
        template_hash=template_hash(template),
        stops=models.sampler.stops,
        stop_words=tuple(template.tokenizer.convert_ids_to_tokens(list(models.sampler.stops))),
        precision=precision,
        noise=_noise(models, canaries),
        probes=tuple(p for _, p in shown),
        refused=refused,
        canaries=tuple(canaries),
    )


def template_hash(template: Template) -> str:
    """Compute the SHA-256 of the chat template's text."""
    return hashlib.sha256(template.chats.source(None).encode()).hexdigest()


def _rendered(
    template: Template, asked: Sequence[ProbePrompt]
) -> tuple[list[tuple[ProbePrompt, Probe]], dict[str, str]]:
    shown: list[tuple[ProbePrompt, Probe]] = []
    refused: dict[str, str] = {}
    for one in asked:
        try:
            ids = template.asked(one.messages, list(one.tools) if one.tools else None)
        except DataError as error:
            refused[one.kind] = error.message
            continue
        shown.append((one, Probe(kind=one.kind, messages=one.plain, tools=one.tools, ids=tuple(ids))))
    return shown, refused


def _ids(template: Template, asked: ProbePrompt) -> list[int] | None:
    if asked.text is not None:
        ids = template.tokens(asked.text)[0]
        start = template.tokenizer.bos_token_id
        return ids if start is None or ids[:1] == [start] else [start, *ids]
    try:
        messages: Sequence[ChatMessage] = asked.messages
        return template.asked(messages, list(asked.tools) if asked.tools else None)
    except DataError:
        return None


def _canaries(models: BaseAndTuned, candidates: Sequence[tuple[ProbePrompt, list[int]]]) -> list[Canary]:
    if not candidates:
        return []
    prompts = [ids for _, ids in candidates]
    tuned = _answered(models, prompts, base=False)
    with models.using(True) as model:
        before = [
            logprobs(model, p, said.ids, models.sampler.device)
            for p, said in zip(prompts, tuned, strict=True)
        ]
    apart = [
        (sum(said.logprobs) - sum(base)) / max(1, len(base)) for said, base in zip(tuned, before, strict=True)
    ]
    order = sorted(range(len(prompts)), key=lambda i: -apart[i])[: 2 * CANARIES]
    base = _answered(models, [prompts[i] for i in order], base=True)
    with models.using(False) as model:
        after = [
            logprobs(model, prompts[i], said.ids, models.sampler.device)
            for i, said in zip(order, base, strict=True)
        ]
    found = [
        Canary(
            messages=candidates[i][0].plain,
            tools=candidates[i][0].tools,
            text=candidates[i][0].text,
            ids=tuple(prompts[i]),
            tuned=tuned[i],
            base=said,
            apart=apart[i],
        )
        for i, said, read in zip(order, base, after, strict=True)
        if said.text != tuned[i].text and tuned[i].text.strip() and _margin(tuned[i], said, read) > CLEAR
    ]
    return _ended(models, found[:CANARIES])


def _margin(own: Said, other: Said, read: Sequence[float]) -> float:
    """Return by how many nats a model prefers its own answer at the first token where the other's differs.
    `read` is the log-probability that it gives the other's tokens."""
    at = next(n for n, (a, b) in enumerate(zip(own.ids, other.ids, strict=False)) if a != b)
    return own.logprobs[at] - read[at]


def _ended(models: BaseAndTuned, canaries: list[Canary]) -> list[Canary]:
    """Generate longer answers if fewer than two of them end, so that the proof also covers where the server
    stops."""
    if not canaries or sum(c.tuned.ended for c in canaries) > 1:
        return canaries
    longer = _answered(models, [c.ids for c in canaries], base=False, most=ENDING_TOKENS)
    return [
        replace(canary, tuned=said) if said.ended else canary
        for canary, said in zip(canaries, longer, strict=True)
    ]


def _answered(
    models: BaseAndTuned, prompts: Sequence[Sequence[int]], *, base: bool, most: int = ANSWER_TOKENS
) -> list[Said]:
    sampler, tokenizer = models.sampler, models.template.tokenizer
    with models.using(base) as model:
        drawn = sampler.draw(model, prompts, max_tokens=most, temperature=0.0, most_rows=CANDIDATES)
        scores = [_with_margins(model, p, ids, sampler.device) for p, ids in zip(prompts, drawn, strict=True)]
    said: list[Said] = []
    special = models.template.special
    for ids, (values, margins) in zip(drawn, scores, strict=True):
        ended = bool(ids) and ids[-1] in sampler.stops
        text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
        pieces = tuple(b"" if id in special else bytes_of(tokenizer, id) for id in ids)
        said.append(
            Said(
                text=text,
                ids=tuple(ids),
                logprobs=tuple(values),
                margins=tuple(margins),
                pieces=pieces,
                ended=ended,
            )
        )
    return said


def logprobs(model: Any, prompt: Sequence[int], answer: Sequence[int], device: torch.device) -> list[float]:
    """Compute the log-probability, in nats, of each token of an answer to the prompt, without batching."""
    return _with_margins(model, prompt, answer, device)[0]


def _with_margins(
    model: Any, prompt: Sequence[int], answer: Sequence[int], device: torch.device
) -> tuple[list[float], list[float]]:
    """Compute `logprobs`, and by how much each token is preferred to the most likely other one."""
    if not answer:
        return [], []
    row = torch.tensor([[*prompt, *answer]], device=device)
    return _of_answer(model(input_ids=row, use_cache=False).logits[0], prompt, answer)


def _of_answer(
    logits: Tensor, prompt: Sequence[int], answer: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Return the log-probabilities of the answer's tokens, and their margins. `logits` [tokens, vocabulary]
    are those of prompt and answer."""
    places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
    values = log_softmax(logits[places].float(), dim=-1)
    own = torch.tensor(answer, device=values.device)[:, None]
    taken = values.gather(1, own)[:, 0]
    margins = taken - values.scatter(1, own, -torch.inf).amax(1)
    return [round(v, 6) for v in taken.tolist()], [round(v, 6) for v in margins.tolist()]


def _noise(models: BaseAndTuned, canaries: Sequence[Canary]) -> float:
    """Compare the base's own answers in one padded batch with each answer alone."""
    rows = [[*c.ids, *c.base.ids] for c in canaries if c.base.ids]
    if not rows:
        return 0.0
    longest, pad = max(map(len, rows)), models.sampler.pad
    ids = torch.tensor([r + [pad] * (longest - len(r)) for r in rows], device=models.sampler.device)
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows], device=models.sampler.device)
    with models.using(True) as model:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    apart: list[float] = []
    for canary, row in zip([c for c in canaries if c.base.ids], logits, strict=True):
        together, _ = _of_answer(row, canary.ids, canary.base.ids)
        apart += [abs(a - b) for a, b in zip(together, canary.base.logprobs, strict=True)]
    return round(sum(apart) / len(apart), 6)
