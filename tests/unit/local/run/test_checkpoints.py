"""Checkpoints that are whole or do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrate.local.run.checkpoints import Progress, listed, newest_complete, prune, save, verify


def write(folder: Path, step: int, *, kept: bool = True, text: bytes = b"weights") -> Path:
    def fill(draft: Path) -> None:
        (draft / "adapter").mkdir()
        (draft / "adapter" / "adapter_model.safetensors").write_bytes(text)

    return save(folder, Progress(step=step, total_steps=9, kept=kept), fill)


def test_the_newest_whole_one_is_found_and_damaged_ones_are_named(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    (tmp_path / "step-00000004" / "adapter" / "adapter_model.safetensors").write_bytes(b"weightz")
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    whole, damaged = newest_complete(tmp_path)
    assert whole is not None and whole.progress.step == 2
    assert damaged == ["step-00000004", "step-00000003"]


def test_an_empty_folder_and_a_half_written_one_are_no_checkpoints(tmp_path: Path) -> None:
    assert newest_complete(tmp_path / "none") == (None, [])
    (tmp_path / "step-00000001").mkdir()
    assert verify(tmp_path / "step-00000001") is None


def test_a_save_that_fails_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def full(draft: Path) -> None:
        (draft / "x").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save(tmp_path, Progress(step=2, total_steps=9), full)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_of_those_to_go_on_from_only_the_newest_stays(tmp_path: Path) -> None:
    for step, kept in ((1, False), (2, True), (3, False), (4, False)):
        write(tmp_path, step, kept=kept)
    (tmp_path / ".step-00000009.123").mkdir()
    prune(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
    assert [w.progress.step for w in listed(tmp_path)] == [2]
    assert listed(tmp_path)[0].weights.name == "adapter"


def test_of_those_to_keep_only_the_newest_stay_where_a_limit_is_set(tmp_path: Path) -> None:
    for step, kept in ((1, True), (2, True), (3, True), (4, False)):
        write(tmp_path, step, kept=kept)
    prune(tmp_path, limit=2)
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["2", "3", "4"]
    prune(tmp_path, limit=1)
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["3", "4"]
    whole, _ = newest_complete(tmp_path)
    assert whole is not None and whole.progress.step == 4


def test_a_step_written_again_replaces_the_earlier_one(tmp_path: Path) -> None:
    write(tmp_path, 5, text=b"old")
    path = write(tmp_path, 5, text=b"new")
    assert (path / "adapter" / "adapter_model.safetensors").read_bytes() == b"new"
    assert verify(path) is not None
