"""Requests that cost money. They all share one journal, cost limit, retry policy and count."""
