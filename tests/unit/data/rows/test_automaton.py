"""The compiled patterns are those that were asked for, whatever is in the file that keeps them."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrate.data.rows.content import automaton, place

hyperscan: Any = pytest.importorskip("hyperscan")

WANTED, OTHER = [b"wanted", b"ab{2,5}c"], [b"other", b"xyz"]
FLAGS = [1, 0]


def matches(database: Any) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    database.scan(
        b"WANTED abbc other xyz",
        match_event_handler=lambda n, _s, end, _f, _c: found.append((n, end)),
        scratch=hyperscan.Scratch(database),
    )
    return found


def test_it_is_kept_for_the_owner_alone_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "counts"
    assert (
        matches(automaton(WANTED, FLAGS, folder))
        == matches(automaton(WANTED, FLAGS, None))
        == [(0, 6), (1, 11)]
    )
    (file,) = folder.iterdir()
    assert file == place(WANTED, FLAGS, folder)
    if sys.platform != "win32":
        assert [stat.S_IMODE(one.stat().st_mode) for one in (folder, file)] == [0o700, 0o600]
    # Another one under its name is what it then finds: the file was read, nothing compiled.
    automaton(OTHER, FLAGS, folder)
    place(OTHER, FLAGS, folder).replace(file)
    assert matches(automaton(WANTED, FLAGS, folder)) == [(0, 17), (1, 21)]


@pytest.mark.parametrize("damage", ["cut", "byte", "empty", "other content", "a folder"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    automaton(WANTED, FLAGS, tmp_path)
    file = place(WANTED, FLAGS, tmp_path)
    good = file.read_bytes()
    bad = {"cut": good[:-9], "byte": good[:-9] + b"!" + good[-8:], "empty": b"", "other content": b"x" * 99}
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(bad[damage])
    assert matches(automaton(WANTED, FLAGS, tmp_path)) == [(0, 6), (1, 11)]
    if damage != "a folder":
        assert file.read_bytes() == good


def test_a_folder_that_cannot_be_had_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "no" / "home"):
        assert matches(automaton(WANTED, FLAGS, folder)) == [(0, 6), (1, 11)]
    assert not (tmp_path / "no").exists()
