"""Suggests rank, alpha, learning rate, epochs and batch size for a spec's rows and model. Each suggestion has
a reason, a source, and neighboring values for a small sweep.

Sources: LoRA Without Regret (Schulman et al., 2025). `hyperparam_utils` in tinker-cookbook (2026-08), which
follows that article. QLoRA (Dettmers et al., 2023), appendix B. Unsloth's LoRA hyperparameters guide (2026).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from orchestrate import catalog
from orchestrate.costing import size
from orchestrate.runs.preparing import prepared
from orchestrate.runs.sweep import space
from orchestrate.types import Outcome, Record

if TYPE_CHECKING:
    from orchestrate.catalog import ModelOnHost
    from orchestrate.local.plan import ModelShape
    from orchestrate.spec import JobSpec
    from orchestrate.workspace import Backends, Workspace

_REGRET = "LoRA Without Regret, 2025"
_QLORA = "QLoRA, 2023"
_UNSLOTH = "Unsloth's guide, 2026"
_RANKS = (16, 32, 64, 128)
_BASE_RATE = 5e-5
"""Learning rate for full fine-tuning at hidden size 2,000. LoRA's is ten times as high at any rank
(tinker-cookbook)."""
_POWERS = {"llama": 0.781, "qwen": 0.0775}
"""Exponents in the learning-rate formula, keyed by model family. With a larger exponent, the learning rate
falls faster as the hidden size grows. Other families were not calibrated."""
_LEAST_HIDDEN = 1024
"""Smallest hidden size for which the formula is used. The formula was fitted on sizes from 2,048 to 8,192.
For much smaller models, it would suggest learning rates above 1e-3."""
_STEPS = 100
"""Minimum number of optimizer steps. If training would have fewer, the batch size is reduced first."""


class Suggested(Record, frozen=True, kw_only=True):
    """One suggested setting."""

    name: str
    """Field name as in a spec, such as `adapter.r`."""
    value: int | float
    now: int | float | str | None = None
    """Current value in the spec. `None` if not set."""
    reason: str
    source: str
    neighbors: tuple[int | float, ...] = ()
    """Neighboring values to try in a small sweep."""


class Suggestion(Record, frozen=True, kw_only=True):
    """Suggested hyperparameters for one backend."""

    provider: str
    model: str
    settings: tuple[Suggested, ...] = ()
    left_out: tuple[str, ...] = ()
    """Settings without a suggestion, each with the reason."""

    @property
    def choices(self) -> dict[str, tuple[int | float, ...]]:
        """Return the values for a small sweep: the suggested learning rate and rank, which matter most, and
        their neighbors."""
        return {
            one.name: tuple(sorted({one.value, *one.neighbors}))
            for one in self.settings
            if one.name in ("learning_rate", "adapter.r") and one.neighbors
        }

    @property
    def values(self) -> dict[str, int | float]:
        return {one.name: one.value for one in self.settings}


def suggest(ws: Workspace, spec: JobSpec, provider: Backends = "all") -> list[Suggestion]:
    """Suggest hyperparameters for each backend. Works offline. Raises `DataError` for files that cannot
    be read."""
    prepared.require_known(ws, spec)
    names = ws.backends(provider)
    data = prepared.training_data(ws, spec, names)
    found: list[Suggestion] = []
    for name in names:
        own = spec.on(name)
        resolved = catalog.resolve(str(own.model), ws.provider(name).profile)
        tokens = data.train.tokens(size.tokenizer_for(resolved, own)).trained_tokens
        proposed = list(_proposed(own, resolved, data.train.rows, tokens))
        found.append(_held(ws, name, spec, resolved.name, proposed))
    return found


def _proposed(spec: JobSpec, resolved: ModelOnHost, rows: int, tokens: int) -> Iterator[Suggested]:
    from orchestrate.local.plan.memory_fit import shape_of

    known = shape_of(resolved.hub or resolved.id, resolved.params_b)
    shape = known[0] if known else None
    epochs = _epochs(spec, rows)
    if spec.adapter.type != "full":
        yield from _rank(spec, resolved, shape, tokens)
    yield from _rate(spec, resolved, shape)
    yield epochs
    yield _batch(spec, rows * int(epochs.value))


def _rank(spec: JobSpec, resolved: ModelOnHost, shape: ModelShape | None, tokens: int) -> Iterator[Suggested]:
    most = resolved.host.max_rank if resolved.host and resolved.host.max_rank else max(_RANKS)
    ranks = [r for r in _RANKS if r <= most] or [most]
    rank = ranks[0]
    reason = f"{tokens:,} trained tokens, but the size of the model is unknown"
    if shape is not None:
        rank = next((r for r in ranks if shape.adapter_parameters(r) >= tokens), ranks[-1])
        held = shape.adapter_parameters(rank)
        reason = f"{held:,} parameters for {tokens:,} trained tokens: "
        reason += (
            "enough capacity to learn as much as full fine-tuning"
            if held >= tokens
            else f"the largest rank available ({most})"
        )
    now = getattr(spec.adapter, "r", None)
    near = tuple(r for r in (rank // 2, rank * 2) if 4 <= r <= most)
    yield Suggested(
        name="adapter.r",
        value=rank,
        now=now,
        reason=reason,
        source=f"{_REGRET}; r=16 as a start",
        neighbors=near,
    )
    alpha = getattr(spec.adapter, "alpha", None)
    reason = "twice the rank, so the best learning rate does not depend on the rank"
    yield Suggested(
        name="adapter.alpha", value=2 * rank, now=alpha, reason=reason, source="guides: r=16 with alpha=32"
    )


def _rate(spec: JobSpec, resolved: ModelOnHost, shape: ModelShape | None) -> Iterator[Suggested]:
    if spec.method.type != "sft":
        return
    full = spec.adapter.type == "full"
    times = 1 if full else 10
    family = next((name for name in _POWERS if name in f"{resolved.name} {resolved.id}".lower()), None)
    if shape is not None and family is not None and shape.hidden >= _LEAST_HIDDEN:
        rate = _BASE_RATE * times * (2000 / shape.hidden) ** _POWERS[family]
        reason = f"{family}, hidden size {shape.hidden:,}"
        source = "tinker-cookbook, hyperparam_utils, 2026-08"
    else:
        large = resolved.params_b is not None and resolved.params_b > 13
        rate = (1e-4 if large else 2e-4) * (0.1 if full else 1)
        reason, source = f"{'above' if large else 'up to'} 13B", _QLORA
    if full:
        reason += ", a tenth of LoRA's"
    now = spec.learning_rate or (
        f"{spec.learning_rate_multiplier:g} x the host's" if spec.learning_rate_multiplier else None
    )
    value = _rounded(rate)
    near = (_rounded(rate / 3), _rounded(rate * 3))
    yield Suggested(name="learning_rate", value=value, now=now, reason=reason, source=source, neighbors=near)


def _rounded(rate: float) -> float:
    """Round to two significant digits."""
    return float(f"{rate:.1e}")


def _epochs(spec: JobSpec, rows: int) -> Suggested:
    epochs = 3 if rows < 5_000 else 2 if rows < 50_000 else 1
    return Suggested(
        name="epochs",
        value=epochs,
        now=spec.epochs,
        reason=f"{rows:,} rows: 3 epochs below 5,000 rows, 2 below 50,000, otherwise 1",
        source=f"{_UNSLOTH}: 1 to 3. The thresholds are Orchestrate's own",
        neighbors=tuple(n for n in (epochs - 1, epochs + 2) if n),
    )


def _batch(spec: JobSpec, seen: int) -> Suggested:
    batch = next((b for b in (16, 8, 4) if seen / b >= _STEPS), 4)
    return Suggested(
        name="batch_size",
        value=batch,
        now=spec.batch_size,
        reason=f"{math.ceil(seen / batch):,} steps. Large batches hurt LoRA more than full fine-tuning",
        source=f"{_QLORA}: 16; {_REGRET}",
        neighbors=(batch // 2, batch * 2),
    )


def _held(ws: Workspace, name: str, spec: JobSpec, model: str, proposed: Sequence[Suggested]) -> Suggestion:
    """Return the suggestions that the backend accepts unchanged."""

    from orchestrate.spec import JobSpec

    values: dict[str, Any] = {one.name: one.value for one in proposed}
    plain = spec.on(name).asked()
    if "learning_rate" in values:
        plain.pop("learning_rate_multiplier", None)
    asked = JobSpec.parse(space.applied(plain, values))
    _, translation = prepared.translated(ws, ws.provider(name), asked)
    lost: dict[str, str] = {}
    for setting in translation.settings:
        if setting.outcome is Outcome.REFUSED or (setting.outcome is Outcome.MAPPED and not setting.exact):
            lost[setting.name] = setting.rule or setting.outcome.value
    kept = tuple(one for one in proposed if one.name not in lost)
    left = tuple(f"{one.name}: {lost[one.name]}" for one in proposed if one.name in lost)
    if not any(one.name == "learning_rate" for one in proposed):
        left = (*left, f"learning_rate: no published rule for {spec.method.type}")
    return Suggestion(provider=name, model=model, settings=kept, left_out=left)
