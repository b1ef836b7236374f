"""A tuned model written out for engines elsewhere."""
