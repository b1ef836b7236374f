"""Canonical examples out again, in the format that a host or a tool reads."""
