"""Requests made up from OpenAI's published description: none ends in a 500, and no 2xx is other than
described."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.contract.backends import SPECS
from tests.unit.gateway.conftest import Gateway

SCHEMATHESIS = shutil.which("st") or shutil.which("st", path=str(Path(sys.executable).parent))


@pytest.mark.slow
@pytest.mark.skipif(
    not (SPECS / "openai.yaml").is_file(),
    reason=f"no requests are made up: OpenAI's published description is not in {SPECS}",
)
@pytest.mark.skipif(SCHEMATHESIS is None, reason="schemathesis is not installed (pip install schemathesis)")
def test_made_up_requests(gateway: Gateway, tmp_path: Path) -> None:
    command = [
        *(str(SCHEMATHESIS), "run", str(SPECS / "openai.yaml"), "--url", gateway.url),
        *("--include-path-regex", "^/(fine_tuning|files|uploads|models)"),
        *("--checks", "not_a_server_error,response_schema_conformance"),
        *("--max-examples", "10", "--seed", "7", "--no-color", "--header", "Authorization:Bearer any"),
    ]
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-6000:]
