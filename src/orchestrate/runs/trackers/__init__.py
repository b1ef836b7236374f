"""Log runs to experiment trackers: settings, metrics by step, outcome and cost.

A run can be logged repeatedly, during and after training. Values that the tracker already has are not logged
again. The trackers' packages are optional extras, imported when an exporter is opened.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from orchestrate.errors import UsageError
from orchestrate.runs.trackers.records import Exporter, Story
from orchestrate.text import meant

if TYPE_CHECKING:
    from orchestrate.store.store import Store
    from orchestrate.types import Run

TRACKERS = ("mlflow", "wandb", "tensorboard")


def opened(to: str, at: str | None = None, project: str | None = None) -> Exporter:
    """Open the exporter of a tracker. `at` is a URL or folder. With `None`, the tracker's own settings apply.
    Raises `UsageError` for an unknown tracker or an unsuitable `at`, `MissingExtra` if the tracker's package
    is not installed, and `HostUnavailable` if an MLflow server does not respond."""
    if to not in TRACKERS:
        raise UsageError(
            f"unknown tracker {to!r}{meant(to, TRACKERS)}", fix=f"use one of {', '.join(TRACKERS)}"
        )
    return import_module(f"orchestrate.runs.trackers.{to}").opened(at, project)


def story(store: Store, run: Run) -> Story:
    """Collect the stored data of a run that a tracker receives."""
    history = store.history
    return Story(
        run=run, points=tuple(history.metrics(run.id)), evaluations=tuple(history.evaluations(run.id))
    )
