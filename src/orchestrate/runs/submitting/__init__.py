"""Create exactly one job per submit."""
