"""Writes the JSON schemas by which editors complete rate and catalog files, from the records that read them.

python docs/schemas.py
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.catalog import HostModel, Model
from orchestrate.catalog.models import License
from orchestrate.costing import Rate

SRC = Path(__file__).resolve().parent.parent / "src" / "orchestrate"
RATES = SRC / "costing" / "rates"
CATALOG = SRC / "catalog"
SCHEMAS = {
    "rates": RATES / "rates.schema.json",
    "models": CATALOG / "models.schema.json",
    "licenses": CATALOG / "licenses.schema.json",
}
FILES = {
    "rates": sorted(RATES.glob("*.yaml")),
    "models": [CATALOG / "models.yaml"],
    "licenses": [CATALOG / "licenses.yaml"],
}
_TEXT = {"type": "string"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}


def fields(record: type[msgspec.Struct], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The record as a mapping in YAML: numbers are numbers, and a field that does not exist is a slip."""

    [_], parts = msgspec.json.schema_components((record,), ref_template="#/$defs/{name}")
    own = parts.pop(record.__name__)
    made = json.loads(json.dumps({**own, "$defs": parts}), object_hook=_number)
    made["properties"] = {name: one for name, one in made["properties"].items() if name not in without}
    made["required"] = [name for name in made.get("required", ()) if name not in without]
    made["additionalProperties"] = False
    return made


def _number(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "number"} if value.get("format") == "decimal" else value


def mapping(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def schemas() -> dict[str, dict[str, Any]]:
    rate = fields(Rate, without=("provider", "undated", "own"))
    host = fields(HostModel)
    host["properties"]["tunable"] = {"enum": [True, False, "unconfirmed"], "default": True}  # yes and no
    host["properties"]["deployable"] = {"type": "boolean", "default": True}
    defaults = {**host, "required": []}
    model = fields(Model)
    model["properties"]["hosts"] = {"type": "object", "additionalProperties": host}
    license = fields(License, without=("id",))
    license["properties"]["unread"] = {"type": "boolean"}
    confidence = rate.pop("$defs")
    for part in (host, model, license, defaults):
        part.pop("$defs")
    return {
        "rates": {
            **mapping(
                ["provider", "rates"],
                provider=_TEXT,
                sources=_TEXTS,
                undated={"type": "array", "items": _TEXT},
                rates={"type": "array", "items": rate},
            ),
            "$defs": confidence,
        },
        "models": mapping(
            ["comparison", "starters", "sources", "host_defaults", "models"],
            comparison=_TEXT,
            starters={"type": "array", "items": _TEXT},
            notes={"type": "array", "items": _TEXT},
            sources=_TEXTS,
            host_defaults={"type": "object", "additionalProperties": defaults},
            models={"type": "array", "items": model},
        ),
        "licenses": {"type": "object", "additionalProperties": license},
    }


def plain(value: Any) -> Any:
    """As an editor reads YAML: a day is a text."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.isoformat() if isinstance(value, date) else value


def text(schema: dict[str, Any]) -> str:
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**head, **schema}, indent=1) + "\n"


if __name__ == "__main__":
    for name, schema in schemas().items():
        SCHEMAS[name].write_text(text(schema), encoding="utf-8")
