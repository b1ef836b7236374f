"""Runs, kept: the store, the submit protocol, the sync with the hosts and the watcher.

The names load their module when first used: the store brings SQLAlchemy with it, which only commands that
touch runs should pay for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.attributes import late

if TYPE_CHECKING:
    from orchestrate.tracking.store import Store as Store
    from orchestrate.tracking.submitting.repeats import stored_spec as stored_spec
    from orchestrate.tracking.submitting.submit import Submitter as Submitter
    from orchestrate.tracking.submitting.submit import cancel as cancel
    from orchestrate.tracking.submitting.submit import settle as settle
    from orchestrate.tracking.syncing.recovery import recover as recover
    from orchestrate.tracking.syncing.sweep import SyncReport as SyncReport
    from orchestrate.tracking.syncing.sweep import refresh as refresh
    from orchestrate.tracking.syncing.sweep import sync as sync
    from orchestrate.tracking.timing import Timing as Timing
    from orchestrate.tracking.timing import settle_left_s as settle_left_s
    from orchestrate.tracking.watching.polling import Pace as Pace
    from orchestrate.tracking.watching.watcher import Watcher as Watcher

_PUBLIC = {
    "Pace": "watching.polling",
    "Store": "store",
    "Submitter": "submitting.submit",
    "SyncReport": "syncing.sweep",
    "Timing": "timing",
    "Watcher": "watching.watcher",
    "cancel": "submitting.submit",
    "recover": "syncing.recovery",
    "refresh": "syncing.sweep",
    "settle": "submitting.submit",
    "stored_spec": "submitting.repeats",
    "settle_left_s": "timing",
    "sync": "syncing.sweep",
}


__getattr__ = late(__name__, _PUBLIC)
