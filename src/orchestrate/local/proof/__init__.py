"""Prompts by which a tuned model is known again wherever it is served."""
