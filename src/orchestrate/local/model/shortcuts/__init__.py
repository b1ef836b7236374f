"""Faster replacements for library code. Each is used only if a check shows that the model supports it."""
