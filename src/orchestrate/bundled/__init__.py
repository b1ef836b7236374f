"""Bundled model and data: `tiny-chat`, a chat model of 4 MB that really trains, and `orders`, the rows
and the spec of the demo."""

from __future__ import annotations

from pathlib import Path


def bundled(name: str) -> Path:
    """Return a bundled folder by its name, wherever the package is installed."""
    return Path(__file__).parent / name
