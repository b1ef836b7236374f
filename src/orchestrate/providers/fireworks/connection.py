"""Connections to Fireworks: the SDK's client, an HTTP client for signed URLs, and the account that they
use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate.core import require_recent
from orchestrate.core.files import own_folder
from orchestrate.data import Dataset
from orchestrate.data.rules import RowTarget
from orchestrate.errors import (
    Conflict,
    DataError,
    HostUnavailable,
    InvalidRequest,
    NotFound,
    OrchestrateError,
    PermissionRefused,
    ProviderError,
    UnexpectedAnswer,
    UsageError,
)
from orchestrate.providers import files
from orchestrate.providers.base import Progress
from orchestrate.providers.calls import Unreadable, integer, items, plain, table, text, when
from orchestrate.providers.calls.clients import CachedClient
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.fireworks import PROFILE, responses
from orchestrate.providers.fireworks.responses import KINDS, id_of
from orchestrate.providers.hosted import awaited, refused
from orchestrate.settings.config import HostConfig
from orchestrate.types import JobHandle, StoredItem

if TYPE_CHECKING:
    import httpx
    from fireworks import Fireworks

# Uploads of training data to Fireworks: create a dataset, request a signed URL, PUT the file, validate it,
# and wait until the dataset is READY.


READY = "READY"
WAIT_S = 1800.0
_CLASH_S = 2.0
_CHUNK = 1 << 20


class FireworksDatasetFiles:
    def __init__(
        self,
        client: Callable[[], Fireworks],
        http: Callable[[], httpx.Client],
        account: Callable[[], str],
        wire: Wire,
        target: RowTarget,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._http = http
        self._account = account
        self._wire = wire
        self._target = target
        self._sleep = sleep

    def bring(self, dataset: Dataset, folder: Path, progress: Progress | None) -> dict[str, Any]:
        """Upload the dataset and return the host's record once the dataset is READY. Reuses an
        existing dataset.

        If the host rejects the rows, raises `DataError` with the host's message."""
        path = dataset.write(self._target, folder)
        dataset_id = f"orc-{dataset.digest[:24]}"
        known, tries = self.get(dataset_id), 0
        if known is None:
            self._create(dataset_id, path)
        while known is None or known.get("state") != READY:
            begun, tries = time.monotonic(), tries + 1
            try:
                self._send(dataset_id, path, dataset, progress)
                break
            except _Clash as clash:
                # Another process may be uploading the same rows. Give it twice the time that our attempt
                # took.
                known = self._awaited(dataset_id, _CLASH_S + 2 * (time.monotonic() - begun))
                if tries == clash.most and known.get("state") != READY:
                    raise clash.error from clash
        return self._ready(dataset_id, dataset)

    def _awaited(self, dataset_id: str, patience_s: float) -> dict[str, Any]:
        """Wait until the dataset is READY, at most `patience_s` seconds."""
        waited, pause = 0.0, 0.25
        while True:
            found = self.get(dataset_id) or {}
            if found.get("state") == READY or waited >= patience_s:
                return found
            self._sleep(pause)
            waited, pause = waited + pause, min(10.0, pause * 1.5)

    def get(self, dataset_id: str) -> dict[str, Any] | None:
        api = self._client().datasets
        try:
            return plain(self._wire.read(lambda: api.get(dataset_id, account_id=self._account())))
        except NotFound:
            return None

    def delete(self, dataset_id: str) -> None:
        """Delete a dataset. Deleting it again is not an error."""
        api = self._client().datasets
        with suppress(NotFound):
            self._wire.read(lambda: api.delete(dataset_id, account_id=self._account()))

    def stored(self) -> Iterator[StoredItem]:
        """List every dataset of the account. The host reports row counts but not sizes."""
        api, account = self._client().datasets, self._account()
        for page in self._wire.pages(lambda: api.list(account_id=account, page_size=200), omits_empty=True):
            for raw in items(page):
                count = integer(raw.get("exampleCount"))
                yield StoredItem(
                    provider=self._wire.provider,
                    kind="file",
                    id=str(raw["name"]),
                    name=text(raw.get("displayName")),
                    created_at=when(raw.get("createTime")),
                    note=None if count is None else f"{count} rows",
                )

    def fetch(self, dataset_id: str, file: Path) -> None:
        """Download the only file of a dataset over a signed URL. Raises `NotFound` if the dataset has no
        file."""
        api = self._client().datasets
        answer = self._wire.read(lambda: api.get_download_endpoint(dataset_id, account_id=self._account()))
        urls = table(plain(answer).get("filenameToSignedUrls"))
        if len(urls) != 1:
            raise NotFound(self._wire.provider, f"dataset {dataset_id} has {len(urls)} files instead of one")
        [url] = urls.values()
        opened = files.signed(self._http(), require_safe(url))
        files.fetch(self._wire, opened, file, limit_bytes=files.MOST_FILE_BYTES)

    def examples(self, name: str) -> int | None:
        """Return the number of rows in the dataset with this resource name or id."""
        return integer((self.get(name.rsplit("/", 1)[-1]) or {}).get("exampleCount"))

    def _create(self, dataset_id: str, path: Path) -> None:
        with path.open("rb") as lines:
            count = sum(1 for _ in lines)
        api = self._client().datasets
        with suppress(Conflict):  # made by an earlier try, or by another process with the same data
            self._wire.read(
                lambda: api.create(
                    account_id=self._account(),
                    dataset_id=dataset_id,
                    dataset={"user_uploaded": {}, "example_count": str(count)},
                )
            )

    def _send(self, dataset_id: str, path: Path, dataset: Dataset, progress: Progress | None) -> None:
        """Raises `_Clash`."""
        # Every request for URLs replaces the dataset's list of files, so one request must name all files.
        size = str(path.stat().st_size)
        api, account = self._client().datasets, self._account()
        try:
            answer = plain(
                self._wire.read(
                    lambda: api.get_upload_endpoint(
                        dataset_id, account_id=account, filename_to_size={path.name: size}
                    )
                )
            )
            url = require_safe(table(answer.get("filenameToSignedUrls")).get(path.name))
        except InvalidRequest as error:
            raise _Clash(_busy(error)) from error
        try:
            self._wire.read(lambda: put_signed(self._http(), url, path, progress))
        except (InvalidRequest, NotFound, PermissionRefused) as error:
            raise _Clash(_busy(error)) from error
        try:
            self._wire.read(lambda: api.validate_upload(dataset_id, account_id=account, body={}))
        except InvalidRequest as error:
            raise _Clash(_refused(dataset, error.message, error.code), most=2) from error

    def _ready(self, dataset_id: str, dataset: Dataset) -> dict[str, Any]:
        def query() -> tuple[dict[str, Any] | None, object]:
            found = self.get(dataset_id)
            if found is None:
                raise UnexpectedAnswer("fireworks", f"dataset {dataset_id} disappeared after its upload")
            status = table(found.get("status"))
            if text(status.get("code")) not in (None, "OK"):
                raise _refused(dataset, str(status.get("message")), text(status.get("code")))
            return (found if found.get("state") == READY else None), found.get("state")

        return awaited(
            query,
            provider="fireworks",
            what=f"dataset {dataset_id}",
            sleep=self._sleep,
            within_s=WAIT_S,
            fix="submit again later. Orchestrate reuses the uploaded file",
        )


class _Clash(Exception):
    """A step of an upload was rejected. Another upload of the same rows at the same time also causes this,
    because it replaces the signed URLs or completes the dataset. `error` is raised after `most` attempts."""

    def __init__(self, error: OrchestrateError, most: int = 3) -> None:
        super().__init__(error.message)
        self.error, self.most = error, most


def _busy(error: ProviderError) -> HostUnavailable:
    return HostUnavailable(
        "fireworks",
        f"Fireworks rejected the upload ({error.message}). Another process may be uploading the same rows",
        status=error.status,
        fix="submit again later. Orchestrate reuses the uploaded data",
    )


def put_signed(http: httpx.Client, url: str, path: Path, progress: Progress | None = None) -> httpx.Response:
    """Upload a file to a signed URL. `http` must not carry the key. httpx's errors propagate."""
    size = str(path.stat().st_size)
    headers = {  # covered by the signature
        "Content-Type": "application/octet-stream",
        "X-Goog-Content-Length-Range": f"{size},{size}",
        "Content-Length": size,
    }
    answer = http.put(url, content=_chunks(path, progress), headers=headers)
    answer.raise_for_status()
    return answer


def require_safe(url: Any) -> str:
    return files.safe_url("fireworks", url)


def _chunks(path: Path, progress: Progress | None) -> Iterator[bytes]:
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
            done += len(chunk)
            if progress is not None:
                progress(done, total)


def _refused(dataset: Dataset, reason: str, code: str | None) -> DataError:
    return refused("fireworks", "Fireworks", dataset, reason, code or "invalid_dataset")


# -- the files of a tuned model ------------------------------------------------------------------------------
# They are downloaded over signed URLs.


class Weights:
    def __init__(self, client: Callable[[], Fireworks], http: Callable[[], httpx.Client], wire: Wire) -> None:
        self._client, self._http, self._wire = client, http, wire

    def fetch(self, model: str, folder: Path, most: int, progress: Progress | None) -> None:
        """Download a model's files into `folder`. Files that are already complete are not downloaded again.
        `most` is the maximum total size in bytes."""
        urls = self._urls(model)
        names = {name.rsplit("/", 1)[-1]: name for name in sorted(urls) if files.wanted(name)}
        own_folder(folder)
        for short, name in names.items():
            file = folder / short
            if not file.exists():
                try:
                    self._file(urls[name], file, most, progress)
                except (PermissionRefused, InvalidRequest):
                    # Signed URLs expire after an hour, and a large model takes longer.
                    urls = self._urls(model)
                    self._file(urls[name], file, most, progress)
            most -= file.stat().st_size

    def _file(self, url: str, file: Path, most: int, progress: Progress | None) -> None:
        opened = files.signed(self._http(), url)
        files.fetch(self._wire, opened, file, limit_bytes=most, progress=progress)

    def _urls(self, model: str) -> dict[str, str]:
        account, model_id = model.split("/")[1], responses.id_of(model)
        api = self._client().models
        answer = plain(self._wire.read(lambda: api.get_download_endpoint(model_id, account_id=account)))
        found = table(answer.get("filenameToSignedUrls"))
        return {name: require_safe(url) for name, url in found.items()}


PAGE = 200
"""Maximum entries per page of this host's lists."""


class Connection:
    """Connection to the host. Before the first call, nothing is sent and the SDK is not imported."""

    def __init__(self, config: HostConfig, wire: Wire) -> None:
        self._config = config
        self._wire = wire
        self.client = CachedClient(self._connect)
        self.plain = CachedClient(self._connect_plain)
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
        """Create a client for signed URLs, which never carries the key."""
        import httpx

        return httpx.Client(timeout=httpx.Timeout(600.0, connect=30.0), follow_redirects=True)

    def lines(self, url: str | None) -> list[str]:
        """Download a file from a signed URL and return its lines. Returns an empty list until the host has
        written the file."""
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
        """Base URL for chat requests: Fireworks' own API address with `/inference` appended. If a different
        base URL is configured, that URL is used unchanged."""
        base = self._config.base_url or PROFILE.url or ""
        return f"{base}/inference" if base == PROFILE.url else base

    def account(self) -> str:
        """Return the configured account or, if none is configured, the key's only account. Raises
        `UsageError` if the key does not belong to exactly one account."""
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
                    f"the Fireworks key belongs to {len(names)} accounts ({known}). Choose one",
                    fix='export FIREWORKS_ACCOUNT_ID=...   or  [hosts.fireworks] account_id = "..."',
                )
            self._found_account = names[0]
        return self._found_account

    def seen_account(self) -> str | None:
        """Return the account's id if the key has access to the account, otherwise `None`. Queries the host,
        because a configured id may be wrong."""
        account_id, client = self.account(), self.client()
        shown = plain(self._wire.read(lambda: client.accounts.get(account_id=account_id)))
        return account_id if id_of(shown.get("name")) == account_id else None

    def path(self, kind: str, job_id: str) -> str:
        return f"/v1/accounts/{self.account()}/{KINDS[kind]}/{job_id}"

    def job(self, kind: str, job_id: str) -> dict[str, Any]:
        """Return the host's raw record of a job, including values that Orchestrate does not recognize."""
        path, client = self.path(kind, job_id), self.client()

        def named() -> dict[str, Any]:
            raw = table(client.get(path, cast_to=object))
            if id_of(raw.get("name")) != job_id:
                raise Unreadable(f"no job {job_id} in the response")
            return raw

        return self._wire.read(named, expect=dict)

    def find(self, job: JobHandle) -> tuple[dict[str, Any], str]:
        """Return the job and its kind. If the kind was not stored, search every collection for the job."""
        if job.kind is not None:
            return self.job(job.kind, job.job_id), job.kind
        for kind in KINDS:
            with suppress(NotFound):
                return self.job(kind, job.job_id), kind
        raise NotFound(self._wire.provider, f"job {job.job_id} does not exist", status=404)

    def kind(self, job: JobHandle) -> str:
        return job.kind or self.find(job)[1]

    def pages(self, kind: str) -> Iterator[list[dict[str, Any]]]:
        """Yield the pages of one collection, newest first."""
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
