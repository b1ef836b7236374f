"""The commands of `orchestrate data`, one module each."""
