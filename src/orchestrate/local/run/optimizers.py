"""Create optimizers by name, and store their state as tensors under the parameters' names."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from orchestrate.local.job import Hyper
from orchestrate.local.plan.memory import require
from orchestrate.local.run.sharding import number, placed

# torch, transformers and bitsandbytes have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


NUMBER = "#"
"""Key suffix for state that is a number rather than a tensor, such as the step count of bitsandbytes."""
EMBEDDING_RATE = 1e-6
"""Learning rate for adapters on embeddings with LoRA+, as recommended by its authors and peft."""
_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "lion": "Lion",
    "lion_8bit": "Lion8bit",
    "paged_lion": "PagedLion",
    "paged_lion_8bit": "PagedLion8bit",
}
_PAGED = ("state1", "state2")
"""States that bitsandbytes' paged optimizers store in paged memory."""
_GROUP_STATE = ("k", "weight_sum", "lr_max")
"""Values that schedule-free optimizers store per parameter group."""

Parameters = Mapping[str, torch.nn.Parameter]
Group = dict[str, Any]


def make_optimizer(parameters: Parameters, hyper: Hyper, loraplus_lr_ratio: float | None = None) -> Any:
    """Create the optimizer that `hyper` names. The caller must call `set_rate` before each step, and evaluate
    and save within `evaluation_parameters`. Raises `OptimizerMissing` if a package is missing."""
    kind = hyper.optimizer
    require(kind)
    named = _groups(parameters, hyper, loraplus_lr_ratio)
    constants: dict[str, Any] = {"lr": hyper.learning_rate, "weight_decay": hyper.weight_decay}
    moments = {name: value for name in ("betas", "eps") if (value := getattr(hyper, name)) is not None}
    if kind == "muon":
        return _muon(named, hyper, constants, moments)
    groups = [_bare(group) for group in named]
    if kind == "adamw":
        return torch.optim.AdamW(groups, **constants, **moments, fused=True)
    if kind == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(groups, **constants, scale_parameter=False, relative_step=False)
    if kind == "schedule_free_adamw":
        optimizer = import_module("schedulefree").AdamWScheduleFree(groups, **constants, **moments)
        optimizer.train()
        return optimizer
    make: Any = getattr(import_module("bitsandbytes.optim"), _BITSANDBYTES[kind])
    return make(groups, **constants, **moments)


def _groups(parameters: Parameters, hyper: Hyper, ratio: float | None) -> list[Group]:
    """Group parameters by name, with their learning rate relative to that of the run. LoRA+ (Hayou et al.
    2024) groups them like peft: B and everything that is not a matrix have `ratio` times the learning
    rate."""
    fast: dict[str, torch.nn.Parameter] = {}
    embedded: dict[str, torch.nn.Parameter] = {}
    plain: dict[str, torch.nn.Parameter] = {}
    for name, parameter in parameters.items():
        if ratio is None:
            plain[name] = parameter
        elif "lora_embedding_" in name:
            embedded[name] = parameter
        elif "lora_B" in name or parameter.ndim == 1:
            fast[name] = parameter
        else:
            plain[name] = parameter
    found = [
        ("" if ratio is None else "lora_A", plain, 1.0),
        ("embeddings", embedded, EMBEDDING_RATE / hyper.learning_rate),
        ("lora_B", fast, ratio or 1.0),
    ]
    return [
        {"label": label, "named": part, "lr_ratio": rate, "weight_decay": decay}
        for label, members, rate in found
        for part, decay in zip(_decayed(members), (hyper.weight_decay, 0.0), strict=True)
        if part
    ]


def _decayed(parameters: Parameters) -> tuple[dict[str, torch.nn.Parameter], dict[str, torch.nn.Parameter]]:
    """Return (matrices, which weight decay shrinks; norms, biases and the like, which it leaves
    unchanged)."""
    matrices = {name: parameter for name, parameter in parameters.items() if parameter.ndim > 1}
    return matrices, {name: p for name, p in parameters.items() if name not in matrices}


def _bare(group: Group) -> Group:
    """Return the parameter groups as torch expects them."""
    named: Parameters = group["named"]
    return {**{k: v for k, v in group.items() if k != "named"}, "params": list(named.values())}


class Several:
    """Combines several optimizers for different parameters."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[Group]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def _muon(groups: list[Group], hyper: Hyper, constants: dict[str, Any], moments: dict[str, Any]) -> Several:
    """Create Muon for the matrices of hidden layers and AdamW for the others, as its author advises. Its
    steps are scaled to the length of AdamW's (Liu et al. 2025), so that one learning rate is right for
    both."""
    matrices, others = list[Group](), list[Group]()
    for group in groups:
        for kept, wanted in ((matrices, True), (others, False)):
            named = {n: p for n, p in group["named"].items() if _is_hidden_matrix(n, p) is wanted}
            if named:
                label = "_".join(filter(None, (group["label"], "muon" if wanted else "adamw")))
                kept.append(_bare({**group, "named": named, "label": label}))
    parts: list[Any] = []
    if matrices:
        momentum: dict[str, Any] = {} if hyper.momentum is None else {"momentum": hyper.momentum}
        parts.append(torch.optim.Muon(matrices, **constants, **momentum, adjust_lr_fn="match_rms_adamw"))
    if others:
        parts.append(torch.optim.AdamW(others, **constants, **moments, fused=True))
    return Several(parts)


def _is_hidden_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name


def set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_ratio"]


def group_metrics(optimizer: Any, rate: float) -> dict[str, float]:
    """Return the current gradient norm and learning rate of each parameter group, or an empty mapping if
    there is only one."""
    groups: dict[str, list[Group]] = {}
    for group in optimizer.param_groups:
        groups.setdefault(group["label"], []).append(group)
    if len(groups) < 2:
        return {}
    found: dict[str, float] = {}
    for label, members in groups.items():
        gradients = [p.grad for group in members for p in group["params"] if p.grad is not None]
        found[f"learning_rate_{label}"] = rate * members[0]["lr_ratio"]
        found[f"grad_norm_{label}"] = number(torch.nn.utils.get_total_norm(gradients))
    return found


@contextmanager
def evaluation_parameters(optimizer: Any, parameters: Parameters) -> Generator[None]:
    """Switch the model to the optimizer's evaluation parameters while the context manager is active.
    Evaluations and checkpoints must use these. With schedule-free optimizers, they differ from the training
    parameters, which are restored exactly on exit. With other optimizers, nothing changes."""
    if not hasattr(optimizer, "eval"):
        yield
        return
    trained = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(trained[name])


def state_tensors(optimizer: Any, parameters: Parameters) -> dict[str, torch.Tensor]:
    """Return the optimizer's entire state as tensors that safetensors can store."""
    found: dict[str, torch.Tensor] = {}
    for name, state in _states(optimizer, parameters):
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                # Parameters share bitsandbytes' quantization maps, but tensors in a safetensors file can't
                # share memory.
                found[f"optimizer.{name}.{key}"] = value.clone() if key.startswith("qmap") else value
            else:
                found[f"optimizer.{name}.{key}{NUMBER}"] = _number(value)
    for i, group in enumerate(optimizer.param_groups):
        found.update({f"group.{i}.{k}{NUMBER}": _number(group[k]) for k in _GROUP_STATE if k in group})
    return found


def _number(value: float) -> torch.Tensor:
    """Store the number in 64 bits, so that it is read back exactly."""
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def _states(optimizer: Any, parameters: Parameters) -> Iterator[tuple[str, dict[str, Any]]]:
    names = {parameter: name for name, parameter in parameters.items()}
    for part in _parts(optimizer):
        for parameter in (p for group in part.param_groups for p in group["params"]):
            yield names[parameter], part.state.get(parameter, {})


def _parts(optimizer: Any) -> list[Any]:
    return optimizer.parts if isinstance(optimizer, Several) else [optimizer]


def restore_state(optimizer: Any, parameters: Parameters, tensors: Mapping[str, torch.Tensor]) -> None:
    """Restore the state that `state_tensors` returned. Learning rate and weight decay still come from the
    job."""
    states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in parameters}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, _, short = key.removeprefix("optimizer.").rpartition(".")
            states[name][short] = value
    names = {parameter: name for name, parameter in parameters.items()}
    for part in _parts(optimizer):
        for parameter in (p for group in part.param_groups for p in group["params"]):
            if state := states[names[parameter]]:
                part.state[parameter] = dict(_held(part, parameter, state))
    for i, group in enumerate(optimizer.param_groups):
        for k in _GROUP_STATE:
            if (value := tensors.get(f"group.{i}.{k}{NUMBER}")) is not None:
                group[k] = value.item()


def _held(
    part: Any, parameter: torch.nn.Parameter, state: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, Any]]:
    """Convert the state to the form that the optimizer itself stores."""
    for short, value in state.items():
        if short.endswith(NUMBER):
            # A number rather than a tensor, such as the step count of bitsandbytes.
            yield short.removesuffix(NUMBER), value.item()
        elif short in _PAGED and getattr(part, "is_paged", False):
            # Paged memory, as before the interruption: it moves to main memory if GPU memory runs short.
            buffer = part.get_state_buffer(parameter, dtype=value.dtype)
            yield short, buffer.copy_(value)
        else:
            yield short, placed(value, parameter)


# Loss scale for fp16, and random state.


FIRST_SCALE, LONG_ENOUGH = 2.0**16, 2000
"""Initial loss scale in fp16, and the number of steps without an overflow after which the scale is
doubled."""


def rescaled(scale: float, steps: int, *, whole: bool) -> tuple[float, int]:
    """Compute the loss scale for the next fp16 step and the number of steps since it last changed, following
    the rules of torch.amp.GradScaler. `whole` is True if all gradients were finite."""
    if not whole:
        return scale / 2, 0
    return (scale * 2, 0) if steps + 1 >= LONG_ENOUGH else (scale, steps + 1)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    cuda = {"random.cuda": torch.cuda.get_rng_state()} if device.type == "cuda" else {}
    return {"random.cpu": torch.get_rng_state(), **cuda}


def set_random_state(tensors: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
