"""Graders, tried out: what `fine_tuning/alpha/graders/run` answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ERRORS = (
    "formula_parse_error",
    "invalid_variable_error",
    "model_grader_parse_error",
    "model_grader_refusal_error",
    "model_grader_server_error",
    "other_error",
    "python_grader_runtime_error",
    "python_grader_server_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
)
_DETAILS = (
    "model_grader_server_error_details",
    "python_grader_runtime_error_details",
    "python_grader_server_error_type",
)


def graded(
    grader: Mapping[str, Any], reward: float, errors: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """`errors`: those that happened, by the names of `ERRORS`, and further fields about them."""
    return {
        "reward": reward,
        "sub_rewards": {},
        "model_grader_token_usage_per_model": {},
        "metadata": {
            "name": str(grader.get("name") or ""),
            "type": str(grader.get("type")),
            "errors": {**dict.fromkeys(ERRORS, False), **dict.fromkeys(_DETAILS), **errors},
            "execution_time": seconds,
            "scores": {},
            "token_usage": None,
            "sampled_model_name": None,
        },
    }
