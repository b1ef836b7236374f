"""A former name of `orchestrate.data`, kept for plug-ins."""
