from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml
from tests.cli.conftest import Cli

from orchestrate.cli import COMMANDS
from orchestrate.errors import UsageError
from orchestrate.providers import registry
from orchestrate.settings import config


def test_help_names_every_command(cli: Cli) -> None:
    shown = cli("--help")
    assert shown.code == 0
    for _, name, _, _ in COMMANDS:
        assert f" {name} " in shown.out


@pytest.mark.parametrize("name", [name for _, name, _, _ in COMMANDS])
def test_every_command_has_help_of_its_own(cli: Cli, name: str) -> None:
    shown = cli(name, "--help")
    assert shown.code == 0 and f"Usage: orchestrate {name}" in shown.out


def test_a_typo_is_answered_with_a_suggestion(cli: Cli) -> None:
    shown = cli("sbumit")
    assert shown.code == 2 and "submit" in shown.err


@pytest.mark.parametrize("group", ["models", "prices", "keys", "providers"])
def test_what_lists_does_so_alone_and_by_its_word(cli: Cli, group: str) -> None:
    alone, named = cli(group), cli(group, "list")
    assert (alone.code, alone.out, alone.err) == (named.code, named.out, named.err)
    assert alone.code == 0 and alone.out.count("\n") > 3


def test_init_writes_files_that_work_and_never_overwrites(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    assert cli("init", str(folder)).code == 0
    schema = json.loads((folder / "finetune.schema.json").read_text())
    jsonschema.validate(yaml.safe_load((folder / "finetune.yaml").read_text()), schema)
    (folder / "finetune.yaml").write_text("mine")
    again = cli("init", str(folder))
    assert again.code == 2 and "--force" in again.err
    assert (folder / "finetune.yaml").read_text() == "mine"
    assert cli("init", str(folder), "--force").code == 0
    assert (folder / "finetune.yaml").read_text() != "mine"
    assert cli("runs", cwd=folder).code == 0, "the written orchestrate.toml must be readable"


def test_keys_are_kept_masked_listed_and_removed(cli: Cli, tmp_path: Path) -> None:
    key = "tgp_v1_abcdefghijklmnop"
    stored = cli("keys", "set", "together", stdin=key + "\n")
    assert stored.code == 0 and key not in stored.err + stored.out
    assert (tmp_path / "keys.toml").stat().st_mode & 0o777 == 0o600
    listed = cli("keys", "list", "--json")
    assert key not in listed.out
    [together] = [row for row in listed.json if row["backend"] == "together"]
    assert together["source"] == "key file" and together["key"].startswith("tgp")
    assert cli("keys", "set", "together", stdin="\n").code == 2
    cli("keys", "remove", "together")
    assert not any(row["key"] for row in cli("keys", "list", "--json").json)


def test_errors_have_an_exit_code_a_reason_and_a_way_out(cli: Cli, tmp_path: Path) -> None:
    no_spec = cli("plan")
    assert no_spec.code == 2 and "orchestrate init" in no_spec.err and no_spec.out == ""
    as_json = cli("plan", "--json")
    assert as_json.code == 2 and as_json.out == ""
    assert json.loads(as_json.err)["fix"].startswith("orchestrate init")
    (tmp_path / "orchestrate.toml").write_text("nonsense = 1\n")
    wrong = cli("runs")
    assert wrong.code == 3 and "unknown field nonsense" in wrong.err


def test_an_unknown_run_and_an_unknown_backend_are_usage_errors(cli: Cli, tmp_path: Path) -> None:
    assert cli("show", "run-nothing").code == 2
    (tmp_path / "finetune.yaml").write_text("model: qwen3-8b\ntrain: t.jsonl\n")
    unknown = cli("plan", "--provider", "opanai")
    assert unknown.code == 2 and "known: openai" in unknown.err


def test_runs_of_an_empty_store(cli: Cli) -> None:
    assert cli("runs", "--json").json == []
    assert "no runs yet" in cli("runs").err


def test_the_doctor_asks_the_hosts_whether_they_take_the_keys(cli: Cli, tmp_path: Path) -> None:
    from orchestrate.sandbox import running

    (tmp_path / "orchestrate.toml").write_text("[hosts.together.options]\nretry_budget_s = 0.5\n")
    with running(train=False) as sandbox:
        gone = {"TOGETHER_BASE_URL": "http://127.0.0.1:9/v1"}
        told = cli("doctor", "--online", "--json", **sandbox.env | gone)
        checks = {c["check"]: c for c in told.json}
        assert sandbox.count("openai") == 1 and sandbox.count("together") == 0
        before = sandbox.count()
        cli("doctor", **sandbox.env)
        assert sandbox.count() == before, "nothing is sent unless it is asked for"
    assert told.code == 3
    assert checks["host openai"]["detail"] == "accepts the key" and checks["host fireworks"]["ok"] is True
    assert checks["host together"]["ok"] is False and checks["host together"]["detail"]


def test_doctor_and_providers_speak_json(cli: Cli) -> None:
    checks = {c["check"]: c for c in cli("doctor", "--json").json}
    assert checks["python"]["ok"] is True and checks["store"]["ok"] is True
    assert "core" in checks["processor"]["detail"] and "GiB" in checks["memory"]["detail"]
    assert "free" in checks["disk"]["detail"]
    assert checks["orchestrate"]["detail"] == version("orchestrate-ft")
    assert checks["extra [local]"]["detail"].startswith(f"torch {version('torch')}, ")
    backends = {b["name"]: b for b in cli("providers", "--json").json}
    assert {"openai", "together", "fireworks", "local"} <= backends.keys()
    for backend in backends.values():
        assert all(backend["missing"].values()), "every absent feature has its reason"
        assert not set(backend["missing"]) & set(backend["features"])
    assert "o4-mini, was shut down on 2026-10-23" in backends["openai"]["ended"]["rft"]
    assert "openai no longer offers rft" in cli("providers").err


def test_providers_has_all_that_a_command_takes_and_what_each_needs_here(cli: Cli) -> None:
    found = {one["name"]: one for one in cli("providers", "--json").json}
    with pytest.raises(UsageError, match="known: ") as known:
        registry.chosen(config.load(env={}), ",")
    assert set(found) == set(known.value.message.partition("known: ")[2].split(", "))
    assert {"azure", "nebius", "hf-jobs", "ray", "kuberay", "sky"} <= set(found)
    assert all(one["usable"] is (one["needs"] is None) for one in found.values())
    assert "orchestrate keys set nebius" in found["nebius"]["needs"]
    assert "base_url" in found["azure"]["needs"] and "image" in found["kuberay"]["needs"]
    with_key = cli("providers", "--json", NEBIUS_API_KEY="not-a-key").json
    assert next(one for one in with_key if one["name"] == "nebius")["usable"] is True
    shown = cli("providers").out
    assert all(name in shown for name in found)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("train", "submit"),
        ("status", "runs"),
        ("ls", "runs"),
        ("logs", "events"),
        ("estimate", "quote"),
        ("help", "--help"),
        ("version", "--version"),
    ],
)
def test_the_word_of_another_tool_leads_to_the_command(cli: Cli, word: str, meant: str) -> None:
    told = cli(word, "--json")
    error = json.loads(told.err)
    assert told.code == 2 and error["fix"] == f"orchestrate {meant}" and f"'{meant}'" in error["message"]
    assert cli(*meant.split(), *(() if meant.startswith("-") else ("--help",))).code == 0


@pytest.mark.parametrize("line", ["queue ls", "keys ls", "prices ls", "models ls", "gateway keys ls"])
def test_the_usual_words_for_a_list_are_taken(cli: Cli, line: str) -> None:
    assert cli(*line.split(), "--json").code == 0


@pytest.mark.parametrize(
    ("line", "own"),
    [
        ("queue rm", "queue remove"),
        ("keys rm", "keys remove"),
        ("keys revoke", "keys remove"),
        ("gateway keys remove", "gateway keys revoke"),
    ],
)
def test_the_usual_words_for_removing_are_taken(cli: Cli, line: str, own: str) -> None:
    told, as_own = (cli(*words.split(), "nothing-there") for words in (line, own))
    assert (told.code, told.out, told.err) == (as_own.code, as_own.out, as_own.err)
    assert "nothing-there" in told.err
    group = own.rpartition(" ")[0].split()
    assert f" {line.rpartition(' ')[2]} " not in cli(*group, "--help").out, "one word is shown"


@pytest.mark.parametrize(
    "command",
    [
        ("runs",),
        ("quote", "--model", "gpt-4.1-mini", "--train", "t.jsonl"),
        ("check", "-p", "local", "--model", "tiny-chat", "--train", "t.jsonl"),
        ("providers",),
    ],
    ids=lambda command: command[0],
)
def test_the_home_folder_is_made_for_its_owner_alone_whatever_comes_first(
    cli: Cli, tmp_path: Path, command: tuple[str, ...]
) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    before = os.umask(0o022)
    try:
        cli(*command)
    finally:
        os.umask(before)
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


def test_a_home_folder_that_is_open_to_others_is_left_and_told(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    (tmp_path / "home").chmod(0o755)
    done = cli("doctor", "--json")
    told = next(c for c in done.json if c["check"] == "home")
    assert "accessible to other users" in told["detail"] and told["fix"].startswith("chmod 700 ")
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("words", ["providers --json", "--help", "models list"])
def test_a_closed_pipe_is_no_error(cli_env: dict[str, str], words: str) -> None:
    line = f"'{sys.executable}' -m orchestrate.cli {words} 2> >(grep -v tuning >&2) | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], env=cli_env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout) == 10


@pytest.mark.parametrize(
    ("typed", "word", "offered"),
    [("orchestrate ru", 1, "runs"), ("orchestrate submit --pro", 2, "--provider")],
)
def test_the_shell_completes_commands_and_their_options(
    cli_env: dict[str, str], typed: str, word: int, offered: str
) -> None:
    env = {"COMP_WORDS": typed, "COMP_CWORD": str(word), "_ORCHESTRATE_COMPLETE": "complete_bash"}
    script = Path(sys.executable).parent / "orchestrate"
    done = subprocess.run([script], env=cli_env | env, capture_output=True, text=True)
    assert offered in done.stdout.split()
