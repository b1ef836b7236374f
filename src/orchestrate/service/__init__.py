"""The service: the only joiner of the rooms, and all that the commands talk to.

    with Orchestrator() as ft:
        run = ft.submit(spec, provider="together", max_cost_usd=25)
        run.wait(on_event=print)

What needs no store and no backend lies in modules of its own. The names load their module when first used:
whoever needs one of those modules does not load the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.attributes import late

if TYPE_CHECKING:
    from orchestrate.api.orchestrator import Backends, Orchestrator

__all__ = ["Backends", "Orchestrator"]


__getattr__ = late("orchestrate", dict.fromkeys(__all__, "api.orchestrator"))
