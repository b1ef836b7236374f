"""How often a run's worker has died where it is. A run of days may lose many machines: only deaths between
two checkpoints say that the next worker would die too."""

from __future__ import annotations

import msgspec

from orchestrate.files import write_whole
from orchestrate.local.run import checkpoints
from orchestrate.local.run.rundir import RunDir
from orchestrate.types import Record


class Seen(Record, frozen=True, kw_only=True):
    """`.restarts.json` of a run directory."""

    checkpoint: str = ""
    """The newest one at the last death."""
    before: int = 0
    """Attempts that the run had had when it was first seen there."""


def died(run: RunDir, attempts: int) -> int:
    """Workers that have died since the newest checkpoint, the latest among them. `attempts`: all that the run
    has had."""
    path = run.path / ".restarts.json"
    try:
        seen = Seen.from_json(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        seen = Seen()
    newest = checkpoints.newest(run.checkpoints)
    if newest > seen.checkpoint:
        seen = Seen(checkpoint=newest, before=max(0, attempts - 1))
        write_whole(path, seen.to_json())
    return attempts - seen.before


def last_words(run: RunDir) -> str:
    """Of whoever saw the worker die; nothing where nobody did."""
    said = [event.message for event in run.events() if (event.type, event.level) == ("interrupted", "error")]
    return f": {said[-1]}" if said else ""
