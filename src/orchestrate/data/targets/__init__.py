"""Former name of `orchestrate.data`, for compatibility with plug-ins."""
