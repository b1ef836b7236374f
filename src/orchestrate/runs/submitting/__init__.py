"""Submits that create exactly one job each."""
