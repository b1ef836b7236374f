"""Going on with it for as long as wanted, and telling when a run ends."""
