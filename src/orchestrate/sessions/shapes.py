"""Rows, requests and results of a training session, in the format of Tinker's API."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from orchestrate.errors import UsageError
from orchestrate.providers.sessions import LORA as LORA

Array = np.ndarray[Any, Any]
ADAM: Mapping[str, float] = {
    "learning_rate": 1e-4,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-12,
    "weight_decay": 0.0,
    "grad_clip_norm": 0.0,
}
SAMPLING: Mapping[str, Any] = {
    "max_tokens": None,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "seed": None,
    "stop": None,
}


@dataclass(frozen=True)
class ForwardOutput:
    """The result of `forward` and `forward_backward`."""

    loss_fn_outputs: tuple[dict[str, Array], ...]
    """One dictionary per row: `{"logprobs": array}`, with the log-probability of each target token."""
    metrics: dict[str, float]
    """Metrics such as `loss:sum`, summed over all rows."""

    @property
    def loss(self) -> float:
        return self.metrics["loss:sum"]


@dataclass(frozen=True)
class StepOutput:
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class SampledSequence:
    tokens: list[int]
    logprobs: list[float]
    """The model's log-probability of each token, at temperature 1."""
    stop_reason: str
    """`stop`, or `length` if the sample reached `max_tokens`."""


@dataclass(frozen=True)
class SampleOutput:
    sequences: tuple[SampledSequence, ...]


@dataclass(frozen=True)
class SavedState:
    """A saved state from which training can continue."""

    name: str
    step: int
    path: str
    """Path to pass to `load`."""


@dataclass(frozen=True)
class PackedRows:
    """Rows in the backends' format."""

    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    tokens: int = 0
    weight: float = 0.0
    """Sum of the token weights. Divide a summed cross-entropy by it to get the mean."""


def options_of(given: Any, known: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the options as {name: value}, with the defaults from `known` for those that `given` does not
    set. `given` is a mapping, an object with the options as attributes, or `None`. Raises `UsageError` for an
    unknown name."""
    if given is None:
        return dict(known)
    if isinstance(given, Mapping):
        values = cast("Mapping[str, Any]", given)
        if unknown := [name for name in values if name not in known]:
            raise UsageError(f"{what} has no {unknown[0]!r}", fix=f"one of {', '.join(known)}")
        return {**known, **values}
    found = {name: getattr(given, name) for name in known if hasattr(given, name)}
    if not found:
        raise UsageError(f"{what} must be a mapping with any of {', '.join(known)} (got {given!r})")
    return {**known, **found}


def packed(data: Iterable[Any]) -> PackedRows:
    """Convert rows to the backends' format, and count their tokens and token weights. Raises `UsageError` if
    `data` is empty or an element is not a valid row."""
    rows: list[dict[str, Any]] = []
    tokens, weight = 0, 0.0
    for number, datum in enumerate(data, 1):
        try:
            ids = tokens_of(_part(datum, "model_input"))
            inputs = {name: _tensor(name, value) for name, value in _part(datum, "loss_fn_inputs").items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"row {number} must be a datum with model_input and loss_fn_inputs: {error}",
                fix='{"model_input": [ids], "loss_fn_inputs": {"target_tokens": [ids], "weights": [...]}}',
            ) from error
        rows.append({"tokens": ids, "inputs": {name: _sent(array) for name, array in inputs.items()}})
        tokens += len(ids)
        weight += float(inputs["weights"].sum()) if "weights" in inputs else float(len(ids))
    if not rows:
        raise UsageError("data is empty: pass at least one row")
    return PackedRows(rows, tokens, weight)


def _part(datum: Any, name: str) -> Any:
    if isinstance(datum, Mapping):
        return cast("Mapping[str, Any]", datum)[name]
    return getattr(datum, name)


def tokens_of(given: Any) -> list[int]:
    """Return token ids from a list, Tinker's `ModelInput`, or `{"chunks": [{"tokens": [...]}]}`. Raises
    `UsageError` or `TypeError` for anything else."""
    if hasattr(given, "to_ints"):
        return [int(id) for id in given.to_ints()]
    if isinstance(given, Mapping):
        chunks: Sequence[Mapping[str, Any]] = cast("Mapping[str, Any]", given)["chunks"]
        return [int(id) for chunk in chunks for id in chunk["tokens"]]
    if isinstance(given, str):
        raise UsageError("a prompt must be token ids, not text", fix="tokenizer.encode(text)")
    array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"token ids must be a list of integers (got {array.dtype} {array.shape})")
    return [int(id) for id in array]


def _tensor(name: str, value: Any) -> Array:
    if isinstance(value, Mapping):
        named = cast("Mapping[str, Any]", value)
        shape = named.get("shape")
        found = np.asarray(named["data"])
        found = found if shape is None else found.reshape(shape)
    elif hasattr(value, "to_numpy"):
        found = value.to_numpy()
    elif hasattr(value, "detach"):
        found = value.detach().cpu().float().numpy() if value.is_floating_point() else value.cpu().numpy()
    else:
        found = np.asarray(value)
    kind = "<i8" if name == "target_tokens" else "<f4"
    if found.dtype.kind not in "iufb" or (kind == "<i8" and found.dtype.kind == "f"):
        raise TypeError(
            f"{name} must contain {'integers' if kind == '<i8' else 'numbers'} (got {found.dtype})"
        )
    return np.ascontiguousarray(found, dtype=kind)


def _sent(array: Array) -> dict[str, Any]:
    return {"data": array.tobytes(), "shape": list(array.shape), "kind": array.dtype.str}


def sample_request(prompt: Any, num_samples: int, params: Any) -> dict[str, Any]:
    """Build the request in the format of `local.sessions.process`. Raises `UsageError` if an argument is
    invalid."""
    if num_samples < 1:
        raise UsageError(f"num_samples must be at least 1 (got {num_samples})")
    given = options_of(params, SAMPLING, "a sample")
    stop = given["stop"]
    stops: list[Any] = [stop] if isinstance(stop, str) else list(stop or ())
    return {
        "prompt": tokens_of(prompt),
        "n": num_samples,
        "max_tokens": given["max_tokens"],
        "temperature": float(given["temperature"]),
        "top_p": float(given["top_p"]),
        "top_k": max(0, int(given["top_k"])),
        "seed": given["seed"],
        "stop": [one for one in stops if isinstance(one, str) and one],
        "stop_ids": None if stop is None else [one for one in stops if isinstance(one, int)],
    }


def forward_output(answer: Mapping[str, Any]) -> ForwardOutput:
    return ForwardOutput(tuple({"logprobs": one} for one in answer["logprobs"]), dict(answer["metrics"]))


def sample_output(answer: Mapping[str, Any]) -> SampleOutput:
    return SampleOutput(
        tuple(
            SampledSequence(list(one["tokens"]), list(one["logprobs"]), str(one["stop"]))
            for one in answer["answers"]
        )
    )


def custom_weights(
    data: Sequence[Any], output: ForwardOutput, loss: Any
) -> tuple[list[Any], dict[str, float]]:
    """Apply a torch function `loss(data, logprobs) -> (loss, metrics)`. Returns (rows, metrics). The rows'
    token weights are -dL/dlogprob, so their weighted cross-entropy has the same gradient as the loss. Raises
    `UsageError` if the loss is not finite."""
    from importlib import import_module

    torch: Any = import_module("torch")
    logprobs = [
        torch.tensor(one["logprobs"], dtype=torch.float32, requires_grad=True)
        for one in output.loss_fn_outputs
    ]
    value, metrics = loss(data, logprobs)
    total = float(value.detach())
    if not math.isfinite(total):
        raise UsageError(f"the custom loss is not finite ({total}). No gradient was added")
    gradients = torch.autograd.grad(value, logprobs, allow_unused=True)
    rows: list[Any] = []
    for datum, log_p, gradient in zip(data, logprobs, gradients, strict=True):
        weights = torch.zeros_like(log_p) if gradient is None else -gradient
        targets = _part(datum, "loss_fn_inputs")["target_tokens"]
        inputs = {"target_tokens": targets, "weights": weights.numpy()}
        rows.append({"model_input": _part(datum, "model_input"), "loss_fn_inputs": inputs})
    return rows, {"loss:sum": total, **{name: float(one) for name, one in metrics.items()}}
