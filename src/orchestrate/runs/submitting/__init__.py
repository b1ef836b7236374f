"""Exactly one job for each submit."""
