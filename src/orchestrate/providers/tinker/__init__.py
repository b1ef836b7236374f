"""Tinker: training sessions, and jobs that run a recipe in a session. Lists of job backends don't include
Tinker, so users must select it by name."""

from __future__ import annotations

from orchestrate.data.dialects import CANONICAL
from orchestrate.data.rows.traits import Trait
from orchestrate.data.rules import EVERY_KIND, NO_KTO, HostRules, refused
from orchestrate.profile import HUB_ID, Profile

PROFILE = Profile(
    kind="tinker",
    title="Tinker",
    provider="orchestrate.providers.tinker.sessions:TinkerProvider",
    rank=50,
    rules=HostRules(
        kinds={**EVERY_KIND, "unpaired": f"Tinker {NO_KTO}"},
        traits={Trait.IMAGES: refused("no-vision", "recipes train on text only", "remove the images")},
    ),
    dialect=CANONICAL,
    default_epochs=3,
    own_rates=("session_train", "session_prefill", "session_sample"),
    ids=HUB_ID,
    url="https://tinker.thinkingmachines.dev/services/tinker-prod",
    key_variable="TINKER_API_KEY",
    sdk="tinker",
    options=frozenset(),
)
