"""Local backend. The engine in `orchestrate.local` trains on this machine, in separate processes."""

from __future__ import annotations

from orchestrate.data.dialects import CANONICAL
from orchestrate.data.rows.traits import Trait
from orchestrate.data.rules import EVERY_KIND, HostRules, refused
from orchestrate.profile import HUB_ID, Profile

# The profile of this machine. It trains open weights from the Hub or from a folder, only on text, and its
# quotes use an hourly price.


PROFILE = Profile(
    kind="local",
    title="This machine",
    provider="orchestrate.providers.local.sessions:StepwiseProvider",
    rank=3,
    keyless=True,
    near=True,
    rules=HostRules(
        kinds=EVERY_KIND,
        traits={
            Trait.IMAGES: refused("no-vision", "the local engine trains only on text", "remove the images"),
        },
    ),
    dialect=CANONICAL,
    ids=HUB_ID,
    default_epochs=3,
    options=frozenset({"threads", "device", "gpu_memory_gib"}),
    unbilled_failure=lambda job: job.started_at is None,
)
