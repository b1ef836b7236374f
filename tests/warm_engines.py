"""What training, answering and the work on weights import, for the processes of `tests/forking.py`."""

from __future__ import annotations

import gc
from importlib import import_module

gc.disable()  # until all is there: hardly anything of it is garbage
for _name in (
    "peft",
    "orchestrate.local.answers.answering",
    "orchestrate.local.answers.engine",
    "orchestrate.local.run.loop",
    "orchestrate.local.run.session",
    "orchestrate.local.run.worker",
    "orchestrate.local.weights.conversion",
    "orchestrate.local.weights.worker",
):
    import_module(_name)
gc.enable()
