"""Files that appear whole or not at all, and never in place of what they are made from."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from orchestrate.errors import UsageError


def require_writable(output: Path, source: str) -> None:
    """Raises `UsageError` when `output` is the file `source` itself, a folder, or in a folder that is not
    there. To be asked before hours of work."""
    if output.is_dir():
        raise UsageError(f"{output} is a folder", fix="give the name of a file with -o")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {output.parent}", fix=f"mkdir -p {output.parent}")
    if output.exists() and "://" not in source and Path(source).exists() and output.samefile(source):
        raise UsageError(f"{output} is the input, which is kept as it is", fix="give another name with -o")


@contextmanager
def whole(path: Path) -> Generator[Path]:
    """A name to write to; what is there at the end of the block becomes `path`, after an error nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
