"""The GitHub Action and the pre-commit hooks: their files by the schemas of others, their scripts by bash."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests import forking
from tests.paths import BUNDLED, ROOT

ROWS = BUNDLED / "orders" / "train.jsonl"


@dataclass(frozen=True)
class Runner:
    """A folder as a runner has it, with the command and a `gh` that writes down what it is asked."""

    folder: Path
    env: dict[str, str]

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.env | env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def script(self, **env: str) -> subprocess.CompletedProcess[str]:
        given = {"SPEC": "finetune.yaml", "PROVIDER": "together", "FAIL_ABOVE_USD": "", "GATE": ""}
        return self.run("bash", str(ROOT / "ci" / "pull_request.sh"), **(given | env))

    @property
    def comments(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "comments.json").read_text())

    @property
    def summary(self) -> str:
        return (self.folder / "summary.md").read_text()


GH = """
import json, os, pathlib, sys
kept = pathlib.Path(__file__).with_name("comments.json")
comments = json.loads(kept.read_text())
if os.environ.get("GH_CODE"):
    sys.exit(int(os.environ["GH_CODE"]))
match sys.argv[1:]:
    case ["pr", "view", "7", "--json", "comments"]:
        print(json.dumps({"comments": comments}))
    case ["pr", "comment", "7", "--body-file", file]:
        url = f"https://github.com/o/r/pull/7#issuecomment-{9000 + len(comments)}"
        comments.append({"body": open(file).read(), "viewerDidAuthor": True, "url": url})
    case ["api", "--silent", "--method", "PATCH", path, "--field", body] if body.startswith("body=@"):
        [one] = [c for c in comments if path == "repos/{owner}/{repo}/issues/comments/" + c["url"][-4:]]
        one["body"] = open(body.removeprefix("body=@")).read()
    case words:
        sys.exit(f"gh does not know {words}")
kept.write_text(json.dumps(comments))
"""
"""What the GitHub command line answers, over the comments of one pull request."""
OTHERS = [
    {"body": "<!-- orchestrate: finetune.yaml --> of a person", "viewerDidAuthor": False, "url": "#i-1000"},
    {"body": "coverage: 90%", "viewerDidAuthor": True, "url": "#i-1001"},
]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    (tmp_path / "gh.py").write_text(GH)
    (tmp_path / "comments.json").write_text(json.dumps(OTHERS))
    programs = tmp_path / "bin"
    programs.mkdir()
    shims = {
        "orchestrate": f'exec {forking.python()} -m orchestrate.cli "$@"',
        "gh": f'exec {sys.executable} {tmp_path}/gh.py "$@"',
    }
    for name, line in shims.items():
        (programs / name).write_text(f"#!/bin/bash\n{line}\n")
        (programs / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "ORCHESTRATE_HOME": str(tmp_path / "home"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "COLUMNS": "120",
    }
    (tmp_path / "finetune.yaml").write_text(f"model: qwen3-8b\ntrain: {ROWS}\nepochs: 1\n")
    return Runner(tmp_path, env)


@pytest.mark.slow
def test_the_action_and_the_hooks_are_what_their_readers_take() -> None:
    words = ["-m", "check_jsonschema", "--builtin-schema", "vendor.github-actions", str(ROOT / "action.yml")]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    words = ["-m", "pre_commit", "validate-manifest", str(ROOT / ".pre-commit-hooks.yaml")]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)


def test_no_input_of_the_action_is_a_part_of_its_commands() -> None:
    """What a pull request can write, as a branch's or a file's name, would be run."""
    action: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    for step in action["runs"]["steps"]:
        assert "${{" not in step["run"]


def test_a_good_spec_is_quoted_in_a_comment(runner: Runner) -> None:
    done = runner.script(PULL_REQUEST="7", GH_TOKEN="t", FAIL_ABOVE_USD="50")
    assert done.returncode == 0, runner.summary
    assert "| together |" in runner.summary or "together" in runner.summary
    assert [one["body"] for one in runner.comments[2:]] == [runner.summary]


@pytest.mark.slow
def test_only_the_comment_of_this_spec_is_written_again(runner: Runner) -> None:
    """Not a person's, nor that of another workflow under the same account, though it is the last."""
    pull_request = {"PULL_REQUEST": "7", "GH_TOKEN": "t"}
    (runner.folder / "other.yaml").write_text((runner.folder / "finetune.yaml").read_text())
    for spec in ("finetune.yaml", "other.yaml", "finetune.yaml"):
        (runner.folder / "summary.md").write_text("")
        assert runner.script(SPEC=spec, **pull_request).returncode == 0
    assert runner.comments[:2] == OTHERS and len(runner.comments) == 4
    assert runner.comments[2]["body"] == runner.summary
    assert "`other.yaml`" in runner.comments[3]["body"]


@pytest.mark.slow
def test_what_is_wrong_or_too_dear_fails_and_says_so(runner: Runner) -> None:
    assert runner.script(FAIL_ABOVE_USD="0.01").returncode == 1
    assert "the cheapest may cost up to" in runner.summary
    hostile = runner.folder / "bad.jsonl"
    hostile.write_text('{"messages": [{"role": "```</pre>", "content": "x"}]}\n')
    (runner.folder / "finetune.yaml").write_text(f"model: qwen3-8b\ntrain: {hostile}\n")
    assert runner.script().returncode == 1
    told = [line for line in runner.summary.splitlines() if "```" in line]
    assert told
    assert all(line.startswith("    ") for line in told), "it is shown as it is, and formats nothing"


def test_a_comment_that_is_not_allowed_fails_nothing(runner: Runner) -> None:
    done = runner.script(PULL_REQUEST="7", GH_TOKEN="t", GH_CODE="1")
    assert done.returncode == 0
    assert "no comment was written" in done.stdout


def test_the_hooks_check_each_file(runner: Runner) -> None:
    hooks: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    data, spec = (shlex.split(hook["entry"]) for hook in hooks)
    bad = runner.folder / "bad row.jsonl"
    bad.write_text('{"messages": "none"}\n')
    assert runner.run(*data, str(ROWS)).returncode == 0
    done = runner.run(*data, str(bad), str(ROWS))
    assert done.returncode == 1
    assert runner.run(*spec, "finetune.yaml").returncode in (0, 1)
