"""Every command and every example of the README is run as it is written, against the sandbox."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import command, forking
from tests.cli.conftest import Cli
from tests.paths import BUNDLED, ROOT
from tests.workers import Nursery

from orchestrate.sandbox import running

README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = {"train.jsonl": ("train", 60), "valid.jsonl": ("validation", 20), "test.jsonl": ("test", 20)}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_python")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "".join(blocks("sh")).splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, nursery: Nursery
) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder as the README supposes it, and the environment of a person who has the sandbox's keys."""
    folder = tmp_path_factory.mktemp("project")
    for name, (split, rows) in ROWS.items():
        lines = (BUNDLED / f"orders/{split}.jsonl").read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:rows]))
    (folder / "my-base").symlink_to(BUNDLED / "tiny-chat")
    [spec] = blocks("yaml")
    (folder / "finetune.yaml").write_text(spec)
    kept = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_BASE_URL"))}
    kept |= {
        "ORCHESTRATE_HOME": str(folder / "home"),
        "ORCHESTRATE_KEYS": str(folder / "keys.toml"),
        "HF_HUB_OFFLINE": "1",
        "PATH": forking.path(),
    }
    with running(home=folder / "sandbox", speed=20, start=nursery.start) as hosts:
        yield folder, kept | hosts.env


def test_the_commands(project: tuple[Path, dict[str, str]]) -> None:
    folder, env = project
    assert len(commands()) > 12
    for line in commands():
        # A local run is what can be asked and downloaded without a deployment that would bill.
        if line.startswith(("orchestrate eval", "orchestrate chat")):
            line = line.replace("last", local_run(folder, env))
        program, *words = shlex.split(line)
        assert program == "orchestrate"
        done = command.run(words, cwd=folder, env=env)
        assert done.code == 0, f"{line}\n{done.out.decode()}\n{done.err.decode()}"
    report = (folder / "report.html").read_text()
    assert "SANDBOX" in report


def local_run(folder: Path, env: dict[str, str]) -> str:
    shown = command.run(["runs", "--provider", "local", "--json"], cwd=folder, env=env)
    return json.loads(shown.out)[0]["id"]


def test_the_python_example(project: tuple[Path, dict[str, str]]) -> None:
    folder, env = project
    env = env | {
        "ORCHESTRATE_HOME": str(folder / "home of the example")
    }  # a run of the commands would be the same
    [example] = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("local "), "the cheapest quote comes first"


def test_the_make_targets_and_links_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}: " in makefile
    here = (
        "https://github.com/orchestrate-ft/orchestrate/blob/main/",
        "https://raw.githubusercontent.com/orchestrate-ft/orchestrate/main/",
    )
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) > 10
    for link in links:  # whole ones: the page is shown elsewhere too
        assert link.startswith(here), link
        assert (ROOT / link.partition("/main/")[2]).exists(), link


def test_the_quote_that_is_shown_is_what_the_command_prints(cli: Cli) -> None:
    [block] = re.findall(r"^\$ orchestrate quote\n(.*?)\n\n", README, re.MULTILINE | re.DOTALL)
    shown = [line.split() for line in block.splitlines()[1:]]
    always_open = {"OPENAI_API_KEY": "sandbox-tests", "OPENAI_BASE_URL": "http://127.0.0.1:9"}
    quoted = {q["provider"]: q for q in cli("quote", "--json", cwd=BUNDLED / "orders", **always_open).json}
    assert [row[0] for row in shown] == [row["provider"] for row in quoted.values()]
    for backend, model, expected, *_ in shown:
        assert quoted[backend]["model"] == model
        if backend != "local":  # which goes by how busy the machine is
            assert float(quoted[backend]["expected_usd"]) == pytest.approx(float(expected[1:]), rel=0.05)
