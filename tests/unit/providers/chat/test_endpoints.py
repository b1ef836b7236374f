"""Where a model is asked, by what the user writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.paths import TINY

from orchestrate.errors import UsageError
from orchestrate.providers.chat import model_at
from orchestrate.settings import config


def settings(folder: Path, **env: str) -> config.Settings:
    return config.load(env={"ORCHESTRATE_KEYS": str(folder / "k"), **env}, cwd=folder, home=folder)


@pytest.mark.parametrize(
    ("written", "fix"),
    [
        ("tiny-chat", "specify the host: local=tiny-chat"),
        (str(TINY), f"specify the host: local={TINY}"),
        ("qwen3-8b", "local=qwen3-8b"),
        ("qwen3-8b", "together=Qwen/Qwen3-8B"),
    ],
)
def test_a_model_that_the_first_host_has_not_is_told_by_whom_it_is_answered(
    tmp_path: Path, written: str, fix: str
) -> None:
    with pytest.raises(UsageError, match="is not a model of") as refused:
        model_at(settings(tmp_path), written)
    assert fix in str(refused.value.fix)


def test_what_that_host_may_have_is_asked_of_it(tmp_path: Path) -> None:
    for written in ("gpt-4o-mini", "text-embedding-3-small", "ft:gpt-4o-mini-2024-07-18:us::1"):
        assert model_at(settings(tmp_path), written).host.name == "openai"
    # A server of one's own at its address may have any model.
    own = settings(tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert model_at(own, "qwen3-8b").address == "http://127.0.0.1:9/v1"
