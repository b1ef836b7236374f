"""Zstandard from the standard library (Python 3.14 and later) or its backport."""

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd  # pyright: ignore[reportMissingTypeStubs]  # backports.tarfile may be beside

__all__ = ["zstd"]
