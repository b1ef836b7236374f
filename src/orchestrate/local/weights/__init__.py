"""Weights put together, written out and tried, in processes of their own: merging, exporting, proving."""
