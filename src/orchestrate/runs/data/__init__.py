"""Training data in files, and rows that a model writes."""
