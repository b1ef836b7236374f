"""Backends that can train. `base` is the contract, `registry` finds them; one module each."""
