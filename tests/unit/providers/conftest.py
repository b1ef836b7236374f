"""What the tests of hosts' SDK clients share: how long they slept, and a file of rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrate.data import TrainingData


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    path = tmp_path / "train.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]}
        for n in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainingData.open(str(path))
