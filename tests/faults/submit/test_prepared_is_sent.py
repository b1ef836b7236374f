"""What was prepared and shown is what is sent: nothing is worked out twice, and no row that was not shown."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.faults.shop import Shop
from tests.faults.submitting import BACKENDS

from orchestrate.errors import DataError
from orchestrate.providers import registry
from orchestrate.providers.base import Provider
from orchestrate.runs.submitting.repeats import Submission
from orchestrate.runs.submitting.submit import Submitter
from orchestrate.types import JobStatus, SubmitPhase

OPENED_TO_PREPARE = 3
"""To see what the file is, to tell its format by the first rows, and to read it."""
_opens: list[Counter[Path]] = []


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opens and isinstance(arguments[0], str | os.PathLike):
        _opens[0][Path(os.fspath(arguments[0])).absolute()] += 1


sys.addaudithook(_count)  # one hook, as none can be taken away


@contextmanager
def counted(shop: Shop) -> Iterator[tuple[Counter[Path], Counter[tuple[str, str]]]]:
    """Files by how often they are opened, and (method, backend) by how often it is called."""
    kinds = [registry.provider_class(name) for name in BACKENDS]
    methods = ("translate", "check", "quote", "upload", "create")
    watched = {getattr(kind, name).__code__: name for kind in [Provider, *kinds] for name in methods}
    opens, calls = Counter[Path](), Counter[tuple[str, str]]()

    def called(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (name := watched.get(frame.f_code)):
            calls[name, frame.f_locals["self"].name] += 1

    _opens.append(opens)
    sys.setprofile(called)
    try:
        yield opens, calls
    finally:
        sys.setprofile(None)
        _opens.clear()


@pytest.mark.parametrize(
    "backends", [["together"], ["openai", "together"], ["openai", "together", "fireworks"]]
)
def test_a_submit_reads_translates_and_quotes_once(shop: Shop, backends: list[str]) -> None:
    """And reads the files that are trained on once more for each backend's own way of writing rows."""
    validation, test = (shop.folder / f"{split}.jsonl" for split in ("validation", "test"))
    for file in (validation, test):
        file.write_bytes(shop.rows.read_bytes().replace(b"What is", f"{file.stem}:".encode()))
    files = ["--validation", str(validation), "--set", f"test={test}"]
    with counted(shop) as (opens, calls):
        done = shop.command(",".join(backends), *files)
    assert done.exit_code == 0, done.output
    assert (shop.sent(), len(shop.ft.runs())) == (len(backends), len(backends))
    sent = OPENED_TO_PREPARE + len(backends)
    assert (opens[shop.rows], opens[validation], opens[test]) == (sent, sent, OPENED_TO_PREPARE)
    assert calls == {
        (method, name): 1
        for name in backends
        for method in ("translate", "check", "quote", "upload", "create")
    }


@pytest.mark.parametrize("name", BACKENDS)
def test_a_file_that_changes_at_the_last_moment_is_not_sent(shop: Shop, name: str) -> None:
    prepared, provider, store = shop.ft.prepare(shop.spec, name), shop.ft.provider(name), shop.ft.store
    shown, posts = shop.rows.read_bytes(), len(shop.hosts.requests(method="POST"))

    def reached(point: str) -> None:
        if point == "after-intent":
            shop.rows.write_bytes(shown.replace(b"It is 4", b"It is 5"))

    asked = Submission(
        spec=prepared.offer(name).spec,
        translation=prepared.offer(name).translation,
        data=prepared.data,
    )
    with pytest.raises(DataError, match=r"rows\.jsonl changed while"):
        Submitter(store, provider, reached=reached).submit(asked)
    run = store.runs.get("last")
    assert (run.phase, run.status) == (SubmitPhase.REFUSED, JobStatus.FAILED)
    assert run.error is not None and "changed while" in run.error.message
    assert len(shop.hosts.requests(method="POST")) == posts, "nothing was uploaded or created"
    assert not list((shop.settings.home / "data").glob("*.jsonl"))
    assert not list((shop.settings.home / "local" / "data").glob("*.jsonl"))
    assert store.history.upload(name, provider.host, run.account, run.dataset_digest) is None

    shop.rows.write_bytes(shown)
    assert shop.ft.submit(prepared, name).record.phase is SubmitPhase.SUBMITTED
