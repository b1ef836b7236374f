"""docs/reference is what the code makes, and has all that it should: nothing there is written by hand."""

from __future__ import annotations

import ast
import importlib.util
import re
from typing import Any

import pytest
from tests.paths import ROOT

import orchestrate
from orchestrate import profile, settings
from orchestrate.cli import COMMANDS
from orchestrate.costing import built_in
from orchestrate.settings import config, hosts
from orchestrate.spec import JobSpec

FOLDER = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NAMES = ("configuration", "commands", "spec", "json", "python", "errors", "translations", "prices")


@pytest.mark.parametrize("name", NAMES)
def test_each_page_is_what_the_code_makes(script: Any, name: str) -> None:
    written = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert script.page(name) == written, "run python docs/reference.py"


def test_there_is_no_other_page(script: Any) -> None:
    assert sorted(script.PAGES) == sorted(path.stem for path in FOLDER.glob("*.md")) == sorted(NAMES)


def text(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def test_every_command_field_and_error_is_there() -> None:
    assert {name for _, name, _, _ in COMMANDS} <= set(re.findall(r"^### (\w+)$", text("commands"), re.M))
    assert set(JobSpec.model_fields) <= set(re.findall(r"^\| `(\w+)` \|", text("spec"), re.M))
    source = (ROOT / "src" / "orchestrate" / "errors.py").read_text(encoding="utf-8")
    raised = {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", text("errors"), re.M))
    assert set(rows) == raised
    assert [name for name, told in rows.items() if len(told) < 20] == [], "each has its cause and way out"
    public = [name for name in orchestrate.__all__ if name not in raised and name != "__version__"]
    assert [name for name in public if f"## {name}\n" not in text("python")] == []


INTERNAL = {"BOOT", "CODE", "DEPOT", "HIDDEN", "MODULE", "REF", "REPORT_S", "START_S"}
"""What a worker on another machine is started with."""


def test_every_key_option_and_variable_is_there(script: Any) -> None:
    told = text("configuration")
    read: set[str] = set()
    for path in (ROOT / "src" / "orchestrate").rglob("*.py"):
        read |= set(re.findall(r"\bORCHESTRATE_[A-Z0-9_]*[A-Z0-9]\b", path.read_text(encoding="utf-8")))
    unlisted = read - {f"ORCHESTRATE_{name}" for name in INTERNAL} - set(settings.VARIABLES)
    assert unlisted == set()
    for kind in [*profile.built_in(), *profile.places(), *profile.described()]:
        known = profile.profile(kind)
        assert [name for name in script.options_of(known) if name not in script.OPTION_TEXTS] == [], kind
        named = (known.key_variable, known.account_variable, known.organization_variable)
        assert [name for name in named if name and f"`{name}`" not in told] == [], kind
    for name in [*config.TOP_LEVEL, *hosts.HOST_FIELDS, *settings.VARIABLES]:
        assert f"| `{name}` |" in told


def test_every_price_is_there() -> None:
    rows = [
        line for line in text("prices").splitlines() if line.startswith("| ") and "US dollars" not in line
    ]
    assert len([row for row in rows if not row.startswith("| ---")]) == len(list(built_in()))


@pytest.mark.parametrize("backend", ["openai", "together", "fireworks", "local"])
def test_every_setting_has_its_fate_on_every_backend(script: Any, backend: str) -> None:
    part = text("translations").partition(f"## {backend}\n")[2].partition("\n## ")[0]
    told = {name.partition(".")[0] for name in re.findall(r"^\| `([\w.]+)` \|", part, re.M)}
    assert {*script.EVERY, "model", "train", "validation", "method"} - told == set()
