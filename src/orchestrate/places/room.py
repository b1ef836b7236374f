"""Folders of workers on machines that outlive them. What a killed one left there, a model and checkpoints,
goes when the next comes."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from orchestrate.files import scratch_folder
from orchestrate.places.order import ROOM


def room() -> TemporaryDirectory[str]:
    """Make one of this process."""
    return scratch_folder(ROOM)
