"""The tracked runs: listed, followed, and what they cost."""
