"""Code shared by the hosted backends for sending calls and mapping failures to errors.

`Wire` sends calls. Reads and idempotent actions are retried, and a create is sent once. `hosted_error` maps
each failure of an SDK or httpx to one of the errors in `orchestrate.errors`, by status and code and never by
message. `payload` (of `orchestrate.providers.calls`) converts a response to a plain dict without secrets.
`orchestrate.providers.settings` translates settings. `orchestrate.providers.files` downloads and unpacks
artifacts.

One tool generates the three official SDKs, which use two HTTP libraries (httpx, httpx2) with the same class
names. Errors are therefore identified by attributes (`status_code`, `response`) and class names, so this
module imports no SDK. SDK clients for `Wire` must be created with `max_retries=0`."""

from __future__ import annotations

import email.utils
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar, cast, get_origin

from orchestrate.core.retries import Retry as Retry
from orchestrate.errors import (
    AuthenticationFailed,
    Conflict,
    HostUnavailable,
    InvalidRequest,
    NotFound,
    OrchestrateError,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    TrainingClosed,
    UnexpectedAnswer,
    refuses,
)
from orchestrate.profile import built_in
from orchestrate.providers.calls import Unreadable, plain, redact_text
from orchestrate.providers.calls import payload as payload
from orchestrate.types import Job

# What the SDKs and their HTTP libraries log, without secrets, at every level and whoever listens.


_ROOMS = (*built_in(), "httpx", "httpx2", "httpcore", "httpcore2", "orchestrate")
"""Names of the loggers of the SDKs, the HTTP libraries and Orchestrate."""
_lock = threading.Lock()
_formatter = logging.Formatter()


def guard() -> None:
    """Mask secrets in all future log records of these libraries. Log records of other libraries don't change.
    A second call does nothing."""
    with _lock:
        made = logging.getLogRecordFactory()
        if not isinstance(made, _Masked):
            logging.setLogRecordFactory(_Masked(made))


class _Masked:
    def __init__(self, made: Any) -> None:
        self._made = made

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._made(*args, **kwargs)
        if record.name.partition(".")[0] in _ROOMS:
            try:
                record.msg, record.args = redact_text(record.getMessage()), ()
            except Exception:  # noqa: BLE001  logging itself tells of a record that does not fit its arguments
                return record
            if record.exc_info:
                # What a handler makes of it is kept in `exc_text`, and taken from there when it is set.
                record.exc_text = redact_text(_formatter.formatException(record.exc_info))
        return record


# Lists of the hosts, page by page: an answer that is not a list is never taken for an empty one, and a list
# that never ends is left.


MOST_PAGES = 2_000
"""Maximum number of pages to read from one list. With the shortest pages, this covers 200,000 jobs."""


class SdkPage(Protocol):
    """A page of a list, with the methods that all SDKs define."""

    def has_next_page(self) -> bool: ...
    def next_page_info(self) -> Any: ...
    def get_next_page(self) -> Any: ...


P = TypeVar("P", bound=SdkPage)
Read = Callable[[Callable[[], Any]], Any]
"""Function with the signature of `Wire.read`."""


def pages_of(provider: str, read: Read, first: Callable[[], P], omits_empty: bool, most: int) -> Iterator[P]:
    """Yield pages like `Wire.pages`."""
    page, seen = _page(read, first, omits_empty), set[str]()
    for _ in range(most):
        yield page
        if not page.has_next_page():
            return
        cursor = str(page.next_page_info())
        if cursor in seen:
            raise UnexpectedAnswer(
                provider, f"the list never ends: the cursor {redact_text(cursor)} appeared twice"
            )
        seen.add(cursor)
        page = _page(read, page.get_next_page, omits_empty)
    raise UnexpectedAnswer(provider, f"the list has not ended after {most} pages")


def entries_of(answer: object, field: str) -> list[dict[str, Any]]:
    """Return the objects of an unpaginated list. Raises `Unreadable` if it is not a list."""
    found = plain(answer).get(field)
    if not isinstance(found, list):
        raise Unreadable(f"no list called {field}")
    entries = cast("list[Any]", found)
    if not all(isinstance(entry, dict) for entry in entries):
        raise Unreadable(f"an entry of {field} is not an object")
    return entries


def made_since(pages: Iterable[Sequence[Job]], since: datetime | None) -> Iterator[Job]:
    """Yield the jobs that are not older than `since`. If the host lists the newest jobs first, stops after
    the first page whose last job is older than `since`. Otherwise, reads the entire list."""
    newest: datetime | None = None
    last: datetime | None = None
    falling = True
    for jobs in pages:
        yield from (j for j in jobs if since is None or j.created_at is None or j.created_at >= since)
        for at in (job.created_at for job in jobs if job.created_at is not None):
            falling = falling and (last is None or at <= last)
            newest, last = newest or at, at
        if since is not None and last is not None and last < since and falling and newest != last:
            return


def _page(read: Read, call: Callable[[], P], omits_empty: bool) -> P:
    def checked() -> P:
        page = call()
        if not hasattr(page, "has_next_page"):
            raise Unreadable(f"expected a page of a list, got {redact_text(str(page))[:120]!r}")
        if not _has_list(page) and not (omits_empty and not plain(page)):
            raise Unreadable(f"expected a list, got {redact_text(str(plain(page)))[:120]}")
        return page

    return read(checked)


def _has_list(page: Any) -> bool:
    """The SDKs check nothing, and read what is not a list as an empty one. Another page than theirs has its
    own check."""
    fields: Mapping[str, Any] | None = getattr(page.__class__, "model_fields", None)
    if fields is None:
        return True
    lists = [name for name, field in fields.items() if get_origin(field.annotation) is list]
    return any(isinstance(getattr(page, name, None), list) for name in lists)


T = TypeVar("T")

STATUS_ERRORS: Mapping[int, type[ProviderError]] = {
    400: InvalidRequest,
    401: AuthenticationFailed,
    402: QuotaExceeded,
    403: PermissionRefused,
    404: NotFound,
    408: HostUnavailable,
    409: Conflict,
    410: NotFound,
    429: RateLimited,
}
"""Error classes by HTTP status. Other 4xx are `InvalidRequest`, 5xx `HostUnavailable`, 3xx
`UnexpectedAnswer`."""

CODE_ERRORS: Mapping[str, type[ProviderError]] = {
    "training_not_available": TrainingClosed,
    "insufficient_quota": QuotaExceeded,
    "billing_hard_limit_reached": QuotaExceeded,
    "daily_rate_limit_exceeded": QuotaExceeded,
    "unauthenticated": AuthenticationFailed,
    "invalid_api_key": AuthenticationFailed,
    "permission_denied": PermissionRefused,
    "not_found": NotFound,
    "already_exists": Conflict,
}
"""Error classes by code, in lower case (OpenAI's own and gRPC's names), for codes that are more specific than
the status. Backends may add codes."""

_NOTHING_SENT = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "PoolTimeout",
        "ProxyError",
        "UnsupportedProtocol",
        "InvalidURL",
        "LocalProtocolError",
    }
)
"""httpx classes for failures before the first byte of the request was sent."""
_TRANSPORT = frozenset({"TransportError", "RequestError", "APIConnectionError", "SSLError", "EndOfStream"})


# -- errors ------------------------------------------------------------------------------------------------


def hosted_error(
    provider: str,
    error: BaseException,
    *,
    codes: Mapping[str, type[ProviderError]] | None = None,
    fix: str | None = None,
) -> ProviderError:
    """Convert any failure of an SDK call or an httpx request to one of Orchestrate's errors. Callers should
    raise the result `from error`.

    `codes` adds to `CODE_ERRORS` (keys in lower case). A response that could not be decoded is an
    `UnexpectedAnswer` that may be retried. A `ProviderError` is returned unchanged."""
    if isinstance(error, ProviderError):
        return error
    status = status_of(error)
    if status is not None:
        code, message = error_parts(error)
        known = {**CODE_ERRORS, **(codes or {})}.get((code or "").lower())
        headers = headers_of(error)
        refusal = (known or _by_status(status))(
            provider,
            message,
            status=status,
            code=code,
            request_id=_short(headers["x-request-id"], 200) if headers.get("x-request-id") else None,
            retry_after_s=retry_after(headers),
            fix=fix,
        )
        refusal.certain = known is not None
        refusal.param = _param(error)
        return refusal
    if _names(error) & _TRANSPORT:
        reason = _reason(error)
        lost = HostUnavailable(
            provider, f"no answer: {reason}", fix=fix or "check the network and the base URL"
        )
        lost.unsent = never_sent(error)
        return lost
    unexpected = UnexpectedAnswer(provider, f"could not parse the response: {_wrong(error)}", fix=fix)
    unexpected.retryable = True
    return unexpected


def _wrong(error: BaseException) -> str:
    """Return what is wrong with an answer, in words: no class of Python's is the user's."""
    if isinstance(error, Unreadable):
        return _short(str(error))
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {_short(str(error))}"
    # What an SDK stumbles over speaks of its own insides.
    said = "" if isinstance(error, AttributeError | TypeError | LookupError) else _short(str(error))
    return "mismatch with the API's schema" + (f": {said}" if said else "")


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an SDK or httpx error, or `None` if there was no response."""
    response = getattr(error, "response", None)
    status = getattr(error, "status_code", None) or getattr(response, "status_code", None)
    # A validation error of the SDK carries a 2xx status; it is an answer that cannot be read.
    return status if isinstance(status, int) and status >= 300 else None


def error_parts(error: BaseException) -> tuple[str | None, str]:
    """Return the code and the message in a host's error body. The body may be `{error: {...}}`, `{error:
    "..."}`, gRPC's `{code, message}`, or text."""
    body = _error_body(error)
    if isinstance(body, Mapping):
        body = cast("Mapping[str, Any]", body)
        inner = body.get("error", body)
        if isinstance(inner, Mapping):
            inner = cast("Mapping[str, Any]", inner)
            code = inner.get("code") or inner.get("status") or inner.get("type")
            message = inner.get("message") or inner.get("detail") or inner.get("type") or "no message"
            return (_short(str(code), 200) if code else None), _short(str(message))
        return None, _short(str(inner))
    return None, _short(_strip_tags(str(body or error)))


def _param(error: BaseException) -> str | None:
    """Return the field of the request that an error body names, as OpenAI's do."""
    body = _error_body(error)
    inner = cast("Mapping[str, Any]", body).get("error", body) if isinstance(body, Mapping) else None
    param = cast("Mapping[str, Any]", inner).get("param") if isinstance(inner, Mapping) else None
    return param if isinstance(param, str) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, from `retry-after-ms` or `Retry-After` (a number or an HTTP date)."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        at = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def never_sent(error: BaseException) -> bool:
    """Return True if the request definitely did not leave this machine."""
    seen: BaseException | None = error
    while seen is not None:
        if _names(seen) & _NOTHING_SENT:
            return True
        seen = seen.__cause__
    return False


def was_refused(error: BaseException) -> bool:
    """Return True if the host replied that it did not carry out the request."""
    return refuses(status_of(error))


def _by_status(status: int) -> type[ProviderError]:
    if status < 400:
        return UnexpectedAnswer
    return STATUS_ERRORS.get(status, InvalidRequest if status < 500 else HostUnavailable)


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def headers_of(error: BaseException) -> Mapping[str, str]:
    """Return the response headers of an SDK or httpx error, or an empty mapping if there was no response."""
    return getattr(getattr(error, "response", None), "headers", None) or {}


def _error_body(error: BaseException) -> object:
    """Return the body of the host's error, as the SDK read it or as it is in the response."""
    body = getattr(error, "body", None)
    return _body(error) if body is None else body


def _body(error: BaseException) -> object:
    response = getattr(error, "response", None)
    try:
        return response.json() if response is not None else None
    except Exception:  # noqa: BLE001  a body that is not JSON, or was streamed and not read, has no words
        return getattr(response, "reason_phrase", None)


def _reason(error: BaseException) -> str:
    cause = error.__cause__
    return _short(
        f"{error} ({type(cause).__name__}: {cause})"
        if cause is not None
        else f"{type(error).__name__}: {error}"
    )


_LONGEST_PAGE = 8_000
"""Maximum number of characters of an HTML page to search for its message, because the search takes quadratic
time."""


def _strip_tags(text: str) -> str:
    return " ".join(re.sub(r"(?s)<(script|style).*?</\1>|<[^>]*>", " ", text[:_LONGEST_PAGE]).split())


def _short(text: str, limit: int = 600) -> str:
    text = redact_text(text)
    return text if len(text) <= limit else text[:limit] + " ..."


# -- sending -----------------------------------------------------------------------------------------------


class Wire:
    """Sends the requests of one backend. Each call is a closure over an SDK client that was created with
    `max_retries=0`."""

    def __init__(
        self,
        provider: str,
        *,
        codes: Mapping[str, type[ProviderError]] | None = None,
        retry: Retry | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        guard()
        self.provider = provider
        self._codes = codes or {}
        self.retry = retry or Retry()
        self._sleep = sleep

    def read(self, call: Callable[[], T], *, expect: type | tuple[type, ...] | None = None) -> T:
        """Retry a call that may be repeated (a read, an idempotent action) until it succeeds, the host
        rejects it, or the retry budget is spent. Raises `ProviderError`.

        By default, a `str` raises `UnexpectedAnswer`, because the SDKs return HTML as a `str`. With `expect`,
        any response that is not of this class raises `UnexpectedAnswer`.
        """
        return self.retry.calling(lambda: self.once(call, expect=expect), sleep=self._sleep)

    def once(self, call: Callable[[], T], *, expect: type | tuple[type, ...] | None = None) -> T:
        """Run a call like `read`, but without retries. Use it for requests that are not idempotent but cost
        little if they are sent twice, such as an upload part."""
        try:
            answer = call()
        except OrchestrateError:
            raise
        except Exception as error:
            raise self.error(error) from error
        if isinstance(answer, str) if expect is None else not isinstance(answer, expect):
            garbled = UnexpectedAnswer(self.provider, f"expected an object, got {_kind(answer)}")
            garbled.retryable = True
            raise garbled
        return answer

    def send_once(self, ref: str, call: Callable[[], T], identify: Callable[[T], str | None]) -> T:
        """Send a create request exactly once and return its response.

        `identify` returns the job's id from the response, or `None` (or raises any error) if there is none.
        Raises the mapped `ProviderError` if the host rejected the request, `HostUnavailable` if the
        connection was never made, and `OutcomeUnknown` if a job may have been created. Orchestrate's own
        errors, such as a missing key, propagate from `call`, so create the client inside `call` or
        earlier."""
        try:
            answer = call()
        except OrchestrateError:
            raise
        except Exception as error:
            if never_sent(error) or was_refused(error):
                raise self.error(error) from error
            raise OutcomeUnknown(self.provider, ref, self._loss_reason(error)) from error
        try:
            job_id = identify(answer)
        except Exception as error:
            raise OutcomeUnknown(self.provider, ref, f"{_kind(answer)} instead of a job") from error
        if not isinstance(job_id, str) or not job_id:  # pyright: ignore[reportUnnecessaryIsInstance]  # the SDKs do not validate
            raise OutcomeUnknown(self.provider, ref, f"{_kind(answer)} instead of a job")
        return answer

    def pages(
        self, first: Callable[[], P], *, omits_empty: bool = False, most: int = MOST_PAGES
    ) -> Iterator[P]:
        """Yield the pages of an SDK list, each read with retries. If the caller stops early, no more pages
        are requested.

        Raises `UnexpectedAnswer` for a response that is not a list (`{}`, `{"data": null}`, an error, HTML),
        because such a response does not mean that the list is empty. Also raises it for an endless list: its
        cursor repeats, or there are more than `most` pages. With `omits_empty`, an empty object counts as an
        empty list."""
        return pages_of(self.provider, self.read, first, omits_empty, most)

    def entries(self, call: Callable[[], object], field: str) -> list[dict[str, Any]]:
        """Return the objects of an unpaginated list in `field` of the response. Raises the same errors as
        `pages`, and `UnexpectedAnswer` for an entry that is not an object."""
        return self.read(lambda: entries_of(call(), field), expect=list)

    def error(self, error: BaseException) -> ProviderError:
        return hosted_error(self.provider, error, codes=self._codes)

    def _loss_reason(self, error: BaseException) -> str:
        status = status_of(error)
        return f"HTTP {status}" if status is not None else _reason(error)


def _kind(answer: object) -> str:
    if isinstance(answer, str):
        return f"text ({_short(_strip_tags(answer), 80)!r})"
    return f"an object without an id ({type(answer).__name__})"
