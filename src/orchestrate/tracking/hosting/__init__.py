"""Deployments, kept: their states, their rows in the store, what makes and ends them, and their upkeep."""
