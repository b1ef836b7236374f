"""What an account may spend and owns, what serves a model, and what a job that is held has done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fireworks as fireworks_sdk
import pytest
from fireworks import Fireworks
from tests import loopback
from together import Together

from orchestrate.sandbox.server import Sandbox

Until = Callable[[Callable[[], Any]], Any]
MODEL = "Qwen/Qwen3.5-9B"


@pytest.fixture
def file(together: Together, write: Callable[..., Path], tmp_path: Path, until: Until) -> str:
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": tmp_path.name}]}
        for n in range(40)
    ]
    id = together.files.upload(write(rows), purpose="fine-tune", check=False).id
    until(lambda: together.files.retrieve(id).processing_status == "COMPLETED")
    return id


def test_the_credit_of_the_account_is_set_over_http(sandbox: Sandbox, together: Together, file: str) -> None:
    account = f"{sandbox.urls['together']}/_sandbox/account"
    before = loopback.get(account).json()["credit_usd"]
    try:
        assert loopback.post(account, json={"credit_usd": 3}).json() == {"sandbox": True, "credit_usd": 3}
        told = together.fine_tuning.estimate_price(training_file=file, model=MODEL)
        assert (told.allowed_to_proceed, told.user_limit, told.estimated_total_price) == (False, 3, 4)
        assert loopback.post(account, json={"credit": 3}).status_code == 400
    finally:
        loopback.post(account, json={"credit_usd": before})
    assert together.fine_tuning.estimate_price(training_file=file, model=MODEL).allowed_to_proceed is True


def test_a_key_belongs_to_one_project(together: Together, sandbox: Sandbox) -> None:
    who = together.whoami()
    assert who.type == "project_api_key"
    assert who.project.id == sandbox.env["TOGETHER_PROJECT_ID"]


def test_shapes_are_matched_to_a_model(fireworks: Fireworks) -> None:
    base = "accounts/fireworks/models/qwen3-8b"

    def names(addons: bool) -> list[str]:
        match = fireworks.deployment_shape_versions.match_for_model(base, enable_addons=addons)
        found = [version.snapshot for version in match.deployment_shape_versions or []]
        assert all(shape and shape.base_model == base for shape in found)
        return [str(shape.name).rsplit("/", 1)[-1] for shape in found if shape]

    assert names(False) == ["qwen3-8b-minimal", "qwen3-8b-full_precision"]
    assert names(True) == ["qwen3-8b-full_precision"]
    with pytest.raises(fireworks_sdk.NotFoundError):
        fireworks.deployment_shape_versions.match_for_model("accounts/fireworks/models/nothing")


def test_a_cancelled_job_has_done_what_it_had_done(
    file: str, slow_clock: Sandbox, together: Together
) -> None:
    id = together.fine_tuning.create(training_file=file, model=MODEL, n_epochs=4).id
    hour = 3600.0
    slow_clock.skip(2.0 / slow_clock.clock.speed)
    while together.fine_tuning.retrieve(id).status != "running":
        slow_clock.skip(0.2 / slow_clock.clock.speed)
    slow_clock.skip(2.5 / slow_clock.clock.speed)
    together.fine_tuning.cancel(id)
    slow_clock.skip(1000 * hour)
    ended = together.fine_tuning.retrieve(id)
    assert ended.status == "cancelled"
    assert 0 < ended.steps_completed < ended.total_steps  # type: ignore[attr-defined]
    assert 0 < (ended.total_price or 0) < 4_000_000_000, "only the steps that were made are billed"
