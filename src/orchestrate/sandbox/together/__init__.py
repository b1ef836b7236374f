"""The stand-in for Together."""
