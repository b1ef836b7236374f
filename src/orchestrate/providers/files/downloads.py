"""Downloaded models that are kept beside their description, so that they are fetched once."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from orchestrate.core.files import sha256, write_whole
from orchestrate.types import Artifact


def read(folder: Path) -> Artifact | None:
    """The model in `folder`, when all its files are there with the hashes that they came with.

    A folder that is damaged or was never finished is cleared away, so that it can be fetched again.
    """
    artifact = described(folder)
    if artifact is None:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with suppress(OSError):
        if all(sha256(folder / file.path) == file.sha256 for file in artifact.files):
            return artifact
    _description(folder).unlink()
    shutil.rmtree(folder)
    return None


def described(folder: Path) -> Artifact | None:
    """The model as it was written down when it was whole; its files are not looked at."""
    try:
        return Artifact.from_json(_description(folder).read_bytes())
    except (OSError, msgspec.MsgspecError):
        return None


def write(folder: Path, artifact: Artifact) -> None:
    """Written last: a description means that the folder is whole."""
    write_whole(_description(folder), artifact.to_json())


def _description(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.json"
