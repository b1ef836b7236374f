"""Create requests as they were sent, against the hosts' published API descriptions (see conftest.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from tests.contract.backends import ABSENT, SPECS, TRAINED, Backend, named
from tests.contract.sent import bodies

from orchestrate.providers.base import Provider
from orchestrate.sandbox.server import Sandbox
from orchestrate.types import Feature

pytestmark = pytest.mark.skipif(
    not SPECS.is_dir(), reason=f"the hosts' published API descriptions are not in {SPECS}; see conftest.py"
)


@cache
def description(host: str) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return mended(yaml.load((SPECS / f"{host}.yaml").read_text(encoding="utf-8"), Loader=loader))


def mended(schema: Any) -> Any:
    """The descriptions call themselves OpenAPI 3.1, and in three ways are not what JSON Schema says."""
    if isinstance(schema, list):
        return [mended(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: mended(value) for name, value in schema.items()}
    for limit, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if found.get(exclusive) is True:  # as OpenAPI 3.0 writes it
            found[exclusive] = found.pop(limit)
    if isinstance(found.get("oneOf"), list):
        if isinstance(found.get("type"), str):
            del found["type"]  # contradicts one of the alternatives (Together: train_on_inputs)
        found["anyOf"] = found.pop("oneOf")  # the alternatives overlap (Together: lr_scheduler_args)
    return found


def validator(host: str, path: str) -> Draft202012Validator:
    path = path.replace("/accounts/sandbox/", "/accounts/{account_id}/")
    path = path.removeprefix("/v1") if host == "openai" else path
    pointer = f"paths/{path.replace('/', '~1')}/post/requestBody/content/application~1json/schema"
    return Draft202012Validator({**description(host), "$ref": f"#/{pointer}"})


@pytest.mark.parametrize(**named(ABSENT))
def test_an_absent_method_has_a_reason(
    hosted: Backend, make: Callable[[Backend], Provider], method: str
) -> None:
    assert make(hosted).missing[Feature(method)]


@pytest.mark.parametrize(**named(TRAINED))
def test_bodies_are_as_published(
    hosted: Backend,
    make: Callable[[Backend], Provider],
    files: dict[str, str],
    sandbox: Sandbox,
    method: str,
) -> None:
    provider = make(hosted)
    for path, body in bodies(hosted, provider, files, sandbox, method):
        check = validator(hosted.name, path)
        assert [f"{list(e.path)}: {e.message}" for e in check.iter_errors(body)] == []
        # The description is really looked at: a body without its data is refused.
        key = "dataset" if hosted.name == "fireworks" else "training_file"
        assert list(check.iter_errors({k: v for k, v in body.items() if k != key}))
