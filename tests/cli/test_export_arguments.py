"""export and merge: what is wrong with the command itself is said before any model is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import Cli


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("export nothing out --to zip", "unknown format 'zip'"),
        ("export nothing out --to merged --dtype int3", "--dtype must be one of"),
        ("export nothing full --to peft", "already exists"),
        ("merge one two -o full", "already exists"),
        ("merge one two -o out --weights a,b", "--weights must be comma-separated numbers"),
        ("export nothing out --to peft", "unknown run 'nothing'"),
        ("migrate nothing --to together --metric nope", "unknown metric 'nope'"),
        ("eval nothing --metric nope", "unknown metric 'nope'"),
    ],
)
def test_arguments_are_checked_first(cli: Cli, tmp_path: Path, words: str, said: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = cli(*words.split())
    assert done.code == 2 and said in done.err
