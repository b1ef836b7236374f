from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.places.depots import S3


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    found = S3(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.env.items():
            patch.setenv(name, value)
        yield found
    found.close()


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://runs/{tmp_path.name}"
    return f"memory://{tmp_path}" if request.param == "memory" else f"file://{tmp_path}/depot"
