"""What comes before a run and starts it."""
