"""Files at URLs: what arrives, and what is said when nothing does."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from tests.http_server import Handler, serving

from orchestrate.core.zstd import zstd
from orchestrate.data import Dataset
from orchestrate.data.files import sources
from orchestrate.errors import DataError, OrchestrateError, SetupError, UsageError

ROW = b'{"prompt": "a", "completion": "b"}\n'
BODIES = {
    "/rows.jsonl": ROW * 3,
    "/rows.jsonl.gz": gzip.compress(ROW * 3),
    "/table.csv": b"prompt,completion\na,b\n",
    "/table.csv.gz": gzip.compress(b"prompt,completion\na,b\n"),
    "/export/csv": b"frage,antwort\na,b\n",
    "/export/rows-as-csv": ROW * 2,
    "/export/gz": gzip.compress(b"frage;antwort\na;b\n"),
    "/v1.2/download": b'"prompt","completion"\n"a, b","c\nd"\ne,f\n',
    "/tabs": b"\xef\xbb\xbfquestion\tanswer\r\na, b\tc\r\n",
    "/rows": ROW * 3,
    "/array": b"[" + ROW + b"]",
    "/prose": b"Hello, world\nIt rains, again\n",
    "/ragged": b"prompt,completion\nIt rains\n",
    "/page.jsonl": b"<!DOCTYPE html>\n<html><body>Sign in</body></html>",
}


class Files(Handler):
    """`/STATUS` answers with that status; `/torn.jsonl` promises more than it sends."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        if path[1:].isdigit():
            self.send_error(int(path[1:]))
            return
        if path == "/endless.jsonl":
            self._endless(body)
            return
        content = ROW * 1000 if path == "/torn.jsonl" else BODIES.get(path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        if path.startswith("/export/"):
            self.send_header("content-type", "text/csv; charset=utf-8")
        self.end_headers()
        if body:
            self.wfile.write(content[:5000] if path == "/torn.jsonl" else content)

    def _endless(self, body: bool) -> None:
        """No size is announced, and as much comes as is taken."""
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while body:
                self.wfile.write(ROW * 4000)


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with serving(Files) as url:
        yield url


@pytest.mark.parametrize(
    ("path", "rows", "container"),
    [
        ("rows.jsonl", 3, "jsonl"),
        ("rows.jsonl.gz", 3, "jsonl.gz"),
        ("table.csv?download=1", 1, "csv"),
        ("table.csv.gz?x=1.2", 1, "csv.gz"),
        ("v1.2/download", 2, "csv"),
        ("tabs", 1, "csv"),
        ("rows", 3, "jsonl"),
        ("array", 1, "json"),
        ("export/rows-as-csv", 2, "jsonl"),
    ],
)
def test_what_lies_at_a_url_is_read(site: str, path: str, rows: int, container: str) -> None:
    data = Dataset.open(f"{site}/{path}")
    assert (data.rows, data.container) == (rows, container)


@pytest.mark.parametrize(("path", "container"), [("export/csv", "csv"), ("export/gz", "csv.gz")])
def test_a_table_that_its_host_calls_so_needs_no_known_columns(site: str, path: str, container: str) -> None:
    data = Dataset.open(f"{site}/{path}", columns={"prompt": "frage", "completion": "antwort"})
    assert (data.rows, data.container) == (1, container)


@pytest.mark.parametrize("path", ["prose", "ragged"])
def test_what_only_resembles_a_table_is_not_taken_for_one(site: str, path: str) -> None:
    with pytest.raises(DataError, match="no row could be read"):
        Dataset.open(f"{site}/{path}")


@pytest.mark.parametrize(
    ("path", "kind", "says", "again"),
    [
        ("nothing.jsonl", DataError, "file not found", False),
        ("403", SetupError, "denied access", False),
        ("401", SetupError, "denied access", False),
        ("503", DataError, "answered 503", True),
        ("429", DataError, "answered 429", True),
        ("410", DataError, "answered 410", False),
        ("page.jsonl", DataError, "web page", False),
        ("torn.jsonl", DataError, "lost the connection to 127.0.0.1", True),
    ],
)
def test_what_failed_is_said_and_whether_to_try_again(
    site: str, path: str, kind: type[OrchestrateError], says: str, again: bool
) -> None:
    with pytest.raises(kind, match=says) as failed:
        Dataset.open(f"{site}/{path}")
    assert failed.value.retryable is again
    assert failed.value.fix


@pytest.mark.parametrize("name", ["good.jsonl", "good.parquet", "good.csv.zst"])
def test_any_store_that_fsspec_knows_and_any_container(name: str, tmp_path: Path) -> None:
    """`memory` stands for those that need credentials."""
    table = pyarrow.table({"prompt": ["a", "c"], "completion": ["b", "d"]})
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(table, tmp_path / name)
        content = (tmp_path / name).read_bytes()
    else:
        content = (
            zstd.compress(b"prompt,completion\na,b\nc,d\n")
            if "csv" in name
            else ROW + ROW.replace(b"a", b"c")
        )
    fsspec.filesystem("memory").pipe(f"/bucket/{name}", content)
    data = Dataset.open(f"memory://bucket/{name}")
    assert (data.rows, data.format) == (2, "prompt-completion")


@pytest.mark.parametrize("path", ["endless.jsonl", "torn.jsonl"], ids=["no size told", "size told"])
def test_more_than_may_be_downloaded_is_refused_and_not_kept(
    site: str, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ORCHESTRATE_MAX_DOWNLOAD_GB", "0.00003")
    monkeypatch.setattr(sources, "_folder", lambda: SimpleNamespace(name=str(tmp_path)))
    with pytest.raises(DataError, match="larger than 3e-05 GB"):
        Dataset.open(f"{site}/{path}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_a_killed_process_downloaded_is_removed_by_the_next(site: str, tmp_path: Path) -> None:
    """Killed amid a download; the folder of a process that lives stays."""
    script = "import sys; from orchestrate.data import Dataset; Dataset.open(sys.argv[1])"
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    left = subprocess.Popen([sys.executable, "-c", script, f"{site}/endless.jsonl"], env=env)
    while not any(file.stat().st_size for file in tmp_path.rglob("*.jsonl")):
        assert left.poll() is None
        time.sleep(0.01)
    left.kill()
    left.wait()
    [folder] = tmp_path.iterdir()
    waits = [sys.executable, "-c", f"{script}; input()", f"{site}/table.csv"]
    living = subprocess.Popen(waits, env=env, stdin=subprocess.PIPE)
    while folder.exists():
        assert living.poll() is None
        time.sleep(0.01)
    subprocess.run([sys.executable, "-c", script, f"{site}/table.csv"], env=env, check=True)
    [folder] = tmp_path.iterdir()
    assert f"-{living.pid}-" in folder.name
    living.communicate(b"\n")
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/rows.jsonl"
        with pytest.raises(DataError, match="refused the connection") as failed:
            Dataset.open(url)
    assert failed.value.retryable


def test_a_protocol_without_its_package_names_it() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(SetupError, match="'dropboxdrivefs'") as failed:
        Dataset.open("dropbox://folder/rows.jsonl")
    assert failed.value.fix == "pip install dropboxdrivefs"


def test_an_unknown_protocol() -> None:
    with pytest.raises(UsageError, match="unknown protocol htpp"):
        Dataset.open("htpp://a.example/rows.jsonl")


def test_secrets_in_an_address_are_not_repeated(site: str) -> None:
    host = site.removeprefix("http://")
    with pytest.raises(DataError) as failed:
        Dataset.open(f"http://user:hunter2@{host}/nothing.jsonl?signature=abcdef")
    assert not any(secret in f"{failed.value} {failed.value.fix}" for secret in ("hunter2", "abcdef"))


@pytest.mark.parametrize("train", ["reference://x::refs.json", "zip://x::git://", "jupyter://127.0.0.1:1/x"])
def test_what_reads_more_than_one_file_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: str
) -> None:
    """`refs.json` names another file to read, and may hold templates."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(ROW)
    where = f"file://{tmp_path}/rows.jsonl"
    (tmp_path / "refs.json").write_text(json.dumps({"version": 1, "refs": {"x": [where]}}))
    with pytest.raises(UsageError, match="unknown protocol"):
        Dataset.open(train)
