"""What goes with each question to a model, and what of it the model turned out not to take."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from orchestrate.errors import InvalidRequest

NOT_TAKEN = frozenset({"unsupported_value", "unsupported_parameter"})
"""OpenAI's codes for a field of the request, named in `param`, that this model does not take."""
OTHER_NAMES = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
"""Two names for the most tokens of an answer: models that think take the second, older servers the first."""
FREE = "temperature"
"""May be left out: the model then draws as it does on its own."""


@dataclass
class Wishes:
    """Shared by all threads that ask one model: what is refused once is not sent again."""

    _instead: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    """A field, and the one to send in its place, where there is one."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options as the model takes them, as far as is known."""
        instead = {name: self._instead.get(name, name) for name in options}
        return {new: options[name] for name, new in instead.items() if new is not None}

    def learn(self, error: InvalidRequest, sent: dict[str, Any]) -> bool:
        """Whether asking again without what was refused can help."""
        refused = error.param
        if error.code not in NOT_TAKEN or refused is None or refused not in sent:
            return False
        with self._lock:
            if refused == FREE:
                self._instead[FREE] = None
                return True
            other = OTHER_NAMES.get(refused)
            if other is None or self._instead.get(other) == refused:
                return False
            self._instead[refused] = other
            return True

    def notes(self, options: dict[str, Any]) -> tuple[str, ...]:
        """What of these options was not sent as it is."""
        found: list[str] = []
        for name, other in self._instead.items():
            if name in options and other is None:
                found.append(
                    f"asked without {name}, which the model does not take: it drew as it does on its own"
                )
            elif name in options:
                found.append(f"asked with {other} in the place of {name}, which the model does not take")
        return tuple(found)
