"""The gateway from its start to its end."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from orchestrate.errors import MissingExtra, UsageError
from orchestrate.files import private_folder
from orchestrate.gateway.answers import Answers
from orchestrate.gateway.app import app
from orchestrate.gateway.contents import Contents
from orchestrate.gateway.engines import Engines
from orchestrate.gateway.files import Files
from orchestrate.gateway.jobs import Jobs
from orchestrate.gateway.models import Models
from orchestrate.gateway.outside import Outside
from orchestrate.gateway.submitting import Reached, Submitting
from orchestrate.gateway.terms import Terms
from orchestrate.gateway.uploads import Uploads
from orchestrate.settings.hosts import is_loopback
from orchestrate.web.server import serving

if TYPE_CHECKING:
    from orchestrate.tracking import Watcher
    from orchestrate.workspace import Workspace


@dataclass(frozen=True)
class Up:
    """A gateway that answers."""

    url: str
    """What clients take as their base URL."""


@contextmanager
def serve(
    ft: Workspace, terms: Terms, watcher: Watcher, reached: Reached = lambda place: None
) -> Generator[Up]:
    """Answers for the length of the block; jobs of an earlier one go on. `watcher` follows the runs. Raises
    `UsageError` where others could listen or come without a key, `SetupError` for a port that is taken."""
    if find_spec("python_multipart") is None:
        raise MissingExtra("gateway", "the gateway", "python-multipart")
    _require_safe(ft, terms)
    for target in terms.models.values():
        if target.run is None:
            ft.backends(target.backend)
        else:
            ft.store.runs.get(target.run)
    contents = Contents(private_folder(terms.files), ft.store)
    outside = Outside(ft, terms.models)
    files, models = Files(ft.store, contents), Models(ft, terms, outside)
    uploads = Uploads(ft.store, files)
    sweeps = (files.sweep, uploads.sweep, contents.sweep, ft.store.gateway_keys.sweep)
    submitting = Submitting(ft, terms, contents, watcher, reached, sweeps)
    jobs = Jobs(ft, terms, files, outside, submitting, reached)
    engines = Engines(ft)
    answers = Answers(ft, models, engines)
    routes = [*files.routes(), *uploads.routes(), *jobs.routes(), *answers.routes(), *models.routes()]
    try:
        with serving(
            app(ft, routes, terms.names, terms.most_requests),
            host=terms.host,
            port=terms.port,
            grace_s=terms.grace_s,
            certificate=terms.certificate,
        ) as url:
            submitting.start()
            yield Up(f"{url}/v1")
    finally:
        submitting.close()
        engines.close()


def _require_safe(ft: Workspace, terms: Terms) -> None:
    open_to_others = terms.behind_proxy or not is_loopback(terms.host)
    if not is_loopback(terms.host) and terms.certificate is None and not terms.behind_proxy:
        raise UsageError(
            f"{terms.host} can be reached by others, who would send their keys in the clear",
            fix="--tls-certificate and --tls-key; or --behind-proxy where a proxy speaks TLS before it",
        )
    if open_to_others and not ft.store.gateway_keys.all():
        raise UsageError(
            "others can reach it, and there are no keys", fix="orchestrate gateway keys add NAME"
        )
