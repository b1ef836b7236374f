"""A package whose backend cannot be loaded breaks nothing but itself, and only what is used is loaded."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from tests import command
from tests.cli.conftest import Result
from tests.paths import ROOT

pytestmark = pytest.mark.slow
PLUGIN = ROOT / "tests" / "contract" / "plugin"


class Shell:
    """Commands where packages of a folder are installed too."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env | {"PACKAGES": str(folder / "packages")}

    def __call__(self, *words: str, program: object = None) -> Result:
        run = command.run([*words], cwd=self.folder, env=self.env, program=program or installed)  # type: ignore[arg-type]
        assert b"Traceback" not in run.err, run.err
        return Result(run.code, run.out.decode(), run.err.decode())


def installed(words: list[str]) -> None:
    import os

    sys.path.append(os.environ["PACKAGES"])
    command.orchestrate(words)


def loaded(words: list[str]) -> None:
    """The command, and then which modules of backends and of the keyring it has imported."""
    for name in [name for name in sys.modules if name.startswith(("keyring", "orchestrate.providers."))]:
        del sys.modules[name]  # those that the fork server has imported
    try:
        installed(words)
    finally:
        print(json.dumps(sorted(sys.modules)), file=sys.stderr)


@pytest.fixture
def shell(tmp_path: Path, cli_env: dict[str, str], warm: None) -> Shell:
    about = tmp_path / "packages" / "orchestrate_attic-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: orchestrate-attic\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[orchestrate.providers]\nattic = orchestrate_attic:PROFILE\n")
    (tmp_path / "packages" / "orchestrate_attic.py").write_text("import a_package_that_is_not_there\n")
    rows = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "train.jsonl").write_text(f"{json.dumps({'messages': rows})}\n" * 12)
    (tmp_path / "finetune.yaml").write_text(
        "model: {openai: gpt-4.1-mini, together: qwen3-8b, fireworks: qwen3-8b, local: tiny-chat}\n"
        "train: train.jsonl\nepochs: 1\n"
    )
    return Shell(tmp_path, cli_env)


@pytest.mark.parametrize(
    "words",
    [
        ("providers",),
        ("spending", "--offline"),
        ("quote",),
        ("data", "check", "train.jsonl", "--for", "all"),
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (("keys", "list"), ("runs",), ("sync",), ("plan",), ("check",))
        ),
    ],
    ids=" ".join,
)
def test_the_other_backends_go_on(shell: Shell, words: tuple[str, ...]) -> None:
    done = shell(*words)
    assert done.code == 0, done.err
    # The list of backends says beside its name why it cannot be used; nobody else speaks of it.
    assert ("a_package_that_is_not_there" in done.out + done.err) is (words == ("providers",))


@pytest.mark.slow
def test_an_error_of_a_plug_in_is_told_as_its_own(shell: Shell) -> None:
    packages = shell.folder / "packages"
    shutil.copytree(PLUGIN / "src" / "orchestrate_shelf", packages / "orchestrate_shelf")
    provider = packages / "orchestrate_shelf" / "provider.py"
    broken = provider.read_text().replace("        rows = Rows(self.name, spec)\n", "        rows = [][1]\n")
    provider.write_text(broken)
    about = packages / "orchestrate_shelf-0.3.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: orchestrate-shelf\nVersion: 0.3.0\n")
    entry = "[orchestrate.providers]\nshelf = orchestrate_shelf.profile:PROFILE\n"
    (about / "entry_points.txt").write_text(entry)
    done = shell("plan", "-p", "shelf", "--model", "any")
    assert done.code == 1 and "IndexError" in done.err
    assert "package orchestrate-shelf" in done.err and "bug in Orchestrate" not in done.err


def test_it_is_told_where_it_is_looked_for(shell: Shell) -> None:
    (row,) = shell("plugins", "--json").json
    assert (row["package"], row["version"]) == ("orchestrate-attic", "1.2")
    assert "a_package_that_is_not_there" in row["error"]
    doctor = shell("doctor", "--json")
    (told,) = [check for check in doctor.json if check["check"] == "backend attic"]
    assert doctor.code == 3 and told["ok"] is False
    assert "orchestrate-attic 1.2" in told["detail"] and "a_package_that_is_not_there" in told["detail"]
    assert any(check["check"] == "key openai" for check in doctor.json)
    named = shell("quote", "--provider", "openai,attic")
    assert named.code == 3 and "a_package_that_is_not_there" in named.err


@pytest.mark.slow
def test_profiles_and_the_keyring_are_loaded_when_they_are_used(shell: Shell) -> None:
    shell.env["OPENAI_API_KEY"] = "sk-of-the-environment-0123456789"
    runs = json.loads(shell("runs", program=loaded).err.splitlines()[-1])
    assert not [m for m in runs if re.match(r"keyring|orchestrate\.providers\.\w+\.|orchestrate_attic", m)]
    used = json.loads(shell("plan", "-p", "openai,local", program=loaded).err.splitlines()[-1])
    assert "orchestrate.providers.openai" in used
    assert not [m for m in used if m.startswith("keyring") or "attic" in m]
    planned = json.loads(shell("plan", "-p", "together", program=loaded).err.splitlines()[-1])
    assert "keyring" not in planned, "it asks no host"
    called = json.loads(shell("import", "together", program=loaded).err.splitlines()[-1])
    assert "keyring" in called, "nowhere else is a key of it"
