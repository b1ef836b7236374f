"""What the processes of `tests/command.py` have imported and read before they are forked: all that nearly
every command needs, and that takes it the longer part of a second. Nothing that reads the environment belongs
here: a console, say, reads its width as it is imported.
"""

from __future__ import annotations

from importlib import import_module

from orchestrate.costing import built_in
from orchestrate.data.rows.content import candidates
from orchestrate.data.tokens.counting import batch_counter

for _name in (
    "anyio.streams.tls",
    "fireworks",
    "httpcore",
    "httpcore2",
    "langdetect",
    "numpy",
    "openai.resources.files",
    "openai.resources.fine_tuning.fine_tuning",
    "openai.resources.models",
    "orchestrate.cli",
    "orchestrate.data.operations.check",
    "orchestrate.data.operations.inspect",
    "orchestrate.data.passes.compare",
    "orchestrate.expansion",
    "orchestrate.providers.fireworks.provider",
    "orchestrate.providers.local.provider",
    "orchestrate.providers.openai.provider",
    "orchestrate.providers.together.provider",
    "orchestrate.quoting",
    "orchestrate.reports",
    "orchestrate.service",
    "orchestrate.specfile",
    "orchestrate.tracking.recovery",
    "orchestrate.tracking.store",
    "orchestrate.tracking.submit",
    "orchestrate.tracking.watcher",
    "orchestrate.watching",
    "rich.logging",
    "sqlalchemy.dialects.sqlite",
    "tenacity",
    "together.resources.beta",
    "together.resources.fine_tuning",
    "together.types.beta",
    "typer",
):
    import_module(_name)

built_in()
candidates(b"", [0])
batch_counter("o200k_base")(["warm"])
