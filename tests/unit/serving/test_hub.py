"""`export --to hub --upload`: the hub's own client, over a stand-in of its HTTP API."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.http_server import Handler, serving
from tests.unit.serving.conftest import Known

from orchestrate.core.files import sha256

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SCRIPT = """
import sys
from orchestrate.errors import OrchestrateError
from orchestrate.runs.serving import upload
from orchestrate.types import Export
made = Export(form="hub", folder=sys.argv[1], files=(), base_model="b", commands=())
try:
    print(upload(made, sys.argv[2]))
except OrchestrateError as error:
    print(type(error).__name__, error.exit_code, error.fix)
"""
KEY = "hf_" + "x" * 30


class Hub(Handler):
    """Repositories, what is to be sent before a commit (large files by the LFS protocol), commits."""

    repos: dict[str, dict[str, bytes]]
    private: dict[str, bool]
    large: dict[str, bytes]
    puts: list[str]

    def give(self, body: Any, status: int = 200) -> None:
        self.answer(status, body)

    def do_GET(self) -> None:
        repo = self.path.removeprefix("/api/models/").partition("/revision")[0].partition("?")[0]
        if repo in self.repos:
            self.give({"id": repo, "sha": "0" * 40, "siblings": [], "private": True, "tags": []})
        else:
            self.give({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        data = self.body()
        assert "authorization" not in self.headers
        self.puts.append(self.path)
        self.large[hashlib.sha256(data).hexdigest()] = data
        self.give({})

    def do_POST(self) -> None:
        told = self.body()
        if self.headers.get("authorization") != f"Bearer {KEY}":
            return self.give({"error": "Invalid credentials in Authorization header"}, 401)
        if self.path.startswith("/api/repos/create"):
            asked = json.loads(told)
            name = f"{asked['organization']}/{asked['name']}"
            self.private[name] = asked["visibility"] == "private"
            status = 409 if name in self.repos else 200
            self.repos.setdefault(name, {})
            return self.give({"url": f"{self.origin}/{name}", "name": name, "id": name}, status)
        if self.path.startswith("/api/validate-yaml"):
            return self.give({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(told)["files"]
            modes = ["lfs" if f["path"].endswith(".safetensors") else "regular" for f in files]
            return self.give(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": m, "shouldIgnore": False, "oid": None}
                        for f, m in zip(files, modes, strict=True)
                    ]
                }
            )
        if self.path.endswith("/info/lfs/objects/batch"):
            return self.lfs(json.loads(told))
        if "/commit/" in self.path:
            return self.commit(told)
        return self.give({"error": f"nothing at {self.path}"}, 404)

    def lfs(self, asked: Any) -> None:
        objects = [
            {"oid": o["oid"], "size": o["size"]}
            | (
                {}
                if o["oid"] in self.large
                else {"actions": {"upload": {"href": f"{self.origin}/store/{o['oid']}", "header": {}}}}
            )
            for o in asked["objects"]
        ]
        self.give({"transfer": "basic", "objects": objects})

    def commit(self, told: bytes) -> None:
        repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in told.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                assert value["encoding"] == "base64"
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.repos[repo][entry["value"]["path"]] = self.large[entry["value"]["oid"]]
        url = f"{self.origin}/{repo}/commit/{'0' * 40}"
        self.give({"success": True, "commitOid": "0" * 40, "commitUrl": url})

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    class Own(Hub):
        repos, private, large, puts = {}, {}, {}, []

    with serving(Own) as url:
        yield url, Own


def uploaded(url: str, folder: Path, home: Path, key: str = KEY, repo: str = "me/tune") -> str:
    env = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_TOKEN": key,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    asked = [sys.executable, "-c", SCRIPT, str(folder), repo]
    done = subprocess.run(asked, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_the_folder_is_published_whole_privately_and_not_twice(
    known: Known, hub: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    url, own = hub
    folder = known.exported(tmp_path / "x")
    assert f"{url}/me/tune" in uploaded(url, folder, tmp_path)
    assert own.private == {"me/tune": True}
    there = own.repos["me/tune"]
    assert {f.name for f in folder.iterdir()} <= there.keys()
    for file in folder.iterdir():
        assert hashlib.sha256(there[file.name]).hexdigest() == sha256(file), file.name
    assert len(own.puts) == 1
    uploaded(url, folder, tmp_path)
    assert len(own.puts) == 1, "the weights are there already"


def test_a_key_that_may_not_write_is_told_as_a_hosts_refusal(
    known: Known, hub: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    url, own = hub
    folder = known.exported(tmp_path / "x")
    said = uploaded(url, folder, tmp_path, key="hf_" + "y" * 30)
    assert said.startswith("AuthenticationFailed 4") and "hf auth login" in said and own.repos == {}
