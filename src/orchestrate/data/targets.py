"""Former name of `orchestrate.data.dialects`, as `orchestrate.data.targets.dialects`, for compatibility with
plug-ins."""

from __future__ import annotations

import sys

from orchestrate.data import dialects

sys.modules[f"{__name__}.dialects"] = dialects
