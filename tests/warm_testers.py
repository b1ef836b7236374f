"""What the tests import of the package and of others, for the workers of xdist (`tests/forking.py`): each
would import it for six seconds."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import import_module

from tests.cells import ALL_OF_IT
from tests.paths import ROOT

from orchestrate.local.run import importing

_ASKED = re.compile(r"^(?:from|import) ([\w.]+)", re.MULTILINE)
_REWRITTEN = ("__future__", "hypothesis", "pytest", "_pytest", "tests")
"""What pytest imports itself, to rewrite its assertions."""
_texts = [file.read_text("utf-8") for file in ROOT.glob("tests/**/test_*.py")]
_names = {name for text in _texts if not ALL_OF_IT.search(text) for name in _ASKED.findall(text)}
with importing():
    for _name in sorted(_names):
        if _name.partition(".")[0] not in _REWRITTEN:
            with suppress(ImportError):
                import_module(_name)
