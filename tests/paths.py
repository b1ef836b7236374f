"""Where things lie in this checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "fixtures"
DATASETS = FIXTURES / "datasets"
BUNDLED = ROOT / "src" / "orchestrate" / "bundled"
"""What the package itself brings: the model and the rows of the demo."""
TINY = BUNDLED / "tiny-chat"
"""The chat model of the demo: small enough to be trained in a test."""
