"""Create requests as they were sent, against the parameter types of the official SDKs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import pytest
from pydantic import TypeAdapter
from tests.contract.backends import ABSENT, TRAINED, Backend, methods, named
from tests.contract.sent import bodies, full_spec

from orchestrate.providers.base import Provider
from orchestrate.sandbox.server import Sandbox
from orchestrate.types import Outcome


def openai_fields(method: str) -> tuple[Mapping[str, Any], frozenset[str]]:
    from openai.types.fine_tuning import JobCreateParams

    return _of_typed_dict(JobCreateParams)


def together_fields(method: str) -> tuple[Mapping[str, Any], frozenset[str]]:
    from together.lib.types.fine_tuning import FinetuneRequest

    # What the SDK always fills in from its own defaults may be left to the host's.
    fields = {name: field.annotation for name, field in FinetuneRequest.model_fields.items()}
    return fields, frozenset({"training_file"})


def fireworks_fields(method: str) -> tuple[Mapping[str, Any], frozenset[str]]:
    from fireworks.types import (
        DpoJobCreateParams,
        ReinforcementFineTuningJobCreateParams,
        SupervisedFineTuningJobCreateParams,
    )

    kinds: dict[str, Any] = {
        "sft": SupervisedFineTuningJobCreateParams,
        "dpo": DpoJobCreateParams,
        "rft": ReinforcementFineTuningJobCreateParams,
    }
    fields, required = _of_typed_dict(kinds[method])
    return {**fields, **(GATEWAY_ONLY if method == "sft" else {})}, required


GATEWAY_ONLY = {
    "lora_alpha": int,
    "lora_dropout": float,
    "lora_target_modules": list[str],
    "lr_scheduler": dict[str, Any],
}
"""Fields of Fireworks' SFT jobs that its API takes and the SDK does not name yet."""


def _of_typed_dict(kind: Any) -> tuple[Mapping[str, Any], frozenset[str]]:
    return get_type_hints(kind), kind.__required_keys__


FIELDS: Mapping[str, Callable[[str], tuple[Mapping[str, Any], frozenset[str]]]] = {
    "openai": openai_fields,
    "together": together_fields,
    "fireworks": fireworks_fields,
}


def snake(value: Any) -> Any:
    """Fireworks' wire is camelCase, its SDK's parameters are not."""
    if isinstance(value, dict):
        return {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", k).lower(): snake(v) for k, v in value.items()}
    return [snake(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize(**named(ABSENT))
def test_a_method_that_is_not_trained_is_refused(
    hosted: Backend, make: Callable[[Backend], Provider], files: dict[str, str], method: str
) -> None:
    translation = make(hosted).translate(hosted.spec(files, method))
    assert any(row.name.startswith("method") for row in translation.refused)


@pytest.mark.parametrize(**named(TRAINED))
def test_bodies_have_the_sdks_types(
    hosted: Backend,
    make: Callable[[Backend], Provider],
    files: dict[str, str],
    sandbox: Sandbox,
    method: str,
) -> None:
    provider = make(hosted)
    fields, required = FIELDS[hosted.name](method)
    for _, sent in bodies(hosted, provider, files, sandbox, method):
        body = snake(sent) if hosted.name == "fireworks" else sent
        assert required <= body.keys()
        for name, value in body.items():
            assert name in fields, f"{name} is no parameter of the SDK"
            TypeAdapter(fields[name]).validate_python(value)


@pytest.mark.parametrize("method", ["sft", "dpo", "rft"])
def test_what_is_kept_is_really_asked_for(
    hosted: Backend, make: Callable[[Backend], Provider], files: dict[str, str], method: str
) -> None:
    """The spec that asks for all still asks for something: the test above looks at more than defaults."""
    provider = make(hosted)
    if method in methods(provider):
        translation = provider.translate(full_spec(hosted, provider, files, method))
        sent = [row.name for row in translation.settings if row.wire and row.outcome is not Outcome.DEFAULTED]
        assert {"epochs", "batch_size"} <= set(sent)
