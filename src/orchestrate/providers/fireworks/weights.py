"""The files of a tuned model, fetched over signed URLs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrate.errors import InvalidRequest, PermissionRefused
from orchestrate.files import own_folder
from orchestrate.providers.base import Progress
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.calls.values import plain, table
from orchestrate.providers.files import archives, transfer
from orchestrate.providers.fireworks import reading
from orchestrate.providers.fireworks.datasets import require_safe

if TYPE_CHECKING:
    import httpx
    from fireworks import Fireworks


class Weights:
    def __init__(self, client: Callable[[], Fireworks], http: Callable[[], httpx.Client], wire: Wire) -> None:
        self._client, self._http, self._wire = client, http, wire

    def fetch(self, model: str, folder: Path, most: int, progress: Progress | None) -> None:
        """All files of a model into `folder`, at most `most` bytes; those that came whole are not fetched
        again."""
        urls = self._urls(model)
        names = {name.rsplit("/", 1)[-1]: name for name in sorted(urls) if archives.wanted(name)}
        own_folder(folder)
        for short, name in names.items():
            file = folder / short
            if not file.exists():
                try:
                    self._file(urls[name], file, most, progress)
                except (PermissionRefused, InvalidRequest):
                    # Signed URLs live for an hour; a large model takes longer.
                    urls = self._urls(model)
                    self._file(urls[name], file, most, progress)
            most -= file.stat().st_size

    def _file(self, url: str, file: Path, most: int, progress: Progress | None) -> None:
        opened = transfer.signed(self._http(), url)
        transfer.fetch(self._wire, opened, file, limit_bytes=most, progress=progress)

    def _urls(self, model: str) -> dict[str, str]:
        account, model_id = model.split("/")[1], reading.id_of(model)
        api = self._client().models
        answer = plain(self._wire.read(lambda: api.get_download_endpoint(model_id, account_id=account)))
        found = table(answer.get("filenameToSignedUrls"))
        return {name: require_safe(url) for name, url in found.items()}
