"""What all tests of the engine share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_not_searched() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """Each run collects garbage before its first step, as a worker does once. Here it would look each time
    through the millions of objects of torch and transformers."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
