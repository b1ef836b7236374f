"""Each key of a sandbox has its own account, as the official clients see it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrate import sandbox
from orchestrate.sandbox.server import Sandbox

ROW = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
MODEL = "accounts/fireworks/models/qwen3-8b"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox.running(home=tmp_path_factory.mktemp("sandbox"), train=False, speed=1000) as made:
        yield made


def openai(running: Sandbox, key: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=running.env["OPENAI_BASE_URL"], api_key=key, max_retries=0)


def test_openai_shows_each_key_its_own_and_says_whose_it_is(running: Sandbox) -> None:
    from openai import NotFoundError

    with openai(running, "sandbox-a.1") as a, openai(running, "sandbox-b") as b:
        file = a.files.create(file=("rows.jsonl", ROW * 12), purpose="fine-tune")
        job = a.fine_tuning.jobs.create(model="gpt-4.1-mini-2025-04-14", training_file=file.id)
        assert [j.id for j in a.fine_tuning.jobs.list()] == [job.id]
        assert list(b.fine_tuning.jobs.list()) == list(b.files.list()) == []
        with pytest.raises(NotFoundError):
            b.fine_tuning.jobs.retrieve(job.id)
        told = [c.fine_tuning.jobs.with_raw_response.list().headers["openai-organization"] for c in (a, b)]
        assert told[0] == job.organization_id != told[1]
    with openai(running, "sandbox-a.2") as rotated:
        assert rotated.fine_tuning.jobs.retrieve(job.id).id == job.id


def test_together_shows_each_key_its_own_and_says_whose_it_is(running: Sandbox, tmp_path: Path) -> None:
    from together import NotFoundError, Together

    url, rows = running.env["TOGETHER_BASE_URL"], tmp_path / "rows.jsonl"
    rows.write_bytes(ROW * 12)
    a, b = (Together(api_key=f"sandbox-{k}", base_url=url, max_retries=0) for k in ("a", "b"))
    with a, b:
        file = a.files.upload(rows, purpose="fine-tune", check=False)
        assert [f.id for f in a.files.list().data or []] == [file.id] and not b.files.list().data
        with pytest.raises(NotFoundError):
            b.files.retrieve(file.id)
        assert a.whoami().organization.id != b.whoami().organization.id  # type: ignore[union-attr]


def test_fireworks_names_everything_by_its_account(running: Sandbox) -> None:
    from fireworks import Fireworks, PermissionDeniedError

    url = running.env["FIREWORKS_BASE_URL"]
    a, b = (Fireworks(api_key=f"sandbox-{k}", base_url=url, max_retries=0) for k in ("a", "b"))
    with a, b:
        [mine], [theirs] = (list(c.accounts.list()) for c in (a, b))
        assert mine.name != theirs.name
        account = str(mine.name).removeprefix("accounts/")
        for client, wanted in ((a, account), (b, str(theirs.name).removeprefix("accounts/"))):
            client.datasets.create(
                account_id=wanted, dataset_id="rows", dataset={"format": "CHAT", "exampleCount": "12"}
            )  # one name in two accounts
        assert len(list(a.datasets.list(account_id=account))) == 1
        with pytest.raises(PermissionDeniedError):
            list(b.datasets.list(account_id=account))
