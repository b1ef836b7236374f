"""Answers of a loaded model."""
