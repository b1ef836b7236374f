"""Code shared by all pages: look, wording, security, and error messages.

For security, external text is escaped and its control characters are replaced, no page contains inline
scripts or styles, and each form has a token that only this server's pages know.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from hmac import compare_digest
from importlib.resources import files
from mimetypes import guess_type
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import parse_qsl

import jinja2
from markupsafe import Markup, escape
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from orchestrate import text
from orchestrate.core import progress
from orchestrate.core.retries import within
from orchestrate.errors import HostUnavailable, OrchestrateError, ProviderError, SpecError, UsageError
from orchestrate.settings import hide
from orchestrate.types import Run

if TYPE_CHECKING:
    from orchestrate.api.orchestrator import Orchestrator


T = TypeVar("T")
_PATIENCE_S = 3.0
"""Seconds that a page waits for an action to finish. After that, the page shows that the action is in
progress."""
HOST_PATIENCE_S = 10.0
"""Seconds that a page waits for a host's answer before it is shown without it."""
_AT_ONCE = 4


@dataclass(frozen=True)
class ActionNote:
    """One action on one run, and its result."""

    verb: str
    text: str = "under way"
    fix: str | None = None
    going: bool = True
    wrong: bool = False


@dataclass
class SiteWork:
    """The actions in progress on one server. They end with the server, but operations already started on a
    host continue."""

    _notes: dict[tuple[str, str], ActionNote] = field(default_factory=dict[tuple[str, str], ActionNote])
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_AT_ONCE, "ui-work"))

    def begin(self, run_id: str, verb: str, act: Callable[[], str]) -> None:
        """Start an action, and wait a few seconds for it to finish. An error within this time is raised. A
        later error is shown on the page. Raises `UsageError` if the same action is already in progress."""
        key = (run_id, verb)
        with self._lock:
            if (known := self._notes.get(key)) and known.going:
                raise UsageError(f"{verb} for {run_id} is already in progress")
            self._notes[key] = ActionNote(verb)
        done: Future[str] = self._threads.submit(act)
        done.add_done_callback(lambda future: self._ended(key, future))
        try:
            done.result(_PATIENCE_S)
        except TimeoutError:
            return

    def notes(self, run_id: str) -> list[ActionNote]:
        with self._lock:
            return [note for (of, _), note in self._notes.items() if of == run_id]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, key: tuple[str, str], future: Future[str]) -> None:
        with self._lock:
            note = replace(self._notes[key], going=False)
            error = None if future.cancelled() else future.exception()
            if isinstance(error, OrchestrateError):
                note = replace(note, text=error.message, fix=error.fix, wrong=True)
            elif error is not None or future.cancelled():
                note = replace(
                    note, text=f"failed because of a bug in Orchestrate ({type(error).__name__})", wrong=True
                )
            else:
                note = replace(note, text=future.result())
            self._notes[key] = note


_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    # `no-referrer` would also remove the origin from form requests. The origin shows that a form is from
    # these pages.
    "referrer-policy": "same-origin",
}
_FILES = {
    "app.css": ("orchestrate.ui", "static"),
    "app.js": ("orchestrate.ui", "static"),
    "chart.js": ("orchestrate.ui", "static"),
    "htmx.min.js": ("orchestrate.ui", "static/vendor"),
    "uPlot.iife.min.js": ("orchestrate.ui", "static/vendor"),
    "uPlot.min.css": ("orchestrate.ui", "static/vendor"),
    "report.css": ("orchestrate.reports", "."),
}
"""The files that pages may load, by name. Reports and pages share one style sheet."""

Form = Mapping[str, Sequence[str]]
Act = Callable[[Request, Form], Response | str]
"""A function that handles a submitted form. A returned string is a path to redirect to."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A command and Python code that produce the same result as the page."""

    command: str
    python: str


@dataclass(frozen=True)
class Site:
    """A running web app on top of one `Orchestrator`."""

    ft: Orchestrator
    read_only: bool = False
    word: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """The token that every form must contain, to prevent cross-site request forgery."""
    work: SiteWork = field(default_factory=SiteWork, repr=False)
    closing: threading.Event = field(default_factory=threading.Event, repr=False)
    """Set when open streams should end."""

    def page(self, request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Render a template with these values and the values that all templates share."""
        shown = (
            _templates()
            .get_template(name)
            .render(
                base=request.scope.get("root_path", ""),
                site=self,
                sandboxed=self.ft.settings.hosts.sandboxed,
                now=datetime.now(UTC),
                **values,
            )
        )
        return HTMLResponse(shown, status, headers=_HEADERS)

    def from_host(self, provider: str, call: Callable[[], T]) -> T:
        """Run a call that may query a host. Raises `HostUnavailable` if it takes longer than a page waits."""
        try:
            return within(call, HOST_PATIENCE_S)
        except TimeoutError:
            why, fix = f"no answer within {HOST_PATIENCE_S:g} s", "check the network and the base URL"
            raise HostUnavailable(provider, why, fix=fix) from None

    def part(self, name: str, macro: str, *values: Any) -> str:
        """Render a macro of a template."""
        made: Any = getattr(_templates().get_template(name).module, macro)
        return str(made(*values))

    def action(self, path: str, act: Act) -> Route:
        """Build the POST route of a form. Requests without the form's token, and all requests to a read-only
        app, get status 403."""

        async def answer(request: Request) -> Response:
            form = _form(await request.body())
            if self.read_only:
                raise HTTPException(403, "these pages are read-only")
            if not compare_digest(first(form, "word").encode(), self.word.encode()):
                raise HTTPException(
                    403, "this form is from an earlier session of the server: reload the page"
                )
            done = await run_in_threadpool(act, request, form)
            if isinstance(done, str):
                return RedirectResponse(request.scope.get("root_path", "") + done, 303, headers=_HEADERS)
            return done

        return Route(path, answer, methods=["POST"])

    def error(self, request: Request, error: Exception) -> Response:
        """Render an error page: what went wrong, whether retrying helps, and what to do."""
        if isinstance(error, HTTPException):
            values: dict[str, Any] = {"message": error.detail, "fix": None, "retryable": False}
            return self.page(request, "error.html", status=error.status_code, here="", **values)
        if not isinstance(error, OrchestrateError):
            values = {
                "message": f"there is a bug in Orchestrate ({type(error).__name__})",
                "retryable": False,
            }
            values["fix"] = "please report this, with the terminal output of orchestrate ui"
            return self.page(request, "error.html", status=500, here="", **values)
        status = 502 if isinstance(error, ProviderError) else 422
        if isinstance(error, UsageError) and not isinstance(error, SpecError):
            status = 404
        values = {"message": error.message, "fix": error.fix, "retryable": error.retryable}
        return self.page(request, "error.html", status=status, here="", **values)


def first(form: Form | Mapping[str, Any], name: str, default: str = "") -> str:
    """Return the first value of a form field, or the value of a field that has only one."""
    values = form.get(name) or default
    return values if isinstance(values, str) else str(values[0])


def _form(body: bytes) -> Form:
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=2000)
    except ValueError as error:
        raise HTTPException(400, f"not a valid form: {error}") from error
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def static() -> Route:
    def answer(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _FILES:
            raise HTTPException(404, "file not found")
        kind = guess_type(name)[0] or "application/octet-stream"
        # The URL changes with the content, so browsers never need to load the same URL again.
        return Response(_bytes(name), media_type=kind, headers={"cache-control": "private, max-age=31536000"})

    return Route("/static/{version}/{name}", answer, methods=["GET"])


@cache
def _bytes(name: str) -> bytes:
    package, folder = _FILES[name]
    return files(package).joinpath(folder, name).read_bytes()


@cache
def _version() -> str:
    return hashlib.sha256(b"".join(_bytes(name) for name in _FILES)).hexdigest()[:12]


@cache
def _templates() -> jinja2.Environment:
    env: Any = jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrate.ui"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    env.filters.update(
        money=text.money,
        limit=text.limit,
        rate=text.rate,
        duration=text.duration,
        count=text.count,
        size=text.size,
        quoted=text.quoted,
        day=_day,
        compact=compact,
        exact=_exact,
    )
    env.globals.update(
        stage=progress.stage,
        share_done=progress.share_done,
        seconds_left=progress.seconds_left,
        seconds_taken=progress.seconds_taken,
        cost_so_far=progress.cost_so_far,
        name=name_of,
        value_of=value_of,
        version=_version(),
    )
    return env


def name_of(run: Run) -> str:
    """Return the name that the user gave the run, or its id."""
    return run.spec.get("suffix") or run.id


def value_of(run: Run, name: str) -> Any:
    """Return a run's value for a column: a setting, a tag, or a value to group runs by. `None` if the run has
    no such value."""
    kind, dot, inner = name.partition(".")
    if dot and kind == "tag":
        return run.tags.get(inner)
    if dot and kind == "spec":
        value: Any = run.spec
        for part in inner.split("."):
            value = cast("dict[str, Any]", value).get(part) if isinstance(value, dict) else None
        return value
    return {"backend": run.provider, "model": run.model, "status": progress.stage(run)}[name]


def _plain(value: Any) -> Any:
    """Remove secrets and characters that change the reading direction."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return text.inert(hide(value))
    return "" if value is None else value


def _exact(value: str) -> Markup:
    """Keep each character of a form field, because the browser sends it back."""
    return escape(hide(value))


def _day(at: datetime | None) -> str:
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def compact(value: Any) -> str:
    """Format a value of a spec on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
