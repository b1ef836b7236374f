"""The fields of the hosts' create requests by the types of their SDKs and by their published descriptions,
neither of which was written for Orchestrate."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from pydantic import BaseModel
from tests.paths import ROOT

from orchestrate.providers.settings import Fields

SPECS = (Path(__file__).parent / "published", ROOT.parent / "shared" / "specs")
"""Where the hosts' published API descriptions are: those that can be shipped, and beside the checkout."""
NOT_IN_BODY = {"accountId", "supervisedFineTuningJobId", "dpoJobId", "reinforcementFineTuningJobId"}
"""Parameters that the Fireworks SDK writes into the address."""
FIREWORKS = {
    "sft": "gatewaySupervisedFineTuningJob",
    "dpo": "gatewayDpoJob",
    "rft": "gatewayReinforcementFineTuningJob",
}


def tables(host: str, method: str) -> Fields:
    """Orchestrate's own table."""
    from orchestrate.providers.fireworks.translation import FIELDS as FIREWORKS_FIELDS
    from orchestrate.providers.openai.translation import FIELDS as OPENAI_FIELDS
    from orchestrate.providers.together.translation import FIELDS as TOGETHER_FIELDS

    return {"openai": OPENAI_FIELDS, "together": TOGETHER_FIELDS, "fireworks": FIREWORKS_FIELDS[method]}[host]


def sdk_type(host: str, method: str) -> Any:
    """What the SDK's create call takes, or sends."""
    if host == "openai":
        from openai.types.fine_tuning import JobCreateParams

        return JobCreateParams
    if host == "together":
        from together.lib.types.fine_tuning import FinetuneRequest

        return FinetuneRequest
    from fireworks.types import (
        DpoJobCreateParams,
        ReinforcementFineTuningJobCreateParams,
        SupervisedFineTuningJobCreateParams,
    )

    return {
        "sft": SupervisedFineTuningJobCreateParams,
        "dpo": DpoJobCreateParams,
        "rft": ReinforcementFineTuningJobCreateParams,
    }[method]


def of_sdk(host: str, method: str) -> set[str]:
    every = set(leaves(sdk_type(host, method)))
    found = {name for name in every if not any(other.startswith(f"{name}.") for other in every)}
    return {camel(name) for name in found} - NOT_IN_BODY if host == "fireworks" else found


def camel(dotted: str) -> str:
    """Fireworks' wire is camelCase, its SDK's parameters are not."""
    return re.sub(r"_([a-z0-9])", lambda found: found[1].upper(), dotted)


def leaves(kind: Any, prefix: str = "") -> Iterator[str]:
    """The dotted fields of a `TypedDict` or a model; graders, a language of their own, stay whole."""
    for name, annotation in _members(kind):
        inner = [a for a in _alternatives(annotation) if _is_table(a)]
        inner = [] if name == "grader" else [a for a in inner if list(_members(a))]
        for table in inner:
            yield from leaves(table, f"{prefix}{name}.")
        if not inner:
            yield f"{prefix}{name}"


def _members(kind: Any) -> Iterator[tuple[str, Any]]:
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield field.alias or name, field.annotation
    else:
        yield from get_type_hints(kind).items()


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or hasattr(kind, "__required_keys__"))


def _alternatives(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Annotated:
        yield from _alternatives(get_args(kind)[0])
    elif get_origin(kind) in (Union, types.UnionType):
        for inner in get_args(kind):
            yield from _alternatives(inner)
    else:
        yield kind


# -- published ---------------------------------------------------------------------------------------------


@cache
def description(host: str) -> dict[str, Any]:
    """The published description with unknown fields forbidden."""
    found = strict(_mended(read(f"{host}.yaml")))
    if host == "fireworks":
        _add_newest(found["components"]["schemas"])
    return found


def read(name: str) -> dict[str, Any]:
    """Skips the test where the description can't be shipped and does not lie beside the checkout."""
    path = next((folder / name for folder in SPECS if (folder / name).is_file()), None)
    if path is None:
        pytest.skip(f"{name} is not shipped, as its license is not known, and is not in {SPECS[-1]}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)


def _mended(schema: Any) -> Any:
    """The descriptions call themselves OpenAPI 3.1, and in three ways are not what JSON Schema says."""
    if isinstance(schema, list):
        return [_mended(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _mended(value) for name, value in schema.items()}
    for limit, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if found.get(exclusive) is True:  # as OpenAPI 3.0 writes it
            found[exclusive] = found.pop(limit)
    if isinstance(found.get("oneOf"), list):
        if isinstance(found.get("type"), str):
            del found["type"]  # contradicts one of the alternatives (Together: train_on_inputs)
        found["anyOf"] = found.pop("oneOf")  # the alternatives overlap (Together: lr_scheduler_args)
    return found


def strict(schema: Any) -> Any:
    """Every object without a word on further fields has none."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(value) for name, value in schema.items()}
    if isinstance(found.get("properties"), dict) and "allOf" not in found:
        found.setdefault("additionalProperties", False)
    return found


def _add_newest(schemas: dict[str, Any]) -> None:
    """Supervised jobs are as version 5.10.0 of the gateway has them, their fields' types as 4.259.0 had."""
    newest = read("fireworks-sft-5.10.yaml")
    job = schemas[FIREWORKS["sft"]]
    names = newest["gatewaySupervisedFineTuningJob"]["properties"]
    job["properties"] = {name: job["properties"].get(name, {}) for name in names}
    scheduler = newest["gatewayLearningRateScheduler"]
    ratio = {"type": "number", "minimum": 0, "maximum": 1}
    kinds = {kind: dict.fromkeys(scheduler.get(kind, []), ratio) for kind in scheduler["exactly_one_of"]}
    job["properties"]["lrScheduler"] = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": {
            kind: {"type": "object", "properties": ratios, "additionalProperties": False}
            for kind, ratios in kinds.items()
        },
    }


def of_description(host: str, method: str) -> set[str]:
    return set(_paths(host, request_schema(host, method)))


def request_schema(host: str, method: str) -> dict[str, Any]:
    if host == "fireworks":
        return description(host)["components"]["schemas"][FIREWORKS[method]]
    path = {"openai": "/fine_tuning/jobs", "together": "/v1/fine-tunes"}[host]
    schema = description(host)["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return _resolved(host, schema)


def _resolved(host: str, schema: Mapping[str, Any]) -> Any:
    while "$ref" in schema:
        found: Any = description(host)
        for key in schema["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        schema = found
    return schema


def _paths(host: str, schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    schema = _resolved(host, schema)
    for inner in schema.get("anyOf", []):
        yield from _paths(host, inner, prefix)
    for name, inner in schema.get("properties", {}).items():
        if inner.get("readOnly"):
            continue
        below = [] if name == "grader" else list(_paths(host, inner, f"{prefix}{name}."))
        yield from below or [f"{prefix}{name}"]
