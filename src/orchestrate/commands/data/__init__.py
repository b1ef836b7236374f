"""Training data in files, and records of what a model answered."""
