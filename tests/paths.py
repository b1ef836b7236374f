"""Where things lie in this checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "fixtures"
DATASETS = FIXTURES / "datasets"
TINY = FIXTURES / "models" / "tiny-chat"
"""The chat model of the demo: small enough to be trained in a test."""
