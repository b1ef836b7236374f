"""Counting tokens: which counter a model has, counts by file and model kept for the next time."""
