"""The simulated Tinker."""
