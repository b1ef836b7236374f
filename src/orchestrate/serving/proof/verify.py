"""Run the four stages of the proof: tokens, answers, distance, stop.

1. The endpoint tokenizes prompts exactly as in training.
2. The endpoint answers canaries like the tuned model. Canaries are prompts that the base and the tuned model
   answer differently. An answer that first differs where the tuned model hesitated between two tokens doesn't
   count, because rounding decides there.
3. The log-probabilities of these answers differ from the trainer's by at most 0.02 nats per token, or by at
   most twice the base model's difference on the same endpoint if that is larger. For bf16, the limit is
   raised by one bf16 step of a logit, divided by the square root of the number of compared tokens. If the
   endpoint reports no log-probabilities, the share of matching answers and its interval decide instead.
4. Answers end exactly at the end of the turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import accumulate

from orchestrate.core.underway import work
from orchestrate.errors import UsageError
from orchestrate.evaluation.statistics import wilson
from orchestrate.local.proof import CLEAR
from orchestrate.serving.proof.observations import ObservedAnswer, PromptView, TunedEndpoint
from orchestrate.text import count
from orchestrate.types import Canary, Fingerprint, Probe, Proof, ProofStage, Said

LEAST_FLOOR = 0.01
"""Minimum tolerance in nats per token. Two engines with the same precision differ by about 0.004."""
BF16_STEP = 0.0625
"""Spacing of bf16 values between 8 and 16, the typical range for logits of likely tokens. Two correct engines
may differ by one such step for a single token, but the differences average out over many tokens."""
AGREEMENT = 0.9
"""Required share of matching answers if log-probabilities are not reported. The share is measured on a
sample, so the proof only fails if the upper end of its confidence interval is below this value."""


def verify(
    fingerprint: Fingerprint, place: TunedEndpoint, *, run_id: str, weights: str | None = None
) -> Proof:
    """Verify the endpoint `place` against the trained model's fingerprint, and return the proof.
    Errors raised by the endpoint propagate."""
    with work(f"asking {place.at}"):
        return _judged(fingerprint, place, run_id, weights)


def _judged(fingerprint: Fingerprint, place: TunedEndpoint, run_id: str, weights: str | None) -> Proof:
    asked = place.prompts(fingerprint.probes)
    stages = [_tokens(fingerprint.probes, asked)]
    if fingerprint.canaries:
        tuned = place.answers(fingerprint.canaries, base=False)
        if tuned is None:
            raise UsageError(f"{place.at} does not serve {place.model}")
        stages += [
            _answers(fingerprint.canaries, tuned, place.model),
            _distance(fingerprint, place, tuned),
            _stop(fingerprint, tuned),
        ]
    else:
        why = "found no prompt that the base and the tuned model answer differently"
        stages.append(ProofStage(name="answers", state="unknown", detail=why))
    failed = any(s.state == "failed" for s in stages)
    return Proof(
        run_id=run_id,
        at=place.at,
        engine=place.engine,
        model=place.model,
        state="failed" if failed else "proved" if all(s.state == "passed" for s in stages) else "in part",
        stages=tuple(stages),
        weights=weights,
        created_at=datetime.now(UTC),
    )


def _tokens(probes: Sequence[Probe], asked: Sequence[PromptView]) -> ProofStage:
    other: list[str] = []
    same = counted = 0
    for probe, seen in zip(probes, asked, strict=True):
        if seen.refused is not None:
            other.append(f"{probe.kind}: rejected ({seen.refused})")
        elif seen.ids is not None:
            if tuple(seen.ids) == probe.ids:
                same += 1
            else:
                other.append(f"{probe.kind}: {_difference(probe.ids, seen.ids)}")
        elif seen.count is not None:
            if seen.count == len(probe.ids):
                counted += 1
            else:
                other.append(f"{probe.kind}: {seen.count} tokens, but {len(probe.ids)} in training")
    figures: dict[str, float] = {"kinds": len(probes), "same": same, "same count": counted}
    if other:
        return ProofStage(
            name="tokens",
            state="failed",
            detail="the server tokenizes prompts differently than in training: " + "; ".join(other),
            fix="serve the model with the chat_template.jinja and tokenizer files of its export. If the "
            "model has a first token (BOS), the server or the chat template must add it exactly once",
            figures=figures,
        )
    if same == len(probes):
        return ProofStage(
            name="tokens",
            state="passed",
            detail=f"the token ids match for {count(same, 'kind')} of prompts",
            figures=figures,
        )
    detail = (
        f"the token counts match for {counted} of {len(probes)} kinds of prompts, but the "
        "server reports no token ids"
        if counted
        else "the server returns neither token ids nor token counts"
    )
    return ProofStage(
        name="tokens",
        state="unknown",
        detail=detail,
        figures=figures,
    )


def _difference(wanted: Sequence[int], seen: Sequence[int]) -> str:
    at = next(
        (n for n, (a, b) in enumerate(zip(wanted, seen, strict=False)) if a != b), min(len(wanted), len(seen))
    )
    if list(seen[1:]) == list(wanted):
        return f"one extra token ({seen[0]}) at the start"
    if list(wanted[1:]) == list(seen):
        return f"the first token ({wanted[0]}) is missing"
    return f"{len(seen)} tokens instead of {len(wanted)}, first difference at token {at + 1}"


def _answers(canaries: Sequence[Canary], answers: Sequence[ObservedAnswer], model: str) -> ProofStage:
    """Compare the answers. Each canary counts for the model whose answer it matches for longer, or for
    neither. It doesn't count if the answers part where the trained model hesitated between two tokens."""
    tuned = base = ties = 0
    for canary, observed in zip(canaries, answers, strict=True):
        as_tuned, as_base = _shared(observed, canary.tuned), _shared(observed, canary.base)
        tuned += as_tuned > as_base
        base += as_base > as_tuned
        ties += as_base == as_tuned and _at_near_tie(observed, canary.tuned)
    figures: dict[str, float] = {"canaries": len(canaries), "as tuned": tuned, "as base": base, "ties": ties}
    if 2 * ties > len(canaries):
        return ProofStage(name="answers", state="unknown", detail=_tied(ties, canaries), figures=figures)
    least = max(1, round(0.75 * (len(canaries) - ties)))
    if tuned >= least:
        detail = f"the served model matched the tuned model on {tuned} of {len(canaries)} canary prompts"
        return ProofStage(name="answers", state="passed", detail=detail, figures=figures)
    if base >= least:
        return ProofStage(
            name="answers",
            state="failed",
            detail=f"{model!r} answers like the base model: {base} of {len(canaries)} canaries",
            fix="the adapter is not applied: check how it is loaded, and the model name in requests",
            figures=figures,
        )
    return ProofStage(
        name="answers",
        state="failed",
        detail=f"{model!r} answers like neither the tuned model ({tuned} of {len(canaries)} canaries) "
        f"nor its base model ({base})",
        fix="load this run's adapter. The server has a different adapter under this name, or its weights "
        "are less precise (merged in 4 bits, or quantized too heavily)",
        figures=figures,
    )


def _shared(observed: ObservedAnswer, known: Said) -> tuple[bool, int]:
    """Return whether the texts match, and how many tokens or characters match from the start."""
    said, wanted = _visible_text(observed.text), _visible_text(known.text)
    same = _alike(said, wanted) if observed.ids is None else _alike(observed.ids, known.ids)
    return said == wanted, same


def _at_near_tie(observed: ObservedAnswer, known: Said) -> bool:
    """Return whether the answer leaves the trained model's at a token that this model hardly preferred to
    another one. Rounding in the server may reverse such an order."""
    if observed.ids is not None:
        at = _alike(observed.ids, known.ids)
    else:
        wanted = b"".join(known.pieces)
        indent = len(wanted) - len(wanted.lstrip())  # some servers strip answers
        same = indent + _alike(observed.text.encode().strip(), wanted.strip())
        ends = accumulate(len(piece) for piece in known.pieces)
        at = next((n for n, end in enumerate(ends) if end > same), len(known.pieces) - 1)
    return 0 <= at < len(known.margins) and known.margins[at] <= CLEAR


def _tied(ties: int, canaries: Sequence[Canary]) -> str:
    return (
        f"{ties} of {count(len(canaries), 'answer')} differ where the trained model hesitated between two "
        "tokens, so they identify no model"
    )


def _visible_text(text: str) -> str:
    """Normalize text, because servers treat invalid UTF-8 differently: some return one U+FFFD for each byte,
    some one for several bytes, and some none."""
    return text.replace("\ufffd", "").strip()


def _alike(one: Sequence[object], other: Sequence[object]) -> int:
    """Return the length of the common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _distance(
    fingerprint: Fingerprint, place: TunedEndpoint, answers: Sequence[ObservedAnswer]
) -> ProofStage:
    canaries = fingerprint.canaries
    tuned, tokens = _apart([c.tuned for c in canaries], place.scores(canaries, base=False))
    base, _ = _apart([c.base for c in canaries], place.scores(canaries, base=True))
    if tuned is None or base is None:
        return _agreement(canaries, answers, tuned)
    floor = max(base, fingerprint.noise, LEAST_FLOOR)
    step = BF16_STEP if fingerprint.precision.startswith(("bf16", "bfloat16")) else 0.0
    limit = 2 * floor + step / math.sqrt(tokens)
    figures: dict[str, float] = {
        "nats a token": round(tuned, 5),
        "floor": round(floor, 5),
        "limit": round(limit, 5),
        "tokens": tokens,
    }
    detail = (
        f"differs from the trainer by {tuned:.4f} nats per token over {count(tokens, 'token')}. The base "
        f"model alone differs by {base:.4f}"
    )
    if tuned <= limit:
        return ProofStage(name="distance", state="passed", detail=detail, figures=figures)
    return ProofStage(
        name="distance",
        state="failed",
        detail=f"{detail}, so the limit is {limit:.4f}",
        fix="these are not the trained weights. Check that the server uses the right adapter, checkpoint "
        "and LoRA scale, and that the adapter was not merged into quantized weights",
        figures=figures,
    )


def _apart(known: Sequence[Said], seen: Sequence[Sequence[float | None]] | None) -> tuple[float | None, int]:
    """Return the mean distance over all reported tokens, and their number. The distance is `None` if fewer
    tokens than answers are reported."""
    if seen is None:
        return None, 0
    pairs = [
        (a, b)
        for said, values in zip(known, seen, strict=True)
        for a, b in zip(said.logprobs, values, strict=False)
        if b is not None
    ]
    enough = pairs and len(pairs) >= len(known)
    return sum(abs(a - b) for a, b in pairs) / len(pairs) if enough else None, len(pairs)


def _agreement(
    canaries: Sequence[Canary], observed: Sequence[ObservedAnswer], apart: float | None
) -> ProofStage:
    pairs = [(h, c.tuned) for h, c in zip(observed, canaries, strict=True)]
    same = sum(_agrees(*pair) for pair in pairs)
    ties = sum(not _agrees(*pair) and _at_near_tie(*pair) for pair in pairs)
    if 2 * ties > len(canaries):
        return ProofStage(
            name="distance", state="unknown", detail=_tied(ties, canaries), figures={"ties": ties}
        )
    compared = len(canaries) - ties
    share = wilson(same, compared)
    figures: dict[str, float] = {
        "agree": same,
        "of": compared,
        "low": round(share.low, 3),
        "high": round(share.high, 3),
    }
    if apart is not None:
        figures["nats a token"] = round(apart, 5)
    interval = f"{share.low:.0%} to {share.high:.0%}"
    detail = f"{same} of {compared} answers match the trainer's answers token for token ({interval})"
    if share.high >= AGREEMENT:
        return ProofStage(name="distance", state="passed", detail=detail, figures=figures)
    return ProofStage(
        name="distance",
        state="failed",
        detail=detail,
        fix="serve the model at a higher precision, or evaluate the served model: orchestrate eval",
        figures=figures,
    )


def _agrees(observed: ObservedAnswer, known: Said) -> bool:
    said, wanted = _visible_text(observed.text), _visible_text(known.text)
    return said == wanted if known.ended else said.startswith(wanted[: len(said)]) and bool(said)


def _stop(fingerprint: Fingerprint, observed: Sequence[ObservedAnswer]) -> ProofStage:
    late = early = right = own = 0
    for canary, answer in zip(fingerprint.canaries, observed, strict=True):
        said, wanted = _visible_text(answer.text), _visible_text(canary.tuned.text)
        if not canary.tuned.ended:
            early += bool(answer.ended) and len(said) < len(wanted) and wanted.startswith(said)
        elif said == wanted:
            late += answer.ended is False
            right += answer.ended is not False
        elif said.startswith(wanted):
            late += 1
        elif wanted.startswith(said) and answer.ended:
            early += 1
        else:
            own += bool(answer.ended)
    figures: dict[str, float] = {"right": right, "own": own, "late": late, "early": early}
    stops = ", ".join(fingerprint.stop_words)
    if late or early:
        how = "continues past" if late >= early else "stops before"
        return ProofStage(
            name="stop",
            state="failed",
            detail=f"the server {how} the end of a turn: {late + early} of {count(len(observed), 'answer')}",
            fix=f"use the stop tokens from training: {stops} (eos_token_id in generation_config.json; "
            "`stop` in requests)",
            figures=figures,
        )
    if right or own:
        return ProofStage(
            name="stop",
            state="passed",
            detail=f"{count(right, 'answer')} ended where the trainer's answer ended. {own} had a different "
            "text and also ended with a stop token",
            figures=figures,
        )
    return ProofStage(name="stop", state="unknown", detail="no answer was completed", figures=figures)
