"""How a host is called, and how its answers are read."""
