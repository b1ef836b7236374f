"""What training, answering and the work on weights import, for the processes of `tests/forking.py`."""

from __future__ import annotations

from importlib import import_module

from orchestrate.local.run import importing

_NAMES = (
    "peft",
    "orchestrate.local.answers.engine",
    "orchestrate.local.run.loop",
    "orchestrate.local.run.session",
    "orchestrate.local.run.worker",
    "orchestrate.local.sessions",
    "orchestrate.local.weights.conversion",
    "orchestrate.local.weights.worker",
)
with importing():
    for _name in _NAMES:
        import_module(_name)
