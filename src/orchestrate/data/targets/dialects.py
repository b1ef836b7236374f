"""Former name of `orchestrate.data.dialects`, for compatibility with plug-ins."""

from __future__ import annotations

import sys

from orchestrate.data import dialects

sys.modules[__name__] = dialects
