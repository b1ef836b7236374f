"""This machine as a backend: `orchestrate.local` trains, in processes of its own."""

from orchestrate.providers.local.provider import LocalProvider

__all__ = ["LocalProvider"]
