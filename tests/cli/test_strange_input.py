"""What people type and what hosts say, however odd, is shown as it is and answered with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Cli

ODD = "[bold]x[/nothing]:smile:"


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", ODD),
        ("models", "show", ODD),
        ("models", ODD),
        ("plan", "--provider", ODD),
        ("plan", "--set", ODD),
        ("keys", "set", ODD, "--value", "k"),
        ("init", f"/dev/null/{ODD}"),
        (ODD,),
    ],
)
def test_brackets_are_text_in_every_message(cli: Cli, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "finetune.yaml").write_text("model: qwen3-8b\ntrain: t.jsonl\n")
    told = cli(*arguments)
    assert told.code in (2, 3) and ODD in told.err and "defect" not in told.err


def test_brackets_are_text_in_every_table(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": [{"role": ODD, "content": ODD}]}) + "\n")
    (tmp_path / "finetune.yaml").write_text(f"model: '{ODD}'\ntrain: t.jsonl\ntags: {{a: '{ODD}'}}\n")
    planned = cli("plan", "--provider", "together")
    assert planned.code == 2 and ODD in planned.out
    for command in ("check", "quote"):
        told = cli(command, "--provider", "together")
        assert ODD in told.out + told.err and "defect" not in told.err


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
