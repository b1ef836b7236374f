"""Hyperparameter sweeps. `space` and `sampling` are pure functions: the search space, the next trial, and
which trials to stop. `searching` starts a sweep, and `trials` creates its runs."""
