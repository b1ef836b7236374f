"""Downloads that go wrong: each is explained, and nothing half is taken for the model afterwards."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.unit.local.model.files import fake_hub
from tests.unit.local.model.files.fake_hub import SECOND

from orchestrate.errors import UsageError
from orchestrate.local.model import files

FETCH = """
import json
from orchestrate.errors import OrchestrateError
from orchestrate.local.model import files as models
try:
    folder = models.fetch("owner/name")
    print(json.dumps({"files": sorted(p.name for p in folder.path.iterdir()), "print": folder.fingerprint()}))
except OrchestrateError as error:
    print(json.dumps({"error": type(error).__name__, "said": f"{error.message}; {error.fix}"}))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[fake_hub.Hub]:
    with fake_hub.running(fake_hub.sharded(tmp_path / "published")) as running:
        yield running


def fetch(home: Path, hub: fake_hub.Hub, before: Callable[[], None] | None = None) -> dict[str, Any]:
    """In a process of its own, because the hub's address is read at import."""
    own = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    out = subprocess.run(
        [sys.executable, "-c", FETCH],
        env={**os.environ, **own, "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=before,
    )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


def whole(said: dict[str, Any], hub: fake_hub.Hub) -> bool:
    return said.get("print") == files.open_folder(hub.folder).fingerprint()


@pytest.mark.slow
def test_what_is_whole_serves_without_the_hub(hub: fake_hub.Hub, tmp_path: Path) -> None:
    assert whole(fetch(tmp_path / "home", hub), hub)
    hub.down = 503
    assert whole(fetch(tmp_path / "home", hub), hub)


@pytest.mark.slow
def test_a_full_disk_in_the_middle_is_told_and_the_next_run_goes_on(
    hub: fake_hub.Hub, tmp_path: Path
) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    said = fetch(tmp_path / "home", hub, small_files)
    assert said["error"] == "ConfigError" and "could not store" in said["said"], said
    assert "free up some disk space" in said["said"]
    hub.down = 503
    assert "error" in fetch(tmp_path / "home", hub), "half a model was taken for one"
    hub.down = None
    assert whole(fetch(tmp_path / "home", hub), hub)


@pytest.mark.slow  # the client tries again for 24 s
def test_a_hub_that_fails_at_one_file_is_told_and_the_next_run_goes_on(tmp_path: Path) -> None:
    faults: list[int | str] = [429, 503, "cut"]

    def one(fault: int | str) -> tuple[dict[str, Any], dict[str, Any], bool]:
        place = tmp_path / str(fault)
        place.mkdir()
        with fake_hub.running(fake_hub.sharded(place / "published")) as hub:
            hub.faults[SECOND] = fault
            failed = fetch(place / "home", hub)
            hub.faults, hub.down = {}, 503
            afterwards = fetch(place / "home", hub)
            hub.down = None
            return failed, afterwards, whole(fetch(place / "home", hub), hub)

    with ThreadPoolExecutor() as pool:
        for fault, (failed, afterwards, mended) in zip(faults, pool.map(one, faults), strict=True):
            assert failed["error"] == "ConfigError" and "try again" in failed["said"], failed
            told = "lost the connection" if fault == "cut" else f"the Hub returned {fault}"
            assert told in failed["said"], failed
            assert "error" in afterwards, f"half a model was taken for one after {fault}"
            assert mended, fault


def test_a_folder_that_lacks_a_part_of_its_index_is_refused(tmp_path: Path) -> None:
    folder = fake_hub.sharded(tmp_path / "model")
    files.open_folder(folder)
    (folder / SECOND).write_bytes(b"")
    with pytest.raises(UsageError, match=f"listed in its index are missing or empty: {SECOND}"):
        files.open_folder(folder)
    (folder / SECOND).unlink()
    with pytest.raises(UsageError, match="listed in its index are missing or empty"):
        files.fetch(str(folder))
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UsageError, match="could not parse the weight index"):
        files.open_folder(folder)
