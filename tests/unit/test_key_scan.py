"""The look for keys at the end of each session: it knows the keys, and finds them where they hide."""

from __future__ import annotations

import gzip
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import key_scan
from tests.key_scan import SHORTEST, Scan, keys_in_source, session_scan
from tests.paths import ROOT

from orchestrate.core.zstd import zstd

TESTS = ROOT / "tests"
MADE = "sandbox-" + "0123456789abcdef01234567"
ASIDE = {"test_key_scan.py", "key_scan.py"}


def test_every_key_in_the_tests_can_be_recognised() -> None:
    """A shorter one could not be told from other words, and would be looked for in vain."""
    keys = {key: file for key, file in keys_in_source(TESTS).items() if file.name not in ASIDE}
    assert len(keys) >= 5
    assert {key: file.name for key, file in keys.items() if len(key) < SHORTEST} == {}


@pytest.fixture
def aside() -> Iterator[Path]:
    """Outside the session's own folder, which is looked through at its end."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def found(folder: Path) -> Scan:
    scan = Scan(frozenset({b"wandb-secret-key-123"}))
    scan.folder(folder)
    return scan


@pytest.mark.parametrize("key", [MADE, "wandb-secret-key-123"])
@pytest.mark.parametrize("hidden", ["log", "sqlite", "gzip", "zstd", "deep"])
def test_a_key_is_found_wherever_it_was_written(aside: Path, hidden: str, key: str) -> None:
    text = f"DEBUG header authorization: Bearer {key}\n"
    match hidden:
        case "sqlite":
            with sqlite3.connect(aside / "runs.sqlite3") as store:
                store.execute("CREATE TABLE t (x)")
                store.execute("INSERT INTO t VALUES (?)", (text,))
            store.close()
        case "gzip":
            (aside / "log.gz").write_bytes(gzip.compress(text.encode()))
        case "zstd":
            (aside / "log.zst").write_bytes(zstd.compress(text.encode() * 20))
        case "deep":
            (aside / "a" / ".b").mkdir(parents=True)
            (aside / "a" / ".b" / "report.html").write_text(text)
        case _:
            (aside / "run.log").write_text(text)
    [hit] = found(aside).hits
    assert key not in hit, "the scan must not spread what it found"


@pytest.mark.parametrize("search", [key_scan._in_one_pass, key_scan._one_by_one])
def test_both_ways_of_searching_find_each_key_and_no_other(search: Any) -> None:
    find = search(frozenset({b"wandb-secret-key-123", b"a.key(with)[signs]"}))
    for key in (MADE.encode(), b"wandb-secret-key-123", b"a.key(with)[signs]"):
        assert find(b"\x00\xff before " + key + b" after") == key
    for other in (b"wandb-secret-key-124", b"a_key(with)[signs]", MADE.encode()[:-1], b" "):
        assert find(other) is None


def test_the_users_key_file_and_the_sandbox_may_hold_theirs(aside: Path) -> None:
    for name in ("keys.toml", "sandbox.sqlite3"):
        (aside / name).write_text(MADE)
    (aside / "runs.sqlite3").write_text("sandbox-url, sandbox-0123")
    scan = found(aside)
    assert (scan.hits, scan.kept, scan.files) == ([], 2, 3)


def test_what_tests_print_is_looked_at_too() -> None:
    scan = session_scan(TESTS / "none", [])
    scan.text("a test (Captured log call)", f"... {MADE} ...")
    assert len(scan.hits) == 1
