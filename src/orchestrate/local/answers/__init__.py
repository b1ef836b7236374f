"""Answers of a base model and of adapters on it, from a separate process."""
