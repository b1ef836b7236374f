"""Run a worker that exits when its parent process exits, because an orphaned worker would continue to be
billed. Usage: `python -m orchestrate.places.parent_watch RUN_DIR`."""

from __future__ import annotations

import sys

from orchestrate.core import child

if __name__ == "__main__":
    child.end_with_input()
    from orchestrate.local.run.worker import main

    raise SystemExit(main(sys.argv[1]))
