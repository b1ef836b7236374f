"""Runs behind fsspec: the same on a disk, in memory and in S3."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orchestrate.core.files import whole
from orchestrate.errors import ArtifactRefused, HostUnavailable
from orchestrate.local.run import JobState, RunDir, now
from orchestrate.places.lease import RunLease, attempts, used_s
from orchestrate.places.storage import Reporter, RunStorage, look, safe
from orchestrate.types import ArtifactFile


def test_files_are_replaced_whole_and_what_is_not_there_is_none(url: str) -> None:
    depot = RunStorage(url)
    assert depot.read("runs/a/status.json") is None and depot.names("runs/a") == []
    depot.write("runs/a/status.json", b"one")
    depot.write("runs/a/status.json", b"two")
    assert depot.read("runs/a/status.json") == b"two"
    assert depot.names("runs/a") == ["status.json"]
    depot.remove("runs/a")
    depot.remove("runs/a")
    assert RunStorage(url).read("runs/a/status.json") is None


def test_what_is_being_written_on_a_disk_is_not_there_yet(tmp_path: Path) -> None:
    """And never, where its writer is killed: a run of which that is an attempt goes on all the same."""
    stored = RunStorage(f"file://{tmp_path}/depot").run("orc-a")
    RunLease(stored).used(30)
    with whole(tmp_path / "depot" / "runs" / "orc-a" / "attempts" / "00000001.json") as draft:
        draft.write_bytes(b"")
        assert attempts(stored) == 1 and used_s(stored) == 30
        second = RunLease(stored)
        assert (second.number, second.holds) == (2, True)


def test_content_goes_up_once_and_comes_back_as_it_was(url: str, tmp_path: Path) -> None:
    depot, source = RunStorage(url), tmp_path / "train.jsonl"
    source.write_bytes(b"rows\n" * 1000)
    file = depot.keep(source)
    assert file.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert depot.keep(source) == file and depot.names("blobs") == [file.sha256]
    depot.fetch(file, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    depot.write(f"blobs/{file.sha256}", b"differs from")
    with pytest.raises(ArtifactRefused, match="differs from"):
        depot.fetch(file, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_folder_is_there_when_its_manifest_is(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "step-00000002"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights").write_bytes(b"w")
    (folder / "progress.json").write_bytes(b"{}")
    stored = RunStorage(url).run("orc-a")
    stored.keep_folder(folder.name, folder)
    assert stored.folders() == [folder.name]
    assert stored.fetch_folder(folder.name, tmp_path / "part", only=["progress.json"])
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["progress.json"]
    assert stored.fetch_folder(folder.name, tmp_path / "all")
    assert (tmp_path / "all" / "adapter" / "weights").read_bytes() == b"w"
    stored.run_storage.remove(f"{stored.folder}/folders/{folder.name}/manifest")
    assert stored.manifest(folder.name) is None and not stored.fetch_folder(folder.name, tmp_path / "no")
    stored.drop_folder(folder.name)
    assert stored.folders() == []


def test_a_growing_file_is_read_as_far_as_its_parts_are_unbroken(url: str) -> None:
    stored = RunStorage(url).run("orc-a")
    assert stored.parts("events.jsonl") == []
    for number in (1, 2, 4):
        stored.add_part("events.jsonl", (1, number), b"%d\n" % number)
    assert stored.parts("events.jsonl") == [(1, 1), (1, 2)]
    assert stored.parts("events.jsonl", after=(1, 1)) == [(1, 2)]
    stored.add_part("events.jsonl", (2, 2), b"of an edition whose first part is not there yet\n")
    assert stored.parts("events.jsonl") == [(1, 1), (1, 2)]
    stored.add_part("events.jsonl", (2, 1), b"1\n")
    assert stored.parts("events.jsonl", after=(1, 2)) == [(2, 1), (2, 2)]


def test_a_store_that_cannot_be_asked_says_so_and_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "depot").write_text("a file where a folder should be")
    depot = RunStorage(f"file://{tmp_path}/depot")
    with pytest.raises(HostUnavailable, match="failed to write"):
        depot.write("runs/a/status.json", b"x")
    with pytest.raises(HostUnavailable, match="cannot store runs:"):
        RunStorage("nowhere://x")


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../up", "", "c:\\x"])
def test_a_manifest_leads_nowhere_else(path: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactRefused):
        safe(path)
    files = [ArtifactFile(path=path, bytes=1, sha256="0" * 64)]
    with pytest.raises(ArtifactRefused):
        RunStorage(f"file://{tmp_path}/depot").fetch_folder(files, tmp_path / "in")


@pytest.mark.parametrize("name", ["/etc", "../../other", "a/../../up"])
def test_a_result_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    """Whoever can write to the storage folder does not choose which folder of this machine is exported."""
    stored = RunStorage(f"file://{tmp_path}/depot").run("orc-0123456789ab")
    state = JobState(status="succeeded", updated_at=now(), result=name)
    stored.write("status.json", state.to_json())
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    with pytest.raises(ArtifactRefused):
        look(run, stored)
    assert not (run.path / "status.json").exists()


def grown(run: RunDir, reporter: Reporter, *messages: str) -> None:
    for message in messages:
        run.add_event(message)
    reporter.report()


def messages(run: RunDir) -> list[str]:
    return [event.message for event in run.events()]


@pytest.mark.parametrize(
    "lost", [b"", b"\n", b'"}\n{"half'], ids=["all is there", "a line end", "a half line"]
)
def test_a_reader_that_was_killed_before_it_noted_what_it_took_has_no_event_twice(
    tmp_path: Path, lost: bytes
) -> None:
    stored = RunStorage(f"file://{tmp_path}/depot").run("orc-a")
    there, here = RunDir(tmp_path / "there"), RunDir(tmp_path / "here")
    there.path.mkdir()
    here.path.mkdir()
    reporter = Reporter(there, stored)
    grown(there, reporter, "one")
    look(here, stored)
    noted = (here.path / ".seen.json").read_bytes()
    grown(there, reporter, "two", "three")
    look(here, stored)
    (here.path / ".seen.json").write_bytes(noted)
    taken = here.path / "events.jsonl"
    taken.write_bytes(taken.read_bytes().removesuffix(lost) if lost == b"\n" else taken.read_bytes() + lost)
    look(here, stored)
    assert messages(here) == ["one", "two", "three"]
    grown(there, reporter, "four")
    look(here, stored)
    assert messages(here) == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    "noted", [b'{"events.jsonl": [1, 1]}', b"half", None], ids=["older", "damaged", "lost"]
)
def test_a_reader_without_its_notes_reads_again_from_the_start(tmp_path: Path, noted: bytes | None) -> None:
    stored = RunStorage(f"file://{tmp_path}/depot").run("orc-a")
    there, here = RunDir(tmp_path / "there"), RunDir(tmp_path / "here")
    there.path.mkdir()
    here.path.mkdir()
    grown(there, Reporter(there, stored), "one", "two")
    look(here, stored)
    if noted is None:
        (here.path / "events.jsonl").write_bytes(b"")
    else:
        (here.path / ".seen.json").write_bytes(noted)
    look(here, stored)
    assert messages(here) == ["one", "two"]


def test_a_part_whose_answer_was_lost_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that has it would never see what a longer one of the same number adds."""
    stored = RunStorage(f"file://{tmp_path}/depot").run("orc-a")
    there, here = RunDir(tmp_path / "there"), RunDir(tmp_path / "here")
    there.path.mkdir()
    here.path.mkdir()
    reporter, write = Reporter(there, stored), stored.write
    grown(there, reporter, "one")

    def unanswered(name: str, data: bytes) -> None:
        write(name, data)
        raise HostUnavailable("s3", "no answer")

    monkeypatch.setattr(stored, "write", unanswered)
    with pytest.raises(HostUnavailable):
        grown(there, reporter, "two")
    monkeypatch.undo()
    look(here, stored)
    assert messages(here) == ["one", "two"]
    grown(there, reporter, "three")
    look(here, stored)
    assert messages(here) == ["one", "two", "three"]
