"""Apply torch.compile, Liger or Unsloth to a model."""

# The type annotations of torch, transformers, Liger and Unsloth are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import sys
from importlib import import_module
from inspect import signature
from typing import Any

import torch

from orchestrate.errors import RunFailed
from orchestrate.local.job import LocalJob
from orchestrate.local.model.loaded import decoder_of
from orchestrate.local.model.shortcuts.probes import CLOSE, distance


class Unfit(RunFailed):
    """Raised if the engine does not support this architecture but another engine may."""


def compile_layers(inner: Any) -> None:
    """Compile each decoder layer separately, with dynamic lengths. The layers are alike, so torch compiles
    once for all of them. Masks, head and loss are not compiled."""
    for layer in decoder_of(inner).layers:
        layer.compile(dynamic=True)


def undo_compiling(inner: Any) -> None:
    for layer in decoder_of(inner).layers:
        layer._compiled_call_impl = None


def use_liger(inner: Any) -> None:
    """Use Liger's norms, rotary embeddings and gated activations in this model, but not Liger's loss.

    Liger also patches transformers' own modules, for all models in the process. Raises `Unfit` if Liger does
    not support the architecture, fails on it, or changes its results. The patches are then undone, and the
    model must be loaded again. Requires Triton and a GPU."""
    replaced = _Replaced()
    try:
        known = import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
        kinds = (inner.config.model_type, inner.config.get_text_config().model_type)
        apply = next((known[kind] for kind in kinds if kind in known), None)
        if apply is None:
            raise Unfit(f"Liger has no kernels for {kinds[-1]} models", fix="engine: fused")
        before = _states(inner)
        ours = {"cross_entropy": False, "fused_linear_cross_entropy": False}
        takes = signature(apply).parameters
        apply(model=inner, **{name: value for name, value in ours.items() if name in takes})
        apart = distance(_states(inner), before)
        if not apart <= CLOSE:
            message = f"Liger changes the model's hidden states (relative distance {apart:.2g})"
            raise Unfit(message, fix="engine: fused")
    except (Unfit, torch.OutOfMemoryError):
        replaced.put_back()
        raise
    except Exception as error:  # of Triton, of a driver, of a Liger made for other versions
        replaced.put_back()
        message = f"Liger fails on this model: {type(error).__name__}: {error}"
        raise Unfit(message[:500], fix="engine: fused") from error


class _Replaced:
    """A snapshot of transformers' model modules and classes, from which they can be restored."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, dict[str, Any]]] = []
        for name, module in list(sys.modules.items()):
            if name.startswith("transformers.models.") and ".modeling_" in name:
                own = [of for of in vars(module).values() if isinstance(of, type) and of.__module__ == name]
                self._before += [(of, dict(vars(of))) for of in (module, *own)]

    def put_back(self) -> None:
        for owner, before in self._before:
            for name, value in list(vars(owner).items()):
                if name not in before:
                    delattr(owner, name)
                elif value is not before[name]:
                    setattr(owner, name, before[name])


NOT_UNSLOTH = (
    "dora",
    "init_lora_weights",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "exclude_modules",
    "modules_to_save",
    "target_parameters",
)
"""Adapter settings that are not passed to Unsloth."""


def load_unsloth(job: LocalJob, folder: str, length: int | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load and patch a model with Unsloth, which requires a GPU. Returns the peft model and the transformers
    model inside it. Orchestrate computes masks and loss, because Unsloth's model returns only hidden
    states."""
    adapter = job.adapter
    asked = {
        "packing": job.hyper.packing,
        "continue_from": job.continue_from,
        "added_tokens": job.added_tokens,
    }
    asked |= {f"adapter.{name}": getattr(adapter, name) for name in NOT_UNSLOTH}
    if unfit := [name for name, value in asked.items() if value]:
        raise RunFailed(f"engine unsloth does not support {', '.join(unfit)}", fix="engine: auto")
    fast: Any = import_module("unsloth").FastLanguageModel
    model, _ = fast.from_pretrained(
        model_name=folder,
        max_seq_length=length or 2048,
        dtype=dtype,
        load_in_4bit=adapter.type == "qlora",
        full_finetuning=adapter.full,
        use_gradient_checkpointing=job.hyper.gradient_checkpointing,
    )
    if adapter.full:
        return model, model
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = fast.get_peft_model(
        model,
        r=adapter.rank,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.dropout or 0.0,
        target_modules=linear if adapter.modules == "all-linear" else adapter.modules,
        use_rslora=adapter.rslora,
        use_gradient_checkpointing=job.hyper.gradient_checkpointing,
        random_state=job.seed,
    )
    return model, model.get_base_model()


@torch.no_grad()
def _states(inner: Any) -> torch.Tensor:
    embeddings = inner.get_input_embeddings().weight
    ids = torch.arange(3, 35, device=embeddings.device)[None] % embeddings.shape[0]
    training = inner.training
    inner.eval()
    states = decoder_of(inner)(input_ids=ids, use_cache=False).last_hidden_state.float()
    inner.train(training)
    return states
