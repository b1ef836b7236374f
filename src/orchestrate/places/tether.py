"""A worker tied to its parent: `python -m orchestrate.places.tether RUN_DIR`. It ends at once when its
parent has ended, for whatever reason: a worker that nobody watches reports to nobody but still bills."""

from __future__ import annotations

import os
import sys
import threading


def watch() -> None:
    """Exit this process when its parent has ended. The parent holds the other end of this process's
    standard input and writes nothing."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=watch, daemon=True).start()
    from orchestrate.local.run.worker import main

    raise SystemExit(main(sys.argv[1]))
