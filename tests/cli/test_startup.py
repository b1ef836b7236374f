"""What a short command does not load, and that garbage is collected as usual once a command is not short."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from orchestrate.cli import LazyCommand, app

HEAVY = ("jinja2", "tokenizers", "numpy", "packaging", "sqlalchemy", "keyring", "httpx", "multiprocessing")
ROW = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'


def in_a_process(program: str, folder: Path) -> str:
    env = os.environ | {"ORCHESTRATE_HOME": str(folder / "home"), "ORCHESTRATE_KEYS": str(folder / "keys")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder, env=env
    )
    return done.stdout.splitlines()[-1]


def test_a_plan_loads_nothing_of_what_rows_and_runs_need(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(ROW * 12)
    (tmp_path / "finetune.yaml").write_text(
        "model: {openai: gpt-4o-mini, together: qwen3.5-9b, fireworks: qwen3-8b, local: tiny-chat}\n"
        "train: train.jsonl\n"
    )
    program = (
        "import sys; from orchestrate.cli import app; app(['plan'], standalone_mode=False); "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert in_a_process(program, tmp_path) == "[]"


@pytest.mark.parametrize("words", [["runs"], ["data", "check", "train.jsonl"]])
def test_what_converts_options_is_not_loaded_where_none_is_given(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(ROW * 12)
    program = (
        f"import sys; from orchestrate.cli import app; app({words}, standalone_mode=False); "
        "print('pydantic' in sys.modules)"
    )
    assert in_a_process(program, tmp_path) == "False"


def numbers(command: Any) -> Iterator[Any]:
    """The options of a command and of those below it that have a number as their default."""
    if isinstance(command, LazyCommand):
        command = command.load()
    yield from (p for p in command.params if type(p.default) in (int, float))
    for below in getattr(command, "commands", {}).values():
        yield from numbers(below)


def test_default_numbers_need_no_conversion() -> None:
    """Those of the annotated type are not converted, nor compared with the option's limits."""
    found = list(numbers(get_command(app)))
    assert len(found) > 20
    for option in found:
        info = option.type_descriptor.parameter_info
        assert info.min is None or option.default >= info.min, option.name
        assert info.max is None or option.default <= info.max, option.name


def test_garbage_is_collected_as_usual_from_the_first_collection_on(tmp_path: Path) -> None:
    program = (
        "import atexit, gc, sys; from orchestrate.cli import main; sys.argv = ['orchestrate', '--version']\n"
        "usual = gc.get_threshold()\n"
        "def end():\n"
        "    late = gc.get_threshold()[0] > usual[0]\n"
        "    gc.collect(); print(late, gc.get_threshold() == usual)\n"
        "atexit.register(end); main()"
    )
    assert in_a_process(program, tmp_path) == "True True"
