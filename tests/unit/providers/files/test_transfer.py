"""Downloads over real loopback HTTP that break, change and go on."""

from __future__ import annotations

import contextlib
import gzip
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from tests.http_server import Handler, Running

from orchestrate.errors import ArtifactRefused, NotFound, UnexpectedAnswer
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.files import fetch, signed

BODY = bytes(range(256)) * 4000
Behaviour = Callable[[Handler], None]


class FileHost:
    """Serves BODY; each request takes the next behaviour, the last one stays."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.seen: list[dict[str, str]] = []
        self.behaviours = list(behaviours) or [whole]
        host = self

        class Serve(Handler):
            def do_GET(self) -> None:
                host.seen.append(dict(self.headers.items()))
                behave = host.behaviours[0] if len(host.behaviours) == 1 else host.behaviours.pop(0)
                behave(self)

        self.server = Running(Serve)
        self.url, self.close = f"{self.server.url}/file", self.server.close


def whole(request: Handler, etag: str = '"v1"', stop: int | None = None) -> None:
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


def half(request: Handler) -> None:
    whole(request, stop=len(BODY) // 2)
    request.close_connection = True


def changed(request: Handler) -> None:
    whole(request, etag='"v2"')


def no_tag(request: Handler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(BODY)))
    request.end_headers()
    request.wfile.write(BODY[: len(BODY) // 2])
    request.close_connection = True


def failing(status: int, **headers: str) -> Handler:
    def fail(request: Handler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "2")
        request.end_headers()
        request.wfile.write(b"{}")

    return fail


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=240) as http:
        yield http


def run(
    client: httpx.Client, host: FileHost, file: Path, slept: list[float] | None = None, most: int = 10**8
) -> Path:
    pauses = slept if slept is not None else []
    try:
        return fetch(Wire("fireworks"), signed(client, host.url), file, limit_bytes=most, sleep=pauses.append)
    finally:
        host.close()


def test_a_broken_download_goes_on_where_it_stopped(client: httpx.Client, tmp_path: Path) -> None:
    host = FileHost(half, whole)
    assert run(client, host, tmp_path / "f").read_bytes() == BODY
    assert "Range" not in host.seen[0]
    assert host.seen[1]["Range"] == f"bytes={len(BODY) // 2}-" and host.seen[1]["If-Range"] == '"v1"'
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.slow
def test_a_later_process_goes_on(client: httpx.Client, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        run(client, FileHost(half, failing(404)), tmp_path / "f")
    host = FileHost(whole)
    assert run(client, host, tmp_path / "f").read_bytes() == BODY
    assert host.seen[0]["Range"] == f"bytes={len(BODY) // 2}-"


@pytest.mark.slow
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
        limit_bytes=10**8,
        progress=lambda done, total: told.append((done, total)),
        sleep=slept.append,
    )
    host.close()
    assert slept == [7.0]
    assert told[-1] == (len(BODY), len(BODY)) and told == sorted(told)


def test_a_download_that_brings_nothing_ends(client: httpx.Client, tmp_path: Path) -> None:
    def nothing(request: Handler) -> None:
        whole(request, stop=int(request.headers["Range"].removeprefix("bytes=").rstrip("-")))
        request.close_connection = True

    host = FileHost(half, nothing)
    with pytest.raises(Exception, match=r"incomplete|peer closed|bytes came") as caught:
        run(client, host, tmp_path / "f")
    assert not isinstance(caught.value, UnexpectedAnswer) or caught.value.retryable
    assert len(host.seen) == 6


def endless(request: Handler, length: str | None = None) -> None:
    request.send_response(200)
    if length:
        request.send_header("Content-Length", length)
    request.end_headers()
    with contextlib.suppress(OSError):  # until the client hangs up
        while True:
            request.wfile.write(BODY)


def test_a_body_without_end_is_ended_and_nothing_of_it_stays(client: httpx.Client, tmp_path: Path) -> None:
    host = FileHost(endless)
    with pytest.raises(ArtifactRefused) as refused:
        run(client, host, tmp_path / "f", most=5_000_000)
    assert "exceeds 5,000,000 bytes" in refused.value.message
    assert "ORCHESTRATE_MAX_DOWNLOAD_GB" in (refused.value.fix or "")
    assert list(tmp_path.iterdir()) == [] and len(host.seen) == 1


def test_a_length_above_the_limit_is_refused_before_it_is_read(client: httpx.Client, tmp_path: Path) -> None:
    host = FileHost(partial(endless, length="5000001"))
    with pytest.raises(ArtifactRefused):
        run(client, host, tmp_path / "f", most=5_000_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("packing", ["gzip", "gzip, gzip", "zstd"])
def test_a_bomb_is_not_unpacked_on_the_way(client: httpx.Client, tmp_path: Path, packing: str) -> None:
    def packed(request: Handler) -> None:
        request.send_response(200)
        request.send_header("Content-Encoding", packing)
        request.end_headers()
        with contextlib.suppress(OSError):
            while True:
                request.wfile.write(gzip.compress(bytes(1 << 20)))

    with pytest.raises(
        UnexpectedAnswer, match=f"compressed as '{packing}', which Orchestrate did not request"
    ):
        run(client, FileHost(packed), tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_is_unfinished_lies_in_a_folder_of_ours_alone(client: httpx.Client, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    before = os.umask(0)
    try:
        with pytest.raises(NotFound):
            run(client, FileHost(half, failing(404)), tmp_path / "waiting" / "f")
    finally:
        os.umask(before)
    assert {
        p.name: oct(p.stat().st_mode & 0o777)
        for p in (tmp_path / "waiting", *(tmp_path / "waiting").iterdir())
    } == {"waiting": "0o700", "f.part": "0o600", "f.part.json": "0o600"}
    host = FileHost(whole)
    assert run(client, host, tmp_path / "waiting" / "f").read_bytes() == BODY
    assert "Range" in host.seen[0], "it is found again and gone on with"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("as_link", [False, True], ids=["folder", "link"])
def test_what_another_user_has_laid_in_our_way_is_neither_read_nor_written(
    client: httpx.Client, tmp_path: Path, as_link: bool
) -> None:
    waiting, victim = tmp_path / "waiting", tmp_path / "victim"
    victim.mkdir()
    (victim / "f.part").write_bytes(b"mine")
    if as_link:
        waiting.symlink_to(victim)
    else:
        waiting.mkdir(0o777)
        (waiting / "f.part").symlink_to(victim / "f.part")
    os.chown(waiting, 65534, 65534, follow_symlinks=False)
    host = FileHost(whole)
    with pytest.raises(PermissionError, match="another user"):
        run(client, host, waiting / "f")
    assert host.seen == [] and (victim / "f.part").read_bytes() == b"mine"
    assert [p.name for p in victim.iterdir()] == ["f.part"]
