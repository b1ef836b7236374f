"""Editors are told by a schema what a rate or catalog file may hold: the one of the records that read it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.paths import ROOT

_spec = importlib.util.spec_from_file_location("schemas", ROOT / "docs" / "schemas.py")
assert _spec is not None and _spec.loader is not None
schemas: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(schemas)
FILES = [(name, path) for name, paths in schemas.FILES.items() for path in paths]


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_the_schema_is_that_of_the_records(name: str) -> None:
    assert schemas.SCHEMAS[name].read_text() == schemas.text(schemas.schemas()[name]), (
        "python docs/schemas.py"
    )


@pytest.mark.parametrize(("name", "path"), FILES, ids=[path.name for _, path in FILES])
def test_each_file_names_its_schema_and_keeps_to_it(name: str, path: Path) -> None:
    first = path.read_text().partition("\n")[0]
    assert first == f"# yaml-language-server: $schema=./{schemas.SCHEMAS[name].name}"
    jsonschema.validate(schemas.plain(yaml.safe_load(path.read_text())), schemas.schemas()[name])


def test_a_slip_is_seen() -> None:
    rate = {
        "method": "sft_lora",
        "usd_per_mtok": 1,
        "start": "2026-01-01",
        "confidence": "quoted",
        "source": "s",
    }
    of = {"provider": "x", "rates": [rate]}
    jsonschema.validate(of, schemas.schemas()["rates"])
    for slip in ({"usd_per_mtoken": 1}, {"confidence": "sure"}, {"usd_per_mtok": "one"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**of, "rates": [{**rate, **slip}]}, schemas.schemas()["rates"])
