"""Create requests as they were sent, against the parameter types of the official SDKs, with unknown fields
forbidden. What the SDKs do not have is judged by `test_published_specs.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from tests.contract.backends import ABSENT, PUBLISHED, TRAINED, Backend, methods, named
from tests.contract.known_fields import of_sdk, sdk_type, tables
from tests.contract.sent import bodies, full_spec

from orchestrate.providers.base import Provider
from orchestrate.sandbox.server import Sandbox
from orchestrate.types import Authority, Outcome

USUAL: Mapping[str, Any] = {
    "n_epochs": 1,
    "learning_rate": 1e-5,
    "warmup_ratio": 0.0,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
}
"""What Together's SDK always fills in from its own defaults may be left to the host's."""


def snake(value: Any) -> Any:
    """Fireworks' wire is camelCase, its SDK's parameters are not."""
    if isinstance(value, dict):
        return {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", k).lower(): snake(v) for k, v in value.items()}
    return [snake(v) for v in value] if isinstance(value, list) else value


def paths(value: Any, prefix: str = "") -> Iterator[str]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner and key not in ("grader", "metadata"):
            yield from paths(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def without(body: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A copy without a dotted field, and without what that leaves empty."""
    name, _, below = field.partition(".")
    found = dict(body)
    if below and isinstance(found.get(name), dict):
        found[name] = without(found[name], below)
    if name in found and (not below or found[name] == {}):
        del found[name]
    return found


def validate(host: str, method: str, body: Mapping[str, Any]) -> None:
    kind = sdk_type(host, method)
    asked = snake(body) if host == "fireworks" else {**USUAL, **body} if host == "together" else body
    TypeAdapter(kind).validate_python(asked, extra="forbid")


@pytest.mark.parametrize(**named(ABSENT))
def test_a_method_that_is_not_trained_is_refused(
    hosted: Backend, make: Callable[[Backend], Provider], files: dict[str, str], method: str
) -> None:
    translation = make(hosted).translate(hosted.spec(files, method))
    assert any(row.name.startswith("method") for row in translation.refused)


@pytest.mark.parametrize(**named(PUBLISHED))
def test_bodies_have_the_sdks_types(
    hosted: Backend,
    make: Callable[[Backend], Provider],
    files: dict[str, str],
    sandbox: Sandbox,
    method: str,
) -> None:
    provider, table = make(hosted), tables(hosted.name, method)
    for _, sent in bodies(hosted, provider, files, sandbox, method):
        assert [path for path in paths(sent) if table.authority(path) is Authority.NONE] == []
        of_the_sdk = sent
        for name, authority in table.names.items():
            if authority is not Authority.SDK:
                of_the_sdk = without(of_the_sdk, name)
        validate(hosted.name, method, of_the_sdk)
        with pytest.raises(ValidationError, match="extra_forbidden"):
            validate(hosted.name, method, {**of_the_sdk, "loraAlpha": 16})


@pytest.mark.parametrize(**named([pair for pair in TRAINED if pair[0].name == "azure"]))
def test_bodies_for_openais_models_elsewhere_have_its_sdks_types(
    hosted: Backend,
    make: Callable[[Backend], Provider],
    files: dict[str, str],
    sandbox: Sandbox,
    method: str,
) -> None:
    for _, sent in bodies(hosted, make(hosted), files, sandbox, method):
        validate("openai", method, sent)
        with pytest.raises(ValidationError, match="extra_forbidden"):
            validate("openai", method, {**sent, "loraAlpha": 16})


_NAMED = {
    # The API description of 2026-05-06 of the first, and the example of the second.
    "nebius": """model training_file validation_file suffix seed hyperparameters.batch_size
        hyperparameters.learning_rate hyperparameters.n_epochs hyperparameters.warmup_ratio
        hyperparameters.weight_decay hyperparameters.packing hyperparameters.max_grad_norm
        hyperparameters.context_length hyperparameters.lora hyperparameters.lora_r hyperparameters.lora_alpha
        hyperparameters.lora_dropout""",
    "crusoe": """model training_file validation_file suffix seed method.type
        method.supervised.hyperparameters.n_epochs method.supervised.hyperparameters.batch_size
        method.supervised.hyperparameters.learning_rate_multiplier
        method.supervised.hyperparameters.learning_rate method.supervised.hyperparameters.lr_scheduler
        method.supervised.hyperparameters.lora_variant method.supervised.hyperparameters.lora_rank
        method.supervised.hyperparameters.lora_alpha method.supervised.hyperparameters.lora_dropout
        method.supervised.hyperparameters.early_stopping_patience
        method.supervised.hyperparameters.warmup_ratio method.supervised.hyperparameters.weight_decay
        method.supervised.hyperparameters.checkpoint_steps""",
}


@pytest.mark.parametrize("name", _NAMED)
def test_bodies_hold_nothing_but_what_the_hosts_pages_name(
    name: str, make: Callable[[Backend], Provider], files: dict[str, str], sandbox: Sandbox
) -> None:
    [hosted] = [backend for backend, _ in TRAINED if backend.name == name]
    everything: set[str] = set()
    for _, sent in bodies(hosted, make(hosted), files, sandbox, "sft"):
        everything |= set(paths(sent))
    assert everything <= set(_NAMED[name].split())
    assert len(everything) > 10


@pytest.mark.parametrize(**named(PUBLISHED))
def test_the_tables_have_the_fields_of_the_sdks(hosted: Backend, method: str) -> None:
    """Each parameter of a create call is sent, told in the plan, or can be written in `provider_options`."""
    assert set(tables(hosted.name, method).sdk.split()) == of_sdk(hosted.name, method)


RENAMED = dict(
    (  # pairs: a name beside a name with a colon reads as a key and its value to the look for keys
        ("lora", "training_type.type"),
        ("training_method", "training_method.method"),
        ("scheduler_num_cycles", "num_cycles"),
        ("wandb_api_key", "wandb_key"),
    )
)
NOT_SENT = {"self", "verbose", "model_limits"}


def test_each_parameter_of_togethers_create_is_in_its_body() -> None:
    """The call has other names than the body that `FinetuneRequest` is."""
    from together.resources.fine_tuning import FineTuningResource

    known = of_sdk("together", "sft")
    names = known | {field.rsplit(".", 1)[-1] for field in known}
    given = set(inspect.signature(FineTuningResource.create).parameters) - NOT_SENT
    assert {name for name in given if RENAMED.get(name, name) not in names} == set()


@pytest.mark.parametrize(**named(PUBLISHED))
def test_each_field_of_an_sdk_can_be_had(
    hosted: Backend, make: Callable[[Backend], Provider], files: dict[str, str], method: str
) -> None:
    """By a setting of the spec, or by `provider_options`, but for those that are Orchestrate's to fill."""
    provider = make(hosted)
    for field in sorted(of_sdk(hosted.name, method)):
        value: Any = "x"
        for key in reversed(field.split(".")):
            value = {key: value}
        spec = hosted.spec(files, method, provider_options={hosted.name: value})
        row = {s.name: s for s in provider.translate(spec).settings}[f"provider_options.{field}"]
        if row.outcome is Outcome.REFUSED:
            why = "Orchestrate sets this|spec already sets|in the spec instead, or"
            assert row.rule and re.search(why, row.rule), field
        else:
            assert (row.outcome, row.authority) == (Outcome.KEPT, Authority.SDK), field


@pytest.mark.parametrize(**named(TRAINED))
def test_strict_refuses_a_field_that_nothing_names(
    hosted: Backend, make: Callable[[Backend], Provider], files: dict[str, str], method: str
) -> None:
    options = {hosted.name: {"unheard_of": {"deep": 1}}}
    translation = make(hosted).translate(hosted.spec(files, method, provider_options=options))
    [row] = [s for s in translation.inexact if s.name.startswith("provider_options")]
    assert (
        row.authority is Authority.NONE
        and row.rule
        and ", although the host's published API does not mention this field" in row.rule
    )
    assert row not in translation.refused


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
