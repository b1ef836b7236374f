"""Export a tuned model for other engines."""
