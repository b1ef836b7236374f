"""Client for Anyscale that uses the installed `anyscale` package (checked against 0.26.112)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from orchestrate.settings import redact_text

HARMLESS = (
    "/builds/get_or_create_build_from_image_uri",
    "/clouds/find_by_name",
    "/compute_templates",
    "/projects/search",
    "/terminate",
)
"""URL suffixes of requests that are known to create no job. Every other request is treated as if it created a
billed job, because other client versions may use other URLs."""
TRIES = 2
"""Maximum number of retries of a read request if the connection breaks. Requests that create something are
never resent."""
CONNECT_S = 30


class ErrorResponse(Exception):
    """Raised for an error response. The client's own error would lose the status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"Anyscale returned {status}: {text}")
        self.status, self.text = status, text


class Client:
    """Client for one token at one address.

    `creating` is True once the request that creates a job was sent. That request is not sent if the calls
    before it took longer than `2 * answer_s`. The search for a job after a lost response relies on this.
    """

    def __init__(
        self, host: str, token: str, answer_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        sdk = import_module("anyscale")
        quiet = import_module("anyscale.cli_logger").BlockLogger(log_output=False)
        # Validation would send an extra request, and would replace a 401 status with a message.
        block = sdk.AuthenticationBlock(
            cli_token=token,
            host=host,
            validate_credentials=False,
            log_output=False,
            raise_structured_exception=True,
        )
        self.creating = False
        self._answer_s, self._clock, self._begun = answer_s, clock, clock()
        for api in (block.api_client, block.anyscale_api_client):
            self._watch(api.api_client.rest_client)
        apis = (block.anyscale_api_client, block.api_client)
        self._client = sdk.AnyscaleClient(api_clients=apis, host=host, logger=quiet)
        self._jobs = sdk.JobSDK(client=self._client, logger=quiet)

    def _watch(self, rest: Any) -> None:
        """Wrap every request: note those that may create a job, set timeouts, and keep error statuses."""
        urllib3 = import_module("urllib3")
        send = rest.request
        # Otherwise, the client waits silently for up to six minutes if the server asks it to retry later. It
        # also sends a request that creates a job again after a redirect, or if TLS breaks before the response
        # arrives.
        again = urllib3.Retry(
            TRIES, other=0, redirect=0, raise_on_redirect=False, respect_retry_after_header=False
        )
        rest.pool_manager.connection_pool_kw["retries"] = again

        def request(method: str, url: str, **more: Any) -> Any:
            if method != "GET" and not url.partition("?")[0].rstrip("/").endswith(HARMLESS):
                if self._clock() - self._begun > 2 * self._answer_s:
                    raise TimeoutError("preparing the job took too long, so Orchestrate did not submit it")
                self.creating = True
            try:
                return send(method, url, **{**more, "_request_timeout": (CONNECT_S, self._answer_s)})
            except Exception as error:
                status = getattr(error, "status", None)
                if status == 0:  # of TLS
                    raise ConnectionError(str(error)) from error
                if status is not None:
                    raise ErrorResponse(int(status), _error_text(getattr(error, "body", None))) from error
                raise

        rest.request = request

    def user(self) -> tuple[str, str]:
        """Return the ids of the organization and of the user who owns the token."""
        info = self._client.get_user_info()
        return str(info.organization_ids[0]), str(info.id)

    def jobs(self, tag: str, value: str) -> list[Any]:
        """List the visible jobs of all users of the organization, including archived ones. Raises
        `ValueError` if the list never ends."""
        found: dict[str, Any] = {}
        token: str | None = None
        seen: set[str] = set()
        while True:
            page = self._client.list_jobs(
                tags_filter=[f"{tag}:{value}"], archive_status="ALL", count=100, paging_token=token
            )
            # If a job is created between two page requests, the other jobs shift and one is listed twice.
            found |= {str(job.id): job for job in page.results}
            token = page.metadata.next_paging_token
            if not token:
                return list(found.values())
            if token in seen:
                raise ValueError("Anyscale's job list repeats the same pages")
            seen.add(token)

    def submit(self, config: Mapping[str, Any]) -> str:
        """Submit a job and return its id. `config` is a `JobConfig` in its YAML form."""
        return str(self._jobs.submit(import_module("anyscale.job.models").JobConfig.from_dict(dict(config))))

    def terminate(self, job: str) -> None:
        self._client.terminate_job(job)

    def printed(self, job_run: str, lines: int) -> str:
        """Return the last lines of the job's log. Doesn't use the client's own method, which may wait for the
        bucket forever."""
        requests: Any = import_module("requests")
        decoded = import_module("anyscale.api_utils.logs_util").decode_log_bytes
        urls, bearer = self._client._fetch_log_chunks(job_run)
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        found: list[str] = []
        for url in reversed(urls):
            answer = requests.get(url, headers=headers, timeout=(CONNECT_S, self._answer_s))
            answer.raise_for_status()
            found = [*decoded(answer.content).splitlines(), *found]
            if len(found) >= lines:
                break
        return "".join(f"{line}\n" for line in found[-lines:])


def _error_text(body: Any) -> str:
    """Return the readable part of an error's body, which may contain what was sent, including keys."""
    message = import_module("anyscale.errors").server_error_text(body) or body or "no reason"
    return redact_text(str(message))[:500]


def never_sent(error: Exception) -> bool:
    """Return whether no connection was made."""
    reasons = (error, getattr(error, "reason", None))
    kinds = {kind.__name__ for one in reasons for kind in type(one).__mro__}
    return bool(kinds & {"NewConnectionError", "ConnectTimeoutError"})


def unreachable(error: Exception) -> bool:
    kinds = [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__]
    return "urllib3.HTTPError" in kinds or isinstance(error, OSError)
