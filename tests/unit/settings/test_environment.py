"""No program gets the keys that are in the environment, unless it is Orchestrate itself or the user's own."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
from tests import sources

from orchestrate.errors import ProjectNotTrusted
from orchestrate.places.kinds._skypilot import credentials
from orchestrate.runs.watching.channels import CommandChannel
from orchestrate.settings import MORE_NAMES, of_child

WHOLE = {
    "commands/servers/sandbox.py": "it goes before the user's own command, as `env` does",
    "settings/config.py": "it says what a child that is Orchestrate itself gets",
    "runs/watching/background.py": "the watcher is Orchestrate itself, which asks the hosts",
    "providers/registry.py": "so is the process of a session job, which asks its host",
}
"""Who gives the whole environment on, and why."""
STARTS = ("Popen", "run", "call", "check_call", "check_output")


def test_every_process_is_given_an_environment() -> None:
    whole = set[str]()
    for file, nodes in sources.nodes().items():
        text = (sources.SOURCE / file).read_text(encoding="utf-8")
        if "**os.environ" in text or ".child_environment(" in text:
            whole.add(file)
        for call in nodes:
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr in STARTS
            ):
                started = isinstance(call.func.value, ast.Name) and call.func.value.id == "subprocess"
                named = {keyword.arg for keyword in call.keywords}
                assert not started or "env" in named, f"{file}:{call.lineno}"
    assert {name for name in whole if "sandbox/__init__" not in name} == WHOLE.keys()


def test_a_notification_command_gets_no_key_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told.json"
    program = f"import json, os; json.dump(dict(os.environ), open({str(told)!r}, 'w'))"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user-0123456789")
    monkeypatch.setenv("CHAT_TOKEN", "of-a-chat-0123456789")
    for named, expected in (("", set[str]()), ("CHAT_TOKEN", {"CHAT_TOKEN"})):
        monkeypatch.setenv(MORE_NAMES, named)
        CommandChannel([sys.executable, "-c", program]).send_message({"text": "over"})
        given = json.loads(told.read_text())
        assert {"OPENAI_API_KEY", "CHAT_TOKEN"} & given.keys() == expected and "PATH" in given


def test_clients_of_clouds_get_their_clouds_credentials_and_no_hosts_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_PROFILE", "KUBECONFIG", "OPENAI_API_KEY", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "x")
    assert {"AWS_PROFILE", "KUBECONFIG"} <= of_child(credentials()).keys()
    assert not {"OPENAI_API_KEY", "GITHUB_TOKEN"} & of_child(credentials()).keys()
    assert of_child(A="b")["A"] == "b" and "AWS_PROFILE" not in of_child()


def test_the_message_says_what_where_and_what_to_do() -> None:
    error = ProjectNotTrusted(["/p/orchestrate.toml", "/p/rates.yaml"], ["budget_usd", "store"])
    assert "/p/orchestrate.toml sets budget_usd, store and /p/rates.yaml sets prices" in error.message
    assert ProjectNotTrusted(["/p/rates.yaml"]).message.startswith("/p/rates.yaml sets prices.")
