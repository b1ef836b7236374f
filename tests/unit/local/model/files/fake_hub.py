"""A hub on loopback with one model in two shards, for the hub's own client."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tests.unit.local.sessions import TINY

COMMIT = "a" * 40
SECOND = "model-00002-of-00002.safetensors"


def sharded(folder: Path) -> Path:
    """The tiny model in two files and their index."""
    folder.mkdir()
    for path in TINY.iterdir():
        if path.suffix in (".json", ".jinja"):
            shutil.copy(path, folder / path.name)
    tensors = load_file(TINY / "model.safetensors")
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for part, file in ((names[:8], "model-00001-of-00002.safetensors"), (names[8:], SECOND)):
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


class Hub(http.server.ThreadingHTTPServer):
    """`faults`: what happens to a file's download: a status, or `cut` in the middle of it. `down` is the
    status of everything, if any."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder = folder
        self.faults: dict[str, int | str] = {}
        self.down: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        file = self.server.folder / name
        if self.server.down is not None:
            self._say(self.server.down)
        elif path.startswith("/api/models/owner/name/tree"):
            self._say(200, json.dumps([_entry(f) for f in sorted(self.server.folder.iterdir())]).encode())
        elif path.startswith("/api/models/owner/name"):
            siblings = [{"rfilename": f.name} for f in sorted(self.server.folder.iterdir())]
            info = {"id": "owner/name", "modelId": "owner/name", "sha": COMMIT, "siblings": siblings}
            self._say(200, json.dumps(info).encode())
        elif "/resolve/" in path and file.is_file():
            data, fault = file.read_bytes(), self.server.faults.get(name)
            if isinstance(fault, int):
                self._say(fault)
            else:
                self._say(200, data, cut=fault == "cut", ETag=f'"{hashlib.sha1(data).hexdigest()}"')
        else:
            self._say(404)

    do_HEAD = do_GET

    def _say(self, status: int, body: bytes = b"", *, cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def log_message(self, *_: Any) -> None:
        pass


def _entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"type": "file", "path": path.name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextmanager
def running(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
