"""How much memory training takes, by part, and what to change so that it fits."""
