"""Serve read-only pages to anyone with the link, and all other pages to this machine only."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Collection, Generator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.http import web
from orchestrate.http.web import RequestGuard
from orchestrate.settings.hosts import is_loopback
from orchestrate.ui import actions, activity, compare, data, money, new, run, runs, talk
from orchestrate.ui.site import Site, static

if TYPE_CHECKING:
    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.runs.watching.watcher import Watcher


_ROUTES = (
    *(
        runs.routes,
        run.routes,
        actions.routes,
        actions.evaluate_routes,
        data.token_routes,
        data.review_routes,
    ),
    *(
        activity.routes,
        talk.routes,
        compare.routes,
        money.routes,
        money.quote_routes,
        data.routes,
        new.routes,
    ),
)
_LONGEST_BODY = 16 << 20
"""Maximum size of a request body, for edited rows."""


def app(site: Site) -> Starlette:
    """Build the app with all pages, but without access control."""
    return Starlette(
        routes=[static(), *(route for routes in _ROUTES for route in routes(site))],
        exception_handlers={OrchestrateError: site.error, HTTPException: site.error, Exception: site.error},
    )


def _refused(status: int, text: str) -> Response:
    """Build the page for requests without a valid link, which mostly come from the owner with an outdated
    link. The page is the same for everyone and reveals nothing."""
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{status}</title>'
    why = "The link changes each time the server starts. To get a new one, run this in a terminal:"
    page = f"<main><h1>{escape(text)}</h1><p>{why}</p><pre>orchestrate ui</pre></main></html>"
    return HTMLResponse(head + page, status)


@contextmanager
def serving(
    ft: Orchestrator,
    watcher: Watcher | None = None,
    *,
    host: str = web.LOOPBACK,
    port: int = 0,
    names: Collection[str] = (),
    read_only: bool = False,
) -> Generator[str]:
    """Serve the pages until the `with` block ends, and yield their link.

    Anyone with the link can see the pages and, unless `read_only` is set, spend money. With a `watcher`, the
    hosts are polled continuously. Only read-only pages can be served to other machines: `host` is then an
    address that others can reach, and `names` are the host names that they use. Raises `UsageError` if other
    pages would be served to other machines, and `SetupError` if the port is unavailable.
    """
    if not is_loopback(host) and not read_only:
        raise UsageError(
            f"pages that can spend money are only served to this machine (not {host})",
            fix="add --read-only, or connect to this machine through a tunnel: ssh -L 8080:localhost:8080 "
            "...",
        )
    site, token = Site(ft, read_only), secrets.token_urlsafe(24)
    guard = RequestGuard(
        app(site),
        refuse=_refused,
        tokens={token: "reader" if read_only else "owner"},
        names=names,
        max_body=_LONGEST_BODY,
    )
    watching = threading.Thread(
        target=lambda: watcher and watcher.run(site.closing), name="ui-watcher", daemon=True
    )
    with web.serving(guard, host=host, port=port) as root:
        watching.start()
        try:
            yield f"{root}/{token}/"
        finally:
            site.closing.set()
            site.work.close()
            watching.join(10)
