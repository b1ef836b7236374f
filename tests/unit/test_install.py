"""What `make env` runs: uv with pip's own configuration, and pip where that can't be."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.paths import ROOT

STUB = """
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
with (here / "asked").open("a") as log:
    given = {name: value for name, value in os.environ.items() if name.startswith("UV_")}
    log.write(json.dumps([sys.argv[1:], given]) + "\\n")
sys.exit(Path(here / "fails").exists() and (here / "fails").read_text() in sys.argv)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, with pip's configuration empty."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    found = importlib.util.spec_from_file_location("install_of_ci", ROOT / "ci" / "install.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_uv_is_given_what_pip_is_configured_with(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = http://a.invalid/simple\ntimeout = 9\nfind-links = /wheels\n"
        "extra-index-url =\n  http://b.invalid\n  http://c.invalid\nprogress-bar = off\n"
        "[install]\nconstraint = one.txt\ntimeout = 11\n[freeze]\nall = true\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_FIND_LINKS", "/x /y")
    monkeypatch.setenv("PIP_CERT", "/ca.crt")
    given = install.configured()
    assert given == given | {
        "UV_DEFAULT_INDEX": "http://a.invalid/simple",
        "UV_INDEX": "http://b.invalid http://c.invalid",
        "UV_HTTP_TIMEOUT": "11",
        "UV_FIND_LINKS": "/x,/y",
        "UV_CONSTRAINT": "one.txt",
        "SSL_CERT_FILE": "/ca.crt",
    }
    monkeypatch.setenv("PIP_NO_BINARY", "torch")
    assert install.configured() is None, "uv would be asked for other files than pip"


@pytest.mark.parametrize(
    ("fails", "asked"),
    [
        ("", ["--target", "uv"]),
        ("--target", ["--target", "pip"]),
        ("uv-pip", ["--target", "uv", "pip"]),
        ("config", ["pip"]),
    ],
    ids=["uv installs", "no uv", "uv fails", "a configuration of which nothing is known"],
)
def test_pip_installs_what_uv_does_not(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, asked: list[str]
) -> None:
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    if fails:
        (tmp_path / "fails").write_text(fails)
    monkeypatch.setattr(install, "PIP", [sys.executable, str(stub), "pip"])
    monkeypatch.setattr(install, "uv", lambda: [sys.executable, str(stub), "uv-pip"])
    assert install.main("dev") == 0
    lines = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    kinds = ["--target" if "--target" in words else words[0].removesuffix("-pip") for words, _ in lines]
    assert kinds == ["pip", *asked] and lines[0][0] == ["pip", "config", "list"]
    assert lines[-1][0][-3:] == ["install", "-e", f"{ROOT}[dev]"]
    assert [bool(env) for _, env in lines] == [kind == "uv" for kind in kinds]


def test_an_install_that_fails_ends_in_an_error(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    (tmp_path / "fails").write_text("install")
    monkeypatch.setattr(install, "PIP", [sys.executable, str(stub)])
    monkeypatch.setattr(install, "uv", lambda: [str(tmp_path / "nowhere")])
    assert install.main("dev") == 1
