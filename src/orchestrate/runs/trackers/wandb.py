"""Log runs to Weights & Biases under Orchestrate's run ids, or to files for `wandb sync`."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from orchestrate.core import needed
from orchestrate.errors import ProviderError, UsageError
from orchestrate.runs.trackers.records import PROJECT, ExporterContext, Logged, Story

_SETTINGS = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}
"""Settings that stop wandb from recording system load and installed packages, because the training runs in a
different process."""


def opened(at: str | None, project: str | None) -> WandBExporter:
    """Open an exporter to Weights & Biases. `at` is the URL of a server, or a folder. Writing to a folder
    needs no network or key, and `wandb sync` uploads the runs later. By default, wandb's own settings and key
    apply. Raises `MissingExtra` if wandb is not installed, and `UsageError` if `at` is neither a URL nor a
    folder."""
    with needed("wandb", "logging to Weights & Biases", "wandb"):
        import_module("wandb")
    folder = None if at is None or at.startswith(("http://", "https://")) else Path(at).expanduser()
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is not a folder", fix="use --at DIR, or a URL")
        folder.mkdir(parents=True, exist_ok=True)
    return WandBExporter(project or PROJECT, url=at if folder is None else None, folder=folder)


class WandBExporter(ExporterContext):
    def __init__(self, project: str, *, url: str | None, folder: Path | None) -> None:
        self._project, self._url, self._folder = project, url, folder
        if folder is None and not url:  # wandb's own files and environment variables
            url = str(import_module("wandb").setup().settings.base_url)
        self.address = url if folder is None else None
        self._open: dict[str, Any] = {}
        self._last: dict[str, int] = {}

    def write(self, story: Story) -> Logged:
        run = story.run
        there = self._begun(story)
        last = self._last[run.id]
        points = [point for point in story.points if point.step > last]
        if not run.status.terminal:
            # wandb cannot add values to a logged step, and the last step may still get its validation loss.
            points = points[:-1]
        for point in points:
            there.log(dict(point.values), step=point.step)
        for name, value in {**story.summary, **story.tags}.items():
            there.summary[name] = value
        if points:
            self._last[run.id] = points[-1].step
        if self._folder is not None:
            self._mark(run.id).write_text(json.dumps({"step": self._last[run.id]}), encoding="utf-8")
        if run.status.terminal:
            self._end(run.id, failed=story.failed)
        where = str(self._folder) if self._folder else str(there.url)
        count = sum(len(point.values) for point in points)
        upload = f"to upload the run: wandb sync {self._folder}/wandb/offline-run-*-{run.id}"
        notes = (upload,) if self._folder else ()
        return Logged(run_id=run.id, to="wandb", where=where, values=count, notes=notes)

    def _begun(self, story: Story) -> Any:
        run = story.run
        if run.id in self._open:
            return self._open[run.id]
        wandb: Any = import_module("wandb")
        settings: dict[str, Any] = dict(_SETTINGS)
        if self._url is not None:
            settings["base_url"] = self._url
        try:
            there = wandb.init(
                project=self._project,
                id=run.id,
                name=story.name,
                config=dict(story.params),
                resume="allow",
                reinit="create_new",
                mode="offline" if self._folder else None,
                dir=self._folder,
                settings=wandb.Settings(**settings),
            )
        except (wandb.Error, ValueError) as error:
            fix = "run wandb login, or log to a local folder (no key needed): --at DIR"
            raise ProviderError("wandb", str(error), fix=fix) from error
        self._open[run.id] = there
        self._last[run.id] = self._step(run.id, there)
        return there

    def _step(self, run_id: str, there: Any) -> int:
        """Return the last step that was logged for the run."""
        if self._folder is None:
            return int(there.starting_step) - 1
        try:
            return int(json.loads(self._mark(run_id).read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError):
            return -1

    def _mark(self, run_id: str) -> Path:
        """Return the path of the file that stores the last logged step, because files for `wandb sync` cannot
        be queried."""
        return Path(self._folder or ".") / f"orchestrate-{run_id}.json"

    def _end(self, run_id: str, *, failed: bool = False) -> None:
        self._open.pop(run_id).finish(exit_code=int(failed))

    def close(self) -> None:
        """Finish the open wandb runs. If a run is still training, its wandb run is continued the next time it
        is opened."""
        for run_id in list(self._open):
            self._end(run_id)
