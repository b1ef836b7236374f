"""Going on with it as long as needed, and telling when a run ends."""
