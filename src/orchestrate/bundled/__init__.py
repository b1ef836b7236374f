"""Bundled model and data: `tiny-chat` (a trainable 4 MB chat model) and `orders` (the demo's rows and
spec)."""

from __future__ import annotations

from pathlib import Path


def bundled(name: str) -> Path:
    """Return a bundled folder by its name, wherever the package is installed."""
    return Path(__file__).parent / name
