"""Verify that the served model is the one that was trained."""
