"""Turns on what the engine does otherwise than the libraries, as far as a model bears it; notes the rest."""

# torch and transformers describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch

from orchestrate.errors import RunFailed
from orchestrate.local.job import LocalJob
from orchestrate.local.model.engines import NO_PACKING, Choice
from orchestrate.local.model.head import Head
from orchestrate.local.model.loaded import Loaded, OwnLogits
from orchestrate.local.model.shortcuts import probes
from orchestrate.local.model.shortcuts.accelerating import compile_layers, undo_compiling
from orchestrate.local.model.shortcuts.fused import fuse, unfuse
from orchestrate.local.model.shortcuts.kernels import undo, use_on_cpu, watched
from orchestrate.local.model.weights import experts


def turn_on(loaded: Loaded, job: LocalJob) -> None:
    """Whatever fails is left out, with the reason in `loaded.left_out`.

    Raises `RunFailed` for a model that does not get through a step without any of it."""
    if not probes.head_is_understood(loaded):
        loaded.head = Head(OwnLogits(loaded.head.layer.weight.detach()))
        loaded.own_logits = True
    fused = loaded.choice.name in ("fused", "liger")
    if any(experts.held_of(loaded.inner)):
        experts.adapt(loaded.model)  # nothing else computes with these
    elif fused and not job.adapter.full:
        _experts(loaded)
    proved = fused and _layers(loaded, job)
    if not proved and (reason := probes.trains(loaded)):
        raise RunFailed(
            f"this model cannot be trained as it is: {reason}",
            fix="adapter.targets: fewer modules, or engine: plain; worker.log has the whole message",
        )
    _balance(loaded, job)
    if fused:
        _rows(loaded, job)
    if job.hyper.packing:
        reason = probes.packs(loaded)
        loaded.packs = reason is None
        if reason:
            loaded.left_out["packing"] = reason
        elif loaded.device.type == "cpu":
            loaded.left_out["packed rows"] = NO_PACKING
    if loaded.choice.name == "compile":
        compile_layers(loaded.inner)
        if reason := probes.trains(loaded):
            undo_compiling(loaded.inner)
            loaded.choice = Choice("plain", f"compiled, {reason}")
            loaded.left_out["torch.compile"] = reason


def _balance(loaded: Loaded, job: LocalJob) -> None:
    """The routers' own loss, as asked; where all weights are trained, by default as the model's configuration
    has it."""
    config, asked = loaded.inner.config.get_text_config(), job.hyper.router_aux_loss
    if asked is None and job.adapter.full and getattr(config, "output_router_logits", False):
        asked = float(getattr(config, "router_aux_loss_coef", 0.0))
    if not asked:
        return
    loaded.balancing = asked
    with loaded.judging(), torch.no_grad():
        loaded.hidden(probes.made_up(loaded))
    if not loaded.routed:
        raise RunFailed(
            f"router_aux_loss: a {config.model_type} model does not tell what its routers say, or has none",
            fix="leave router_aux_loss out",
        )


def _layers(loaded: Loaded, job: LocalJob) -> bool:
    """Whether the model is known to get through a step with what is left on."""
    proved = False
    if not job.adapter.full:
        layers = fuse(loaded.model)
        if reason := probes.trains(loaded):
            unfuse(loaded.model)
            loaded.left_out["LoRA in one step"] = reason
        elif layers:
            loaded.turned_on.append("LoRA in one step")
        proved = reason is None
    if loaded.device.type == "cpu" and (replaced := use_on_cpu(loaded.inner)):
        with watched() as calls:
            reason = probes.trains(loaded)
        if reason:
            undo(loaded.inner)
            loaded.left_out["attention and norms for a CPU"] = reason
        else:
            if "attention" in replaced and not any(calls):
                replaced.remove("attention")
                loaded.left_out["attention for a CPU"] = (
                    "the model trains with one of its own, or with dropout"
                )
            loaded.turned_on += [f"{what} for a CPU" for what in replaced]
            proved = True
    return proved


def _experts(loaded: Loaded) -> None:
    """Only where some have an adapter: else transformers' way holds no more than ours."""
    ids = probes.made_up(loaded)
    with loaded.judging(), torch.no_grad():
        before = loaded.hidden(ids)
    if not experts.use(loaded.inner) or not experts.adapt(loaded.model):
        experts.give_back(loaded.inner)
        return
    reason = probes.trains(loaded)
    with loaded.judging(), torch.no_grad():
        if not reason and not probes.distance(loaded.hidden(ids), before) <= probes.CLOSE:
            reason = "the model then has other states"
    if reason:
        experts.give_back(loaded.model)
        loaded.left_out["experts one by one"] = reason
    else:
        loaded.turned_on.append("experts one by one")


def _rows(loaded: Loaded, job: LocalJob) -> None:
    if job.hyper.neftune_alpha:
        loaded.left_out["rows in one line"] = "the noise is measured by each row's length"
        return
    loaded.line_limit, reason = probes.line_limit(loaded)
    if reason:
        loaded.left_out["rows in one line"] = reason
    loaded.shares = not probes.draws(loaded)
    if loaded.line_limit:
        told = f"rows of up to {loaded.line_limit} tokens in one line"
        loaded.turned_on.append(told + (", what they begin with once" if loaded.shares else ""))
    if job.hyper.gradient_checkpointing or loaded.own_logits or loaded.balancing:
        # A layer that is computed again would no longer know which places were meant, and routers speak of
        # all tokens.
        return
    if probes.trained_only(loaded) is None:
        loaded.turned_on.append("the last MLP for trained tokens only")
