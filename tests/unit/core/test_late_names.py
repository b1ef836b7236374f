"""Names that are loaded when first used: each lies where its package says."""

from __future__ import annotations

import ast
import importlib

import pytest
from tests.paths import ROOT

SOURCE = ROOT / "src"


def packages() -> list[str]:
    """Whose `__getattr__` is made by `late`."""
    found: list[str] = []
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text()
        if "late(" not in text:
            continue
        made = (node.value for node in ast.parse(text).body if isinstance(node, ast.Assign))
        calls = (node.func for node in made if isinstance(node, ast.Call))
        if any(isinstance(function, ast.Name) and function.id == "late" for function in calls):
            parts = path.relative_to(SOURCE).with_suffix("").parts
            found.append(".".join(parts).removesuffix(".__init__"))
    return found


@pytest.mark.parametrize("name", packages())
def test_each_name_is_there(name: str) -> None:
    module = importlib.import_module(name)
    load = vars(module)["__getattr__"]
    homes = next(cell.cell_contents for cell in load.__closure__ if isinstance(cell.cell_contents, dict))
    assert homes
    for public in homes:
        assert getattr(module, public) is not None
