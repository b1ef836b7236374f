"""The stand-in for Fireworks."""
