"""Rows as token ids with the weight of each token in the loss."""
