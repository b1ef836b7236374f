"""Faults on request: what goes wrong between a client and a host, made to happen.

`POST /_sandbox/faults` on a host takes one fault, or a list. Fields, all but `kind` optional:

    kind        one of `KINDS` below
    method      HTTP method it applies to; any when absent
    path        regular expression searched in the path; any when absent
    count       how many matching requests it befalls (default 1; 0 means all)
    skip        how many matching requests pass before (default 0)
    status      HTTP status, where the kind answers with one
    code, type, message, param   words of the error body
    retry_after seconds, sent as the Retry-After header
    delay_s     seconds, for slow, late_commit and list_lag
    word        for unknown_status
    content     for no_list

Kinds:

    error           answers `status` (default 500) with the host's error body; nothing is done
    rate_limit      429 with Retry-After; nothing is done
    timeout         504 after the request was done: the answer is lost, the effect is not
    training_closed 403 training_not_available, as a host that takes no new jobs
    lost_request    the connection closes before anything is done
    lost_answer     the request is done, the connection closes without an answer
    refused_after   the request is done; the answer says `status` (default 400) as if it were not
    no_list         200 with `content` (default `{}`) in place of what was asked for; nothing is done
    endless         a list's first page, whichever was asked for, that says there are more
    late_commit     the connection closes at once; the request is done `delay_s` later
    half_body       the request is done; the connection closes in the middle of the answer
    bad_json        the request is done; the answer says that it is JSON and breaks off in the middle
    html            an HTML page of a proxy (status 200 unless given); nothing is done
    html_after      the same, after the request was done
    slow            the request is done; its answer comes `delay_s` later
    list_lag        lists leave out jobs younger than `delay_s`
    unknown_status  jobs in the answer have the status `word`
    duplicate       the request is done twice, as when a client or proxy sends it again
"""

from __future__ import annotations

import re
import threading
from typing import Any, Literal

import msgspec

Kind = Literal[
    "error",
    "rate_limit",
    "timeout",
    "training_closed",
    "lost_request",
    "lost_answer",
    "refused_after",
    "no_list",
    "endless",
    "late_commit",
    "half_body",
    "bad_json",
    "html",
    "html_after",
    "slow",
    "list_lag",
    "unknown_status",
    "duplicate",
]


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """See the module's docstring."""

    kind: Kind
    method: str | None = None
    path: str | None = None
    count: int = 1
    skip: int = 0
    status: int | None = None
    code: str | None = None
    type: str | None = None
    message: str | None = None
    param: str | None = None
    retry_after: float | None = None
    delay_s: float = 1.0
    word: str = "defrosting"
    content: Any = {}
    hits: int = 0
    """Requests that it befell so far."""

    def matches(self, method: str, path: str) -> bool:
        return (self.method is None or self.method.upper() == method) and (
            self.path is None or re.search(self.path, path) is not None
        )


class FaultBook:
    """The faults waiting on one host, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def add(self, faults: list[Fault]) -> None:
        with self._lock:
            self._waiting.extend(faults)

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    def waiting(self) -> list[dict[str, Any]]:
        with self._lock:
            return [msgspec.to_builtins(fault) for fault in self._waiting]

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that befalls this request, counted; at most one."""
        with self._lock:
            for fault in self._waiting:
                if not fault.matches(method, path):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.hits += 1
                if fault.count > 0 and fault.hits >= fault.count:
                    self._waiting.remove(fault)
                return fault
        return None
