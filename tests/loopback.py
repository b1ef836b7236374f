"""httpx for servers of this machine: one that is busy is no server that does not answer, and no certificates
are read."""

from __future__ import annotations

from functools import partial

import httpx

request = partial(httpx.request, timeout=240, verify=False)
get = partial(httpx.get, timeout=240, verify=False)
post = partial(httpx.post, timeout=240, verify=False)
put = partial(httpx.put, timeout=240, verify=False)
delete = partial(httpx.delete, timeout=240, verify=False)
stream = partial(httpx.stream, timeout=240, verify=False)
