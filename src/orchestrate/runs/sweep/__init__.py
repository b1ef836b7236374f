"""Searches of settings. `space` and `sampling` are pure: what may vary, which trial comes next, which one is
given up. `searching` begins a search, and `trials` makes its runs."""
