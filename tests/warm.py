"""What the commands among the processes of `tests/forking.py` have imported and read before they are forked:
all that nearly every command needs, and that takes it the longer part of a second. Nothing that reads the
environment belongs here: a console, say, reads its width as it is imported.
"""

from __future__ import annotations

import gc
from importlib import import_module

gc.disable()  # until all is there: hardly anything of it is garbage

from langdetect.detector_factory import init_factory  # noqa: E402

from orchestrate.costing import built_in  # noqa: E402
from orchestrate.data.rows.content import candidates  # noqa: E402
from orchestrate.data.tokens.counters import batch_counter  # noqa: E402
from orchestrate.store.database import sqlite_tables  # noqa: E402

for _name in (
    "anyio.streams.tls",
    "ctypes.util",
    "fireworks",
    "httpcore",
    "httpcore2",
    "getpass",
    "importlib_metadata",
    "keyring",
    "keyring.backends.SecretService",
    "keyring.backends.Windows",
    "keyring.backends.chainer",
    "keyring.backends.kwallet",
    "keyring.backends.libsecret",
    "keyring.backends.macOS",
    "keyrings.alt.Gnome",
    "keyrings.alt.Google",
    "keyrings.alt.Windows",
    "keyrings.alt.file",
    "keyrings.alt.keyczar",
    "keyrings.alt.multi",
    "markdown_it",
    "numpy",
    "openai.resources.files",
    "openai.resources.fine_tuning.fine_tuning",
    "openai.resources.models",
    "orchestrate.cli",
    "orchestrate.commands",
    "orchestrate.core.tables",
    "orchestrate.data.operations.check",
    "orchestrate.data.operations.convert",
    "orchestrate.data.operations.inspect",
    "orchestrate.data.operations.mix",
    "orchestrate.data.passes.compare",
    "orchestrate.data.response_formats",
    "orchestrate.local.answers.worker",
    "orchestrate.runs.preparing.earlier",
    "orchestrate.core.expansion",
    "orchestrate.runs.preparing.prepared",
    "orchestrate.providers.fireworks.provider",
    "orchestrate.providers.local.provider",
    "orchestrate.providers.local.sessions",
    "orchestrate.providers.openai.provider",
    "orchestrate.providers.registry",
    "orchestrate.providers.together.provider",
    "orchestrate.providers.together.sessions",
    "orchestrate.runs.preparing.pricing",
    "orchestrate.reports",
    "orchestrate.reports.quotes",
    "orchestrate.runs.data",
    "orchestrate.runs.spending",
    "orchestrate.api.orchestrator",
    "orchestrate.spec.specfile",
    "orchestrate.runs.syncing.recovery",
    "orchestrate.store.store",
    "orchestrate.runs.submitting.submit",
    "orchestrate.runs.watching.watcher",
    "orchestrate.runs.watch",
    "orchestrate.settings.trust",
    "packaging.requirements",
    "platformdirs.unix",
    "rich.logging",
    "sqlalchemy.dialects.sqlite",
    "tenacity",
    "together.resources.beta",
    "together.resources.fine_tuning",
    "together.types.beta",
    "tests.command",
    "typer._adapters",
    "typer._click.decorators",
):
    import_module(_name)

built_in()
sqlite_tables()
candidates(b"", [0])
for _vocabulary in ("o200k_base", "qwen3.5", "cl100k_base"):
    batch_counter(_vocabulary)(["warm"])
init_factory()
gc.enable()
gc.freeze()  # what is never looked through is never copied, either
