"""The folder of an export or a merge: whole or not there, whoever is killed and however many write it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from tests import command
from tests.paths import TINY

from orchestrate.errors import UsageError
from orchestrate.serving.combination import combine
from orchestrate.serving.export.folder import new_folder_at, scratch_beside
from orchestrate.serving.export.forms import WeightOptions, export
from orchestrate.serving.tuned import TunedModel

CONFIG = '{"r": 8, "base_model_name_or_path": "x", "target_modules": ["q_proj"]}'
WEIGHTS = save({"base_model.model.q_proj.lora_A.weight": np.zeros((8, 4), np.float32)})
POINTS = ("begun", "half written", "written", "card")


class Killing(list[Any]):
    """What the model card reads; the last but the rename."""

    def __iter__(self) -> Iterator[Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__iter__()


def adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(CONFIG)
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    return folder


def work_until(point: str) -> Any:
    """What the process for work with weights writes, without torch; at `point` all is killed."""

    def work(tasks: list[dict[str, Any]], *, module: str = "worker") -> list[dict[str, Any]]:
        def die_at(here: str) -> None:
            if here == point:
                os.kill(os.getpid(), signal.SIGKILL)

        die_at("begun")
        for task in tasks:
            folder = Path(task["target"])
            (folder / "model.safetensors").write_bytes(b"mer")
            die_at("half written")
            (folder / "model.safetensors").write_bytes(b"merged")
        die_at("written")
        told = {"method": "svd", "ranks": [8, 8], "rank": 8, "error": 0.0, "base_hash": "h"}
        return [told for _ in tasks]

    return work


def written(form: str, source: Path, target: Path, point: str) -> None:
    evaluations = Killing() if point == "card" else []
    one = TunedModel("one", source, str(TINY), "adapter", evaluations=evaluations)
    if form == "merge":
        how: dict[str, Any] = {"method": "svd", "weights": None, "density": None, "rank": None}
        combine([one, one], ["one", "one"], target, work=work_until(point), **how)
    else:
        export(one, form, target, WeightOptions(), work=work_until(point))


def write(arguments: list[str]) -> None:
    """`FORM SOURCE TARGET POINT`"""
    form, source, target, point = arguments
    written(form, Path(source), Path(target), point)


@pytest.mark.parametrize("form", ["peft", "merged", "merge"])
def test_one_that_is_killed_leaves_nothing_that_looks_whole_and_the_next_clears_it(
    form: str, tmp_path: Path
) -> None:
    source, target = adapter(tmp_path / "a"), tmp_path / "x"
    for point in POINTS[: 3 if form == "merge" else 4]:
        arguments = [form, str(source), str(target), point]
        ended = command.run(arguments, cwd=tmp_path, env=os.environ, program=write)
        assert ended.code == -signal.SIGKILL, (point, ended.err)
        assert not target.exists(), point
        assert len([p for p in tmp_path.iterdir() if p.name.startswith(".x.") and p.is_dir()]) <= 1, point
    written(form, source, target, "none")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "x"]
    assert (target / "README.md").is_file() and (target / "passport.json").is_file()


def test_two_at_once_are_told_apart_at_the_beginning(tmp_path: Path) -> None:
    source, target = adapter(tmp_path / "a"), tmp_path / "x"
    for form in ("peft", "merge"):
        with new_folder_at(target) as mine:
            (mine / "mine").touch()
            with pytest.raises(UsageError, match="another process is writing"):
                written(form, source, target, "none")
        assert [p.name for p in target.iterdir()] == ["mine"], "the first one's, and whole"
        (target / "mine").unlink()
    with pytest.raises(RuntimeError), new_folder_at(target):
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_what_living_processes_and_people_have_beside_it_stays(tmp_path: Path) -> None:
    target, theirs = tmp_path / "x", tmp_path / ".x.mine"
    theirs.mkdir()
    (tmp_path / ".x.4194999.abcdefgh").symlink_to(theirs)  # a pid that Linux never gives
    (tmp_path / ".y.4194999.abcdefgh").mkdir()
    (tmp_path / ".x.4194999.abcdefg0").mkdir()
    with scratch_beside(target) as scratch, new_folder_at(target) as folder:
        assert scratch.is_dir() and folder != scratch
        names = {p.name for p in tmp_path.iterdir()} - {scratch.name, folder.name}
    assert names == {".x.mine", ".x.lock", ".x.4194999.abcdefgh", ".y.4194999.abcdefgh"}


@pytest.mark.parametrize("there", ["file", "link to nothing", "link to a folder"])
def test_what_is_no_empty_folder_is_left_as_it_is(there: str, tmp_path: Path) -> None:
    target = tmp_path / "x"
    if there == "file":
        target.touch()
    else:
        target.symlink_to(tmp_path / "nowhere" if there == "link to nothing" else tmp_path)
    with pytest.raises(UsageError, match="already exists"), new_folder_at(target):
        pass
    assert target.is_symlink() == there.startswith("link") and os.path.lexists(target)
