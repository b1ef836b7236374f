"""What there is to work with: backends, base models, this machine, the sandbox; and what is wrong with it."""
