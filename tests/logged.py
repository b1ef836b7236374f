"""What is logged within a test."""

from __future__ import annotations

import logging


class Logged(logging.Handler):
    """What is logged, down to the details. Pytest's own catcher looks through all loggers of the libraries
    six times in each test, and is not loaded."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def text(self) -> str:
        return "\n".join(map(self.format, self.records))
