"""Tuned models in use, for the command line."""
