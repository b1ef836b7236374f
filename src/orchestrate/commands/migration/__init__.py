"""Commands that import past jobs and migrate models."""
