"""Downloads over real loopback HTTP that break, change and go on."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from orchestrate.errors import NotFound, UnexpectedAnswer
from orchestrate.providers.hosted import Wire
from orchestrate.providers.transfer import fetch, signed

BODY = bytes(range(256)) * 4000
Handler = Callable[[http.server.BaseHTTPRequestHandler], None]


class FileHost:
    """Serves BODY; each request takes the next behaviour, the last one stays."""

    def __init__(self, *behaviours: Handler) -> None:
        self.seen: list[dict[str, str]] = []
        self.behaviours = list(behaviours) or [whole]
        host = self

        class Serve(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.seen.append(dict(self.headers.items()))
                behave = host.behaviours[0] if len(host.behaviours) == 1 else host.behaviours.pop(0)
                behave(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Serve)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/file"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def whole(request: http.server.BaseHTTPRequestHandler, etag: str = '"v1"', stop: int | None = None) -> None:
    asked = request.headers.get("Range")
    start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
    if asked and request.headers.get("If-Range") != etag:
        start = 0
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
    request.send_header("ETag", etag)
    request.send_header("Content-Length", str(len(BODY) - start))
    request.end_headers()
    request.wfile.write(BODY[start:stop])


def half(request: http.server.BaseHTTPRequestHandler) -> None:
    whole(request, stop=len(BODY) // 2)
    request.close_connection = True


def changed(request: http.server.BaseHTTPRequestHandler) -> None:
    whole(request, etag='"v2"')


def no_tag(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(BODY)))
    request.end_headers()
    request.wfile.write(BODY[: len(BODY) // 2])
    request.close_connection = True


def failing(status: int, **headers: str) -> Handler:
    def fail(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "2")
        request.end_headers()
        request.wfile.write(b"{}")

    return fail


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10) as http:
        yield http


def run(client: httpx.Client, host: FileHost, file: Path, slept: list[float] | None = None) -> Path:
    pauses = slept if slept is not None else []
    try:
        return fetch(Wire("fireworks"), signed(client, host.url), file, sleep=pauses.append)
    finally:
        host.close()


def test_a_broken_download_goes_on_where_it_stopped(client: httpx.Client, tmp_path: Path) -> None:
    host = FileHost(half, whole)
    assert run(client, host, tmp_path / "f").read_bytes() == BODY
    assert "Range" not in host.seen[0]
    assert host.seen[1]["Range"] == f"bytes={len(BODY) // 2}-" and host.seen[1]["If-Range"] == '"v1"'
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_later_process_goes_on(client: httpx.Client, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        run(client, FileHost(half, failing(404)), tmp_path / "f")
    host = FileHost(whole)
    assert run(client, host, tmp_path / "f").read_bytes() == BODY
    assert host.seen[0]["Range"] == f"bytes={len(BODY) // 2}-"


def test_all_of_it_came_but_the_rename_did_not(client: httpx.Client, tmp_path: Path) -> None:
    run(client, FileHost(whole), tmp_path / "f")
    (tmp_path / "f").rename(tmp_path / "f.part")
    (tmp_path / "f.part.json").write_text(f'{{"etag": "\\"v1\\"", "total": {len(BODY)}}}')
    host = FileHost(failing(416))
    assert run(client, host, tmp_path / "f").read_bytes() == BODY
    assert host.seen == []


def test_a_file_that_changed_is_fetched_anew(client: httpx.Client, tmp_path: Path) -> None:
    host = FileHost(half, changed)
    assert run(client, host, tmp_path / "f").read_bytes() == BODY
    assert len(host.seen) == 2


def test_without_an_etag_nothing_is_joined(client: httpx.Client, tmp_path: Path) -> None:
    host = FileHost(no_tag, whole)
    assert run(client, host, tmp_path / "f").read_bytes() == BODY
    assert all("Range" not in seen for seen in host.seen)


def test_the_hosts_pause_is_kept_and_progress_is_told(client: httpx.Client, tmp_path: Path) -> None:
    host, slept, told = FileHost(failing(429, Retry_After="7"), whole), [], []
    fetch(
        Wire("fireworks"),
        signed(client, host.url),
        tmp_path / "f",
        progress=lambda done, total: told.append((done, total)),
        sleep=slept.append,
    )
    host.close()
    assert slept == [7.0]
    assert told[-1] == (len(BODY), len(BODY)) and told == sorted(told)


def test_a_download_that_brings_nothing_ends(client: httpx.Client, tmp_path: Path) -> None:
    def nothing(request: http.server.BaseHTTPRequestHandler) -> None:
        whole(request, stop=int(request.headers["Range"].removeprefix("bytes=").rstrip("-")))
        request.close_connection = True

    host = FileHost(half, nothing)
    with pytest.raises(Exception, match=r"incomplete|peer closed|bytes came") as caught:
        run(client, host, tmp_path / "f")
    assert not isinstance(caught.value, UnexpectedAnswer) or caught.value.retryable
    assert len(host.seen) == 6
