"""Setup: backends, base models, this machine, the sandbox, and diagnostics."""
