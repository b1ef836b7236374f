"""What all tests of the engine share."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_not_searched() -> None:  # pyright: ignore[reportUnusedFunction]
    """Each run collects garbage before its first step, as a worker does once. Here it would look each time
    through the millions of objects of torch and transformers. They stay to the end, and what earlier modules
    left is collected before the rest is set aside: nothing that can be freed is kept."""
    gc.collect()
    gc.freeze()
