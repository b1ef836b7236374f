"""A spec before and at its start: advice, checks, plans, quotes, the submit."""
