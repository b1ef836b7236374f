"""Where models come from: folders, and a hub that answers in its own ways."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.http_server import Handler, serving
from tests.unit.local.sessions import TINY

from orchestrate.errors import UsageError
from orchestrate.local.model import files

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tokenizer's files and no weights yet; the cache is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder / name)
    return folder


def test_what_cannot_be_trained_is_refused(beside: Path) -> None:
    (beside / "config.json").write_text("{}")
    (beside / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no \.safetensors weights \(only pytorch_model\.bin\)"):
        files.fetch(str(beside))
    file = beside / "a.gguf"
    file.write_bytes(b"GGUF")
    for name in (str(file), str(beside), "nowhere/B.GGUF", "someone/Qwen3-8B-GGUF"):
        for read in (files.fetch, files.here, files.config_of):
            with pytest.raises(UsageError, match="served but not trained") as refused:
                read(name)
            assert "Qwen/Qwen3-8B" in str(refused.value.fix) and "export RUN" in str(refused.value.fix)
    shutil.copy(TINY / "model.safetensors", beside)
    assert files.fetch(str(beside)).path == beside, "a copy in GGUF beside the weights does no harm"


# -- the hub ------------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[str]:
    """Answers by the repository's name: `gated`, `gone`, or a status."""

    class Answers(Handler):
        def do_GET(self) -> None:
            name = self.path.split("?")[0].split("/")[4]
            kinds = {
                "gated": (403, "GatedRepo"),
                "gone": (404, "RepoNotFound"),
                "private": (401, "RepoNotFound"),
            }
            status, code = kinds.get(name) or (int(name), None)
            self.answer(status, headers={"X-Error-Code": code} if code else {})

        do_HEAD = do_GET

    with serving(Answers) as url:
        yield url


FETCH = """
import json, sys
from orchestrate.errors import OrchestrateError
from orchestrate.local.model import files as models
said = []
for name in sys.argv[1:]:
    try:
        models.fetch(name)
    except OrchestrateError as error:
        said.append([type(error).__name__, error.message, error.fix])
print(json.dumps(said))
"""


def fetched(names: list[str], home: Path, **environment: str) -> list[list[str]]:
    """What `fetch` says about each; in a process of its own, because the hub's address is read at import."""
    import os

    own = {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "hf_test", **environment}
    out = subprocess.run(
        [sys.executable, "-c", FETCH, *names],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


def test_each_refusal_of_the_hub_is_explained(hub: str, tmp_path: Path) -> None:
    names = ["gated", "gone", "private", "403", "400"]
    said = fetched([f"owner/{n}" for n in names], tmp_path, HF_ENDPOINT=hub)
    gated, gone, private, forbidden, bad = said
    assert gated[0] == "ConfigError" and "owner/gated is gated" in gated[1]
    assert "accept them at https://huggingface.co/owner/gated" in gated[2] and "HF_TOKEN" in gated[2]
    for answer in (gone, private):
        assert answer[0] == "UsageError" and "no model owner/" in answer[1] and "private" in answer[1]
    assert "denied access to owner/403 (403)" in forbidden[1] and "may read" in forbidden[2]
    assert "returned 400" in bad[1] and "try again later" in bad[2]


def test_without_a_network_it_says_how_to_fetch_the_model_before(tmp_path: Path) -> None:
    (offline,) = fetched(["owner/name"], tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in offline[1] and "hf download owner/name" in offline[2]
    (refused,) = fetched(["owner/name"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be reached" in refused[1] and "HF_HUB_OFFLINE" not in refused[1]
