"""A backend in a package of its own, installed into a venv, appears in every command."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import venv
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.documented import snippets
from tests.paths import ROOT

import orchestrate

PLUGIN = Path(__file__).parent / "plugin"
ENTRY, PROFILE, PROVIDER, _, ATTIC = snippets(ROOT / "docs" / "plugins.md")[:5]


class Installed:
    """A venv with the plug-in; Orchestrate and its packages come from the environment of the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        scheme = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        site = Path(sysconfig.get_path("purelib", "venv", scheme))
        here = [Path(orchestrate.__file__).parents[1], Path(sysconfig.get_path("purelib"))]
        (site / "tests.pth").write_text("".join(f"{path}\n" for path in here))
        self._run(
            "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", str(PLUGIN)
        )

    def _run(self, *args: str, code: int = 0, typed: str = "") -> str:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "ORCHESTRATE_HOME": str(self.folder / "home"),
            "ORCHESTRATE_KEYS": str(self.folder / "keys.toml"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        done = subprocess.run(
            [self.python, *args], cwd=self.folder, env=env, capture_output=True, text=True, timeout=300,
            input=typed,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout or done.stderr

    def orchestrate(self, *args: str, code: int = 0) -> Any:
        return json.loads(self.run(*args, "--json", code=code))

    def run(self, *args: str, code: int = 0, typed: str = "") -> str:
        return self._run("-c", "from orchestrate.cli import main; main()", *args, code=code, typed=typed)


def test_the_page_shows_what_is_installed_here() -> None:
    assert ENTRY.text in (PLUGIN / "pyproject.toml").read_text()
    package = PLUGIN / "src" / "orchestrate_shelf"
    for snippet, file in ((PROFILE, "profile.py"), (PROVIDER, "provider.py")):
        assert snippet.text == (package / file).read_text()


@pytest.mark.slow
def test_plug_in_appears_in_every_command(tmp_path: Path) -> None:
    installed = Installed(tmp_path)
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    (tmp_path / "finetune.yaml").write_text("model: {default: any-model}\ntrain: train.jsonl\nepochs: 2\n")
    shelf = ("--provider", "shelf")

    backends = json.dumps(installed.orchestrate("providers"))
    assert '"shelf"' in backends
    assert "a shelf only keeps things" in backends
    assert '"shelf"' in json.dumps(installed.orchestrate("plan", *shelf))
    assert installed.orchestrate("plugins") == [
        {
            "kind": "shelf",
            "package": "orchestrate-shelf",
            "version": "0.3.0",
            "profile": "orchestrate_shelf.profile:PROFILE",
            "options": ["home", "label", "prices"],
            "error": None,
        }
    ]
    options = tmp_path / "orchestrate.toml"
    options.write_text("[hosts.shelf.options]\nlable = 'x'\n")
    assert "hosts.shelf.options.lable (did you mean label?)" in installed.run("plan", *shelf, code=3)
    options.write_text(ATTIC.text)
    installed.run("keys", "trust", "--project")
    assert [one["provider"] for one in installed.orchestrate("plan", "--provider", "attic")] == ["attic"]
    [key] = [c for c in installed.orchestrate("doctor") if c["check"] == "key attic"]
    assert "https://attic.example.com/v1" in key["detail"]
    options.write_text("[hosts.shelf.options]\nlabel = 'x'\n")
    assert "hosts.shelf.options.label" in installed.run("plan", *shelf, code=3), "an option of a plug-in"
    installed.run("keys", "trust", "--project")
    # Its profile is what these commands know of it.
    unpriced = installed.orchestrate("quote", *shelf, code=1)
    assert "no rates for shelf" in json.dumps(unpriced)
    priced = installed.orchestrate("quote", *shelf, "--rate", "shelf:sft_lora=2")
    assert "a shelf bills what it takes" in json.dumps(priced)
    [quote] = priced
    assert Decimal(quote["low_usd"]) < Decimal(quote["expected_usd"]) < Decimal(quote["high_usd"])
    installed.orchestrate("check", *shelf)
    [taken] = installed.orchestrate("data", "check", "train.jsonl", "--for", "shelf")["report"]["hosts"]
    assert (taken["host"], taken["accepted"]) == ("shelf", 3)
    installed.orchestrate("data", "convert", "train.jsonl", "--to", "shelf", "-o", "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0]) == row
    # No key, no job; the kept key is found.
    assert "SHELF_API_KEY is not set" in installed.run("submit", *shelf, "--yes", code=3)
    installed.run("keys", "set", "shelf", typed="a-key-of-the-shelf\n")
    [key] = [c for c in installed.orchestrate("doctor") if c["check"] == "key shelf"]
    assert key["ok"] and "https://shelf.example.com/v1" in key["detail"]
    installed.orchestrate("submit", *shelf, "--yes")
    assert "shelf" in json.dumps(installed.orchestrate("runs"))
    installed.orchestrate("sync")
    assert "succeeded" in json.dumps(installed.orchestrate("show", "last"))
    assert "shelved" in json.dumps(installed.orchestrate("events", "last"))
    # What it lacks is refused with its own reason.
    assert "a shelf only keeps things" in installed.run("download", "last", code=2)
