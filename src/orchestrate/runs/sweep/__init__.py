"""Searches of settings: what may vary, which trial comes next, and which one is given up. Pure: no run is
made here (`orchestrate.runs.sweep.searching` does)."""
