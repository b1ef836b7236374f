"""Files that appear whole or not at all, folders too, and locks between processes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrate.core.files import (
    locked,
    recover_folders,
    sha256,
    sha256_once,
    whole,
    whole_folder,
    write_whole,
)
from orchestrate.errors import UsageError


def test_a_file_is_replaced_in_one_step_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    with whole(path) as draft:
        draft.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_is_there_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    with pytest.raises(KeyboardInterrupt), whole(path) as draft:
        draft.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_is_never_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.touch(0o644)
    with whole(path, private=True) as draft:
        assert stat.S_IMODE(draft.stat().st_mode) == 0o600
        draft.write_bytes(b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_a_link_points_to_is_written_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "rows", tmp_path / "rows"
    link.symlink_to(target)
    write_whole(link, b"1")
    assert link.is_symlink()
    assert target.read_bytes() == b"1"


@pytest.mark.parametrize("mark", [".git", "orchestrate.toml"])
def test_a_link_of_a_project_leads_no_write_out_of_it(tmp_path: Path, mark: str) -> None:
    """A clone brings its links: to a file of the user's, and to one that is not there yet."""
    project, theirs = tmp_path / "project", tmp_path / "theirs"
    for folder in (project / "deep" / "er", theirs):
        folder.mkdir(parents=True)
    (theirs / "keys").write_text("of the user")
    for name, target in {"rows": "keys", "new": "absent", "disk": ""}.items():
        (project / "deep" / name).symlink_to(theirs / target)
    (project / "again").symlink_to(project / "deep" / "rows")
    (project / "own").symlink_to(project / "deep" / "er" / "rows")
    (project / mark).touch()
    for name in ("deep/rows", "deep/new", "again", "deep/er/../rows"):
        with pytest.raises(UsageError, match="was not written: it is a link to") as told:
            write_whole(project / name, b"1")
        assert str(theirs) in str(told.value), name
    assert [one.read_text() for one in theirs.iterdir()] == ["of the user"]
    by_another_way = tmp_path / "way"
    by_another_way.symlink_to(project)
    for path in (project / "own", by_another_way / "own", project / "deep" / "disk" / "rows"):
        write_whole(path, path.name.encode())  # within the project, or in a folder of a larger disk
        assert path.read_text() == path.name
    (project / mark).unlink()
    write_whole(project / "deep" / "rows", b"1")
    assert (theirs / "keys").read_bytes() == b"1", "no clone: the links are the user's"


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for content in (b"old", b"new"):
        with whole_folder(folder) as draft:
            (draft / "sub").mkdir()
            (draft / "sub" / "weights").write_bytes(content)
    assert (folder / "sub" / "weights").read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [folder]


KILLED_AT = """
import os, pathlib, shutil, signal, sys
from orchestrate.core import files
folder, at = pathlib.Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def dying(real):
    def call(*args, **more):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    return call
with files.whole_folder(folder) as draft:
    (draft / "weights").write_bytes(b"new")
    (draft / "config").write_bytes(b"new")
    pathlib.Path.rename = dying(pathlib.Path.rename)
    files.shutil.rmtree = dying(shutil.rmtree)
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", range(1, 6))
def test_a_kill_while_a_folder_is_replaced_loses_neither(tmp_path: Path, at: int) -> None:
    folder = tmp_path / "model"
    with whole_folder(folder) as draft:
        (draft / "weights").write_bytes(b"old")
        (draft / "config").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED_AT, str(folder), str(at)], check=False)
    assert done.returncode == (-signal.SIGKILL if at < 5 else 0), "two renames and two removals"
    recover_folders(tmp_path)
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert found in ({"weights": b"old", "config": b"old"}, {"weights": b"new", "config": b"new"})
    with whole_folder(folder) as draft:
        (draft / "weights").write_bytes(b"third")
    assert [path.name for path in folder.iterdir()] == ["weights"]
    assert not list(tmp_path.glob("*.before"))


def test_a_filled_folder_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(OSError, match="model"), whole_folder(folder, replace=False) as draft:
        (draft / "mine").touch()
        folder.mkdir()
        (folder / "theirs").touch()
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [folder]


def test_one_holds_the_lock_and_the_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib\n"
            "from orchestrate.core.files import locked\n"
            "with locked(pathlib.Path(sys.argv[1])) as held:\n"
            "    print(held, flush=True)\n"
            "    sys.stdin.read()\n",
            str(lock),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with locked(lock) as held:
            assert not held
        holder.send_signal(signal.SIGKILL)
    with locked(lock) as held:
        assert held
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_a_lock_file_can_go_with_its_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", keep=False) as held:
        assert held
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("age_s", [0, 100])
def test_a_hash_is_kept_until_the_file_changes(tmp_path: Path, age_s: int) -> None:
    """However soon after it was hashed, and if its length and its time are put back."""
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    now = path.stat().st_mtime_ns
    os.utime(path, ns=(now, now - age_s * 10**9))
    stat = path.stat()
    assert sha256_once(path) == sha256_once(path) == sha256(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sha256_once(path) == sha256(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        sha256_once(path)
