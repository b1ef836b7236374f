"""What the tests of killed workers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests import workers


@pytest.fixture(scope="session")
def nursery() -> Iterator[workers.Nursery]:
    with workers.nursery() as found:
        yield found
