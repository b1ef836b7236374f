"""A worker tied to its parent: `python -m orchestrate.places.tether RUN_DIR`. It ends at once when its
parent has ended, for whatever reason: a worker that nobody watches reports to nobody but still bills."""

from __future__ import annotations

import sys

from orchestrate.core import child

if __name__ == "__main__":
    child.end_with_input()
    from orchestrate.local.run.worker import main

    raise SystemExit(main(sys.argv[1]))
