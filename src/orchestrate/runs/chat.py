"""Chat with a tuned model on its host or on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate.errors import DataError, UsageError
from orchestrate.providers.base import AnswersHere, Downloads, capability
from orchestrate.types import Message, Reply

if TYPE_CHECKING:
    from orchestrate.local.answers.generation import Generator
    from orchestrate.runs.tracked import TrackedRun

PLACES = ("auto", "host", "here")
_LOOKED_AT = 200
_MOSTLY = 0.9


class Talk:
    """A chat with the tuned model of one run. If the model runs on this machine, it is loaded once and its
    responses are streamed. Call `close` when done."""

    def __init__(self, handle: TrackedRun, on: str = "auto", at: str | None = None) -> None:
        """Start the chat. `on="host"` queries the run's host, `here` downloads the adapter and runs the model
        on this machine, and `auto` uses the backend that trained the run. Raises `UsageError`, and the errors
        of `check` and `download`."""
        if on not in PLACES:
            raise UsageError(f"--on must be one of {', '.join(PLACES)} (got {on!r})")
        if on == "here" and at is not None:
            raise UsageError(
                "--at selects another host, but --on here selects this machine. Use only one of them"
            )
        handle.check()
        self._handle, self._at = handle, at
        self._own: Generator | None = None
        self._here = None if on == "host" or at is not None else self._generator(here=on == "here")

    def close(self) -> None:
        if self._own is not None:
            self._own.close()

    def ask(
        self, conversation: Sequence[Message], on_text: Callable[[str], object] | None = None, **options: Any
    ) -> Reply:
        """Request the model's next message and return it. `on_text` is called with the text as it streams."""
        if self._here is None or on_text is None:
            if self._own is not None:
                return self._own.generate([conversation], **options)[0]
            return self._handle.chat(conversation, at=self._at, tell=on_text, **options)
        pieces = self._here.stream(conversation, **options)
        while True:
            try:
                on_text(next(pieces))
            except StopIteration as end:
                return end.value

    def _generator(self, *, here: bool) -> Generator | None:
        provider = self._handle.provider
        if isinstance(provider, AnswersHere):
            return provider.generator(self._handle.record.handle)
        if not here:
            return None
        from orchestrate.local import Generator
        from orchestrate.providers.files import required_base

        capability(provider, Downloads)
        artifact = self._handle.download()
        self._own = Generator(required_base(artifact), adapter=Path(artifact.folder))
        return self._own


def system_message(handle: TrackedRun) -> str | None:
    """Return the system message that nearly all of the first training rows share. Returns `None` if they
    don't share one, or if the training data can't be read."""
    from orchestrate.data import Dataset
    from orchestrate.data.dataset_reader import applicable_columns
    from orchestrate.data.rows import ChatExample
    from orchestrate.spec import JobSpec

    seen: Counter[str | None] = Counter()
    try:
        spec = JobSpec.parse(handle.record.spec)
        train = spec.train_files[0].path
        data = Dataset.open(train, columns=applicable_columns(train, spec.renaming))
        for example in islice(data.examples(), _LOOKED_AT):
            first = example.messages[0] if isinstance(example, ChatExample) and example.messages else None
            has_system = first is not None and first.role in ("system", "developer")
            seen[first.text if has_system and first is not None else None] += 1
    except (DataError, UsageError, OSError):
        return None
    [(text, times)] = seen.most_common(1) or [(None, 0)]
    return text if text and times >= _MOSTLY * seen.total() else None
