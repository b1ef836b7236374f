"""Lists: their pages, and places in them that there are not."""

from __future__ import annotations

import pytest
from openai import OpenAI
from tests.unit.gateway.conftest import ASKED, Gateway, ended, rows


@pytest.fixture(scope="module")
def tuned(gateway: Gateway) -> tuple[str, str]:
    with gateway.client() as client:
        file = client.files.create(file=("t.jsonl", rows(mark="pages")), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model=ASKED, training_file=file.id)
        return job.id, ended(client, job.id).fine_tuned_model


@pytest.mark.slow
def test_a_list_behind_an_id_that_is_not_in_it_is_refused(gateway: Gateway, tuned: tuple[str, str]) -> None:
    """An empty page would say that there is nothing more."""
    job, model = tuned
    lists = ["files", "fine_tuning/jobs", f"fine_tuning/jobs/{job}/events"]
    lists += [f"fine_tuning/jobs/{job}/checkpoints", f"fine_tuning/checkpoints/{model}/permissions"]
    with gateway.http() as http:
        for path in lists:
            for after in ("none", "\0", model):
                answer = http.get(path, params={"after": after})
                assert answer.status_code in (404, 422), (path, answer.text)
                assert answer.json()["error"]["param"] == "after"
                assert answer.headers["x-should-retry"] == "false"


def test_permissions_come_by_pages_in_either_order(openai: OpenAI, tuned: tuple[str, str]) -> None:
    _, model = tuned
    permissions = openai.fine_tuning.checkpoints.permissions
    made = [permissions.create(model, project_ids=[f"p{n}"]).data[0].id for n in range(3)]
    assert [one.id for one in permissions.list(model, order="ascending")] == made
    assert [one.id for one in permissions.list(model)] == made[::-1]
    first = permissions.list(model, limit=2)
    assert [one.id for one in first.data] == made[:0:-1] and first.has_more
    assert [one.id for one in permissions.list(model, limit=2, after=made[1]).data] == made[:1]
    assert [one.id for one in permissions.list(model, project_id="p1").data] == [made[1]]
    for one in permissions.list(model).data:
        permissions.delete(one.id, fine_tuned_model_checkpoint=model)


def test_jobs_and_events_come_by_pages(openai: OpenAI, tuned: tuple[str, str]) -> None:
    job, _ = tuned
    every = [event.id for event in openai.fine_tuning.jobs.list_events(job, limit=100).data]
    paged = [event.id for event in openai.fine_tuning.jobs.list_events(job, limit=2)]
    assert paged == every and len(set(every)) == len(every) > 4
