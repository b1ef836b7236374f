"""What a worker loads before it begins."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
import types

import pytest

from orchestrate.local.run import NO_COMPILER, importing

LOADS = """
import sys
from orchestrate.local.run import importing
with importing():
    import peft, bitsandbytes
assert "torch._inductor.compile_fx" not in sys.modules and "scipy" not in sys.modules
import torch, scipy.optimize, transformers
assert transformers.utils.is_scipy_available()
double = torch.compile(lambda x: 2 * x, backend="eager")
assert double(torch.ones(1)).item() == 2
print(torch._dynamo.utils.counters["frames"]["ok"])
"""


@pytest.mark.slow
def test_libraries_come_without_a_compiler_which_can_still_be_had() -> None:
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) > 0


def test_a_scipy_that_is_known_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scipy", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    with importing():
        assert "scipy" not in sys.modules
    monkeypatch.delitem(sys.modules, "transformers")
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    with importing(), pytest.raises(ImportError):
        importlib.import_module("sklearn")  # as older releases of transformers do where it is there
    assert not {"scipy", "sklearn"} & sys.modules.keys()


def test_all_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NO_COMPILER, raising=False)
    for name in ("scipy", "sklearn", "transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with importing():
        assert os.environ[NO_COMPILER] == "1" and not gc.isenabled()
        with importing(), pytest.raises(ImportError):
            importlib.import_module("scipy")
    assert NO_COMPILER not in os.environ and gc.isenabled() and "scipy" not in sys.modules
    monkeypatch.setenv(NO_COMPILER, "0")
    with importing():
        assert os.environ[NO_COMPILER] == "1"
    assert os.environ[NO_COMPILER] == "0"
