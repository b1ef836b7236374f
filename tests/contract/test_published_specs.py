"""Create requests as they were sent, and the sandbox's own idea of them, against the hosts' published API
descriptions with unknown fields forbidden (see conftest.py). A field that a host's SDK has and its
description has not is judged by `test_sent_bodies.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tests.contract.backends import ABSENT, PUBLISHED, Backend, named
from tests.contract.known_fields import (
    description,
    leaves,
    of_description,
    of_sdk,
    read,
    request_schema,
    tables,
)
from tests.contract.sent import bodies
from tests.contract.test_sent_bodies import without

from orchestrate.http.wire.openai.tuning import CreateJob as OpenAIJob
from orchestrate.providers.base import Provider
from orchestrate.sandbox.fireworks.host import BY_METHOD
from orchestrate.sandbox.server import Sandbox
from orchestrate.sandbox.together import TogetherCreateJob as TogetherJob
from orchestrate.types import Feature


def validator(host: str, method: str) -> Draft202012Validator:
    schemas = {"components": description(host).get("components", {})}
    return Draft202012Validator({**schemas, **request_schema(host, method)})


@pytest.mark.parametrize(**named(ABSENT))
def test_an_absent_method_has_a_reason(
    hosted: Backend, make: Callable[[Backend], Provider], method: str
) -> None:
    assert make(hosted).missing[Feature(method)]


@pytest.mark.parametrize(**named(PUBLISHED))
def test_bodies_are_as_published(
    hosted: Backend,
    make: Callable[[Backend], Provider],
    files: dict[str, str],
    sandbox: Sandbox,
    method: str,
) -> None:
    host, provider = hosted.name, make(hosted)
    elsewhere = (of_sdk(host, method) | set(tables(host, method).documentation.split())) - of_description(
        host, method
    )
    for _, body in bodies(hosted, provider, files, sandbox, method):
        check, published = validator(host, method), body
        for field in elsewhere:
            published = without(published, field)
        assert [f"{list(e.path)}: {e.message}" for e in check.iter_errors(published)] == []
        # The description is really looked at: a body without its data is refused, and one with more.
        key = "dataset" if host == "fireworks" else "training_file"
        assert list(check.iter_errors({k: v for k, v in published.items() if k != key}))
        assert list(check.iter_errors({**published, "loraAlpha": 16}))


@pytest.mark.parametrize(**named(PUBLISHED))
def test_what_is_said_to_be_of_a_description_is_in_it(hosted: Backend, method: str) -> None:
    table = tables(hosted.name, method)
    published, sdk = of_description(hosted.name, method), of_sdk(hosted.name, method)
    assert set(table.specification.split()) <= published - sdk
    assert set(table.documentation.split()).isdisjoint(published | sdk)


@pytest.mark.parametrize(**named(PUBLISHED))
def test_the_sandbox_takes_no_field_that_its_host_has_not(hosted: Backend, method: str) -> None:
    """Whole: fields that the SDKs, the descriptions or the hosts' pages name."""
    host = hosted.name
    body: Any = BY_METHOD[method].body if host == "fireworks" else None
    body = body or {"openai": OpenAIJob, "together": TogetherJob}[host]
    known = of_sdk(host, method) | of_description(host, method) | set(tables(host, method).names)

    def named_somewhere(field: str) -> bool:
        return any(field == k or field.startswith(f"{k}.") or k.startswith(f"{field}.") for k in known)

    assert [field for field in leaves(body) if not named_somewhere(field)] == []


def test_every_state_that_fireworks_publishes_is_mapped() -> None:
    from orchestrate.providers.fireworks import STATUSES

    assert set(STATUSES) == set(read("fireworks-sft-5.10.yaml")["gatewayJobState"])
