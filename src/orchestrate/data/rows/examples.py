"""A former name of `orchestrate.data.rows`, kept for plug-ins."""

from __future__ import annotations

import sys

from orchestrate.data import rows

sys.modules[__name__] = rows
