"""Former name of `orchestrate.data.rows`, for compatibility with plug-ins."""

from __future__ import annotations

import sys

from orchestrate.data import rows

sys.modules[__name__] = rows
