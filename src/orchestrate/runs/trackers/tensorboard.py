"""Log runs to TensorBoard: a folder for each run, with a new event file whenever values are added."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import Any

from orchestrate.core import needed
from orchestrate.errors import UsageError
from orchestrate.runs.trackers.records import ExporterContext, Logged, Story, new

FOLDER = "tensorboard"
_SETTINGS = "settings"


def opened(at: str | None, project: str | None) -> TensorBoard:
    """Open an exporter to TensorBoard. `at` is the log folder (default `tensorboard`). If a project is set,
    its runs go into a subfolder. Raises `MissingExtra` if TensorBoard is not installed, and `UsageError` if
    `at` is not a folder."""
    with needed("tensorboard", "logging to TensorBoard", "tensorboard"):
        _part("summary.writer.event_file_writer")
    folder = Path(at or FOLDER).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", fix="--at DIR")
    return TensorBoard(folder / project if project else folder)


class TensorBoard(ExporterContext):
    def __init__(self, folder: Path) -> None:
        self.address: str | None = None
        self._folder = folder
        self._known: dict[str, set[tuple[str, int]]] = {}
        self._writers: dict[str, Any] = {}

    def write(self, story: Story) -> Logged:
        run = story.run
        folder = self._folder / run.id
        if run.id not in self._known:
            self._known[run.id] = _read(folder)
        known = self._known[run.id]
        points = new(story, known)
        last = story.points[-1].step if story.points else 0
        ends = [(name, value) for name, value in story.summary.items() if (name, last) not in known]
        if points or ends or not known:
            writer = self._writer(run.id, folder)
            if (_SETTINGS, 0) not in known:
                writer.add_event(
                    _text(_SETTINGS, _table(story.params | story.tags), run.created_at.timestamp())
                )
            for name, step, point in points:
                writer.add_event(_scalar(name, point.values[name], step, story.seconds(point)))
            for name, value in ends:
                writer.add_event(_scalar(name, value, last, time.time()))
            writer.flush()
        known |= (
            {(name, step) for name, step, _ in points} | {(name, last) for name, _ in ends} | {(_SETTINGS, 0)}
        )
        return Logged(run_id=run.id, to="tensorboard", where=str(folder), values=len(points) + len(ends))

    def _writer(self, run_id: str, folder: Path) -> Any:
        if run_id not in self._writers:
            self._writers[run_id] = _part("summary.writer.event_file_writer").EventFileWriter(str(folder))
        return self._writers[run_id]

    def close(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()


def _read(folder: Path) -> set[tuple[str, int]]:
    """Return the (tag, step) pairs of all events in the folder."""
    if not folder.is_dir():
        return set()
    events = _part("backend.event_processing.event_file_loader")
    found: set[tuple[str, int]] = set()
    for file in sorted(folder.glob("events.out.tfevents.*")):
        loader = events.EventFileLoader(str(file))
        for event in loader.Load():
            found |= {(value.tag, event.step) for value in event.summary.value}
    return found


def _scalar(name: str, value: float, step: int, at: float) -> Any:
    return _event(at, step, tag=name, simple_value=value)


def _text(name: str, markdown: str, at: float) -> Any:
    kind = _part("plugins.text.metadata").create_summary_metadata(display_name=None, description=None)
    string = _part("compat.proto.types_pb2").DT_STRING
    tensor = _part("compat.proto.tensor_pb2").TensorProto(dtype=string, string_val=[markdown.encode()])
    return _event(at, 0, tag=name, tensor=tensor, metadata=kind)


def _event(at: float, step: int, **value: Any) -> Any:
    summary = _part("compat.proto.summary_pb2").Summary
    content = summary(value=[summary.Value(**value)])
    return _part("compat.proto.event_pb2").Event(wall_time=at, step=step, summary=content)


def _part(name: str) -> Any:
    """Import a module of TensorBoard, which publishes no types."""
    return import_module(f"tensorboard.{name}")


def _table(values: dict[str, str]) -> str:
    """Format values as a Markdown table. TensorBoard removes HTML."""
    rows = (f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items())
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
