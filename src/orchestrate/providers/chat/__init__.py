"""Asking a model through the chat completions API."""
