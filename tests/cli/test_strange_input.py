"""What people type and what hosts say, however odd, is shown as it is and answered with a reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.cli.conftest import Cli

TYPED = "sk-typed-1234567"
ODD = "[bold]x[/nothing]:smile:"


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", ODD),
        ("models", "show", ODD),
        ("models", ODD),
        ("plan", "--provider", ODD),
        ("plan", "--set", ODD),
        ("init", f"/dev/null/{ODD}"),
        (ODD,),
    ],
)
def test_brackets_are_text_in_every_message(cli: Cli, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "finetune.yaml").write_text("model: qwen3-8b\ntrain: t.jsonl\n")
    told = cli(*arguments)
    assert told.code in (2, 3) and ODD in told.err and "bug:" not in told.err


@pytest.mark.parametrize(
    ("line", "guess"),
    [
        ("keys set opnai", "openai"),
        ("keys trust opnai", "openai"),
        ("runs -p opnai", "openai"),
        ("runs --status runing", "running"),
        ("data check t.jsonl --for opnai", "openai"),
        ("data inspect t.jsonl --tokenizer o200", "o200k"),
        ("plan --set overrides.opnai.epochs=2", "openai"),
        ("plan --set method=dpoo", "dpo"),
        ("spending --by backnd", "backend"),
        ("schema quot", "quote"),
        ("quot", "'quote'"),
        ("quote --providr openai", "--provider"),
    ],
)
def test_whatever_was_mistyped_is_guessed(cli: Cli, tmp_path: Path, line: str, guess: str) -> None:
    (tmp_path / "finetune.yaml").write_text("model: qwen3-8b\ntrain: t.jsonl\n")
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    told = cli(*line.split()).err.lower()
    asks = f"(possible options: {guess})" if guess.startswith("--") else f"did you mean {guess}?"
    assert asks in told, told


def test_brackets_are_text_in_every_table(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": [{"role": ODD, "content": ODD}]}) + "\n")
    (tmp_path / "finetune.yaml").write_text(f"model: '{ODD}'\ntrain: t.jsonl\ntags: {{a: '{ODD}'}}\n")
    planned = cli("plan", "--provider", "together")
    assert planned.code == 2 and ODD in planned.out
    for command in ("check", "quote"):
        told = cli(command, "--provider", "together")
        assert ODD in told.out + told.err and "bug:" not in told.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope",),
        ("submit",),
        ("runs", "--limit", "0"),
        ("runs", "--status", "nope"),
        ("show", "zz"),
        ("compare", "zz"),
        ("eval",),
        ("plan", "missing.yaml"),
        ("providers", "--no-such-option"),
    ],
)
def test_with_json_every_error_is_one_json_line(cli: Cli, arguments: tuple[str, ...]) -> None:
    told = cli(*arguments, "--json")
    assert told.code == 2 and told.out == ""
    error = json.loads(told.err)
    assert error["exit_code"] == 2 and error["message"]


def test_only_keys_that_something_reads_are_kept(cli: Cli, tmp_path: Path) -> None:
    for name in ("openia", "local", "", "a b"):
        told = cli("keys", "set", name, stdin="sk-abcdefghijklmnop\n")
        assert told.code == 2 and "known: openai" in told.err
    assert not (tmp_path / "keys.toml").exists()
    assert cli("keys", "set", "llm.example.com", stdin="k\n").code == 0
    assert "has a key called openai" in cli("keys", "remove", "openai").err


def test_what_cannot_be_written_is_said_with_its_path(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "the file is empty" in cli("init", "file").err
    under = cli("init", "file/inside")
    assert under.code == 3 and "file/inside" in under.err and "bug:" not in under.err
    for home in ("file", "/dev/null"):
        told = cli("--home", home, "runs")
        assert told.code == 3 and "bug:" not in told.err


def test_an_empty_home_is_not_the_working_folder(cli: Cli, tmp_path: Path) -> None:
    assert cli("--home", "", "runs").code == 0
    assert not (tmp_path / "runs.sqlite3").exists()


def test_a_store_can_be_named_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    assert cli("--store", f"sqlite:///{tmp_path / 'other.sqlite3'}", "runs").code == 0
    assert (tmp_path / "other.sqlite3").exists()
    assert cli("--store", "nonsense", "runs").code == 3


def test_a_key_that_is_missing_is_said_before_the_data_is_read(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "finetune.yaml").write_text("model: qwen3.5-9b\ntrain: not-there.jsonl\n")
    for more in (["--yes"], []):
        told = cli("submit", "--provider", "fireworks", *more)
        assert told.code == 3 and "orchestrate keys set fireworks" in told.err
    several = cli("submit", "--provider", "local,together", "--yes", "--json")
    assert several.code == 3 and several.out == "" and json.loads(several.err)["error"] == "MissingKey"


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("model: {opanai: m, default: n}", "model.opanai"),
        ("model: m\noverrides: {opanai: {epochs: 1}}", "overrides.opanai"),
        ("model: m\nprovider_options: {opanai: {x: 1}}", "provider_options.opanai"),
    ],
)
def test_a_backend_that_there_is_not_is_named_with_those_that_are(
    cli: Cli, tmp_path: Path, part: str, named: str
) -> None:
    (tmp_path / "finetune.yaml").write_text(f"{part}\ntrain: t.jsonl\n")
    told = cli("plan")
    assert told.code == 2 and named in told.err and "known: openai, together" in told.err


def test_a_reader_that_leaves_is_no_error(cli_env: dict[str, str]) -> None:
    line = f"'{sys.executable}' -m orchestrate.cli prices list --all | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], env=cli_env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("openai", "sk-typed-1234567"),
        ("openai", "--value", "sk-typed-1234567"),
        ("sk-typed-1234567", "openai"),
        ("sk-typed-1234567",),
    ],
)
def test_a_key_on_the_command_line_is_refused_and_not_shown(
    cli: Cli, tmp_path: Path, words: tuple[str, ...]
) -> None:
    told = cli("keys", "set", *words, stdin="sk-other-1234567\n")
    assert told.code == 2 and "sk-typed" not in told.out + told.err
    assert not (tmp_path / "keys.toml").exists()
    told = cli("keys", "set", "openai", stdin="sk-other-1234567\n")
    assert told.code == 0 and "sk-other-1234567" in (tmp_path / "keys.toml").read_text()


@pytest.mark.parametrize(
    ("words", "json"),
    [
        ([b"show", b"run\xff"], False),
        ([b"runs", b"--tag=a\xff"], False),
        ([b"show", b"run\xff", b"--json"], True),
        ([b"runs", b"--\xff", b"--json"], True),
        ([b"data", b"check", b"no\xff.jsonl", b"--json"], True),
    ],
)
def test_an_argument_that_is_no_utf_8_is_named(
    cli_env: dict[str, str], words: list[bytes], json: bool
) -> None:
    command = [sys.executable, "-m", "orchestrate.cli", *words]
    told = subprocess.run(command, env=cli_env, capture_output=True, check=False)
    assert told.returncode in (1, 2, 3) and b"bug" not in told.stderr and rb"\udcff" in told.stderr
    assert not json or msgspec.json.decode(told.stderr.splitlines()[-1])["exit_code"] == told.returncode


def test_an_environment_variable_that_is_no_utf_8_is_named(cli_env: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrate.cli", "runs"]
    env = {
        **{k.encode(): v.encode() for k, v in cli_env.items()},
        b"ORCHESTRATE_HOME": bytes(tmp_path) + b"/\xff",
    }
    told = subprocess.run(command, env=env, capture_output=True, check=False)
    assert told.returncode == 2 and b"environment variable ORCHESTRATE_HOME" in told.stderr


def test_a_folder_that_is_no_utf_8_is_named(cli_env: dict[str, str], tmp_path: Path) -> None:
    folder = bytes(tmp_path) + b"/d\xff"
    os.mkdir(folder)  # noqa: PTH102  pathlib takes no bytes
    Path(os.fsdecode(folder), "train.jsonl").write_text('{"text": "a"}\n')
    command = [sys.executable, "-m", "orchestrate.cli", "data", "check", "train.jsonl"]
    env = {**cli_env, "PWD": os.fsdecode(folder)}
    told = subprocess.run(command, env=env, cwd=folder, capture_output=True, check=False)
    assert b"bug" not in told.stderr and b"PWD" not in told.stderr
    assert told.returncode == 2 and b"path of the current folder" in told.stderr


def test_a_key_that_no_request_can_carry_is_not_stored(cli_env: dict[str, str]) -> None:
    for key in (b"sk-\xff\xfe12345\n", "sk-\u20ac12345\n".encode()):
        command = [sys.executable, "-m", "orchestrate.cli", "keys", "set", "openai"]
        told = subprocess.run(command, env=cli_env, input=key, capture_output=True, check=False)
        assert told.returncode == 2 and b"Nothing was written" in told.stderr
    assert not list(Path(cli_env["ORCHESTRATE_KEYS"]).parent.glob("*keys*"))
