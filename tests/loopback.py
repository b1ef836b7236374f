"""httpx for servers of this machine: one that is busy is no server that does not answer, and no certificates
are read."""

from __future__ import annotations

from functools import partial

import httpx

_PATIENT = {"timeout": 240, "verify": False}
get, post, put, delete, stream = (
    partial(function, **_PATIENT)
    for function in (httpx.get, httpx.post, httpx.put, httpx.delete, httpx.stream)
)
