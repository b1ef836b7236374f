"""The libraries of the pages are what they are said to be, and small."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import orchestrate.ui

VENDOR = Path(orchestrate.ui.__file__).parent / "static" / "vendor"


def test_each_file_is_that_of_its_package_and_all_are_small() -> None:
    told = dict(re.findall(r"\| `(\S+)` \|.*\| (\w{64}) \|", (VENDOR / "README.md").read_text()))
    files = {path.name: path.read_bytes() for path in VENDOR.iterdir() if path.suffix != ".md"}
    assert told == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert sum(len(gzip.compress(content)) for content in files.values()) < 60_000
