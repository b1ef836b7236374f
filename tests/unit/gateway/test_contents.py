"""The bytes of files: there while anything needs them, gone afterwards, and never half."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.unit.gateway.conftest import ASKED, Gateway, ended, gateway_of, rows, until

from orchestrate.sandbox.server import Sandbox
from orchestrate.store.gateway import FILE


def upload(http: httpx.Client, content: bytes, **form: str) -> httpx.Response:
    return http.post("files", files={"file": ("t.jsonl", content)}, data={"purpose": "fine-tune", **form})


def kept(gateway: Gateway, content: bytes) -> Path:
    return gateway.ft.settings.home / "gateway" / f"{hashlib.sha256(content).hexdigest()}.jsonl"


@pytest.mark.slow
def test_files_of_one_content_come_and_go_at_once_and_lose_nothing(gateway: Gateway) -> None:
    content = rows(mark="shared")

    def come_and_go(_: int) -> list[int]:
        found: list[int] = []
        with gateway.http() as http:
            for _ in range(12):
                id = upload(http, content).json()["id"]
                answer = http.get(f"files/{id}/content")
                found.append(answer.status_code if answer.content == content else 0)
                found.append(http.delete(f"files/{id}").status_code)
        return found

    with ThreadPoolExecutor(6) as pool:
        statuses = [status for found in pool.map(come_and_go, range(6)) for status in found]
    assert set(statuses) == {200} and len(statuses) == 144
    assert not kept(gateway, content).exists()


def test_a_job_is_refused_or_has_its_data_when_its_file_is_deleted_meanwhile(gateway: Gateway) -> None:
    with gateway.http() as http, gateway.client() as client, ThreadPoolExecutor(2) as pool:
        made: list[str] = []
        for n in range(6):
            content = rows(mark=f"deleted {n}")
            file = upload(http, content).json()["id"]
            both = threading.Barrier(2)

            def create(file: str = file, both: threading.Barrier = both) -> httpx.Response:
                both.wait()
                return http.post("fine_tuning/jobs", json={"model": ASKED, "training_file": file})

            def delete(file: str = file, both: threading.Barrier = both) -> httpx.Response:
                both.wait()
                return http.delete(f"files/{file}")

            answer, gone = pool.submit(create), pool.submit(delete)
            assert gone.result().status_code == 200
            if answer.result().status_code == 200:
                made.append(answer.result().json()["id"])
            else:
                assert answer.result().status_code == 404, answer.result().text
                assert answer.result().headers["x-should-retry"] == "false"
        assert {ended(client, id).status for id in made} <= {"succeeded"}
        until(lambda: not any(kept(gateway, rows(mark=f"deleted {n}")).exists() for n in range(6)))


def test_an_upload_that_is_completed_twice_at_once_is_one_file(gateway: Gateway) -> None:
    content = rows(mark="twice")
    with gateway.http() as http, ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            told = {"bytes": len(content), "filename": "twice.jsonl", "mime_type": "text/jsonl"}
            id = http.post("uploads", json={**told, "purpose": "fine-tune"}).json()["id"]
            part = http.post(f"uploads/{id}/parts", files={"data": content}).json()["id"]
            both = threading.Barrier(4)

            def finish(
                word: str, id: str = id, part: str = part, both: threading.Barrier = both
            ) -> httpx.Response:
                both.wait()
                return http.post(f"uploads/{id}/{word}", json={"part_ids": [part]})

            words = ("complete", "complete", "complete", "cancel")
            answers = list(pool.map(finish, words))
            statuses = sorted(answer.status_code for answer in answers)
            assert statuses == [200, 422, 422, 422], [answer.text for answer in answers]
            assert all(answer.headers.get("x-should-retry", "false") == "false" for answer in answers)
            done = next(answer for answer in answers if answer.status_code == 200).json()
            files = [f for f in http.get("files").json()["data"] if f["filename"] == "twice.jsonl"]
            assert [file["id"] for file in files] == ([done["file"]["id"]] if done["file"] else [])
            for file in files:
                assert http.get(f"files/{file['id']}/content").content == content
                http.delete(f"files/{file['id']}")
    assert not kept(gateway, content).exists()


def test_parts_come_in_any_order_and_as_text(gateway: Gateway) -> None:
    content = rows(mark="order")
    with gateway.http() as http:
        told = {"bytes": len(content), "filename": "o.jsonl", "mime_type": "text/jsonl"}
        after = {"anchor": "created_at", "seconds": 3600}
        asked = {**told, "purpose": "fine-tune", "expires_after": after}
        upload = http.post("uploads", json=asked).json()
        id, middle = upload["id"], len(content) // 2
        second = http.post(f"uploads/{id}/parts", files={"data": content[middle:]}).json()["id"]
        # As the description's own example has it: a field of a form, not a file in it.
        first = http.post(f"uploads/{id}/parts", files={"data": (None, content[:middle].decode())}).json()[
            "id"
        ]
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        wrong = http.post(f"uploads/{id}/complete", json={"part_ids": [second, first], "md5": digest})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "md5")
        done = http.post(f"uploads/{id}/complete", json={"part_ids": [first, second], "md5": digest})
        file = done.json()["file"]
        assert http.get(f"files/{file['id']}/content").content == content
        assert file["expires_at"] - file["created_at"] == 3600


def test_a_file_has_its_end_where_one_was_asked_for(gateway: Gateway) -> None:
    until_when = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    with gateway.http() as http:
        file = upload(http, rows(mark="ends"), **until_when).json()
        assert file["expires_at"] - file["created_at"] == 3600
        objects = gateway.ft.store.gateway_objects
        objects.change(FILE, "default", file["id"], lambda file: {**file, "expires_at": 1})
        assert http.get(f"files/{file['id']}").status_code == 404
        assert file["id"] not in [one["id"] for one in http.get("files").json()["data"]]
        wrong = [{"expires_after[seconds]": "3600"}, {**until_when, "expires_after[seconds]": "60"}]
        wrong.append({"colour": "red"})
        for form in wrong:
            refused = upload(http, rows(), **form)
            assert (refused.status_code, refused.headers["x-should-retry"]) == (422, "false")


def test_what_was_left_is_swept(gateway: Gateway, sandbox: Sandbox, tmp_path: Path) -> None:
    with gateway_of(tmp_path, sandbox.env) as first, first.http() as http:
        content, lasting = rows(mark="swept"), rows(mark="lasting")
        ends = upload(http, content).json()["id"]
        stays = upload(http, lasting).json()["id"]
        told = {"bytes": 9, "filename": "p.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
        part_of = http.post("uploads", json=told).json()["id"]
        http.post(f"uploads/{part_of}/parts", files={"data": b"part of it"})
        objects = first.ft.store.gateway_objects
        objects.change(FILE, "default", ends, lambda file: {**file, "expires_at": 1})
        objects.change("upload", "default", part_of, lambda upload: {**upload, "expires_at": 1})
    folder = tmp_path / "gateway"
    for name in (".draft", f"{'0' * 64}.jsonl", ".fresh"):
        (folder / name).write_bytes(b"left by a kill")
    for name in (".draft", f"{'0' * 64}.jsonl", kept(first, lasting).name):
        os.utime(folder / name, (1, 1))
    with gateway_of(tmp_path, sandbox.env) as second, second.http() as http:
        left = {kept(second, lasting).name, ".fresh"}
        until(lambda: {path.name for path in folder.iterdir()} == left)
        assert http.get(f"files/{stays}/content").content == lasting
        kept(second, lasting).unlink()  # as after a restore of the store without its folder
        answer = http.get(f"files/{stays}/content")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "content_lost")
        answer = http.post("fine_tuning/jobs", json={"model": ASKED, "training_file": stays})
        assert (answer.status_code, answer.headers["x-should-retry"]) == (404, "false"), answer.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_said_and_nothing_half_is_kept(
    sandbox: Sandbox, tmp_path: Path, small_disk: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with gateway_of(home, sandbox.env, {"files": str(small_disk)}) as full, full.http() as http:
        large = upload(http, b"{}\n" * 500_000)
        assert (large.status_code, large.headers["x-should-retry"]) == (503, "true")
        assert large.json()["error"]["code"] == "no_room" and int(large.headers["retry-after"]) > 0
        assert list(small_disk.iterdir()) == [] and http.get("files").json()["data"] == []
        assert upload(http, rows()).status_code == 200
