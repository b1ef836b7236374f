"""Check which of the engine's optimizations a model supports. Each optimization is tried on synthetic tokens
in evaluation and training mode. It is turned off if it changes the hidden states, lets rows attend to one
another, or fails."""

# The type annotations of torch and transformers are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from orchestrate.local.model.loaded import Loaded, TrainedOnly, decoder_of
from orchestrate.local.model.shortcuts.kernels import NAME, SHORT_ROW, line_up

CLOSE = 0.03
"""Largest relative distance between hidden states that 16-bit rounding alone can cause."""
APART = 1e-6
"""Tolerance of the check that rows don't affect one another. The check replaces all tokens of a different
row, and measures the relative change in a row's hidden states. Close to 0, because operations on identical
shapes round identically. Not used for a mixture of experts, where different tokens change the size of each
expert's batch."""
LENGTHS = (9, 5, 12, 7)
SHARED = 3
"""Number of tokens in the common prefix of all synthetic rows."""


class PackedProbe(NamedTuple):
    """Rows packed into one model input."""

    ids: Tensor
    inputs: dict[str, Any]
    own: list[slice]
    """Positions of each row's own tokens in the flattened input, without the shared prefix."""
    shared: slice
    """Positions of the shared prefix in the flattened input. Empty if there is none."""


Arrange = Callable[[Sequence[Any]], PackedProbe]


def reason_of(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return f"the model raises {type(error).__name__}: {said[0][:200] if said else 'no message'}"


@contextmanager
def as_before(device: torch.device) -> Generator[None]:
    """Restore the random state when the context exits."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state() if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)


def trains(loaded: Loaded) -> str | None:
    """Return the reason why the model fails a forward and backward pass in training mode, or `None` if it
    succeeds."""
    ids, places = made_up(loaded), torch.tensor([3, 6, 9], device=loaded.device)
    try:
        with as_before(loaded.device), _training(loaded), torch.enable_grad():
            states = loaded.hidden(ids, places).flatten(0, 1)[places]
            torch.autograd.grad(
                states.float().square().sum(), list(loaded.trainable.values()), allow_unused=True
            )
    except Exception as error:  # noqa: BLE001  whatever a model's code raises
        return reason_of(error)
    return None


def made_up(loaded: Loaded) -> Tensor:
    """Generate two synthetic rows of eight tokens."""
    return _ids(loaded, 16, 7).view(2, 8)


def draws(loaded: Loaded) -> bool:
    """Return whether a forward pass in training mode draws random numbers, for example for dropout."""
    ids = _ids(loaded, 8, 7)[None]
    with as_before(loaded.device), _training(loaded), torch.no_grad():
        before = _random(loaded.device)
        loaded.hidden(ids)
        return not torch.equal(before, _random(loaded.device))


def trained_only(loaded: Loaded) -> str | None:
    """Limit the last layer's MLP to the trained positions. Returns the reason if that is not possible,
    otherwise `None`."""
    layers = getattr(decoder_of(loaded.inner), "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if layers is not None else None
    if mlp is None:
        return "the last layer has no separate MLP"
    chosen, original = TrainedOnly(), mlp.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if chosen.places is None or args or kwargs:
            return original(x, *args, **kwargs)
        rows = x.reshape(-1, x.shape[-1])
        out = original(rows[chosen.places][None])[0]
        return torch.zeros_like(rows).index_copy(0, chosen.places, out).view(x.shape)

    ids = made_up(loaded)
    places = torch.tensor([3, 6, 9], device=loaded.device)
    with loaded.evaluation_mode(), torch.no_grad():
        wanted = loaded.hidden(ids).flatten(0, 1)[places]
        mlp.forward = forward
        loaded.trained_only = chosen
        try:
            near = distance(loaded.hidden(ids, places).flatten(0, 1)[places], wanted) <= CLOSE
            reason = None if near else "it changes the model's hidden states"
        except Exception as error:  # noqa: BLE001  whatever a model's code raises
            reason = reason_of(error)
    reason = reason or trains(loaded)
    if reason:
        loaded.trained_only = None
        mlp.forward = original
    return reason


def line_limit(loaded: Loaded) -> tuple[int, str | None]:
    """Return (longest, reason). `longest` is the maximum length in tokens of rows that may be packed into one
    sequence. It is 0 if the model does not support packing, and `reason` then says why. The model must use
    Orchestrate's attention, keep rows separate, and give each row the same hidden states as without
    packing."""
    config = loaded.inner.config.get_text_config()
    if loaded.device.type != "cpu":
        return 0, "only available on a CPU"
    if config._attn_implementation != NAME:
        return 0, "the model uses its own attention"
    if reason := apart(loaded, _in_line, SHARED):
        return 0, reason
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min([SHORT_ROW, *(w for w in windows if w)]), None


def packs(loaded: Loaded) -> str | None:
    """Return the reason why rows must not be packed for this model, or `None` if they may. Position ids
    restart at 0 in each packed row."""
    return apart(loaded, lambda rows: _packed(rows, loaded), 0)


def apart(loaded: Loaded, arrange: Arrange, shared: int) -> str | None:
    """Return the reason why rows must not be packed by `arrange`, or `None` if each row gets the same results
    as without packing. `arrange` stores the rows' first `shared` tokens only once."""
    chance = np.random.default_rng(0)
    rows = [_ids(loaded, n, seed).cpu().numpy() for seed, n in enumerate(LENGTHS)]
    beginning = chance.integers(3, 50, SHARED)
    rows = [np.concatenate([beginning, row]) for row in rows]
    # Change the second row's content but not its length.
    changed = [rows[0], np.concatenate([beginning, np.roll(rows[1][SHARED:], 1)[::-1]]), *rows[2:]]
    try:
        with as_before(loaded.device):
            with loaded.evaluation_mode(), torch.no_grad():
                joined, others = _states(loaded, arrange(rows)), _states(loaded, arrange(changed))
                alone = [loaded.hidden(torch.from_numpy(r)[None].to(loaded.device))[0, shared:] for r in rows]
            if any(not distance(a, b) <= CLOSE for a, b in zip(joined, alone, strict=True)):
                return "packed rows get different hidden states than unpacked rows"
            mixture = getattr(loaded.inner.config.get_text_config(), "num_experts_per_tok", None)
            bound = CLOSE if mixture else APART
            if any(not distance(joined[r], others[r]) <= bound for r in (0, 2, 3)):
                return "a packed row's hidden states depend on the other rows"
            return _leak(loaded, arrange(rows))
    except Exception as error:  # noqa: BLE001  whatever a model's code raises
        return reason_of(error)


def _leak(loaded: Loaded, joined: PackedProbe) -> str | None:
    """Check by gradients, in training mode, that a row's states do not depend on another row's tokens at all,
    whatever the weights are."""
    embedded: list[Tensor] = []

    def cut(_module: Any, _args: Any, out: Tensor) -> Tensor:
        embedded.append(out.detach().requires_grad_())
        return embedded[-1]

    hook = loaded.inner.get_input_embeddings().register_forward_hook(cut)
    try:
        with _training(loaded), torch.enable_grad():
            states = loaded.hidden(joined.ids, **joined.inputs).flatten(0, 1).float()
    finally:
        hook.remove()
    for r in (1, len(joined.own) - 1):
        own = states[joined.own[r]]
        toward = torch.linspace(-1, 2, own.numel(), device=own.device).view_as(own)
        (slope,) = torch.autograd.grad((own * toward).sum(), embedded[0], retain_graph=True)
        seen = (slope.flatten(0, 1) != 0).any(-1)
        if not seen[joined.own[r]].any():
            return "cannot determine which tokens a row attends to"
        seen[joined.own[r]] = seen[joined.shared] = False
        if seen.any():
            return "a packed row attends to another row's tokens"
    return None


def _in_line(rows: Sequence[Any]) -> PackedProbe:
    line = line_up(rows, [range(len(rows))], [SHARED])
    own = [slice(s, s + len(row) - SHARED) for s, row in zip(line.starts, rows, strict=True)]
    positions = torch.from_numpy(line.positions)[None]
    inputs = {"position_ids": positions, "layout": line.layout}
    return PackedProbe(torch.from_numpy(line.ids)[None], inputs, own, slice(0, SHARED))


def _packed(rows: Sequence[Any], loaded: Loaded) -> PackedProbe:
    """Build two sequences of two rows each, the second one padded, packed like `objectives.base`."""
    lines = [rows[0:2], rows[2:4]]
    width = max(sum(len(row) for row in line) for line in lines) + 2
    ids = torch.zeros(2, width, dtype=torch.long)
    positions = torch.zeros(2, width, dtype=torch.long)
    own: list[slice] = []
    for number, line in enumerate(lines):
        at = 0
        for row in line:
            ids[number, at : at + len(row)] = torch.from_numpy(row)
            positions[number, at : at + len(row)] = torch.arange(len(row))
            own.append(slice(number * width + at, number * width + at + len(row)))
            at += len(row)
    inputs = {"position_ids": positions.to(loaded.device), **loaded.layout_of(positions.numpy())}
    return PackedProbe(ids.to(loaded.device), inputs, own, slice(0, 0))


def _states(loaded: Loaded, joined: PackedProbe) -> list[Tensor]:
    states = loaded.hidden(joined.ids, **joined.inputs).flatten(0, 1)
    return [states[own] for own in joined.own]


def head_is_understood(loaded: Loaded) -> bool:
    """Return whether decoder and head reproduce the model's own logits for a few tokens."""
    ids = torch.arange(1, 5, device=loaded.device)[None] % loaded.head.layer.weight.shape[0]
    with loaded.evaluation_mode(), torch.no_grad():
        own = loaded.inner(input_ids=ids, use_cache=False).logits.float()
        try:
            ours = loaded.head.logits(loaded.hidden(ids))
        except Exception:  # noqa: BLE001  whatever a model's code raises: its own logits are taken
            return False
    return ours.shape == own.shape and torch.allclose(own, ours, atol=1e-2, rtol=1e-2)


@contextmanager
def _training(loaded: Loaded) -> Generator[None]:
    training = loaded.model.training
    loaded.model.train()
    try:
        yield
    finally:
        loaded.model.train(training)


def _random(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state() if device.type == "cuda" else torch.get_rng_state()


def _ids(loaded: Loaded, count: int, seed: int) -> Tensor:
    vocabulary = int(loaded.inner.get_input_embeddings().weight.shape[0])
    ids = np.random.default_rng(seed).integers(3, vocabulary, count)
    return torch.from_numpy(ids).to(loaded.device)


def distance(a: Tensor, b: Tensor) -> float:
    """Compute the relative distance |a - b| / |b|."""
    return ((a.float() - b.float()).norm() / b.float().norm()).item()
