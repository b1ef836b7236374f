"""Tinker: training sessions alone. There are no jobs to submit, so it is in no list of backends for jobs."""

from __future__ import annotations

from orchestrate.profile import HUB_ID, Profile

PROFILE = Profile(
    kind="tinker",
    title="Tinker",
    provider="orchestrate.providers.tinker.sessions:TinkerProvider",
    rank=50,
    ids=HUB_ID,
    url="https://tinker.thinkingmachines.dev/services/tinker-prod",
    key_variable="TINKER_API_KEY",
    sdk="tinker",
    options=frozenset(),
)
