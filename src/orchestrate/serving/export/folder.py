"""Create the folder of an export or a merge atomically. Only one process at a time can write it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from orchestrate.core.files import locked, new_folder, whole_folder
from orchestrate.errors import UsageError
from orchestrate.local.run import started


@contextmanager
def new_folder_at(target: Path) -> Generator[Path]:
    """Yield a folder to fill, which becomes `target` at the end of the block. Raises `UsageError` if `target`
    is not empty or another process is writing to it, and `OSError` if the disk is full."""
    new_folder(target.parent)
    with locked(target.with_name(f".{target.name}.lock"), keep=False) as mine:
        if not mine:
            raise UsageError(
                f"another process is writing {target}",
                fix="wait for it to finish, or choose another folder",
            )
        _clear(target)
        require_empty(target)
        if target.is_dir():
            target.rmdir()
        with whole_folder(target, replace=False) as folder:
            yield folder


def require_empty(target: Path) -> None:
    """Raise `UsageError` unless `target` is a new or empty folder."""
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UsageError(f"{target} already exists", fix="choose a new or empty folder")


@contextmanager
def scratch_beside(target: Path) -> Generator[Path]:
    """Yield a temporary folder on the same disk as `target`. It is deleted at the end of the block. If the
    process is killed first, the next export to the same `target` deletes it."""
    prefix = f".{target.name}.{os.getpid()}."
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as folder:
        yield Path(folder)


def _clear(target: Path) -> None:
    """Delete temporary folders that killed processes left for this target. Each may be as large as the
    model."""
    name = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.[0-9a-z_]{{8}}")
    for left in target.parent.iterdir():
        found = name.fullmatch(left.name)
        if found and started(int(found[1])) is None and left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
