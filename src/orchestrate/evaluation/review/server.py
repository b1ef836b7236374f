"""Serve the review page with one link per rater, or with one shared link.

Each link contains a token that authorizes its rater, so you can also serve the page to other machines
(`host`), such as phones. Links are stored with the review. They stay the same if the review is served again
on the same port.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from orchestrate.core.files import write_whole
from orchestrate.evaluation.review.session import ReviewAction, ReviewSession, rater_named
from orchestrate.evaluation.review.written_rows import RowDraft, WritingSession
from orchestrate.http import web
from orchestrate.http.web import RequestGuard, holder

ANYONE = ""
"""Key of the shared link in `ReviewPage.links`. Raters who open it enter their name on the page."""
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  compared with


@dataclass(frozen=True)
class ReviewPage:
    """A running review server. `links` maps raters to their links, or `ANYONE` to the shared link if no
    raters were named."""

    links: Mapping[str, str]
    session: ReviewSession | WritingSession


@contextmanager
def serving(
    session: ReviewSession | WritingSession,
    *,
    raters: Collection[str] = (),
    host: str = web.LOOPBACK,
    port: int = 0,
    names: Collection[str] = (),
) -> Generator[ReviewPage]:
    """Serve the review for the duration of a `with` block. Each of the `raters` gets a link. Without raters,
    there is one shared link, and each person enters a name. `host` is the address to bind to (0.0.0.0 for all
    interfaces). `names` are the host names that clients use. Raises `SetupError` if the port is
    unavailable."""
    tokens = _tokens(Path(session.review.folder) / "links.json", [*map(rater_named, raters)] or [ANYONE])

    made = Starlette(routes=_routes_of(session))
    guard = RequestGuard(made, tokens=tokens, names=names, max_body=1 << 20)
    with web.serving(guard, host=host, port=port) as root:
        if host in _EVERYWHERE:
            root = f"http://{_own_address()}:{root.rpartition(':')[2]}"
        yield ReviewPage({who: f"{root}/{token}/" for token, who in tokens.items()}, session)


def _routes_of(session: ReviewSession | WritingSession) -> list[Route]:
    def rater_of(request: Request) -> str:
        return holder(request.scope)

    if isinstance(session, ReviewSession):
        return review_routes("/", lambda _: session, rater_of)

    def answer(draft: RowDraft, request: Request) -> dict[str, Any]:
        return session.act(draft, rater_of(request))

    return [web.page("/", __package__ or "", "writing.html"), web.action("/", RowDraft, answer)]


def review_routes(
    path: str,
    session_of: Callable[[Request], ReviewSession],
    rater_of: Callable[[Request], str],
    back: Callable[[Request], str] | None = None,
) -> list[Route]:
    """Build the routes of the review page and its actions. `session_of` finds the review session for a
    request. `rater_of` returns the rater, or `ANYONE` if the page should ask for a name. `back` returns the
    page from which the review was opened."""

    def answer(draft: ReviewAction, request: Request) -> dict[str, Any]:
        return session_of(request).act(draft, rater_of(request))

    return [
        web.page(path, __package__ or "", "review.html", back=back),
        web.action(path, ReviewAction, answer),
    ]


def _tokens(path: Path, raters: Collection[str]) -> dict[str, str]:
    """Return the raters by token, which are stored."""
    known: dict[str, str] = {}
    with suppress(FileNotFoundError, msgspec.DecodeError):
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    missing = [who for who in raters if who not in known.values()]
    if missing:
        known |= {secrets.token_urlsafe(24): who for who in missing}
        write_whole(path, msgspec.json.encode(known), private=True)
    return {token: who for token, who in known.items() if who in raters}


def _own_address() -> str:
    """Return the address at which other machines can reach this one, without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.connect(("192.0.2.1", 9))
        return sock.getsockname()[0]
    return web.LOOPBACK
