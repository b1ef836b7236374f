"""Optimizations over the libraries' code. Each is used only after a check that the model supports it."""
