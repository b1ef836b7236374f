"""What the SDKs and their HTTP libraries log, without secrets, at every level and whoever listens.

The SDKs mask their own `Authorization` header and nothing else: at DEBUG they and httpx write down request
bodies with the keys that are passed on (W&B), and signed URLs, which are as good as a key while they last.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from orchestrate.profile import built_in
from orchestrate.providers.calls.payloads import redact_text

_ROOMS = (*built_in(), "httpx", "httpx2", "httpcore", "httpcore2", "orchestrate")
"""The hosts' SDKs log under their kinds."""
_lock = threading.Lock()
_formatter = logging.Formatter()


def guard() -> None:
    """Masks all records of these libraries from now on; a second call does nothing. Other libraries' records
    are left alone."""
    with _lock:
        made = logging.getLogRecordFactory()
        if not isinstance(made, _Masked):
            logging.setLogRecordFactory(_Masked(made))


class _Masked:
    def __init__(self, made: Any) -> None:
        self._made = made

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._made(*args, **kwargs)
        if record.name.partition(".")[0] in _ROOMS:
            try:
                record.msg, record.args = redact_text(record.getMessage()), ()
            except Exception:  # noqa: BLE001  logging itself tells of a record that does not fit its arguments
                return record
            if record.exc_info:
                # What a handler makes of it is kept in `exc_text`, and taken from there when it is set.
                record.exc_text = redact_text(_formatter.formatException(record.exc_info))
        return record
