"""A run directory, the worker process that trains in it, its loop, checkpoints and export."""
