"""Setup: backends, base models, this machine, the sandbox, and problems with them."""
