"""Tuned models in use, for the command line: `orchestrate.tuned` by the names that people type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate import tuned
from orchestrate.catalog.licences import Licence, licence_of
from orchestrate.errors import UsageError
from orchestrate.serving import agreements
from orchestrate.serving.export.forms import Options as Options
from orchestrate.tuned import export as export
from orchestrate.tuned import merge as merge
from orchestrate.tuned import verify as verify
from orchestrate.types import Export

if TYPE_CHECKING:
    from orchestrate.handle import RunHandle
    from orchestrate.service.orchestrator import Orchestrator


def subject(ft: Orchestrator, name: str) -> RunHandle | Path:
    """A run by its id, or a folder with weights. Raises `UsageError`."""
    folder = Path(name).expanduser()
    if folder.is_dir() and list(folder.glob("*.safetensors")):
        return folder.resolve()
    return ft.run(name)


def asked(ft: Orchestrator, names: Iterable[str], accepted: Sequence[str]) -> list[Licence]:
    """Licences of the bases that ask for something that nobody has agreed to yet."""
    found: dict[str, Licence] = {}
    for name in names:
        what = subject(ft, name)
        base = tuned.of(ft, what).base if isinstance(what, Path) else what.record.model
        licence = licence_of(base)
        if (
            licence is not None
            and licence.id not in accepted
            and not agreements.agreed(licence, ft.settings.home)
        ):
            found[licence.id] = licence
    return list(found.values())


def upload(made: Export, repo: str | None) -> str:
    """Publishes an exported folder on the hub, as a private model, with the user's own login there; returns
    its address. Raises `UsageError` without a name for it."""
    if repo is None:
        raise UsageError("say where to: --repo OWNER/NAME")
    import huggingface_hub

    hub: Any = huggingface_hub
    hub.create_repo(repo, private=True, exist_ok=True)
    return str(hub.upload_folder(repo_id=repo, folder_path=made.folder))
