"""A client for the process that holds the models of training sessions. Torch-free."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from orchestrate.core.child import Child, Ended, python
from orchestrate.errors import OrchestrateError
from orchestrate.local.run import launching

Take = Callable[[dict[str, Any]], None]


class SessionWorker(Child):
    """A client for the process that holds the models. Raises the errors of loading the base."""

    def __init__(self, opening: Mapping[str, Any]) -> None:
        threads = opening.get("threads")
        env = launching.worker_environment(threads if isinstance(threads, int) else None)
        name = "the process that trains"
        super().__init__(python("orchestrate.local.sessions.process"), env=env, name=name)
        try:
            self.opened = self.ask({"op": "open", "id": "", **opening})
        except OrchestrateError:
            self.close(0)
            raise

    def follow(self, deliver: Take, lost: Callable[[str], None]) -> None:
        """Call `deliver` in a thread for each answer, and `lost` once when the process has ended."""
        reader = threading.Thread(target=self._follow, args=(deliver, lost), daemon=True, name="sessions")
        reader.start()

    def _follow(self, deliver: Take, lost: Callable[[str], None]) -> None:
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        try:
            while True:
                deliver(decode(self.receive()))
        except Ended as ended:
            self.close(0)
            lost(ended.message)
