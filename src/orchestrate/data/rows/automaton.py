"""Many patterns as one automaton of hyperscan, kept on disk: to compile them takes as long as to check a few
megabytes, to read what was compiled a millisecond.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from orchestrate.files import write_whole

_log = logging.getLogger(__name__)

_DIGEST = 32
"""Bytes of the sha256 that a file begins with, of all that is behind it."""


def automaton(expressions: Sequence[bytes], flags: Sequence[int], folder: Path | None) -> Any:
    """A database of hyperscan whose matches have the numbers of the expressions. Raises `ImportError` without
    hyperscan. What `folder` holds for another version of it, or for another processor, is compiled anew, and
    so is a damaged file."""
    import hyperscan  # pyright: ignore[reportMissingTypeStubs]

    api = cast("Any", hyperscan)
    file = None if folder is None else place(expressions, flags, folder)
    if file is not None and (kept := _read(file, api)) is not None:
        return kept
    made = api.Database()
    made.compile(
        expressions=list(expressions), ids=[*range(len(flags))], elements=len(flags), flags=list(flags)
    )
    if file is not None:
        content = bytes(api.dumpb(made))
        with suppress(OSError):  # one that cannot be written to costs time, and nothing else
            file.parent.mkdir(mode=0o700, exist_ok=True)  # in a home that is there: a task may run elsewhere
            write_whole(file, hashlib.sha256(content).digest() + content, private=True)
    return made


def place(expressions: Sequence[bytes], flags: Sequence[int], folder: Path) -> Path:
    """The file for these expressions and the installed version. Raises `ImportError` without hyperscan."""
    import hyperscan  # pyright: ignore[reportMissingTypeStubs]

    version = cast("Any", hyperscan).__version__
    of = repr((version, list(expressions), list(flags))).encode()
    return folder / f"{hashlib.sha256(of).hexdigest()[:40]}.patterns"


def _read(file: Path, api: Any) -> Any:
    """`None` for a file that is not there or of no use."""
    try:
        content = file.read_bytes()
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            raise ValueError("it is damaged")
        return api.loadb(content[_DIGEST:], mode=api.HS_MODE_BLOCK)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, api.HyperscanError) as error:
        _log.debug("compiling the patterns anew: %s: %s", file, error)
        return None
