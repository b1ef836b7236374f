from __future__ import annotations

import json
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


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    messages = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "Red."}]
    path.write_text(f"{json.dumps({'messages': messages})}\n" * 24)
    return path
