"""Commands for training data and recordings of model answers."""
