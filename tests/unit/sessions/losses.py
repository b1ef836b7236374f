"""The same losses here and at a host, by one session."""

from __future__ import annotations

from typing import Any

import torch
from tests.unit.sessions.loop import rows

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

ADAM = {"learning_rate": 5e-3}


def trained(session: Any, steps: int = 2) -> list[float]:
    losses: list[float] = []
    for _ in range(steps):
        losses.append(session.forward_backward(rows()).loss)
        session.optim_step(ADAM)
    return losses


def policy_rows(seed: int = 0) -> list[dict[str, Any]]:
    drawn = torch.Generator().manual_seed(seed)
    return [
        {
            "model_input": row["model_input"],
            "loss_fn_inputs": {
                "target_tokens": row["loss_fn_inputs"]["target_tokens"],
                "logprobs": (-9 - torch.rand(len(row["model_input"]), generator=drawn)).tolist(),
                "advantages": torch.randn(len(row["model_input"]), generator=drawn).tolist(),
            },
        }
        for row in rows()
    ]


def own_loss(data: Any, logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
    del data
    return -sum((one**2).sum() for one in logprobs), {"rows": float(len(logprobs))}


def half_weighted() -> list[dict[str, Any]]:
    """Rows whose first three tokens have no weight: the host masks their log-probabilities."""
    found = rows()
    for row in found:
        row["loss_fn_inputs"]["weights"][:3] = [0.0] * 3
    return found


def losses_of(s: Any) -> dict[str, list[float]]:
    told = {"sft": trained(s)}
    for loss in ("importance_sampling", "ppo", "cispo", "dro"):
        told[loss] = [s.forward_backward(policy_rows(), loss).loss]
        s.optim_step(ADAM)
    told["own"] = [s.forward_backward_custom(half_weighted(), own_loss).loss]
    s.optim_step(ADAM)
    told["weighted"] = [s.forward(half_weighted()).loss, s.forward_backward(half_weighted()).loss]
    told["all"] = [float(value) for value in s.forward(half_weighted()).loss_fn_outputs[0]["logprobs"]]
    return told
