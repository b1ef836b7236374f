"""The ways to Fireworks: the SDK's client, a plain one for signed URLs, and the account they work for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from orchestrate.core.packages import require_recent
from orchestrate.errors import NotFound, UsageError
from orchestrate.providers.calls.clients import Kept
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.calls.payloads import Unreadable
from orchestrate.providers.calls.values import items, plain, table
from orchestrate.providers.fireworks.datasets import require_safe
from orchestrate.providers.fireworks.profile import PROFILE
from orchestrate.providers.fireworks.reading import KINDS, id_of
from orchestrate.settings.config import HostConfig
from orchestrate.types import JobHandle

if TYPE_CHECKING:
    import httpx
    from fireworks import Fireworks

PAGE = 200
"""Entries of one page of a list; the most that the host gives."""


class Connection:
    """Nothing is sent, and no SDK imported, before the first call."""

    def __init__(self, config: HostConfig, wire: Wire) -> None:
        self._config = config
        self._wire = wire
        self.client = Kept(self._connect)
        self.plain = Kept(self._connect_plain)
        self._found_account: str | None = config.account_id

    def _connect(self) -> Fireworks:
        require_recent("fireworks-ai")
        from fireworks import Fireworks

        return Fireworks(
            api_key=self._config.require_key().reveal(),
            base_url=self._config.base_url or PROFILE.url,
            timeout=self._config.timeout_s,
            max_retries=0,
        )

    def _connect_plain(self) -> httpx.Client:
        """For signed URLs: it never carries the key."""
        import httpx

        return httpx.Client(timeout=httpx.Timeout(600.0, connect=30.0), follow_redirects=True)

    def lines(self, url: str | None) -> list[str]:
        """Of a file behind a signed URL; none while it is not written."""
        if url is None:
            return []
        safe = require_safe(url)

        def fetched() -> list[str]:
            answer = self.plain().get(safe)
            answer.raise_for_status()
            return answer.text.splitlines()

        try:
            return self._wire.read(fetched)
        except NotFound:
            return []

    @property
    def inference_url(self) -> str:
        """The real host answers chats below `/inference`; any other server where the SDK asks for them."""
        base = self._config.base_url or PROFILE.url or ""
        return f"{base}/inference" if base == PROFILE.url else base

    def account(self) -> str:
        """The configured account, else the only one of the key. Raises `UsageError` when there are more."""
        if self._found_account is None:
            client = self.client()
            names = [
                id_of(entry.get("name"))
                for page in self._wire.pages(lambda: client.accounts.list(page_size=PAGE))
                for entry in items(page)
            ]
            if len(names) != 1:
                known = ", ".join(sorted(names)) or "none"
                raise UsageError(
                    f"the Fireworks key has {len(names)} accounts ({known}): say which one to use",
                    fix='export FIREWORKS_ACCOUNT_ID=...   or  [hosts.fireworks] account_id = "..."',
                )
            self._found_account = names[0]
        return self._found_account

    def seen_account(self) -> str | None:
        """The account's id, once the host has shown the account to this key: a configured id is a claim."""
        account_id, client = self.account(), self.client()
        shown = plain(self._wire.read(lambda: client.accounts.get(account_id=account_id)))
        return account_id if id_of(shown.get("name")) == account_id else None

    def path(self, kind: str, job_id: str) -> str:
        return f"/v1/accounts/{self.account()}/{KINDS[kind]}/{job_id}"

    def job(self, kind: str, job_id: str) -> dict[str, Any]:
        """A job as the host tells it, odd values included."""
        path, client = self.path(kind, job_id), self.client()

        def named() -> dict[str, Any]:
            raw = table(client.get(path, cast_to=object))
            if id_of(raw.get("name")) != job_id:
                raise Unreadable(f"job {job_id} is not in it")
            return raw

        return self._wire.read(named, expect=dict)

    def find(self, job: JobHandle) -> tuple[dict[str, Any], str]:
        """The job and its kind; one whose kind was not kept is looked for in every collection."""
        if job.kind is not None:
            return self.job(job.kind, job.job_id), job.kind
        for kind in KINDS:
            with suppress(NotFound):
                return self.job(kind, job.job_id), kind
        raise NotFound(self._wire.provider, f"there is no job {job.job_id}", status=404)

    def kind(self, job: JobHandle) -> str:
        return job.kind or self.find(job)[1]

    def pages(self, kind: str) -> Iterator[list[dict[str, Any]]]:
        """Pages of one collection, newest first."""
        client, account = self.client(), self.account()
        first: Callable[..., Any] = {
            "supervised": client.supervised_fine_tuning_jobs.list,
            "dpo": client.dpo_jobs.list,
            "reinforcement": client.reinforcement_fine_tuning_jobs.list,
        }[kind]
        for page in self._wire.pages(
            lambda: first(account_id=account, page_size=PAGE, order_by="create_time desc"),
            omits_empty=True,  # as protobuf writes JSON; nothing is concluded from what this list lacks
        ):
            yield items(page)

    def act(self, kind: str, job_id: str, verb: str) -> None:
        path, client = f"{self.path(kind, job_id)}:{verb}", self.client()
        self._wire.read(lambda: client.post(path, body={}, cast_to=object), expect=object)

    def close(self) -> None:
        self.client.close()
        self.plain.close()
