"""Runs, kept: the store, the submit protocol, the sync with the hosts and the watcher.

The names load their module when first used: the store brings SQLAlchemy with it, which only commands that
touch runs should pay for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.attributes import late

if TYPE_CHECKING:
    from orchestrate.tracking.polling import Pace as Pace
    from orchestrate.tracking.recovery import recover as recover
    from orchestrate.tracking.store import Store as Store
    from orchestrate.tracking.submit import Submitter as Submitter
    from orchestrate.tracking.submit import cancel as cancel
    from orchestrate.tracking.submit import settle as settle
    from orchestrate.tracking.submit import stored_spec as stored_spec
    from orchestrate.tracking.sweep import SyncReport as SyncReport
    from orchestrate.tracking.sweep import refresh as refresh
    from orchestrate.tracking.sweep import sync as sync
    from orchestrate.tracking.timing import Timing as Timing
    from orchestrate.tracking.timing import settle_left_s as settle_left_s
    from orchestrate.tracking.watcher import Watcher as Watcher

_PUBLIC = {
    "Pace": "polling",
    "Store": "store",
    "Submitter": "submit",
    "SyncReport": "sweep",
    "Timing": "timing",
    "Watcher": "watcher",
    "cancel": "submit",
    "recover": "recovery",
    "refresh": "sweep",
    "settle": "submit",
    "stored_spec": "submit",
    "settle_left_s": "timing",
    "sync": "sweep",
}


__getattr__ = late(__name__, _PUBLIC)
